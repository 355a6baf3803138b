"""A map of the training examples: points in the plane, close together where the network sees examples alike.

Rows are scaled to length 1, so that the squared distance of two examples is 2 - 2 k(x, x') / sqrt(k(x, x) k(x', x')),
and reduced to `DIMENSIONS` principal components, found by subspace iteration in blocks. t-SNE arranges them (van der
Maaten and Hinton 2008), in openTSNE's version with interpolated forces (Linderman et al. 2019).
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from natscope.core.errors import NatscopeError, QueryError
from natscope.core.files import read_regular, write_atomically
from natscope.core.index.search import nearest
from natscope.core.progress import Progress, silent
from natscope.core.rows import Rows

MOST = 20_000  # examples that t-SNE arranges: half a minute on one core
DIMENSIONS, NEAREST = 50, 10
_EXTRA, _PASSES = 14, 3  # directions beyond those wanted, and passes over the rows, of the subspace iteration
_BLOCK = 2048  # rows read at once
_PERPLEXITY, _EARLY, _LATER = 30, 250, 500  # usual settings of t-SNE, the latter two in steps
_EVERY = 10  # steps between two reports
_BESIDE = 5  # arranged examples between which one that was left out is put
_SEED = 0
_BYTES = 200  # an example, at most, of a map in a file


@dataclass(frozen=True, eq=False)
class Embedding:
    """Training examples in the plane.

    Args:
        positions: (N, 2) float32, of all of them.
        arranged: (n,) int64, rising: those that t-SNE arranged, all or `MOST` drawn at random; each of the others lies
            at the median of the arranged examples that it resembles most.
        neighbours: (n, k) int64, the nearest of each arranged example on the map, as positions in `arranged`; k is
            `NEAREST`, or all others where there are fewer.
    """

    positions: np.ndarray
    arranged: np.ndarray
    neighbours: np.ndarray

    def alike(self, kinds: np.ndarray) -> np.ndarray:
        """Return which share of each arranged example's neighbours is of its own kind, (n,) float64; kinds (N,)."""
        own = kinds[self.arranged]
        return (own[self.neighbours] == own[:, None]).mean(axis=1)


def kept(file: Path, features: Rows, progress: Progress = silent) -> Embedding:
    """Return the map that a file of an earlier run holds, else `embed` the features, and write the file if possible.

    A damaged file, or one of other features than these by its number of rows, is written again.
    """
    count = len(features)
    with suppress(NatscopeError, OSError, ValueError, KeyError, EOFError, BadZipFile):
        with np.load(io.BytesIO(read_regular(file, _BYTES * count + _BYTES)), allow_pickle=False) as stored:
            found = Embedding(*(stored[field.name] for field in fields(Embedding)))
        if _fits(found, count):
            return found
    found, content = embed(features, progress), io.BytesIO()
    np.savez(content, **{field.name: getattr(found, field.name) for field in fields(Embedding)})
    with suppress(OSError):  # it is shown all the same
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())
    return found


def _fits(found: Embedding, count: int) -> bool:
    places, arranged, neighbours = found.positions, found.arranged, found.neighbours
    return (
        (places.shape, places.dtype) == ((count, 2), np.float32)
        and bool(np.isfinite(places).all())
        and (arranged.ndim, arranged.dtype, neighbours.ndim, neighbours.dtype) == (1, np.int64, 2, np.int64)
        and len(arranged) == len(neighbours) == min(count, MOST)
        and bool((np.diff(arranged) > 0).all() and arranged[0] >= 0 and arranged[-1] < count)
        and bool((neighbours >= 0).all() and (neighbours < len(arranged)).all())
    )


