"""How long the first answer takes of a bundle whose files are not in memory, the next ones, and the peak memory."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.network import Say
from natscope.core.bundle.request import Request
from natscope.precompute.bundles.opening import open_attributor

_METHODS = ("info_loss", "info_gain", "info_gain_approx", "relatif", "repsim")
_BUDGET = 50


def run(say: Say, *, bundle: Path | None = None) -> None:
    if bundle is None:
        say("Nothing to measure: name a bundle with --bundle; classes of 5,000 images are what it is meant for.")
        return
    say(f"M = {_BUDGET}, each method in a process of its own, files of the bundle dropped from the page cache before")
    say(f"{'seconds':<17} {'to open':>8} {'first':>7} {'next':>7} {'other class':>12} {'peak GiB':>9}")
    for method in _METHODS:
        for file in bundle.rglob("*"):
            if file.is_file():
                _drop(file)
        command = [sys.executable, "-m", "benchmarks.cold", str(bundle), method]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        say(
            f"{method:<17} {found['open']:>8.2f} {found['first']:>7.2f} {found['next']:>7.2f} {found['other']:>12.2f} "
            f"{found['peak']:>9.2f}"
        )


def measure(bundle: Path, method: str) -> dict[str, float]:
    """Ask about two images of one class and one of another, in a fresh process."""
    started = time.perf_counter()
    attributor = open_attributor(bundle)
    found = {"open": time.perf_counter() - started}
    classes = attributor.bundle.array("test_logits").argmax(axis=1)
    same = [int(i) for i in (classes == classes[0]).nonzero()[0][:2]]
    other = int((classes != classes[0]).nonzero()[0][0])
    for name, index in zip(("first", "next", "other"), (*same, other), strict=True):
        started = time.perf_counter()
        attributor.attribute(attributor.query("test", index), Request(method, budget=_BUDGET))
        found[name] = time.perf_counter() - started
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _drop(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
