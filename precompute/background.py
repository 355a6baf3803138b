"""Building what is slow while the app is already served: a process of its own that yields to everything.

It builds the rest of the demo's bundles and adds the slow method to each. It writes what it is doing to a small file
among the bundles, ends with the process that started it, and goes on where it was when it is started again.
`python -P -m precompute.background FOLDER PARENT` is what `start` runs: modules in the working directory are not its.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from core.bundle import Bundle, write_atomically
from core.errors import NatscopeError

_STATUS = "preparing.json"
_STALE = 120.0  # seconds without a word after which the process counts as gone
_PAST = 24 * 3600.0  # seconds for which a failure is told
_EVERY = 0.5  # seconds between two words


@dataclass(frozen=True)
class Preparing:
    """What is being prepared: `what` in words, `share` from 0 to 1, `error` a sentence once it has failed."""

    what: str
    stage: str
    share: float
    error: str = ""


def start(folder: Path) -> subprocess.Popen:
    """Start preparing what is missing of the demo's bundles in a folder, at the lowest priority."""
    command = [sys.executable, "-P", "-m", "precompute.background", str(folder), str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def preparing(folder: Path) -> Preparing | None:
    """Tell what is being prepared in a folder of bundles right now, or has failed; None when nothing is."""
    file = folder / _STATUS
    try:
        found = Preparing(**json.loads(file.read_text(encoding="utf-8")))
        age = time.time() - file.stat().st_mtime
    except (OSError, ValueError, TypeError):
        return None
    return found if age <= (_PAST if found.error else _STALE) else None


def ready(folder: Path) -> bool:
    """Tell whether nothing is being prepared in a folder of bundles because all of it is there."""
    return not (folder / _STATUS).exists()


def unfinished(folder: Path) -> list[tuple[str, str]]:
    """Give what is missing of the demo's bundles, in order: of each the bundle's name and a method, or "" for all."""
    from precompute.embedded import EMBEDDED, SLOW

    wanted = [(name, "") for name in EMBEDDED if not (folder / name).exists()]
    for name in EMBEDDED:
        path = folder / name
        if not path.exists() or SLOW not in Bundle(path).manifest.methods:
            wanted.append((name, SLOW))
    return wanted


def run(folder: Path, parent: int) -> None:
    """Prepare what is missing, telling what is done; returns when it is there, fails, or the parent is gone."""
    import torch

    from core.methods import METHODS
    from precompute.embedded import EMBEDDED, build_embedded

    if hasattr(os, "nice"):
        os.nice(19)
    torch.set_num_threads(1)
    status, told, what = folder / _STATUS, 0.0, ""

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal told
        if os.getppid() != parent:
            status.unlink(missing_ok=True)
            sys.exit(1)
        if time.monotonic() - told > _EVERY:
            told = time.monotonic()
            _tell(status, Preparing(what, stage, done / max(total, 1)))

    try:
        for name, method in unfinished(folder):
            spec = EMBEDDED[name]
            what = f"{METHODS[method].title} for “{spec.name}”" if method else f"“{spec.name}”"
            progress("Starting", 0, 1)
            build_embedded(name, folder / name, progress, methods=(method,) if method else None)
        status.unlink(missing_ok=True)
    except (NatscopeError, OSError) as error:
        with contextlib.suppress(OSError):
            _tell(status, Preparing(what, "", 0.0, str(error)))


def _tell(file: Path, what: Preparing) -> None:
    write_atomically(file, json.dumps(asdict(what)).encode())


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