def embed(features: Rows, progress: Progress = silent, *, most: int = MOST) -> Embedding:
    """Arrange examples in the plane; the same rows give the same map.

    Args:
        features: (N, K), at least two rows; a memory map is read in blocks.
        progress: called at every few steps.
        most: how many examples t-SNE arranges.

    Raises:
        QueryError: if a feature is not a finite number.
    """
    count = len(features)
    arranged = np.arange(count)
    if count > most:
        arranged = np.sort(np.random.default_rng(_SEED).choice(count, most, replace=False))
    mean, basis = _components(features, arranged, progress)
    reduced = np.concatenate([(block - mean) @ basis for block in _blocks(features, arranged)])
    positions = np.empty((count, 2), dtype=np.float32)
    positions[arranged] = placed = _tsne(reduced, progress)
    left_out = np.setdiff1d(np.arange(count), arranged)
    for start in range(0, len(left_out), _BLOCK):
        progress("Placing the other examples", start, len(left_out))
        rows = left_out[start : start + _BLOCK]
        block = next(_blocks(features, rows)) - mean
        _, beside = nearest(block @ basis, reduced, min(_BESIDE, len(reduced)))
        positions[rows] = np.median(placed[beside], axis=1)
    return Embedding(positions, arranged, _others(placed, NEAREST)[1])


def _blocks(features: Rows, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Give rows of the features as float32, each of length 1 unless it is zero."""
    for start in range(0, len(rows), _BLOCK):
        block = np.asarray(features[rows[start : start + _BLOCK]], dtype=np.float32)
        if not np.isfinite(block).all():
            raise QueryError("Features of some training examples are not finite numbers, so there is no map of them.")
        block = block / np.maximum(np.abs(block).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        yield block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _components(features: Rows, rows: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows' mean (K,), and a basis (K, d) of their principal components, the largest first, in float32."""
    wanted = min(DIMENSIONS, features.shape[1])
    size = min(wanted + _EXTRA, features.shape[1])
    progress("Reading the features", 0, _PASSES + 1)
    mean = sum((block.sum(0, dtype=np.float64) for block in _blocks(features, rows)), np.zeros(features.shape[1]))
    mean = (mean / len(rows)).astype(np.float32)
    basis = np.random.default_rng(_SEED).standard_normal((features.shape[1], size)).astype(np.float32)
    for step in range(1, _PASSES + 1):
        progress("Reading the features", step, _PASSES + 1)
        basis = np.linalg.qr(basis)[0]
        inner, outer = np.zeros((size, size)), np.zeros((features.shape[1], size))
        for block in _blocks(features, rows):
            block -= mean
            projected = block @ basis
            inner += projected.T @ projected
            outer += block.T @ projected
        if step < _PASSES:
            basis = outer.astype(np.float32)
    turned = np.linalg.eigh(inner)[1][:, ::-1][:, :wanted]
    return mean, basis @ turned.astype(np.float32)


def _tsne(points: np.ndarray, progress: Progress) -> np.ndarray:
    """Arrange points (n, d) in the plane, (n, 2) float32, starting from the first two columns."""
    count = len(points)
    start = np.zeros((count, 2))
    start[:, : points.shape[1]] = points[:, :2]
    spread = float(start[:, 0].std())
    if count < 4 or not spread:  # nothing to arrange
        return start.astype(np.float32)
    # The library takes a second to load, so it is loaded when it is needed.
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    perplexity = min(_PERPLEXITY, (count - 1) / 3)
    progress("Finding each example’s neighbours", 0, 1)
    distances, neighbours = _others(points, min(count - 1, int(3 * perplexity)))
    found = PrecomputedNeighbors(neighbours, distances.astype(np.float64))
    affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=found, n_jobs=1)
    start = 1e-4 * start / spread + 1e-6 * np.random.default_rng(_SEED).standard_normal(start.shape)  # none coincide
    embedding = TSNEEmbedding(start, affinities, negative_gradient_method="auto", n_jobs=1, random_state=_SEED)
    before = 0

    def told(step: int, *_: object) -> None:
        progress("Arranging the examples", before + step, _EARLY + _LATER)

    settings = {"callbacks": told, "callbacks_every_iters": _EVERY, "propagate_exception": True}
    embedding = embedding.optimize(_EARLY, exaggeration=12, momentum=0.5, **settings)
    before = _EARLY
    return np.asarray(embedding.optimize(_LATER, momentum=0.8, **settings), dtype=np.float32)


def _others(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of each point (n, d) to its nearest other points, (n, k), and their rows; k is `count`."""
    count = min(count, len(points) - 1)
    distances, rows = nearest(points, points, count + 1)
    own = rows == np.arange(len(points))[:, None]
    own[~own.any(axis=1), -1] = True  # where as many others coincide with it
    return distances[~own].reshape(-1, count), rows[~own].reshape(-1, count)
