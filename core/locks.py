"""Locks between processes."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(file: Path, patience: float = 0) -> Iterator[None]:
    """Hold a lock, so that no other process that asks for it goes on.

    Args:
        file: the lock's own file, which is made.
        patience: for how long to wait for another process, in seconds.

    Raises:
        Timeout: of filelock, if another process holds it.
        OSError: if the file cannot be made.
    """
    lock = FileLock(file, timeout=patience)
    try:
        lock.acquire()
    except Timeout as error:
        if not os.path.lexists(file):  # a folder such as /proc, where filelock sees a file that has just gone
            raise OSError(errno.EROFS, f"no file can be made in {file.parent}") from error
        raise
    try:
        yield
    finally:
        lock.release()
