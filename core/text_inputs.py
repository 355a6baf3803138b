"""The tokens of texts as a network takes them: a batch padded to its longest."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from natscope.core.ragged import lengths_of, numbers_of, runs_of
from natscope.core.rows import Rows


@dataclass(frozen=True, eq=False)
class TextInputs:
    """Tokens of texts, padded batch by batch: memory is that of a batch, whatever N.

    Args:
        tokens: (T,) int32 of all stored texts, one after another; a memory map will do.
        offsets: (M + 1,) int64, where each stored text begins and the last one ends.
        rows: (N,) which of them these are; all if None.
    """

    tokens: Rows
    offsets: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.lengths)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, (N,) int64."""
        return lengths_of(self.offsets, self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, L), L being the length of the longest."""
        return len(self), max(1, int(self.lengths.max(initial=0)))

    def __getitem__(self, rows: slice | np.ndarray | Tensor) -> Tensor:
        """Return the tokens of some texts, (B, L) int64, with zeros up to the longest of them."""
        chosen = numbers_of(len(self), rows.numpy() if isinstance(rows, Tensor) else rows)
        lengths = self.lengths[chosen]
        padded = np.zeros((len(chosen), max(1, int(lengths.max(initial=0)))), dtype=np.int64)
        within = np.arange(padded.shape[1]) < lengths[:, None]
        padded[within] = runs_of(self.tokens, self.offsets, chosen if self.rows is None else self.rows[chosen])
        return torch.from_numpy(padded)
