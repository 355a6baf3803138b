"""Feature vectors that need not be in memory, and a choice of their rows."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Protocol

import numpy as np


class Rows(Protocol):
    """Rows (n, ...), such as feature vectors: an array, a memory map, or a view of chosen rows of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class RowView:
    """Chosen rows of a memory map, read when they are requested."""

    def __init__(self, array: Any, rows: np.ndarray) -> None:
        """Choose rows (n,) of an array (N, ...)."""
        self._array, self._rows, self.ndim = array, rows, len(array.shape)

    def __getstate__(self) -> dict[str, Any]:
        """Return the chosen rows, and none of the others, for another process."""
        return {"_array": self[:], "_rows": np.arange(len(self)), "ndim": self.ndim}

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return len(self._rows), *self._array.shape[1:]

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


class FileRows:
    """An array in a file whose rows are read when they are requested, and never mapped.

    The system kills a process whose mapped file is cut short; a failed read is an error like any other.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[BinaryIO]],
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        """Read nothing yet.

        Args:
            opened: opens the file, and turns an EOFError raised while it is open into its own error.
            offset: position of the first number, in bytes.
            shape: (N, ...), the last axis varying fastest.
            dtype: type of the numbers.
        """
        self._opened, self._offset = opened, offset
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read one row, a slice or several, in the requested order."""
        chosen = np.arange(len(self))[rows]
        found = np.empty((*chosen.shape, *self.shape[1:]), self.dtype)
        flat = found.reshape(chosen.size, math.prod(self.shape[1:]))
        size = flat.shape[1] * self.dtype.itemsize
        with self._opened() as file:
            for position, row in enumerate(chosen.flat):
                file.seek(self._offset + int(row) * size)
                if len(data := file.read(size)) < size:
                    raise EOFError
                flat[position] = np.frombuffer(data, self.dtype)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all rows."""
        return self[:].astype(dtype or self.dtype, copy=False)
