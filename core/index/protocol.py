"""What a search for the largest inner products offers, wherever the vectors lie."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from natscope.core.rows import Rows


class Index(Protocol):
    """An index over n rows: FAISS's in a file (`InnerProductIndex`), or one that a server holds (`MilvusIndex`).

    Args:
        kind: a key of `natscope.core.index.spec.TITLES`.
        exact: whether `largest_square` finds what a scan finds.
        proposals: how many rows in each direction are worth asking for.
    """

    kind: str
    exact: bool
    proposals: int

    def __len__(self) -> int:
        """Return the number of rows."""

    def largest_square(
        self, vector: np.ndarray, features: Rows, *, excluded: Sequence[int] | np.ndarray
    ) -> tuple[int, float]:
        """Return the row with the largest squared product with a vector (K,), ties to the lowest, and that product.

        Candidates are scored in float64 from `features` (n, K), whatever the index stores.
        """

    def propose(self, vector: np.ndarray, count: int, *, excluded: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return rows whose product with a vector (K,) is likely among the `count` largest, or smallest; rising."""
