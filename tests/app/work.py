"""Tasks for the tests of worker processes."""

import os
import signal
import sys
import time

import numpy as np


def count(progress, number):
    for step in range(number):
        progress("Counting", step, number)
    return number


def give(progress, size):
    return bytes(size)


def search_path(progress):
    return sys.path


def fail(progress, error):
    raise error


def until(progress, gate):
    """Go on until a file appears."""
    while not gate.exists():
        progress("On and on", 0, 1)
        time.sleep(0.01)
    return "done"


def deaf(progress, gate):
    while not gate.exists():
        time.sleep(0.01)


def take(progress, size):
    return int(np.ones(size, dtype=np.uint8)[-1])


def kill(progress):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_once(progress, file):
    if not file.exists():
        file.touch()
        kill(progress)
    return "done"


def note_pid(progress, file, gate):
    file.write_text(str(os.getpid()))
    until(progress, gate)
