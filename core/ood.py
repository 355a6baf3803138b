"""How far an image lies from everything in training: in pixels, and in the last hidden layer's features.

A ratio above 1 says that it lies further than nearly all test images do. Neither distance is enough by itself: noise
looks ordinary to the last layer's Euclidean distance, a black-on-white picture of a known object does not; angles
catch what is left.
"""

from collections.abc import Iterator

import numpy as np

LEAST = 1e-6  # distance that counts as usual: test images may be training images as well
USUAL = 0.995  # share of test images that count as usual
_ROWS_AT_ONCE = 4096


def distances(
    images: np.ndarray, penultimate: np.ndarray, *, train_images: np.ndarray, train_penultimate: np.ndarray
) -> np.ndarray:
    """Return each image's distance to its nearest training image, in pixels and in directions of penultimate features.

    Args:
        images: (n, H, W) or (n, H, W, 3) uint8.
        penultimate: (n, D).
        train_images: (N, H, W) or (N, H, W, 3) uint8.
        train_penultimate: (N, D).

    Returns:
        (n, 2): Euclidean distances of pixels in [0, 1] and of features scaled to length 1.
    """
    return np.stack(
        [
            _nearest(_pixels(images), map(_pixels, _blocks(train_images))),
            _nearest(_directions(penultimate), map(_directions, _blocks(train_penultimate))),
        ],
        axis=1,
    )


def usual_distances(found: np.ndarray) -> list[float]:
    """Return the distances (2,) that the share `USUAL` of test images, (n, 2) distances, stays within."""
    return [float(d) for d in np.quantile(found, USUAL, axis=0)]


def _nearest(queries: np.ndarray, blocks: Iterator[np.ndarray]) -> np.ndarray:
    own, best = np.einsum("qd,qd->q", queries, queries), np.full(len(queries), np.inf)
    for block in blocks:
        squared = own[:, None] - 2 * queries @ block.T + np.einsum("nd,nd->n", block, block)
        np.minimum(best, squared.min(1), out=best)
    return np.sqrt(np.maximum(best, 0))


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _directions(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(length, np.finfo(np.float32).tiny)
