"""A served app in a process of its own: its address, its memory and its processor time."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import click
import psutil

_PATIENCE = 60.0  # seconds until it must answer


@dataclass(frozen=True)
class Served:
    """The port that it listens on, its process, and the file that it logs to."""

    port: int
    process: psutil.Process
    log: IO[bytes]

    def memory(self) -> tuple[float, float]:
        """Return MiB of all its processes: what they hold themselves, and pages of files that they map.

        What they hold themselves must stay in memory as long as they do; pages of files, of a bundle or a library, the
        system drops when it needs the room. A page that several processes share counts once (Linux's `Pss_Anon` and
        `Pss_File`). Elsewhere all counts as held that a process shares with no other, its pages of files included.
        """
        held, files = 0, 0
        for process in self._tree():
            with suppress(psutil.Error, OSError):
                rollup = Path(f"/proc/{process.pid}/smaps_rollup")
                if not rollup.exists():
                    held += process.memory_full_info().uss
                    continue
                kib = dict(re.findall(r"^(Pss_\w+): +(\d+) kB", rollup.read_text(), re.MULTILINE))
                held, files = held + 1024 * int(kib["Pss_Anon"]), files + 1024 * int(kib["Pss_File"])
        return held / 2**20, files / 2**20

    def seconds(self) -> float:
        """Return the processor seconds of all its processes, those that have ended too."""
        total = 0.0
        for process in self._tree():
            with suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])
        return total

    def crashes(self) -> list[str]:
        """Return the last lines of the tracebacks in its log."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").split("\n")
        traced, found = False, []
        for line in lines:
            if traced and line and not line.startswith(" "):
                found.append(line)
            traced = line.startswith("Traceback") or (traced and line.startswith(" "))
        return found

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return [self.process, *self.process.children(recursive=True)]
        return []


@contextmanager
def serving(
    bundle: Path, *, command: Sequence[str] = (sys.executable, "-m", "natscope.app.cli"), home: Path | None = None
) -> Iterator[Served]:
    """Serve a bundle, or a folder of them, at a free port of the loopback interface until the block is left.

    Args:
        bundle: or a folder of bundles.
        command: what `natscope` is.
        home: where the server keeps what it computes; the user's own folder when None.

    Raises:
        ClickException: if the server does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*command, "app", "--bundles", str(bundle), "--port", str(port), "--no-browser"]
    environment = os.environ if home is None else os.environ | {"NATSCOPE_HOME": str(home)}
    with TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            if not _answers(port, process):
                log.seek(0)
                raise click.ClickException(f"The server did not start: {log.read().decode(errors='replace')[-500:]}")
            yield Served(port, psutil.Process(process.pid), log)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < _PATIENCE:
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5).close()  # nosec B310 # http, this machine
            return True
        time.sleep(0.2)
    return False
