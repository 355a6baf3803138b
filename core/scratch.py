"""Temporary folders that outlive no process: those of a killed process are removed by the next one."""

import atexit
import os
import shutil
import stat
import tempfile
import uuid
from functools import cache
from pathlib import Path

_PREFIX, _LOCK = "natscope-", ".lock"


def temporary_folder() -> tempfile.TemporaryDirectory:
    """Return a new temporary folder within that of this process; it is deleted with the returned object, or at exit."""
    return tempfile.TemporaryDirectory(dir=_own(os.getpid()))


def sweep() -> None:
    """Remove the temporary folders of this user's dead processes; nothing of other users is opened."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*{_LOCK}"):
        _sweep(lock)


@cache
def _own(process: int) -> Path:
    """Make the folder of this process, whose lock it holds for as long as it lives; a forked one makes its own."""
    from filelock import FileLock  # takes a moment to load, and most commands need none

    sweep()
    lock = FileLock(Path(tempfile.gettempdir()) / f"{_PREFIX}{uuid.uuid4().hex}{_LOCK}", thread_local=False)
    lock.acquire()  # before there is a folder, so that no folder is ever unlocked
    folder = Path(lock.lock_file).with_suffix("")
    folder.mkdir(mode=0o700)

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    atexit.register(remove)
    return folder


def _sweep(file: Path) -> None:
    from filelock import FileLock, Timeout

    try:
        found = file.lstat()
        if not stat.S_ISREG(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
            return  # somebody's link, which opening could empty, or another user's file
        with FileLock(file, timeout=0):
            shutil.rmtree(file.with_suffix(""), ignore_errors=True)
            file.unlink(missing_ok=True)
    except (Timeout, OSError):  # a live process, or one that swept it first
        return
