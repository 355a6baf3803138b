"""Inner products between features, whatever form the sketch gave them; always computed in float64."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

_ROWS_AT_ONCE = 2048
# With one other row, what is converted to float64 then stays in the processor's cache: four times as fast.
_ROWS_FOR_ONE = 128


class Kernel(Protocol):
    """Inner products of Jacobians from their stored form.

    `explicit` tells whether a row is a feature vector, so that an index and a K x K Gram make sense.
    """

    explicit: bool

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return k(x, y), (n, m) float64, for stored rows x (n, W) and y (m, W)."""
        ...

    def diagonal(self, x: np.ndarray) -> np.ndarray:
        """Return k(x_i, x_i), (n,) float64."""
        ...


class LinearKernel:
    """Rows are feature vectors phi: k(x, y) = <phi(x), phi(y)>."""

    explicit = True

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:  # noqa: D102
        right, rows = _double(y).T, _ROWS_FOR_ONE if len(y) == 1 else _ROWS_AT_ONCE
        return np.concatenate([_double(part) @ right for part in _chunks(x, rows)]) if len(x) else np.zeros((0, len(y)))

    def diagonal(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        return (
            np.concatenate([np.einsum("nk,nk->n", p, p) for p in map(_double, _chunks(x))]) if len(x) else np.zeros(0)
        )


class FactorKernel:
    """Rows are the factors of `ExactFactors`: k(x, y) = sum over layers of <delta, delta'> <a, a'>, without error."""

    explicit = False

    def __init__(self, layout: tuple[tuple[int, int], ...]) -> None:
        """Keep the (fan_out, fan_in) of each layer, in stored order."""
        self.layout = layout

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:  # noqa: D102
        total = np.zeros((len(x), len(y)))
        for (delta, activation), (delta_y, activation_y) in zip(self._layers(x), self._layers(y), strict=True):
            total += (delta @ delta_y.T) * (activation @ activation_y.T)
        return total

    def diagonal(self, x: np.ndarray) -> np.ndarray:  # noqa: D102
        return sum(
            (np.einsum("ni,ni->n", delta, delta) * np.einsum("ni,ni->n", a, a) for delta, a in self._layers(x)),
            start=np.zeros(len(x)),
        )

    def _layers(self, x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        x, start = np.asarray(x), 0  # what reads its rows from a file has no columns
        for fan_out, fan_in in self.layout:
            middle, end = start + fan_out, start + fan_out + fan_in
            yield _double(x[:, start:middle]), _double(x[:, middle:end])
            start = end


def self_product(rows: np.ndarray) -> np.ndarray:
    """Return all inner products of rows (n, K) float64 with each other, (n, n), in half the time of a whole product."""
    found = np.empty((len(rows), len(rows)))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        stop = start + _ROWS_AT_ONCE
        found[start:stop, start:] = rows[start:stop] @ rows[start:].T
        found[stop:, start:stop] = found[start:stop, stop:].T
    return found


def packed(gram: np.ndarray) -> np.ndarray:
    """Return the lower triangle of a Gram (n, n), row by row, (n (n + 1) / 2,), as a bundle stores it."""
    return gram[np.tri(len(gram), dtype=bool)]


def unpacked(triangle: np.ndarray) -> np.ndarray:
    """Return the Gram (n, n) whose lower triangle `packed` gave."""
    members = _members(triangle)
    below, gram = np.tri(members, dtype=bool), np.empty((members, members))
    gram[below] = gram.T[below] = triangle
    return gram


def packed_columns(triangle: np.ndarray, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return columns of the Gram, (n, len(indices)), of which `packed` gave the lower triangle, reading these alone."""
    every, chosen = np.arange(_members(triangle))[:, None], np.asarray(indices, dtype=np.int64)
    lower, upper = np.maximum(every, chosen), np.minimum(every, chosen)
    return np.asarray(triangle[lower * (lower + 1) // 2 + upper])


def _members(triangle: np.ndarray) -> int:
    return (math.isqrt(8 * len(triangle) + 1) - 1) // 2  # of whose square the triangle is the lower half


def _double(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype=np.float64)


def _chunks(x: np.ndarray, rows: int = _ROWS_FOR_ONE) -> list[np.ndarray]:
    return [x[start : start + rows] for start in range(0, len(x), rows)]
