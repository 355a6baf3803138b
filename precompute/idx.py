"""The IDX format of MNIST and its relatives, gzipped (LeCun et al. 1998)."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from core.errors import DataError

_TYPES = {0x08: np.dtype(">u1"), 0x0C: np.dtype(">i4")}


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes or 32-bit integers.

    Raises:
        DataError: if the file is missing, truncated or of another format.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"The data file {path} is missing; fetch the data set again.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"The data file {path} is damaged; fetch the data set again.") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise DataError(f"The data file {path} is no IDX file; fetch the data set again.")
    kind, start = _TYPES[data[2]], 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start].ljust(4 * data[3], b"\0"))
    if len(data) != start + math.prod(shape) * kind.itemsize:
        raise DataError(f"The data file {path} is damaged: its length does not fit its header; fetch the data set again.")
    return np.frombuffer(data, kind, offset=start).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 or int32 values as gzipped IDX, the same bytes every time."""
    code = {1: 0x08, 4: 0x0C}[array.dtype.itemsize]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(_TYPES[code]).tobytes(), compresslevel=9, mtime=0))
