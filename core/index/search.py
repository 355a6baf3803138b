"""Inner-product search by FAISS, the only module that imports it: exact by a flat index, sublinear by the others.

Traps of inner products, and what is done about them. Rows of one class share a large mean, so clusters and graphs would
be about that mean and about length: what is not exact is built over rows minus the mean of the training sample, which
moves every product with one vector by the same amount and so changes no ranking. Clusters are by direction (spherical
k-means), or a few long centroids would draw half of the rows. The vector r of InfoGain (approx) is like no row once the
first picks are explained, so an index only proposes: whoever asks scores the proposals again, exactly.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from natscope.core.index.spec import IndexSpec
from natscope.core.rows import Rows

_PROPOSED = {"ivf": 256, "ivfpq": 1024, "hnsw": 256}  # rows asked for in each direction; coarse codes need more
_START = 16  # candidates asked of a flat index in each direction before the first check
_BLOCK = 8192  # rows read at once
_SAMPLE = 40  # rows a list, to train on
BITS = 8  # of a piece of a product-quantised code
BYTE: Any = faiss.ScalarQuantizer.QT_8bit
_FEWEST = 2**BITS  # rows below which a flat index is built: there is nothing to gain, and too little to train on


class InnerProductIndex:
    """Rows that maximise an inner product; every kind of index behind the same methods."""

    def __init__(self, index: faiss.Index, *, exact: bool, kind: str = "flat") -> None:
        """Wrap a FAISS index with the inner-product metric."""
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("The index must have been built with the inner-product metric.")
        self._index, self.exact, self.kind = index, exact, kind
        self.proposals = _PROPOSED.get(kind, _START)

    @classmethod
    def flat(cls, features: np.ndarray) -> "InnerProductIndex":
        """Build a flat index over features (n, K) in memory; FAISS keeps them as float32."""
        index = faiss.IndexFlatIP(features.shape[1])
        index.add(np.ascontiguousarray(features, dtype=np.float32))
        return cls(index, exact=True)

    @classmethod
    def load(cls, path: Path) -> "InnerProductIndex":
        """Open an index that `save` or `build_index` wrote; its vectors stay on disk and are mapped into memory.

        Raises:
            RuntimeError, ValueError: if the file is no such index.
        """
        with path.open("rb") as file:
            inverted = file.read(2) == b"Iw"
        # Lists are mapped by one way, vectors in one piece by another; older FAISS reads the latter into memory.
        mapped = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if inverted else getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        index = faiss.read_index(str(path), mapped)
        classes = {
            "flat": faiss.IndexFlat,
            "ivfpq": faiss.IndexIVFPQ,
            "ivf": faiss.IndexIVFFlat,
            "hnsw": faiss.IndexHNSW,
        }
        for kind, found in classes.items():
            if isinstance(index, found):
                return cls(index, exact=kind == "flat", kind=kind)
        raise ValueError(f"An index of the type {type(index).__name__} is not one of natscope's.")

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        faiss.write_index(self._index, str(path))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._index.ntotal

    def largest_square(
        self, vector: np.ndarray, features: Rows, *, excluded: Sequence[int] | np.ndarray
    ) -> tuple[int, float]:
        """Find the row with the largest squared inner product, ties to the lowest row.

        FAISS searches in float32, with `vector` and with its negative; the candidates are scored again in float64, and
        more are asked for until no row that was left out can win, so a flat index gives exactly what a scan gives.
        Another index proposes candidates, once, and the best of those is the answer.

        Args:
            vector: (K,).
            features: (n, K), the rows that the index was built over; only candidates are read.
            excluded: rows to leave out.

        Returns:
            The row and its inner product with `vector`, in float64.

        Raises:
            ValueError: if every row is excluded.
        """
        left = len(self) - len(set(excluded))
        if left < 1:
            raise ValueError("Every row of the index is excluded.")
        wanted = min(self.proposals, left)
        length = float(np.linalg.norm(vector))
        while True:
            candidates, reached = self._search(vector, wanted, excluded)
            picked = features[candidates].astype(np.float64)
            products = picked @ vector
            squares = products**2
            best = int(np.argmax(squares >= squares.max() * (1 - 1e-10)))
            # A row not returned has at most the last returned product, up to float32 rounding of a dot product.
            slack = 4 * np.finfo(np.float32).eps * np.sqrt(len(vector)) * length * np.linalg.norm(picked, axis=1).max()
            if wanted == left or not self.exact or abs(products[best]) * (1 - 1e-10) > reached + slack:
                return int(candidates[best]), float(products[best])
            wanted = min(4 * wanted, left)

    def propose(self, vector: np.ndarray, count: int, *, excluded: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return rows whose inner product with a vector is likely to be among the `count` largest, or smallest.

        Args:
            vector: (K,).
            count: rows in each direction.
            excluded: rows to leave out.

        Returns:
            Rows in rising order, at least one unless every row is excluded.
        """
        return self._search(vector, count, excluded)[0]

    def _search(
        self, vector: np.ndarray, count: int, excluded: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search both directions; give the rows found, and the larger of the last products (of a flat index)."""
        both = np.stack([vector, -vector]).astype(np.float32)
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.asarray(excluded, dtype=np.int64)))
        count = min(count, len(self) - len(set(excluded)))
        near, rows = self._index.search(both, count, params=self._parameters(selector, 1, count))
        effort = 4
        while not self.exact and (rows < 0).any() and effort <= 4 * len(self):  # probed lists hold too few
            near, rows = self._index.search(both, count, params=self._parameters(selector, effort, count))
            effort *= 4
        found = np.unique(rows[rows >= 0])
        if not len(found):  # no link leads to what is left
            found = np.setdiff1d(np.arange(len(self)), excluded)
        return found, near[:, -1].max()

    def _parameters(self, selector: faiss.IDSelector, effort: int, count: int) -> faiss.SearchParameters:
        index: Any = self._index
        options: dict[str, Any] = {"sel": selector}
        if isinstance(index, faiss.IndexIVF):
            probes = min(effort * index.nprobe, index.nlist)
            return faiss.SearchParametersIVF(nprobe=probes, **options)  # type: ignore[call-arg]
        if isinstance(index, faiss.IndexHNSW):
            reach = max(index.hnsw.efSearch, count) * effort
            return faiss.SearchParametersHNSW(  # type: ignore[attr-defined]
                efSearch=min(reach, 4 * len(self)), **options
            )
        return faiss.SearchParameters(**options)


def build_index(features: Rows, spec: IndexSpec, path: Path) -> None:
    """Build an index over features (n, K) and write it to a file; the same rows and spec give the same bytes.

    Features are read in blocks. A flat or IVF index is written list by list and never held in memory; HNSW holds its
    graph and one byte a feature. Below 256 rows every index is flat.

    Args:
        features: rows; a memory map is not loaded.
        spec: the index.
        path: the file.
    """
    if kind_of(len(features), spec) == "flat":
        flat = faiss.IndexFlatIP(features.shape[1])
        flat.ntotal = len(features)
        head = _head(flat, path, 8)
        count = np.array([len(features) * features.shape[1]], dtype=np.uint64)
        _write(path, [head, count.tobytes()], (block.tobytes() for block in _blocks(features)))
        return
    sample = _sample(features, spec)
    mean = sample.mean(0)
    centred = sample - mean

    def prepare(rows: np.ndarray | slice) -> np.ndarray:
        return np.ascontiguousarray(features[rows], dtype=np.float32) - mean

    if spec.kind == "hnsw":
        _build_hnsw(len(features), centred, prepare, spec, path)
    else:
        _build_inverted(len(features), centred, prepare, spec, path)


Prepare = Callable[[np.ndarray | slice], np.ndarray]


def _build_hnsw(count: int, sample: np.ndarray, prepare: Prepare, spec: IndexSpec, path: Path) -> None:
    # A byte a feature ranks as well as four, since proposals are scored again, and a quarter of the memory is read.
    width = sample.shape[1]
    index = faiss.IndexHNSWSQ(width, BYTE, spec.links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = spec.breadth, spec.reach
    index.train(sample)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # with several, the graph depends on which of them is first
    try:
        for start in range(0, count, _BLOCK):
            index.add(prepare(slice(start, start + _BLOCK)))
    finally:
        faiss.omp_set_num_threads(threads)
    faiss.write_index(index, str(path))


def _build_inverted(count: int, sample: np.ndarray, prepare: Prepare, spec: IndexSpec, path: Path) -> None:
    width, metric = sample.shape[1], faiss.METRIC_INNER_PRODUCT
    lists = lists_of(count, spec)
    quantizer = faiss.IndexFlatIP(width)
    index: Any
    if spec.kind == "ivf":
        index = faiss.IndexIVFFlat(quantizer, width, lists, metric)
    else:
        index = faiss.IndexIVFPQ(quantizer, width, lists, pieces_of(width, spec), BITS, metric)
        index.pq.cp.seed, index.pq.cp.niter, index.pq.cp.min_points_per_centroid = spec.seed, 10, 1
    index.cp.seed, index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = spec.seed, 8, True, 1
    index.cp.max_points_per_centroid = _SAMPLE
    index.train(sample)
    index.nprobe = min(spec.probes, lists)
    near = [quantizer.search(prepare(slice(start, start + _BLOCK)), 1)[1][:, 0] for start in range(0, count, _BLOCK)]
    nearest = np.concatenate(near)
    order = np.argsort(nearest, kind="stable")  # list by list, rows rising within each
    sizes = np.bincount(nearest, minlength=lists)
    index.ntotal = count
    # An empty index ends in an empty table of sizes; the table, and then each list's codes and rows, follow.
    head = _head(index, path, 12)
    index.ntotal = 0
    table = b"full" + np.array([lists, *sizes], dtype=np.uint64).tobytes()
    bounds = np.concatenate([[0], np.cumsum(sizes)])

    def parts() -> Iterator[bytes]:
        for number, (start, end) in enumerate(pairwise(bounds)):
            for begin in range(start, end, _BLOCK):
                rows = prepare(order[begin : min(begin + _BLOCK, end)])
                yield _codes(index, rows, number).tobytes()
            yield order[start:end].astype(np.int64).tobytes()

    _write(path, [head, table], parts())


def _codes(index: Any, rows: np.ndarray, number: int) -> np.ndarray:
    """Return what an inverted list stores of its rows (n, K)."""
    if isinstance(index, faiss.IndexIVFFlat):
        return rows
    return index.pq.compute_codes(rows - index.quantizer.reconstruct(number) if index.by_residual else rows)


def _sample(features: Rows, spec: IndexSpec) -> np.ndarray:
    """Return the rows to train on, (s, K) float32: all of them, or a seeded choice."""
    count = len(features)
    size = min(count, max(_SAMPLE * lists_of(count, spec), 2**BITS * _SAMPLE))
    rows = np.sort(np.random.default_rng(spec.seed).choice(count, size, replace=False))
    return np.ascontiguousarray(features[rows], dtype=np.float32)


def kind_of(count: int, spec: IndexSpec) -> str:
    """Return the kind of the index that is built over so many rows."""
    return "flat" if count < _FEWEST else spec.kind


def lists_of(count: int, spec: IndexSpec) -> int:
    """Return how many clusters an IVF index over so many rows has."""
    return min(spec.lists or int(2 * np.sqrt(count)), count)


def pieces_of(width: int, spec: IndexSpec) -> int:
    """Return how many bytes a product-quantised code of K = `width` numbers has."""
    return max(d for d in range(1, min(spec.pieces, width) + 1) if width % d == 0)


def _blocks(features: Rows) -> Iterator[np.ndarray]:
    for start in range(0, len(features), _BLOCK):
        yield np.ascontiguousarray(features[start : start + _BLOCK], dtype=np.float32)


def _head(index: faiss.Index, path: Path, tail: int) -> bytes:
    """Return the bytes of an index without vectors, up to the size of its contents."""
    faiss.write_index(index, str(path))
    return path.read_bytes()[:-tail]


def _write(path: Path, start: list[bytes], parts: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(start)
        file.writelines(parts)
