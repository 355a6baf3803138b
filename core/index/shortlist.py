"""Candidates that an index proposed, kept from pick to pick and always scored exactly."""

from collections.abc import Sequence

import numpy as np

from natscope.core.index.protocol import Index
from natscope.core.recursion import TIE
from natscope.core.rows import Rows

_KEPT = 512  # candidates held in memory
_BAR = 128  # rank of the candidate whose score after a search is the bar
_DRIFT = 0.2  # of the length of r: how far it may move before the index is asked again


class Shortlist:
    """The search of InfoGain (approx) by an index that is not exact.

    The vector r changes little from pick to pick, so candidates are kept and scored again with each new r, in float64.
    The index is asked again when r has moved by a fifth of its length since the last search (at small sigma2 every pick
    does that), or when the best of them no longer reaches the bar: the score that the 128th best candidate had then,
    which a row that was not proposed is unlikely to exceed. Nothing here costs O(n).
    """

    def __init__(self, index: Index, features: Rows, excluded: Sequence[int]) -> None:
        """Start without candidates.

        Args:
            index: over the features.
            features: (n, K); only the rows of candidates are read.
            excluded: rows that may not be picked.
        """
        self._index, self._features = index, features
        self._taken = set(excluded)
        self._rows, self._vectors = np.empty(0, dtype=np.int64), np.empty((0, features.shape[1]))
        self._bar, self._asked = np.inf, np.zeros(features.shape[1])
        self.searches = 0

    def best(self, vector: np.ndarray) -> tuple[int, np.ndarray, float]:
        """Return the open candidate with the largest squared inner product, and take it.

        Args:
            vector: r, (K,) float64.

        Returns:
            The row (of equal candidates the lowest), its features (K,) float64, and its inner product with r.

        Raises:
            ValueError: if every row is taken.
        """
        if len(self._taken) >= len(self._features):
            raise ValueError("Every row of the index is excluded.")
        products = self._vectors @ vector
        if not len(products) or (products**2).max() < self._bar or self._moved(vector):
            products = self._search(vector)
        squares = products**2
        ties = np.flatnonzero(squares >= squares.max() * (1 - TIE))
        position = ties[self._rows[ties].argmin()]
        row, features, product = int(self._rows[position]), self._vectors[position].copy(), float(products[position])
        self._taken.add(row)
        self._keep(np.arange(len(squares)) != position)
        return row, features, product

    def _moved(self, vector: np.ndarray) -> bool:
        return float(np.linalg.norm(vector - self._asked)) > _DRIFT * float(np.linalg.norm(vector))

    def _search(self, vector: np.ndarray) -> np.ndarray:
        self.searches, self._asked = self.searches + 1, vector.copy()
        found = self._index.propose(vector, self._index.proposals, excluded=sorted(self._taken))
        new = np.setdiff1d(found, self._rows)
        self._rows = np.concatenate([self._rows, new])
        self._vectors = np.concatenate([self._vectors, np.asarray(self._features[new], dtype=np.float64)])
        products = self._vectors @ vector
        order = np.argsort(-(products**2), kind="stable")[:_KEPT]
        self._keep(order)
        products = products[order]
        everything = len(found) + len(self._taken) == len(self._features)
        self._bar = 0.0 if everything else products[min(_BAR, len(products)) - 1] ** 2
        return products

    def _keep(self, chosen: np.ndarray) -> None:
        self._rows, self._vectors = self._rows[chosen], self._vectors[chosen]
