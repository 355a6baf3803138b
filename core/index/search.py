"""Inner-product search by FAISS: exact by a flat or a scalar-quantised (SQ8) index, sublinear by the others.

SQ8 keeps a byte a feature, a quarter of float32, with a known error bound: each feature lies within half a step of what
its byte stands for. So candidates are scored again in float64, and more are requested until no other row can win; the
same goes for a flat index, whose products are rounded. Both give what a scan gives.

Pitfalls of inner products, and what the other kinds do about them. Rows of one class share a large mean, so clusters
and graphs would be about that mean and about length: what is not exact is built over rows minus the mean of the
training sample, which moves every product with one vector by the same amount and so changes no ranking. Clusters are by
direction (spherical k-means), or a few long centroids would attract half of the rows. After the first picks the vector
r of InfoGain (approx) resembles no row, so an index only proposes: the caller scores the proposals again, exactly.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from natscope.core.index.spec import EXACT, IndexSpec
from natscope.core.recursion import TIE, first_of_best
from natscope.core.rows import Rows

# Rows requested in each direction.
_PROPOSED = {"ivf": 256, "ivfsq8": 256, "ivfpq": 1024, "ivfrabitq": 1024, "hnsw": 256}
_START = 16  # candidates asked of an exact index in each direction before the first check
_BLOCK = 8192  # rows read at once
_SAMPLE = 40  # rows a list, to train on
_BITS = 8  # of a piece of a product-quantised code, and of each number of a vector when RaBitQ searches with it
_BYTE: Any = faiss.ScalarQuantizer.QT_8bit
HALF_STEP = 0.501  # of SQ8, single-precision error included: a feature's distance from what its byte stands for
_TYPES = {
    "flat": faiss.IndexFlat,
    "sq8": faiss.IndexScalarQuantizer,
    "ivf": faiss.IndexIVFFlat,
    "ivfsq8": faiss.IndexIVFScalarQuantizer,
    "ivfpq": faiss.IndexIVFPQ,
    "ivfrabitq": faiss.IndexIVFRaBitQ,
    "hnsw": faiss.IndexHNSWSQ,
}


class InnerProductIndex:
    """Finds rows that maximise an inner product; every kind of index has the same methods."""

    def __init__(self, index: Any) -> None:
        """Wrap a FAISS index of one of natscope's kinds.

        Raises:
            ValueError: if it has another type, or another metric than the inner product.
        """
        kinds = [kind for kind, found in _TYPES.items() if isinstance(index, found)]
        if not kinds:
            raise ValueError(f"An index of the type {type(index).__name__} is not one of natscope's.")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("The index must have been built with the inner-product metric.")
        self._index, self.kind = index, kinds[0]
        self.exact = self.kind in EXACT
        self.proposals = _PROPOSED.get(self.kind, _START)
        self._steps = steps_of(faiss.vector_to_array(index.sq.trained))[1] if self.kind == "sq8" else np.zeros(index.d)

    @classmethod
    def flat(cls, features: np.ndarray) -> "InnerProductIndex":
        """Build a flat index over features (n, K) in memory; FAISS keeps them as float32."""
        index = faiss.IndexFlatIP(features.shape[1])
        index.add(np.ascontiguousarray(features, dtype=np.float32))
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> "InnerProductIndex":
        """Open an index that `save` or `build_index` wrote; its vectors stay on disk and are mapped into memory.

        Raises:
            RuntimeError, ValueError: if the file is not such an index.
        """
        with path.open("rb") as file:
            inverted = file.read(2) == b"Iw"
        # Lists and contiguous vectors are mapped by different flags; older FAISS reads the latter into memory.
        mapped = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if inverted else getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        return cls(faiss.read_index(str(path), mapped))

    def save(self, path: Path) -> None:
        """Write the index to a file; raises OSError where that fails."""
        _write(self._index, path)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._index.ntotal

    def largest_square(
        self, vector: np.ndarray, features: Rows, *, excluded: Sequence[int] | np.ndarray
    ) -> tuple[int, float]:
        """Find the row with the largest squared inner product, ties to the lowest row.

        FAISS searches in float32, with `vector` and with its negative; the candidates are scored again in float64, and
        more are requested until no row that was left out can win, so an exact index gives just what a scan gives.
        Any other index proposes candidates once, and the best of those is the answer.

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
        length, coded = float(np.linalg.norm(vector)), HALF_STEP * float(np.abs(vector) @ self._steps)
        while True:
            candidates, reached = self._search(vector, wanted, excluded)
            picked = features[candidates].astype(np.float64)
            products = picked @ vector
            best = first_of_best(products**2)
            # A row not returned has at most the last returned product, up to its code's error and to float32
            # rounding of a dot product.
            rounded = 4 * np.finfo(np.float32).eps * np.sqrt(len(vector)) * length
            slack = coded + rounded * np.linalg.norm(picked, axis=1).max()
            if wanted == left or not self.exact or abs(products[best]) * (1 - TIE) > reached + slack:
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
        """Return the rows found in both directions, and the larger of the last products (for an exact index)."""
        both = np.stack([vector, -vector]).astype(np.float32)
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.asarray(excluded, dtype=np.int64)))
        count = min(count, len(self) - len(set(excluded)))
        near, rows = self._index.search(both, count, params=self._parameters(selector, 1, count))
        effort = 4
        while not self.exact and (rows < 0).any() and effort <= 4 * len(self):  # probed lists hold too few
            near, rows = self._index.search(both, count, params=self._parameters(selector, effort, count))
            effort *= 4
        found = np.unique(rows[rows >= 0])
        if not len(found):  # no link leads to the remaining rows
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


