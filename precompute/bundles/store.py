"""The files of a bundle while it is written: each complete or absent, filled shard by shard, recorded in a journal."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from natscope.core.bundle.file_checks import bounded, whole_header
from natscope.core.bundle.format import write_atomically
from natscope.core.bundle.manifest import FileRecord
from natscope.core.errors import BuildError, FileError
from natscope.core.features import SHARD
from natscope.core.files import create, opened
from natscope.core.index.search import build_index
from natscope.core.index.spec import IndexSpec
from natscope.core.progress import Progress
from natscope.core.rows import Rows
from natscope.precompute.bundles.work import Work

PROBED = 8  # rows that tell the width of features, and by which they measure how many to compute at a time
_LARGEST_SHARD = 2**26  # bytes
_HALF_ERROR = 2.0**-11  # of a float16 number, at most, relative to its size


class Store:
    """Writes arrays, indexes and files into a folder and remembers a record of each."""

    def __init__(self, folder: Path, work: Work, progress: Progress) -> None:
        """Start without records.

        Args:
            folder: where the files go.
            work: the journal; what it marks as done is read, not written again.
            progress: called with a stage's name, steps done and in all.
        """
        self.folder, self.work, self.progress = folder, work, progress
        self._records: dict[str, FileRecord] = {}

    def small(self, name: str, values: np.ndarray | Callable[[], np.ndarray]) -> None:
        """Write an array at once."""
        file = self.folder / f"{name}.npy"
        if not self.work.finished(name):
            array = np.ascontiguousarray(values() if callable(values) else values)
            temporary = file.with_suffix(".tmp")
            with create(temporary) as handle:
                np.save(handle, array, allow_pickle=False)
            temporary.replace(file)
            self.work.mark(name, file=file)
        self.record(name, file, np.load(file, mmap_mode="r", allow_pickle=False))

    def large(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, shard: Callable[[slice], np.ndarray], stage: str
    ) -> np.ndarray:
        """Fill an array shard by shard; a shard is in the journal only once it is on disk."""
        file = self.folder / f"{name}.npy"
        done = self.work.done.get(name, 0) if _holds(file, shape, dtype) else 0
        if done >= shape[0] and not self.work.finished(name):
            done = 0
        if not done:
            self.work.mark(name, 0)  # what is there has another form
            create(file).close()
        array = np.lib.format.open_memmap(file, mode="r+" if done else "w+", dtype=dtype, shape=None if done else shape)
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process in the middle of a write
            with file.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        for part in shards(shape, dtype, done):
            self.progress(stage, part.start, shape[0])
            array[part] = shard(part)
            array.flush()
            self.work.mark(name, part.stop, file if part.stop == shape[0] else None)
        self.progress(stage, shape[0], shape[0])
        self.record(name, file, array)
        return array

    def features(
        self,
        name: str,
        shape: tuple[int, int],
        shard: Callable[[slice], np.ndarray],
        stage: str,
        *,
        halve: bool,
        exact: Callable[[slice], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Fill an array of features shard by shard, as float16 if that is precise enough, else float32; see `halved`.

        Args:
            name: the array's name.
            shape: (N, K).
            shard: returns some rows, float32.
            stage: for the progress.
            halve: whether to try float16.
            exact: returns some rows in full precision, if `shard` may give rows that were float16 before.

        Raises:
            BuildError: if a feature is not finite.
        """

        def finite(part: slice, compute: Callable[[slice], np.ndarray] = exact or shard) -> np.ndarray:
            block = compute(part)
            if not bounded(block):
                raise BuildError("A Jacobian is not finite; the network's weights have run away.")
            return block

        if halve:
            with contextlib.suppress(_CoarseError):
                return self.large(name, shape, np.dtype("float16"), lambda part: _half(finite(part, shard)), stage)
        return self.large(name, shape, np.dtype("float32"), finite, stage)

    def index(self, name: str, members: Rows, spec: IndexSpec) -> None:
        """Write an inner-product index over feature vectors (n, K), which are read in blocks."""
        file = self.folder / f"{name}.faiss"
        if not self.work.finished(name):
            temporary = file.with_suffix(".tmp")
            create(temporary).close()
            build_index(members, spec, temporary)
            temporary.replace(file)
            self.work.mark(name, file=file)
        self.record(name, file)

    def file(self, file_name: str, content: Callable[[], bytes], *, name: str = "") -> None:
        """Write a file of any kind; its name may hold a folder, and is its logical name too if that is empty."""
        file, name = self.folder / file_name, name or file_name
        if not self.work.finished(name):
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, content())
            self.work.mark(name, file=file)
        self.record(name, file)

    def record(self, name: str, file: Path, array: np.ndarray | None = None) -> None:
        """Record a file in the folder under its logical name."""
        shape, dtype = (None, None) if array is None else (array.shape, str(array.dtype))
        relative = file.relative_to(self.folder).as_posix()
        self._records[name] = FileRecord(relative, file.stat().st_size, "", shape, dtype)

    def checked_records(self) -> dict[str, FileRecord]:
        """Return the records of all files, with their checksums."""
        files = {}
        for count, (name, record) in enumerate(sorted(self._records.items())):
            self.progress("Checksums", count, len(self._records))
            files[name] = replace(record, sha256=self.work.digest(name))
        self.progress("Checksums", len(files), len(files))
        return files


def shards(shape: Sequence[int], dtype: np.dtype, done: int = 0) -> Iterator[slice]:
    """Yield the rows of an array that are written at a time, after the first `done`."""
    step = max(1, min(SHARD, _LARGEST_SHARD // (dtype.itemsize * math.prod(shape[1:]))))
    for start in range(done, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


class _CoarseError(Exception):
    """Rows cannot be kept as float16."""


def halved(rows: np.ndarray) -> np.ndarray:
    """Return feature vectors (n, K) as float16 if that is precise enough, else as they are.

    A float16 number is within 1 part in 2048 of what it stands for, unless that is above 65,504 or below 6e-5. If such
    numbers would move a row further from the original, relative to its length, all rows are kept as they are.
    """
    try:
        return _half(rows)
    except _CoarseError:
        return rows


def _half(rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    if not (np.linalg.norm(half - rows, axis=1) <= _HALF_ERROR * np.linalg.norm(rows, axis=1)).all():
        raise _CoarseError
    return half


def _holds(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Return whether a file is an array of this form, whatever its values, that has no other name."""
    try:
        with opened(file) as handle:
            return whole_header(handle) == (shape, False, dtype) and os.fstat(handle.fileno()).st_nlink == 1
    except (FileError, ValueError):
        return False
