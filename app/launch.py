"""The app beside a notebook: served by a process of its own, which ends with the notebook's."""

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from natscope.app.listen import listening
from natscope.app.selected import SELECTED, Selected
from natscope.app.worker import end_with_parent
from natscope.core.bundle.format import Bundle, find_bundles
from natscope.core.bundle.request import is_whole, quoted
from natscope.core.errors import BundleError, QueryError
from natscope.core.scratch import temporary_folder

_HOST = "127.0.0.1"
_LAST_PORT = 65535
_START, _LOOK, _END = 120.0, 0.2, 10.0  # seconds to start, between two looks, and to end


class AppSession:
    """An app that is being served; it ends with `close`, at the end of a `with` block, or with this process.

    Args:
        url: the address to open in a browser of this machine.
        process: what serves it.
        folder: where it writes what is looked at; it lasts as long as this object.
    """

    def __init__(
        self, url: str, process: "subprocess.Popen[bytes]", folder: "tempfile.TemporaryDirectory[str]"
    ) -> None:
        """Keep the process, and end it with this one, however this one ends."""
        self.url, self._process, self._folder = url, process, folder
        atexit.register(self.close)  # a process that is killed runs no such thing: the app looks after it, too

    @property
    def selected(self) -> Selected | None:
        """What the latest visitor looks at, or looked at last: page, bundle, image and tags; None before any has come.

        Examples:
            >>> with natscope.launch("bundles/fashion-mnist") as session:
            ...     print(session.selected)  # nobody has opened the address
            None
        """
        return Selected.read(_selected_in(self._folder))

    @property
    def running(self) -> bool:
        """Whether the app is still served."""
        return self._process.poll() is None

    def close(self) -> None:
        """Stop serving; nothing happens if it has stopped."""
        atexit.unregister(self.close)
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving."""
        self.close()

    def __repr__(self) -> str:
        """Return the address, or that it is closed."""
        return f"AppSession({self.url!r}{'' if self.running else ', closed'})"

    def _repr_html_(self) -> str:
        """Return a link, as notebooks show it."""
        return f'<a href="{self.url}" target="_blank" rel="noopener">{self.url}</a>'


def launch(bundle: Bundle | str | Path, port: int | None = None) -> AppSession:
    """Serve the app in the background, for this machine alone.

    Args:
        bundle: a bundle, its folder, or a folder of bundles.
        port: to listen on, from 1 to 65535; a free one when None.

    Returns:
        A session with the address `url`, what is looked at, `selected`, and `close()`; it can be used in a `with`
        statement.

    Raises:
        BundleError: if there is no bundle.
        QueryError: if the port is in use or is no port number, or the app does not start.

    Examples:
        >>> with natscope.launch("bundles/fashion-mnist") as session:
        ...     session.url.startswith("http://127.0.0.1:")
        True
    """
    if not isinstance(bundle, Bundle | str | Path):
        raise BundleError(f"The app serves a bundle, its folder or a folder of bundles, not {quoted(bundle)}.")
    if port is not None and not (is_whole(port) and 1 <= port <= _LAST_PORT):
        raise QueryError(f"port= takes a whole number from 1 to {_LAST_PORT}, not {quoted(port)}.")
    folder = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    if not folder.is_dir() or not find_bundles(folder):
        raise BundleError(f"There is no bundle in {folder}; natscope.build makes one.")
    try:
        at = listening(_HOST, _free_port() if port is None else int(port))
    except QueryError as error:
        raise QueryError(str(error).replace("--port", "port=")) from error
    # No child process may look for modules in the working directory, which may be a stranger's.
    own = temporary_folder()
    environment = os.environ | {"PYTHONSAFEPATH": "1", "OMP_WAIT_POLICY": "PASSIVE", SELECTED: str(_selected_in(own))}
    command = [sys.executable, "-m", "natscope.app.launch", str(folder.resolve()), str(at.port), str(os.getpid())]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # an interrupt is for this process, a cell of a notebook, say, which goes on
        )
        session = AppSession(at.url, process, own)
        try:
            _wait(session, log)
        except BaseException:
            session.close()
            raise
    return session


def _wait(session: AppSession, log: IO[bytes]) -> None:
    """Return when an app answers; raise QueryError, with the last line of its log, if it ends or takes too long."""
    began = time.monotonic()
    while not _answers(session.url):
        if not session.running or time.monotonic() - began > _START:
            session.close()
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
            raise QueryError(f"The app does not start: {said[-1].rstrip('.')}.")
        time.sleep(_LOOK)


def _selected_in(folder: "tempfile.TemporaryDirectory[str]") -> Path:
    return Path(folder.name) / "selected.json"


def main(folder: str, port: str, parent: str) -> None:
    """Serve a folder of bundles until the process of id `parent` is gone."""
    from natscope.app.serve import serve

    threading.Thread(target=end_with_parent, args=(int(parent),), daemon=True).start()
    serve(Path(folder), listening(_HOST, int(port)), browser=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5) as answer:  # nosec B310  # its own address
            return int(answer.status) == 200
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    main(*sys.argv[1:])
