"""The checks of an index's file before FAISS reads it, because FAISS trusts what it reads.

A file may name other files to open, sizes to allocate and rows beyond the last; so every byte that is not a vector or a
code is compared with what FAISS writes of an index of the same size and settings, and every row number is checked.
If an index claims to be exact, its vectors and codes are compared with the features too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from natscope.core.index.search import HALF_STEP, empty_index, steps_of
from natscope.core.index.spec import MILVUS, IndexSpec
from natscope.core.rows import Rows

_AT_ONCE = 1024  # rows compared at a time
_BYTES = (0x00, 0xFF)  # two fill values that differ in every byte


def index_fault(path: Path, members: Rows, spec: IndexSpec) -> str:
    """Return a sentence on what is wrong with the file of an index; "" where it is safe to read.

    Args:
        path: a regular file.
        members: the rows (n, K) float32 that the index is over.
        spec: its settings.
    """
    if (kind := spec.kind_of(len(members))) == MILVUS:
        return "is an index of a class that a server searches"
    raw = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    try:
        check = {"flat": _flat, "sq8": _codes, "hnsw": _graph}.get(kind, _lists)
        good = check(_Reader(raw), members, spec)
    except _EndError:
        good = False
    return "" if good else "is not an index over the features of its class"


class _EndError(Exception):
    """The file ends before it should."""


class _Reader:
    """Takes one part after another from the bytes of a file."""

    def __init__(self, raw: np.ndarray) -> None:
        self._raw, self.left = raw, len(raw)

    def take(self, count: int, dtype: str = "uint8") -> np.ndarray:
        size = int(count) * np.dtype(dtype).itemsize
        if not 0 <= size <= self.left:
            raise _EndError
        start = len(self._raw) - self.left
        self.left -= size
        return np.frombuffer(self._raw[start : start + size].data, dtype)

    def vector(self, count: int, dtype: str) -> np.ndarray:
        """Take a vector that has to have `count` numbers."""
        return self.take(count if int(self.take(1, "uint64")[0]) == count else -1, dtype)

    def free(self, index: Any, filled: Any, tail: int = 0) -> np.ndarray | None:
        """Take what FAISS writes of an index; return the bytes that differ in `filled`, None if any others differ.

        Args:
            index: an index without what training sets.
            filled: the same index with other bytes there.
            tail: bytes at the end that are left out.
        """
        first, second = (faiss.serialize_index(i)[: -tail or None] for i in (index, filled))
        found = self.take(len(first))
        return found[first != second] if ((found == first) | (first != second)).all() else None


def _flat(file: _Reader, members: Rows, spec: IndexSpec) -> bool:
    count, width = members.shape
    index = empty_index(members.shape, spec)
    index.ntotal = count
    if file.free(index, index, 8) is None:
        return False
    rows = file.vector(count * width, "float32").reshape(count, width)
    return file.left == 0 and all(np.array_equal(rows[block], members[block]) for block in _slices(count))


def _codes(file: _Reader, members: Rows, spec: IndexSpec) -> bool:
    """Return whether an SQ8 index holds the right byte for each feature, so that it finds what a scan finds."""
    count, width = members.shape
    index, filled = (_trained(empty_index(members.shape, spec), count, byte) for byte in _BYTES)
    trained = file.free(index, filled, 8)
    if trained is None:
        return False
    least, step = steps_of(trained.view(np.float32))
    codes = file.vector(count * width, "uint8").reshape(count, width)
    if file.left or not np.isfinite([least, step]).all():
        return False
    errors = (np.abs(least + step * (codes[block] + 0.5) - members[block]) for block in _slices(count))
    return all((error <= HALF_STEP * step).all() for error in errors)


def _lists(file: _Reader, members: Rows, spec: IndexSpec) -> bool:
    count, lists = len(members), spec.lists_of(len(members))
    index, filled = (_trained(empty_index(members.shape, spec), count, byte) for byte in _BYTES)
    if file.free(index, filled, 12) is None:
        return False
    sizes = _sizes(file, lists)
    if sizes is None or (sizes > count).any() or sizes.sum() != count:
        return False
    found = []
    for size in map(int, sizes):
        file.take(size * index.code_size)
        found.append(file.take(size, "int64"))
    return file.left == 0 and np.array_equal(np.sort(np.concatenate(found)), np.arange(count))


def _sizes(file: _Reader, lists: int) -> np.ndarray | None:
    """Take the sizes of all lists; if most are empty, the number and size of each that is not."""
    form = file.take(4).tobytes()
    if form == b"full":
        return file.vector(lists, "uint64")
    length = int(file.take(1, "uint64")[0])
    if form != b"sprs" or length > lists or length % 2:
        return None
    numbers, found = file.take(length, "uint64").reshape(-1, 2).T
    if (numbers >= lists).any() or (numbers[1:] <= numbers[:-1]).any():
        return None
    sizes = np.zeros(lists, dtype=np.uint64)
    sizes[numbers] = found
    return sizes


def _trained(index: Any, count: int, byte: int) -> Any:
    """Return an empty index that counts as trained, with rows; every byte that training would set is `byte`."""
    if isinstance(index, faiss.IndexIVF):
        index.quantizer.add(_numbers(byte, index.nlist * index.d).reshape(index.nlist, index.d))
    if isinstance(index, faiss.IndexIVFPQ):
        faiss.copy_array_to_vector(_numbers(byte, index.d * index.pq.ksub), index.pq.centroids)
    if isinstance(index, faiss.IndexScalarQuantizer | faiss.IndexIVFScalarQuantizer):
        faiss.copy_array_to_vector(_numbers(byte, 2 * index.d), index.sq.trained)
    index.is_trained, index.ntotal = True, count
    return index


def _graph(file: _Reader, members: Rows, spec: IndexSpec) -> bool:
    count, width = members.shape
    index = empty_index(members.shape, spec)
    whole = faiss.serialize_index(index)
    index.is_trained, index.ntotal = True, count
    starts = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level).astype(np.int64)
    if file.free(index, index, len(whole) - _before_levels(whole)) is None:
        return False
    levels = file.vector(count, "int32")
    offsets = file.vector(count + 1, "uint64")
    if ((levels < 1) | (levels >= len(starts))).any():
        return False
    if offsets[0] or not np.array_equal(np.diff(offsets.astype(np.int64)), starts[levels]):
        return False
    neighbours = file.vector(int(offsets[-1]), "int32")
    entry, top, breadth, reach, beam = map(int, file.take(5, "int32"))
    if not (0 <= entry < count and top == levels[entry] - 1 == levels.max() - 1):
        return False
    if (breadth, reach, beam) != (spec.breadth, spec.reach, 1) or not _linked(neighbours, levels, offsets, starts):
        return False
    codes, filled = (_trained(empty_index(members.shape, IndexSpec("sq8")), count, byte) for byte in _BYTES)
    if file.free(codes, filled, 8) is None:
        return False
    file.vector(count * width, "uint8")
    return file.left == 0


def _before_levels(whole: np.ndarray) -> int:
    """Return where the levels begin in an index: after the head and two vectors that depend on its links alone."""
    file = _Reader(whole)
    file.take(37)
    for size in (8, 4):
        file.take(int(file.take(1, "uint64")[0]) * size)
    return len(whole) - file.left


def _linked(neighbours: np.ndarray, levels: np.ndarray, offsets: np.ndarray, starts: np.ndarray) -> bool:
    """Return whether every link leads to a row on the same level."""
    if ((neighbours < -1) | (neighbours >= len(levels))).any():
        return False
    for level in range(1, int(levels.max())):
        rows = np.flatnonzero(levels > level)
        positions = offsets[rows].astype(np.int64)[:, None] + np.arange(starts[level], starts[level + 1])
        linked = neighbours[positions]
        if (levels[linked[linked >= 0]] <= level).any():
            return False
    return True


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE))


def _numbers(byte: int, count: int) -> np.ndarray:
    return np.frombuffer(bytes([byte]) * (4 * count), dtype=np.float32)
