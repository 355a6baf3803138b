"""Locks between processes."""

import errno
import os
import tempfile
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
        if os.path.lexists(file):
            raise
        try:  # it may just have gone, or nothing can be made there, as in /proc
            tempfile.TemporaryFile(dir=file.parent).close()
        except OSError:
            raise OSError(errno.EROFS, f"no file can be made in {file.parent}") from error
        raise
    try:
        yield
    finally:
        lock.release()
