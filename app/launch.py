"""The app beside a notebook: served by a process of its own, which ends with the notebook's."""

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
from typing import Self

from natscope.app.listen import listening
from natscope.app.worker import end_with_parent
from natscope.core.bundle.format import Bundle, find_bundles
from natscope.core.errors import BundleError, QueryError

_HOST = "127.0.0.1"
_START, _LOOK, _END = 120.0, 0.2, 10.0  # seconds to start, between two looks, and to end


class AppSession:
    """An app that is being served; it ends with `close`, at the end of a `with` block, or with this process.

    Args:
        url: the address to open in a browser of this machine.
        process: what serves it.
    """

    def __init__(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        """Keep the process."""
        self.url, self._process = url, process

    @property
    def running(self) -> bool:
        """Whether the app is still served."""
        return self._process.poll() is None

    def close(self) -> None:
        """Stop serving; nothing happens if it has stopped."""
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
        port: to listen on; a free one when None.

    Returns:
        A session with the address `url`, and `close()`; it can be used in a `with` statement.

    Raises:
        BundleError: if there is no bundle.
        QueryError: if the port is in use, or the app does not start.

    Examples:
        >>> with natscope.launch("bundles/fashion-mnist") as session:
        ...     session.url.startswith("http://127.0.0.1:")
        True
    """
    folder = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    if not folder.is_dir() or not find_bundles(folder):
        raise BundleError(f"There is no bundle in {folder}; natscope.build makes one.")
    at = listening(_HOST, _free_port() if port is None else port)
    # No child process may look for modules in the working directory, which may be a stranger's.
    environment = os.environ | {"PYTHONSAFEPATH": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "natscope.app.launch", str(folder.resolve()), str(at.port), str(os.getpid())]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        session = AppSession(at.url, process)
        began = time.monotonic()
        while not _answers(at.url):
            if not session.running or time.monotonic() - began > _START:
                session.close()
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
                raise QueryError(f"The app does not start: {said[-1].rstrip('.')}.")
            time.sleep(_LOOK)
    return session


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
