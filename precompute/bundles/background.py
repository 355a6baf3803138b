"""Building what is slow while the app is already served: a separate process of the lowest priority.

It builds the rest of the demo's bundles, measures the proof of the one with a backdoor and adds the slow method to
each. It writes what it is doing to a small file among the bundles, holds a lock beside it, ends with the process that
started it, and resumes when it is started again: `start` restarts it if it was killed. What `start` runs is
`python -P -m natscope.precompute.bundles.background FOLDER PARENT`: modules in the working directory are not its.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from natscope.core.bundle.format import Bundle, write_atomically
from natscope.core.errors import BundleError, NatscopeError, explained
from natscope.core.files import from_json, read_regular

_STATUS, _LOCK = "preparing.json", "preparing.lock"
PROOF = "proof"  # among what is missing: see `natscope.precompute.experiments.proof`
_LARGEST = 10_000  # bytes of the status file
_PAST = 24 * 3600.0  # seconds for which a failure is shown
_EVERY = 0.5  # seconds between two updates, and between two checks of the parent
_TRIES = 3
_PROBING = threading.Lock()  # two pages trying the lock at once would mistake each other for the process


@dataclass(frozen=True)
class Preparing:
    """What is being prepared: `what` in words, `share` from 0 to 1, `error` a sentence once it has failed.

    Raises:
        ValueError: if a value has another type or range.
    """

    what: str
    stage: str
    share: float
    error: str = ""

    def __post_init__(self) -> None:
        """Check the values, which may come from a file that somebody else wrote."""
        texts = isinstance(self.what, str) and isinstance(self.stage, str) and isinstance(self.error, str)
        if not (texts and isinstance(self.share, int | float) and 0 <= self.share <= 1):
            raise ValueError("This is not a status of natscope's.")


def start(folder: Path) -> threading.Thread:
    """Start preparing what is missing from the demo's bundles in a folder, at the lowest priority."""
    command = [sys.executable, "-P", "-m", "natscope.precompute.bundles.background", str(folder), str(os.getpid())]
    thread = threading.Thread(target=_keep_going, args=(folder, command), daemon=True)
    thread.start()
    return thread


def _keep_going(folder: Path, command: Sequence[str]) -> None:
    """Run the command; restart a process that was killed, and report it after the last try."""
    for _ in range(_TRIES):
        # Ctrl-C is for the server, so this has its own session; it ends when the server is gone.
        if subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True).wait() == 0:
            return
    before = _read(folder / _STATUS)
    what = before.what if before else "The rest of the demo"
    error = (
        f"its process was ended {_TRIES} times, most often for lack of memory; start `natscope demo` again to go on."
    )
    with contextlib.suppress(OSError):
        _tell(folder / _STATUS, Preparing(what, "", 0.0, error))


def preparing(folder: Path) -> Preparing | None:
    """Return what is being prepared in a folder of bundles right now, or has failed; None when nothing is."""
    file = folder / _STATUS
    found = _read(file)
    if found is None:
        return None
    if found.error:
        with contextlib.suppress(OSError):  # it may be gone by now
            return found if time.time() - file.stat().st_mtime <= _PAST else None
        return None
    return found if _is_held(folder / _LOCK) else None


def _read(file: Path) -> Preparing | None:
    try:
        return Preparing(**from_json(read_regular(file, _LARGEST)))
    except (NatscopeError, ValueError, TypeError):
        return None


def _is_held(file: Path) -> bool:
    """Return whether the preparing process is alive: the system releases its lock however it ends."""
    from filelock import FileLock, Timeout

    if not file.exists():
        return False
    try:
        with _PROBING, FileLock(file, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def ready(folder: Path) -> bool:
    """Return whether everything in a folder of bundles is prepared."""
    return not (folder / _STATUS).exists()


def unfinished(folder: Path) -> list[tuple[str, str]]:
    """Return what is missing from the demo's bundles, in order: the bundle's name, and "" for all of it, or a part.

    A part is `PROOF` or a method. Nothing is added to a damaged bundle: opening it reports the damage.
    """
    from natscope.precompute.bundles.demo import EMBEDDED, SLOW, untuned
    from natscope.precompute.experiments import proof

    found: dict[str, Bundle | None] = {}
    for name in EMBEDDED:
        with contextlib.suppress(BundleError):
            found[name] = Bundle(folder / name) if (folder / name).exists() else None
    wanted = []
    for name, bundle in found.items():
        wanted += [(name, "")] if bundle is None or untuned(bundle) else []
        proven = EMBEDDED[name].poison is None if bundle is None else not proof.missing(bundle)
        wanted += [] if proven else [(name, PROOF)]
    slow = itertools.product(found.items(), SLOW)
    return wanted + [(name, m) for (name, b), m in slow if b is None or m not in b.manifest.methods]


def run(folder: Path) -> None:
    """Prepare what is missing, reporting progress; return when it is done or has failed.

    A second process for the same folder waits for the first. A bundle to which nothing can be added leaves the others.
    """
    import torch
    from filelock import FileLock

    from natscope.core.methods import METHODS
    from natscope.precompute.bundles.demo import EMBEDDED, build_embedded
    from natscope.precompute.experiments import proof

    if hasattr(os, "nice"):
        os.nice(19)
    torch.set_num_threads(1)
    status, last_told, what, failed = folder / _STATUS, 0.0, "The rest of the demo", list[Preparing]()

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last_told
        if time.monotonic() - last_told > _EVERY:
            last_told = time.monotonic()
            _tell(status, Preparing(what, stage, min(done / max(total, 1), 1.0)))

    try:
        with FileLock(folder / _LOCK).acquire(poll_interval=_EVERY):
            for name, part in unfinished(folder):
                title = "The proof" if part == PROOF else METHODS[part].title if part else ""
                what = f"{title} for “{EMBEDDED[name].name}”" if part else f"“{EMBEDDED[name].name}”"
                progress("Starting", 0, 1)
                try:
                    if part == PROOF:
                        proof.prepare(folder / name, progress)
                    else:
                        build_embedded(name, folder / name, progress, methods=(part,) if part else None)
                except BundleError as error:
                    failed.append(Preparing(what, "", 0.0, str(error)))
            if failed:
                _tell(status, failed[0])
            else:
                status.unlink(missing_ok=True)
    except Exception as error:
        sentence = str(error) if isinstance(error, NatscopeError) else explained(error)
        if sentence is None:
            raise
        with contextlib.suppress(OSError):
            _tell(status, Preparing(what, "", 0.0, sentence))


def _tell(file: Path, what: Preparing) -> None:
    write_atomically(file, json.dumps(asdict(what)).encode())


def _end_with(parent: int, status: Path) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY)
    status.unlink(missing_ok=True)
    os._exit(1)


if __name__ == "__main__":
    _folder = Path(sys.argv[1])
    threading.Thread(target=_end_with, args=(int(sys.argv[2]), _folder / _STATUS), daemon=True).start()
    run(_folder)