def nearest(points: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of others (m, d) to each of some points (n, d): their distances and rows, (n, count) both.

    All others are looked at, in float32; `count` is at most m.
    """
    index = faiss.IndexFlatL2(others.shape[1])
    index.add(np.ascontiguousarray(others, dtype=np.float32))
    squared, rows = index.search(np.ascontiguousarray(points, dtype=np.float32), count)
    return np.sqrt(np.maximum(squared, 0)), rows


def build_index(features: Rows, spec: IndexSpec, path: Path) -> None:
    """Build an index over features (n, K) and write it to a file; the same rows and spec give the same bytes.

    Features are read in blocks, and what the index keeps is held in memory: a byte a feature for SQ8, IVF-SQ8 and
    HNSW, four for flat and IVF. Below 256 rows every index is flat.

    Args:
        features: rows; a memory map is not loaded.
        spec: the index.
        path: the file.

    Raises:
        OSError: if the file cannot be written.
    """
    index, mean = empty_index(features.shape, spec), np.zeros(features.shape[1], dtype=np.float32)
    if isinstance(index, faiss.IndexScalarQuantizer):
        index.train(_extremes(features))
    elif not isinstance(index, faiss.IndexFlat):
        sample = _sample(features, spec)
        mean = sample.mean(0)
        sample -= mean
        index.train(sample)
        del sample
    threads = faiss.omp_get_max_threads()
    if isinstance(index, faiss.IndexHNSW):
        faiss.omp_set_num_threads(1)  # with several, the graph depends on their timing
    try:
        for block in _blocks(features):
            index.add(block - mean)
    finally:
        faiss.omp_set_num_threads(threads)
    _write(index, path)


def empty_index(shape: tuple[int, ...], spec: IndexSpec) -> Any:
    """Return an index of the kind that is built over rows (n, K), without rows and untrained."""
    count, width = shape
    kind, metric = spec.kind_of(count), faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    if kind == "sq8":
        return faiss.IndexScalarQuantizer(width, _BYTE, metric)
    index: Any
    if kind == "hnsw":
        # A byte a feature ranks as well as four, since proposals are scored again, and a quarter of it is read.
        index = faiss.IndexHNSWSQ(width, _BYTE, spec.links, metric)
        index.hnsw.efConstruction, index.hnsw.efSearch = spec.breadth, spec.reach
        return index
    quantizer, lists = faiss.IndexFlatIP(width), spec.lists_of(count)
    if kind == "ivf":
        index = faiss.IndexIVFFlat(quantizer, width, lists, metric)
    elif kind == "ivfsq8":
        index = faiss.IndexIVFScalarQuantizer(quantizer, width, lists, _BYTE, metric)
    elif kind == "ivfrabitq":
        index = faiss.IndexIVFRaBitQ(quantizer, width, lists, metric)
        index.qb = _BITS
    else:
        index = faiss.IndexIVFPQ(quantizer, width, lists, spec.pieces_of(width), _BITS, metric)
        index.pq.cp.seed, index.pq.cp.niter, index.pq.cp.min_points_per_centroid = spec.seed, 10, 1
    index.cp.seed, index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = spec.seed, 8, True, 1
    index.cp.max_points_per_centroid, index.nprobe = _SAMPLE, min(spec.probes, lists)
    return index


def steps_of(trained: np.ndarray) -> np.ndarray:
    """Return what SQ8 learnt, (2 K,) float32, as (2, K) float64: where the byte 0 begins, and a byte's step."""
    least, span = trained.astype(np.float64).reshape(2, -1)
    return np.stack([least, span / 255])


def _extremes(features: Rows) -> np.ndarray:
    """Return the least and the largest number of each feature, (2, K) float32: all that SQ8 is trained by."""
    found = [(block.min(0), block.max(0)) for block in _blocks(features)]
    return np.stack([np.min([low for low, _ in found], axis=0), np.max([high for _, high in found], axis=0)])


def _sample(features: Rows, spec: IndexSpec) -> np.ndarray:
    """Return the rows to train on, (s, K) float32: all of them, or a seeded choice."""
    count = len(features)
    size = min(count, max(_SAMPLE * spec.lists_of(count), 2**_BITS * _SAMPLE))
    rows = np.sort(np.random.default_rng(spec.seed).choice(count, size, replace=False))
    return np.ascontiguousarray(features[rows], dtype=np.float32)


def _blocks(features: Rows) -> Iterator[np.ndarray]:
    for start in range(0, len(features), _BLOCK):
        yield np.ascontiguousarray(features[start : start + _BLOCK], dtype=np.float32)


def _write(index: faiss.Index, path: Path) -> None:
    with path.open("wb") as file:  # Python's own, which raises on a full disk where FAISS would only print
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
