"""How far an example lies from everything in training: by itself, and in the last hidden layer's features.

A ratio above 1 says that it lies further than nearly all test examples do. Neither distance is enough by itself: noise
looks ordinary to the last layer's Euclidean distance, a black-on-white picture of a known object does not; angles
catch what is left.
"""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from natscope.core.examples import Examples

Compared = TypeVar("Compared", bound=Examples)

LEAST = 1e-6  # distance that counts as usual: test examples may be training examples as well
USUAL = 0.995  # share of test examples that count as usual
_ROWS_AT_ONCE = 4096


def distances(
    examples: Compared, penultimate: np.ndarray, *, train: Compared, train_penultimate: np.ndarray
) -> np.ndarray:
    """Return each example's distance to its nearest training example, by itself and in penultimate features.

    Args:
        examples: n of them.
        penultimate: (n, D).
        train: N of the same modality.
        train_penultimate: (N, D).

    Returns:
        (n, 2): distances as the modality measures them, and Euclidean ones of features scaled to length 1.
    """
    directions = map(_directions, in_blocks(train_penultimate))
    return np.stack([examples.distances(train), nearest(_directions(penultimate), directions)], axis=1)


def usual_distances(found: np.ndarray) -> list[float]:
    """Return the distances (2,) that the share `USUAL` of test examples, (n, 2) distances, stays within."""
    return [float(d) for d in np.quantile(found, USUAL, axis=0)]


def nearest(queries: np.ndarray, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """Return the Euclidean distance of each query (q, d) to the nearest row of blocks (n, d), (q,)."""
    own, best = np.einsum("qd,qd->q", queries, queries), np.full(len(queries), np.inf)
    for block in blocks:
        squared = own[:, None] - 2 * queries @ block.T + np.einsum("nd,nd->n", block, block)
        np.minimum(best, squared.min(1), out=best)
    return np.sqrt(np.maximum(best, 0))


def in_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows (N, ...) some at a time."""
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))


def _directions(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, np.finfo(np.float32).tiny)
