"""Adding a slow method to a bundle while the app is served from it: a process of its own that yields to everything.

It writes what it is doing to a small file beside the bundle, ends with the process that started it, and goes on where
it was when it is started again. `python -m precompute.background BUNDLE METHOD PARENT` is what `start` runs.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from core.bundle import write_atomically
from core.errors import NatscopeError

_STALE = 120.0  # seconds without a word after which the process counts as gone
_EVERY = 0.5  # seconds between two words


@dataclass(frozen=True)
class Adding:
    """What is being added to a bundle; `share` runs from 0 to 1, `error` is a sentence once it has failed."""

    method: str
    stage: str
    share: float
    error: str = ""


def start(bundle: Path, method: str) -> subprocess.Popen:
    """Start adding a method's parts to a finished bundle of default settings, at the lowest priority."""
    command = [sys.executable, "-m", "precompute.background", str(bundle), method, str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def adding(bundle: Path) -> Adding | None:
    """Tell what is being added to a bundle right now, or has failed; None when nothing is."""
    file = _status(bundle)
    try:
        if time.time() - file.stat().st_mtime > _STALE:
            return None
        return Adding(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def run(bundle: Path, method: str, parent: int) -> None:
    """Add the parts, telling what is done; returns when they are there, when it fails, or when the parent is gone."""
    import torch

    from core.methods import METHODS
    from precompute.build import build
    from precompute.spec import BuildSpec

    if hasattr(os, "nice"):
        os.nice(19)
    torch.set_num_threads(1)
    status, told = _status(bundle), 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal told
        if os.getppid() != parent:
            status.unlink(missing_ok=True)
            sys.exit(1)
        if time.monotonic() - told > _EVERY:
            told = time.monotonic()
            _tell(status, Adding(METHODS[method].title, stage, done / max(total, 1)))

    try:
        progress("Starting", 0, 1)
        build(BuildSpec(methods=(method,)), bundle, progress)
        status.unlink(missing_ok=True)
    except NatscopeError as error:
        _tell(status, Adding(METHODS[method].title, "", 0.0, str(error)))


def _status(bundle: Path) -> Path:
    return bundle.with_name(bundle.name + ".adding.json")


def _tell(file: Path, what: Adding) -> None:
    write_atomically(file, json.dumps(asdict(what)).encode())


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
