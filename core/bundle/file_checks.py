"""The checks of a bundle's file before anything is read from it: it must be as recorded, with usable values.

A checksum proves that a file is as its maker wrote it, not that its numbers are finite, so both are checked in one
pass. A file is read through once in a process; after that its identity, size and times tell that it is the same.
"""

import hashlib
import io
import math
import os
import re
import stat
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import safetensors
import torch

from natscope.core.bundle.manifest import FileRecord
from natscope.core.cache import BoundedCache
from natscope.core.errors import FileError, out_of_memory
from natscope.core.files import machine_memory, opened, reading, refused, size
from natscope.core.rows import FileRows

_BLOCK = 2**22  # bytes read at once
_LONGEST_HEADER = 300  # bytes of an array's header
# Exactly what numpy writes for an array of plain numbers; its own reader, Python's parser, would accept far more.
_HEADER = re.compile(
    rb"\{'descr': '[<>|][a-z]\d{1,2}', 'fortran_order': (?:True|False), "
    rb"'shape': \((?:\d{1,18}(?:,|(?:, \d{1,18})+))?\), \} *\n"
)
_TICK = 10**8  # nanoseconds within which a second change may leave a file's times as they are
_CHECKED: BoundedCache[str] = BoundedCache(20_000)
Value = TypeVar("Value")
_TENSORS = frozenset(("F32", "I64", "I32", "I16", "I8", "U8", "BOOL"))  # networks are of float32; buffers may count
_NOT_FINITE = "holds values that are not finite numbers, or too large"
_LARGEST = 1e15
_EXPONENT = np.uint16(0x7C00)  # of a float16


def once(
    cache: BoundedCache[Value], found: os.stat_result, what: tuple[Hashable, ...], compute: Callable[[], Value]
) -> Value:
    """Return what `compute` returns for a file, cached until the file changes; an error is not cached.

    Args:
        cache: where results are kept.
        found: the status of the open file.
        what: whatever else it depends on.
        compute: called without arguments.
    """
    if abs(time.time_ns() - found.st_ctime_ns) < _TICK:  # unlike the time of modification, this one cannot be set
        return compute()
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, *what)
    return cache.get(key, compute)


def size_fault(folder: Path, record: FileRecord) -> str:
    """Return what is wrong with a file's kind or size, without opening it; "" if nothing is.

    Args:
        folder: the bundle's folder.
        record: what the manifest says of the file.
    """
    path = folder / record.file
    try:
        if path.parent != folder and not stat.S_ISDIR(path.parent.lstat().st_mode):
            return "is not in a folder of the bundle's own"
        found = path.lstat()
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else refused(error)
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_size != record.bytes:
        return f"has {found.st_size:,} bytes where {record.bytes:,} were recorded"
    return ""


def fault(folder: Path, record: FileRecord, classes: int) -> str:
    """Return what is wrong with a file, reading it in full the first time; "" if nothing is.

    Args:
        folder: the bundle's folder.
        record: what the manifest says of the file.
        classes: how many classes labels may name.
    """
    try:
        with checked(folder, record, classes):
            return ""
    except FileError as error:
        return error.fault


@contextmanager
def checked(folder: Path, record: FileRecord, classes: int) -> Iterator[BinaryIO]:
    """Open a file that is as recorded, reading it in full the first time.

    Args:
        folder: the bundle's folder.
        record: what the manifest says of the file.
        classes: how many classes labels may name.

    Raises:
        FileError: if it is not; also instead of an EOFError raised while it is open.
    """
    path = folder / record.file
    if wrong := size_fault(folder, record):
        raise FileError(path, wrong)
    with opened(path) as file, reading(path):
        found = os.fstat(file.fileno())
        if wrong := once(_CHECKED, found, (record, classes), lambda: _read_through(file, path, record, classes)):
            raise FileError(path, wrong)
        file.seek(0)
        try:
            yield file
        except EOFError as error:
            raise FileError(path, "was cut short while it was read") from error


