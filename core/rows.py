"""Feature vectors that need not be in memory, and a choice of their rows."""

from typing import Any, Protocol

import numpy as np


class Rows(Protocol):
    """Feature vectors (n, K): an array, a memory map, or a view of chosen rows of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class RowView:
    """Chosen rows of a memory map, read when they are requested."""

    ndim = 2

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        """Choose rows (n,) of an array (N, K)."""
        self._array, self._rows = array, rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, K)."""
        return len(self._rows), self._array.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """The type of the array."""
        return self._array.dtype

    def __len__(self) -> int:
        """Return n."""
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read one row, a slice or several, in the requested order."""
        return np.asarray(self._array[self._rows[rows]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all rows."""
        return self[:].astype(dtype or self.dtype, copy=False)
