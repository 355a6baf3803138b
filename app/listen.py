"""Where the server listens, and the names that it answers to."""

import errno
import ipaddress
import re
import socket
from dataclasses import dataclass

from natscope.core.errors import QueryError

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,252})")
_PATH = re.compile(r"([\w-]+(/[\w-]+)*)?", re.ASCII)


@dataclass(frozen=True)
class Listening:
    """An address of this machine that the server can listen at.

    Args:
        host: as it was typed, for the address that people open.
        address: the IP address of it.
        port: to listen on.
        names: what the server answers to in the header Host, without port.
        path: folder of every page, without slashes at its ends; empty for none.
    """

    host: str
    address: str
    port: int
    names: tuple[str, ...]
    path: str

    @property
    def everywhere(self) -> bool:
        """Whether it listens at every address of this machine."""
        return ipaddress.ip_address(self.address).is_unspecified

    @property
    def exposed(self) -> bool:
        """Whether anyone but this machine can reach it."""
        return not ipaddress.ip_address(self.address).is_loopback

    @property
    def url(self) -> str:
        """The address to open on this machine."""
        host = "localhost" if self.everywhere else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}" + (f"/{self.path}" if self.path else "")

    @property
    def meaning(self) -> str:
        """What listening there means, in two sentences."""
        where = f"port {self.port} of this machine" if self.everywhere else self.url
        return (
            f"Anyone who reaches {where} can see the training images of the bundles and use this machine's time. "
            "Put it behind a proxy with authentication: docs/serving.md says how."
        )


def listening(host: str, port: int, allowed: tuple[str, ...] = (), path: str = "") -> Listening:
    """Return where to listen, after checking that it works.

    Args:
        host: name or IP address of this machine.
        port: to listen on.
        allowed: further names to answer to, such as a proxy's.
        path: folder under which a proxy serves the app, such as /natscope.

    Raises:
        QueryError: if the host is not an address of this machine, the port is in use or reserved, or a name or the path
            is not valid.
    """
    if not _PATH.fullmatch(path.strip("/")):
        raise QueryError(f"--base-path takes letters, digits, '-' and '_' between slashes, not {path!r}.")
    host = host.lower().removeprefix("[").removesuffix("]")
    names = [_name(name) for name in allowed]
    address = _resolve(host, port)
    _try(host, address, port)
    if ipaddress.ip_address(address).is_unspecified:
        names.append(socket.gethostname().lower())
    return Listening(host, address, port, (*LOOPBACK, host, address, *names), path.strip("/"))


def _name(text: str) -> str:
    name = text.lower().removeprefix("[").removesuffix("]").rstrip(".")
    if not (_NAME.fullmatch(name) or is_address(name)):
        raise QueryError(
            f"--allowed-host takes a name or an IP address, without scheme, port or path, such as "
            f"natscope.example.org, not {text!r}."
        )
    return name


def _resolve(host: str, port: int) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM) if host else []
    except (OSError, ValueError) as error:  # no such name, or it is too long
        raise _not_here(host, error) from error
    if not found:
        raise _not_here(host)
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def _try(host: str, address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((address, port))
        with socket.socket(family) as probe:  # some systems let two servers share a port
            busy = probe.connect_ex((address, port)) == 0
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise QueryError(f"Port {port} is reserved for administrators; choose another with --port.") from error
        if error.errno != errno.EADDRINUSE:
            raise _not_here(host, error) from error
        busy = True
    if busy:
        raise QueryError(f"Port {port} is in use; stop what uses it, or choose another with --port.")


def _not_here(host: str, error: Exception | None = None) -> QueryError:
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return QueryError(
        f"The app cannot listen at {host!r}{reason}: --host takes localhost, a name or address of this machine, or "
        "0.0.0.0 for all of its addresses."
    )


def is_address(name: str) -> bool:
    """Return whether a name is an IP address, without brackets or port."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
