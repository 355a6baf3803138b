"""Rows of different lengths in one array, one after another, and the places where they begin and the last one ends."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

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


@dataclass(frozen=True, eq=False)
class PaddedRuns:
    """Rows of numbers above 0, such as tokens of texts, padded batch by batch: memory is that of a batch, whatever N.

    Args:
        values: (T,) int32 of all stored rows, one after another; a memory map will do.
        offsets: (M + 1,) int64, where each stored row begins and the last one ends.
        rows: (N,) which of them these are; all if None.
    """

    values: Rows
    offsets: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """How long each row is, (N,) int64."""
        return lengths_of(self.offsets, self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, L), L being the length of the longest."""
        return len(self), max(1, int(self.lengths.max(initial=0)))

    def __getitem__(self, rows: slice | np.ndarray | Tensor) -> Tensor:
        """Return some rows, (B, L) int64, with zeros up to the longest of them."""
        chosen = numbers_of(len(self), rows.numpy() if isinstance(rows, Tensor) else rows)
        lengths = self.lengths[chosen]
        padded = np.zeros((len(chosen), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
        within = np.arange(padded.shape[1]) < lengths[:, None]
        padded[within] = runs_of(self.values, self.offsets, chosen if self.rows is None else self.rows[chosen])
        return torch.from_numpy(padded)
