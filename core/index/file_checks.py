"""What the file of an index must be before FAISS reads it, for FAISS believes what it reads.

A file may name other files to open, sizes to allocate and rows beyond the last; so every byte that is not a vector or a
code is compared with what `build_index` writes for the same rows and settings, and every row number is looked at.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from natscope.core.index.search import BITS, BYTE, kind_of, lists_of, pieces_of
from natscope.core.index.spec import IndexSpec
from natscope.core.rows import Rows

_AT_ONCE = 8192  # rows compared at a time
_BYTES = (0x00, 0xFF)  # two fillings that are the same in no byte


def index_fault(path: Path, members: Rows, spec: IndexSpec) -> str:
    """Return a sentence on what is wrong with the file of an index; "" where it is safe to read.

    Args:
        path: a regular file.
        members: the rows (n, K) float32 that the index is over.
        spec: its settings.
    """
    raw = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    try:
        good = {"flat": _flat, "hnsw": _graph}.get(kind_of(len(members), spec), _lists)(_Reader(raw), members, spec)
    except _EndError:
        good = False
    return "" if good else "is no index over the features of its class"


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

    def same(self, index: Any, filled: Any, tail: int = 0) -> bool:
        """Take what FAISS writes of an index and compare it, but for the bytes in which `filled` is another.

        Args:
            index: one without what training sets.
            filled: the same with other bytes there.
            tail: bytes at the end that are not taken.
        """
        first, second = (faiss.serialize_index(i)[: -tail or None] for i in (index, filled))
        return bool(((self.take(len(first)) == first) | (first != second)).all())


def _flat(file: _Reader, members: Rows, spec: IndexSpec) -> bool:
    count, width = members.shape
    index = faiss.IndexFlatIP(width)
    index.ntotal = count
    if not file.same(index, index, 8):
        return False
    rows = file.vector(count * width, "float32").reshape(count, width)
    blocks = (slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE))
    return file.left == 0 and all(np.array_equal(rows[block], members[block]) for block in blocks)


def _lists(file: _Reader, members: Rows, spec: IndexSpec) -> bool:
    count, lists = len(members), lists_of(len(members), spec)
    index, filled = (_inverted(members.shape, lists, spec, byte) for byte in _BYTES)
    if not file.same(index, filled, 12) or file.take(4).tobytes() != b"full":
        return False
    sizes = file.vector(lists, "uint64")
    if (sizes > count).any() or sizes.sum() != count:
        return False
    found = []
    for size in map(int, sizes):
        file.take(size * index.code_size)
        found.append(file.take(size, "int64"))
    return file.left == 0 and np.array_equal(np.sort(np.concatenate(found)), np.arange(count))


def _inverted(shape: tuple[int, ...], lists: int, spec: IndexSpec, byte: int) -> Any:
    """Return an empty index that counts as trained, every byte of what training sets the same."""
    count, width = shape
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(_numbers(byte, lists * width).reshape(lists, width))
    index: Any
    if spec.kind == "ivf":
        index = faiss.IndexIVFFlat(quantizer, width, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        pieces = pieces_of(width, spec)
        index = faiss.IndexIVFPQ(quantizer, width, lists, pieces, BITS, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(_numbers(byte, width * 2**BITS), index.pq.centroids)
    index.is_trained, index.nprobe, index.ntotal = True, min(spec.probes, lists), count
    return index


def _graph(file: _Reader, members: Rows, spec: IndexSpec) -> bool:
    count, width = members.shape
    index = faiss.IndexHNSWSQ(width, BYTE, spec.links, faiss.METRIC_INNER_PRODUCT)
    whole = faiss.serialize_index(index)
    index.is_trained, index.ntotal = True, count
    starts = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level).astype(np.int64)
    if not file.same(index, index, len(whole) - _before_levels(whole)):
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
    codes, filled = (_coded(count, width, byte) for byte in _BYTES)
    if not file.same(codes, filled, 8):
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
    """Whether every link leads to a row, and to one that is on the same level."""
    if ((neighbours < -1) | (neighbours >= len(levels))).any():
        return False
    for level in range(1, int(levels.max())):
        rows = np.flatnonzero(levels > level)
        places = offsets[rows].astype(np.int64)[:, None] + np.arange(starts[level], starts[level + 1])
        linked = neighbours[places]
        if (levels[linked[linked >= 0]] <= level).any():
            return False
    return True


def _coded(count: int, width: int, byte: int) -> Any:
    index = faiss.IndexScalarQuantizer(width, BYTE, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(_numbers(byte, 2 * width), index.sq.trained)
    index.is_trained, index.ntotal = True, count
    return index


def _numbers(byte: int, count: int) -> np.ndarray:
    return np.frombuffer(bytes([byte]) * (4 * count), dtype=np.float32)
