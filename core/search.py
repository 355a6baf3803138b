"""Inner-product search by FAISS, the only module that imports it."""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

_START = 16  # candidates asked for in each direction before the first check


class InnerProductIndex:
    """Rows that maximise an inner product, found by an index; flat (exact) today, IVF and HNSW fit the same methods."""

    def __init__(self, index: faiss.Index, *, exact: bool) -> None:
        """Wrap a FAISS index with the inner-product metric."""
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("The index must have been built with the inner-product metric.")
        self._index, self.exact = index, exact

    @classmethod
    def flat(cls, features: np.ndarray) -> "InnerProductIndex":
        """Build a flat index over features (n, K); FAISS keeps them as float32."""
        index = faiss.IndexFlatIP(features.shape[1])
        index.add(np.ascontiguousarray(features, dtype=np.float32))
        return cls(index, exact=True)

    @classmethod
    def load(cls, path: Path) -> "InnerProductIndex":
        """Read an index that `save` wrote."""
        index = faiss.read_index(str(path))
        return cls(index, exact=isinstance(index, faiss.IndexFlat))

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        faiss.write_index(self._index, str(path))

    def __len__(self) -> int:
        """Give the number of rows."""
        return self._index.ntotal

    def largest_square(
        self, vector: np.ndarray, features: np.ndarray, *, excluded: Sequence[int] | np.ndarray
    ) -> tuple[int, float]:
        """Find the row with the largest squared inner product, ties to the lowest row.

        FAISS searches in float32, with `vector` and with its negative; the candidates are scored again in float64, and
        more are asked for until no row that was left out can win, so a flat index gives exactly what a scan gives.

        Args:
            vector: (K,).
            features: (n, K), the rows that the index was built over.
            excluded: rows to leave out.

        Returns:
            The row and its inner product with `vector`, in float64.
        """
        left = len(self) - len(set(excluded))
        if left < 1:
            raise ValueError("Every row of the index is excluded.")
        both = np.stack([vector, -vector]).astype(np.float32)
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.asarray(excluded, dtype=np.int64)))
        length = float(np.linalg.norm(vector))
        wanted = min(_START, left)
        while True:
            near, rows = self._index.search(both, wanted, params=self._parameters(selector))
            candidates = np.unique(rows[rows >= 0])
            picked = features[candidates].astype(np.float64)
            products = picked @ vector
            squares = products**2
            best = int(np.argmax(squares >= squares.max() * (1 - 1e-10)))
            # A row not returned has at most the last returned product, up to float32 rounding of a dot product.
            slack = 4 * np.finfo(np.float32).eps * np.sqrt(len(vector)) * length * np.linalg.norm(picked, axis=1).max()
            if wanted == left or not self.exact or abs(products[best]) * (1 - 1e-10) > near[:, -1].max() + slack:
                return int(candidates[best]), float(products[best])
            wanted = min(4 * wanted, left)

    def _parameters(self, selector: faiss.IDSelector) -> faiss.SearchParameters:
        return faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