def stamp(folder: Path, records: Iterable[FileRecord]) -> str:
    """Return a checksum of which files are there, how large they are and when they were written; none is opened.

    Args:
        folder: the bundle's folder.
        records: what the manifest says of the files.
    """
    digest = hashlib.sha256()
    for record in records:
        try:
            found = (folder / record.file).lstat()
            digest.update(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(b"missing\n")
    return digest.hexdigest()


def mapped(path: Path, record: FileRecord) -> np.ndarray:
    """Return an array as a read-only memory map.

    Raises:
        FileError: if it cannot be opened, read or mapped, but for a lack of memory, which is raised as it is.
        ValueError: if it is not an array of the recorded shape and type.
    """
    with opened(path) as file, reading(path):
        offset, fortran = _header(file, record)
        return np.memmap(
            file,  # type: ignore[call-overload]  # it is only read from
            dtype=record.dtype,
            mode="r",
            offset=offset,
            shape=record.shape,
            order="F" if fortran else "C",
        )


def unmapped(
    opened: Callable[[], AbstractContextManager[BinaryIO]], record: FileRecord, *, whole: bool
) -> FileRows | np.ndarray:
    """Return an array without a map: its rows, which are read when they are requested, or all of it in memory.

    Args:
        opened: opens the file, see `checked`.
        record: what the manifest says of the file.
        whole: whether all of it is wanted; an array in column order is always read whole, since it has no rows to read.
    """
    dtype, shape = np.dtype(record.dtype), record.shape or ()
    with opened() as file:
        offset, fortran = _header(file, record)
        if whole or fortran:
            if len(data := file.read(record.bytes - offset)) < record.bytes - offset:
                raise EOFError
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return FileRows(opened, offset, shape, dtype)


def _read_through(file: BinaryIO, path: Path, record: FileRecord, classes: int) -> str:
    digest, offset, wrong, tensors = hashlib.sha256(), 0, "", path.suffix == ".safetensors"
    usable: Callable[[np.ndarray], bool] | None = None
    if record.shape is not None:
        try:
            offset, _ = _header(file, record)
            usable = _usable(record, classes)
        except ValueError:
            wrong = "is not an array of the recorded shape and type"
    elif tensors and (misfit := _tensors_fault(path, record)):
        return misfit
    file.seek(0)
    digest.update(file.read(offset))
    while block := file.read(_BLOCK):
        digest.update(block)
        count = len(block) // np.dtype(record.dtype).itemsize  # a file may be cut short in the middle of a number
        if usable is not None and not wrong and not usable(np.frombuffer(block, record.dtype, count)):
            wrong = "holds labels of no class" if record.dtype == "int64" else _NOT_FINITE
    if digest.hexdigest() != record.sha256:
        return "does not have the recorded checksum"
    return wrong or ("" if not tensors or _tensors_are_finite(path) else _NOT_FINITE)


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return an array's shape, whether it is in column order, and its type; its numbers follow in the file.

    Args:
        file: the array's file, at its beginning.

    Raises:
        ValueError: if the header is not one that numpy writes of an array of numbers.
    """
    start = file.read(10)
    length = int.from_bytes(start[8:], "little")
    text = file.read(min(length, _LONGEST_HEADER))
    if start[:8] != b"\x93NUMPY\x01\x00" or len(text) < length or not _HEADER.fullmatch(text):
        raise ValueError("no header of an array")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(start[8:] + text))
    except TypeError as error:  # an unknown type
        raise ValueError("no header of an array") from error
    return shape, fortran, dtype


def whole_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return what `read_header` does, for a file that holds all numbers of its array and nothing more.

    Raises:
        ValueError: as `read_header` does, and if the file is shorter or longer than its header says.
    """
    shape, fortran, dtype = read_header(file)
    if file.tell() + dtype.itemsize * math.prod(shape) != os.fstat(file.fileno()).st_size:
        raise ValueError("another size")
    return shape, fortran, dtype


def _header(file: BinaryIO, record: FileRecord) -> tuple[int, bool]:
    """Return where an array's numbers begin, and whether it is in column order.

    Raises:
        ValueError: if the header is not valid, or not that of the recorded array.
    """
    shape, fortran, dtype = read_header(file)
    offset = file.tell()
    if shape != record.shape or dtype != np.dtype(record.dtype):
        raise ValueError("another array")
    if offset + dtype.itemsize * math.prod(shape) != record.bytes:
        raise ValueError("another size")
    return offset, fortran


def bounded(values: np.ndarray) -> bool:
    """Return whether values are finite numbers whose products stay finite in float32."""
    if values.dtype == np.float16:  # at most 65,504 unless all bits of the exponent are set; the test below takes long
        return not ((values.view(np.uint16) & _EXPONENT) == _EXPONENT).any()
    return float(np.abs(values).max(initial=0)) <= _LARGEST


def _usable(record: FileRecord, classes: int) -> Callable[[np.ndarray], bool] | None:
    kind = np.dtype(record.dtype).kind
    if kind == "f":
        products = record.file.startswith(("gram_", "train_gram_"))
        return (lambda values: bool(np.isfinite(values).all())) if products else bounded
    if kind == "i" and record.file.endswith("_labels.npy"):
        return lambda values: bool(((values >= 0) & (values < classes)).all())
    return (lambda values: bool((values.view(np.uint8) <= 1).all())) if kind == "b" else None


def _tensors_fault(path: Path, record: FileRecord) -> str:
    """Return what is wrong with weights before they are read in full, which takes long for large files."""
    if record.bytes > machine_memory():
        return f"is larger, with {size(record.bytes)}, than the memory of this machine"
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            known = all(file.get_slice(name).get_dtype() in _TENSORS for name in list(file.keys()))
            return "" if known else "holds numbers of a type that natscope does not write"
    except Exception as error:  # a malformed header can raise nearly anything
        if out_of_memory(error):
            raise
        return "is not a file of weights"


def _tensors_are_finite(path: Path) -> bool:
    with safetensors.safe_open(path, framework="pt") as file:
        return all(_is_finite(file.get_tensor(name)) for name in list(file.keys()))


def _is_finite(tensor: torch.Tensor) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in tensor.flatten().split(_BLOCK))
