"""Rows of different lengths in one array, one after another, and the places where they begin and the last one ends."""

import numpy as np

from natscope.core.examples import Which
from natscope.core.rows import Rows


def numbers_of(count: int, rows: Which) -> np.ndarray:
    """Return the numbers of some of `count` rows, int64."""
    return np.arange(count)[rows]


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return where rows of these lengths (N,) begin and the last one ends, (N + 1,) int64."""
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


def lengths_of(offsets: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Return the lengths of some rows, all if None, by the places (N + 1,) where each begins and the last one ends."""
    return np.diff(offsets) if rows is None else np.asarray(offsets[rows + 1] - offsets[rows])


def run_of(values: Rows, offsets: np.ndarray, row: int) -> np.ndarray:
    """Return one row of the values (T, ...)."""
    return values[int(offsets[row]) : int(offsets[row + 1])]


def runs_of(values: Rows, offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return some rows of the values (T, ...), one after another."""
    if len(rows) and (np.diff(rows) == 1).all():
        return np.asarray(values[int(offsets[rows[0]]) : int(offsets[rows[-1] + 1])])
    return np.concatenate([values[:0], *(run_of(values, offsets, row) for row in rows.tolist())])
