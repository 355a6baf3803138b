"""Arrays of inputs: in memory, or in files without a name where they are too large for that."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from natscope.core.errors import DataError
from natscope.core.examples import Examples
from natscope.core.files import size
from natscope.core.images import Images
from natscope.core.rows import RowView
from natscope.precompute.paths import home

LARGEST_IN_MEMORY = 2**30  # bytes of an array
_AT_ONCE, _BYTES_AT_ONCE = 1000, 2**24  # rows that are looked at or copied together, and bytes of them at most


def on_disk(count: float) -> bool:
    """Return whether an array of so many bytes is kept in a file."""
    return count > LARGEST_IN_MEMORY


def zeros(shape: Sequence[int], dtype: npt.DTypeLike = np.uint8) -> np.ndarray:
    """Return an array of zeros; a large one lies in a file without a name, in natscope's home.

    The system writes such an array to the disk and forgets it as it needs memory, and removes it with the last view of
    it, or with the process. Its room on the disk is taken now, since a disk that is full later would kill the process.

    Raises:
        DataError: if there is no room for it.
    """
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if not on_disk(needed):
        return np.zeros(tuple(shape), dtype)
    folder = home()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            return np.asarray(np.memmap(file, dtype, "w+", shape=tuple(shape)))
    except OSError as error:
        raise DataError(
            f"The inputs take {size(needed)} on the disk while they are read, and {folder} cannot hold them "
            f"({error.strerror or type(error).__name__}); make room, name another folder in NATSCOPE_HOME, or take "
            "smaller ones (of a folder of images by --image-size)."
        ) from error


def blocks(rows: np.ndarray, each: int) -> Iterator[np.ndarray]:
    """Yield numbers of rows (n,) some at a time, as many as can be copied into memory, of `each` bytes a row."""
    at_once = max(1, min(_AT_ONCE, _BYTES_AT_ONCE // each))
    yield from np.array_split(rows, len(rows) // at_once + 1)


def picked(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return some rows (n,) of images (N, ...), in one piece; not copied if they follow each other and lie so.

    Raises:
        DataError: if they belong in a file, and there is no room for it.
    """
    if len(rows) and len(rows) == rows[-1] - rows[0] + 1 and images.flags.c_contiguous:
        return images[rows[0] : rows[-1] + 1]
    each = math.prod(images.shape[1:])
    if not on_disk(len(rows) * each):
        return np.ascontiguousarray(images[rows])
    found = zeros((len(rows), *images.shape[1:]))
    _fill(found, images, rows)
    return found


def some_of(examples: Examples, rows: np.ndarray) -> Examples:
    """Return some examples (n,), as indexing does, but with large images in a file; raises DataError as `picked`."""
    if not _large(examples):
        return examples[rows]
    stored = None if examples.stored is None else RowView(examples.stored, rows)
    return replace(examples, images=picked(examples.images, rows), stored=stored)


def replaced(examples: Examples, rows: np.ndarray, others: Examples) -> Examples:
    """Return copies, of which those at `rows` (n,) are others, with large images in a file; raises as `picked`."""
    if not _large(examples):
        return examples.replaced(rows, others)
    images = zeros(examples.images.shape)
    _fill(images, examples.images, np.arange(len(images)))
    images[rows] = others.arrays()["images"]
    return replace(examples, images=images)


def changed(examples: Examples, change: Callable[[Examples, np.ndarray], Examples]) -> Examples:
    """Return what becomes of all examples, with large images in a file.

    Args:
        examples: (N,).
        change: given some examples and their rows (n,), returns as many.

    Raises:
        DataError: as `picked`.
    """
    if not _large(examples):
        return change(examples, np.arange(len(examples)))
    images = zeros(examples.images.shape)
    for part in blocks(np.arange(len(images)), math.prod(images.shape[1:])):
        images[part] = change(examples[part], part).arrays()["images"]
    return replace(examples, images=images)


def _large(examples: Examples) -> TypeGuard[Images]:
    return isinstance(examples, Images) and on_disk(examples.images.nbytes)


def _fill(found: np.ndarray, images: np.ndarray, rows: np.ndarray) -> None:
    """Copy rows of images into an array of zeros; of a sample most are zeros, which are not written."""
    for part in blocks(np.arange(len(rows)), math.prod(images.shape[1:])):
        some = images[rows[part]]
        seen = some.reshape(len(some), -1).any(axis=1)
        found[part[seen]] = some[seen]
