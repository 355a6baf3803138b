"""Run a small version of every experiment but LDS: `make results`, or `python -m natscope.app.cli.rerun FOLDER`.

Each is the same command as the full one with fewer epochs, queries and methods; the bundles are of the embedded data.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

from natscope.app.cli.progress import say
from natscope.core.methods import GAINS, RANDOM, REFERENCE

_PREPARE = (
    "precompute --classes 0,1 --widths 784,512,256,2 --methods {baseline} --out {folder}/binary",
    "precompute --epochs 5 --out {folder}/clean",
    "precompute --epochs 8 --poison-rate 0.0333 --out {folder}/poisoned",
)
_EXPERIMENTS = (
    "evaluate relative-information --bundle {folder}/binary --queries 10 --out {folder}/relative-information.json",
    "tune --bundle {folder}/clean --queries 2 --methods {reference} --out {folder}/tuning.json",
    "tune --score coreset --bundle {folder}/clean --queries 50 --budget 30 --methods {gain} "
    "--out {folder}/coreset-tuning.json",
    "evaluate brittleness --bundle {folder}/clean --queries 4 --methods {reference},{gain},{baseline} "
    "--out {folder}/brittleness.json",
    "evaluate coreset --bundle {folder}/clean --queries 100 --budget 300 --methods {gain},{reference},{baseline} "
    "--out {folder}/coreset.json",
    "evaluate backdoor --bundle {folder}/poisoned --queries 10 --out {folder}/backdoor.json",
    "evaluate retraining --bundle {folder}/poisoned --out {folder}/retraining.json",
)
_NAMES = {"reference": REFERENCE, "gain": GAINS[0], "baseline": RANDOM}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("build/results"))
def main(folder: Path) -> None:
    """Run everything into FOLDER; what is there already is not run again."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for command in (*_PREPARE, *_EXPERIMENTS):
        words = shlex.split(command.format(folder=shlex.quote(str(folder)), **_NAMES))
        out = Path(words[words.index("--out") + 1])
        if out.exists():
            if words[0] != "tune":
                continue
            words = [
                *words[: words.index("--bundle") + 2],
                "--take",
                str(out),
            ]  # the manifest may not have these values yet
        say(f"$ natscope {shlex.join(words)}")
        if code := subprocess.run([sys.executable, "-P", "-m", "natscope.app.cli", *words], check=False).returncode:
            sys.exit(code)
    say(f"All results are in {folder} ({(time.monotonic() - started) / 60:.1f} minutes).")


if __name__ == "__main__":
    main()
