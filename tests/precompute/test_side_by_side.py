import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from precompute import side_by_side


def beat(path):
    """Write to a file for as long as the process lives."""
    while True:
        with Path(path).open("a") as file:
            file.write(".")
        time.sleep(0.05)


def start(path):
    """Do that in a worker as experiments start them."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=side_by_side._prepare) as pool:
        pool.submit(beat, path).result()


def test_workers_end_with_a_command_that_is_killed(tmp_path):
    path = tmp_path / "beats"
    script = f"from tests.precompute.test_side_by_side import start; start({str(path)!r})"
    command = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        command.kill()
        command.wait()
    time.sleep(1)
    written = path.stat().st_size
    time.sleep(1)
    assert path.stat().st_size == written
