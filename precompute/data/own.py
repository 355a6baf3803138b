"""Data sets of one's own from Python: torch Datasets, arrays, tables of files, `datasets` splits and folders."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from natscope.core.bundle.file_checks import bounded
from natscope.core.errors import DataError, NatscopeError
from natscope.core.images import Images
from natscope.core.progress import Progress, silent
from natscope.core.text import UNSEEN, few
from natscope.core.thumbnails import LARGEST, scaling_between, thumbnails
from natscope.precompute.data.datasets import Dataset
from natscope.precompute.data.decode import decode, in_colour_or_grey, picture
from natscope.precompute.data.items import (
    MOST_CLASSES,
    Items,
    Reading,
    input_of,
    items_of,
    transformed,
)
from natscope.precompute.data.on_disk import zeros

_AT_ONCE = 256  # inputs
_REPEATED = 16  # inputs read twice in a row: all of them miss a mirror that is thrown like a coin once in 65,536 times
_AGAIN = 32  # inputs that are read once more after all others, when random numbers have moved on
_SAME = 3  # files of which one at least becomes the input that is stored
_CLOSE = 1e-3  # of the largest number of an input
_LARGEST_SCALE = 1e6
_LISTED = 5  # classes in a sentence


def own_dataset(
    train_set: Any, test_set: Any, reading: Reading, *, name: str = "own data", progress: Progress = silent
) -> Dataset:
    """Return a data set of natscope's from a user's own training and test set; the same twice if the latter is None.

    Each is a torch Dataset of (input, label) whose length is known, a pair (inputs, labels) of arrays or tensors, a
    pandas DataFrame of paths and labels, a split of Hugging Face `datasets`, or a folder with a subfolder for each
    class. Inputs are floating-point numbers of any one shape; uint8 pictures, (H, W) or (H, W, 3), need `mean` and
    `std`, or `transform`. Every item is read once, and large inputs wait in a file in natscope's home.

    Raises:
        DataError: if an item or label cannot be used; the sentence says which, and what to do.
    """
    sets = {"training": train_set} | ({} if test_set is None else {"test": test_set})
    parts = [items_of(given, part, reading) for part, given in sets.items()]
    kept, found = zip(*(_read(items, progress) for items in parts), strict=True)
    if test_set is None:
        parts, kept, found = parts * 2, kept * 2, found * 2
    classes, labels = labelled(parts, found, reading.classes)
    if kept[0].shape[1:] != kept[1].shape[1:] or kept[0].dtype != kept[1].dtype:
        raise DataError(
            f"Training inputs are {_form(kept[0][0])} and test inputs {_form(kept[1][0])}; give both one form."
        )
    about: dict[str, Any] = {"name": name, "classes": classes, "train_labels": labels[0], "test_labels": labels[1]}
    about |= {"train_sources": _shown(parts[0]), "test_sources": _shown(parts[1])}
    if kept[0].dtype == np.uint8:
        images = [pictures(rows) for rows in kept]
        mean, std = _given_scaling(reading, 1 if images[0].ndim == 3 else 3)
        if mean is None or std is None:
            raise DataError(
                "The inputs are uint8 pictures; say how the network takes them: by mean and std, in units where white "
                "is 1, or by transform, a function."
            )
        return Dataset(**about, train=Images(images[0], mean, std), test=Images(images[1], mean, std))
    mean, std = _shown_by(kept[0], reading)
    train, test = (Images(_thumbnails(rows, mean, std), mean, std, rows) for rows in kept)
    data = Dataset(**about, train=train, test=test)
    if reading.load is not None or reading.transform is not None:
        _check_uploads(data, reading, parts[0].files)
    return data


def titles_of(classes: Any) -> tuple[str, ...] | None:
    """Return titles in the order of labels, from those titles or from a title for each label; None if there are none.

    Raises:
        DataError: if their order is not said.
    """
    if isinstance(classes, Mapping) and set(classes) == set(range(len(classes))):
        classes = [classes[label] for label in range(len(classes))]
    if classes is None:
        return None
    if isinstance(classes, str | bytes | Mapping | set | frozenset) or not all(
        isinstance(title, str | int | np.integer) for title in _listed(classes)
    ):
        raise DataError("classes= takes the classes' titles in the order of their labels, or a title for each label.")
    return tuple(map(str, _listed(classes)))


def _listed(classes: Any) -> list[Any]:
    values = classes.tolist() if hasattr(classes, "tolist") else classes
    return list(values) if isinstance(values, Iterable) else [None]


def labelled(
    parts: Sequence[Items], found: Sequence[Sequence[int] | Sequence[str]], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Return the classes and the labels of both parts, (N,) int64, from the labels that were found in them.

    Numbers are those of the training set: where another part numbers the same titles in its own way, they are changed.
    """
    own, known = parts[0].classes, titles_of(classes)
    words = any(isinstance(label, str) for labels in found for label in labels)
    if not words and own is not None and known is not None:
        _check_order(own, known)
    named = known is not None and any(title in known for items in parts for title in items.classes or ())
    reference = None if words else own or (known if named else None)  # other titles are new ones for the same numbers
    found = [_translated(reference, items, labels, words) for items, labels in zip(parts, found, strict=True)]
    every = {label for labels in found for label in labels}
    if words and not all(isinstance(label, str) for label in every):
        raise DataError("Some labels are words and some are numbers; give all of one kind.")
    if known is None:
        known = own
    if known is None and not words and max(map(int, every)) >= MOST_CLASSES:
        raise DataError(f"The largest label is {max(every)}, and natscope takes labels from 0 to {MOST_CLASSES - 1:,}.")
    if known is None and words:  # a class of test items alone would shift the numbers of others
        known = tuple(sorted(set(map(str, found[0]))))
        if all(map(str.isdecimal, known)) and sorted(known, key=int) != list(known):
            raise DataError(
                f"The labels are numbers as text, whose order is {few(known, 4)}; give whole numbers, or classes= in "
                "the order of the network's outputs."
            )
    if known is None:
        known = tuple(map(str, range(max(map(int, every)) + 1)))
    if len(known) < 2:
        there = f"There is one class alone, {known[0]}" if known else "There are no classes"
        raise DataError(f"{there}; a classifier needs at least two.")
    if len(set(known)) < len(known) or not all(known):
        raise DataError("Two classes have the same title, or one has none; give each class one of its own.")
    place: dict[Any, int] = {title if words else label: label for label, title in enumerate(known)}
    numbered = []
    for items, labels in zip(parts, found, strict=True):
        for row, label in enumerate(labels):
            if label not in place:
                choice = f"one of the {len(known)} classes" if words else f"from 0 to {len(known) - 1}"
                hint = f" ({few(known, _LISTED)}); name all of them as classes" if words and classes is None else ""
                raise DataError(
                    f"Item {row} of the {items.part} set has the label {label}, which is not {choice}{hint}."
                )
        numbered.append(np.array([place[label] for label in labels], dtype=np.int64))
    return known, numbered


def _check_order(own: Sequence[str], given: Sequence[str]) -> None:
    """Refuse titles for labels that are the data's own titles of other labels; new titles may be given."""
    for label, title in enumerate(own):
        if title in given and given[label : label + 1] != (title,):
            raise DataError(
                f"The classes that are given have {title} in place {given.index(title)}, and the training set "
                f"numbers it {label}; leave them out, or give titles in the order of the data's own."
            )


def _translated(known: Sequence[str] | None, items: Items, labels: Sequence[Any], words: bool) -> Sequence[Any]:
    """Return labels in the numbers of known titles, or as words; as they are if a part has no titles of its own."""
    own = items.classes
    place = {title: label for label, title in enumerate(known or ())}
    if own is None or own == known or (known is None and not words) or any(isinstance(y, str) for y in labels):
        return labels
    for row, label in enumerate(labels):
        if not 0 <= label < len(own):
            raise DataError(
                f"Item {row} of the {items.part} set has the label {label}, which is not from 0 to {len(own) - 1}."
            )
        if known is not None and own[label] not in place:
            raise DataError(
                f"Item {row} of the {items.part} set is of the class {own[label]}, which is none of "
                f"{few(known, _LISTED)}, those of the training set."
            )
    return [own[label] if words else place[own[label]] for label in labels]


def _read(items: Items, progress: Progress) -> tuple[np.ndarray, Sequence[int] | Sequence[str]]:
    """Read every input and label once, and check them."""
    if not items.count:
        raise DataError(f"The {items.part} set is empty.")
    if items.whole is not None:
        inputs, labels = items.whole
        for start in range(0, len(inputs), _AT_ONCE):
            block = inputs[start : start + _AT_ONCE]
            if block.dtype != np.uint8 and not bounded(block):
                row = next(row for row, values in enumerate(block, start) if not bounded(values))
                raise _not_finite(items.part, row)
        return inputs, labels
    first, _ = items.read(0)
    if not first.ndim or not first.size:
        raise DataError(f"Item 0 of the {items.part} set is {_form(first)}; natscope takes inputs of one axis or more.")
    for time in range(_REPEATED):
        row = time % items.count
        _check_repeated(items, row, *items.read(row))
    kept, labels = zeros((items.count, *first.shape), first.dtype), list[Any]()
    for row in range(items.count):
        if row % _AT_ONCE == 0:
            progress(f"Reading the {items.part} set", row, items.count)
        values, label = items.read(row)
        if values.shape != first.shape or values.dtype != first.dtype:
            raise DataError(
                f"Item {row} of the {items.part} set is {_form(values)} and the first one {_form(first)}; natscope "
                "needs inputs of one form."
            )
        if values.dtype != np.uint8 and not bounded(values):
            raise _not_finite(items.part, row)
        kept[row] = values
        labels.append(label)
    for row in np.unique(np.linspace(0, items.count - 1, min(_AGAIN, items.count), dtype=np.int64)).tolist():
        _check_repeated(items, row, kept[row], labels[row])
    progress(f"Reading the {items.part} set", items.count, items.count)
    return kept, labels


def _check_repeated(items: Items, row: int, before: np.ndarray, label: int | str) -> None:
    """Raise DataError if an item is not what it was when it was read before."""
    again, now = items.read(row)
    if label != now:
        raise DataError(
            f"Item {row} of the {items.part} set has another label each time it is read; natscope needs the same one."
        )
    if before.shape != again.shape or not np.array_equal(before, again, equal_nan=before.dtype != np.uint8):
        raise DataError(
            f"Item {row} of the {items.part} set is another each time it is read; natscope needs the inputs without "
            "random augmentation, as for testing."
        )


def _not_finite(part: str, row: int) -> DataError:
    return DataError(f"Item {row} of the {part} set holds numbers that are not finite, or too large for float32.")


def _form(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _shown(items: Items) -> tuple[str, ...]:
    return tuple(UNSEEN.sub("\ufffd", source) for source in items.sources)


def pictures(array: np.ndarray) -> np.ndarray:
    """Return pictures as natscope keeps them, (N, H, W) or (N, H, W, 3) uint8."""
    if array.ndim == 4 and array.shape[3] != 3 and array.shape[1] in (1, 3):
        array = array[:, 0] if array.shape[1] == 1 else np.moveaxis(array, 1, 3)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3)) or max(array.shape[1:3]) > 1024:
        raise DataError(
            f"The uint8 inputs have shape {tuple(array.shape[1:])}, which is no picture of up to 1024 × 1024 pixels; "
            "give floating-point inputs, or transform, a function."
        )
    return np.array(array)


def _given_scaling(reading: Reading, channels: int) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if (reading.mean is None) != (reading.std is None):
        raise DataError("mean and std go together: give both, or neither.")
    if reading.mean is None or reading.std is None:
        return None, None
    try:
        mean, std = (tuple(map(float, np.atleast_1d(values))) for values in (reading.mean, reading.std))
    except (TypeError, ValueError) as error:
        raise DataError("mean and std take numbers, one for each channel.") from error
    if len(mean) != channels or len(std) != channels:
        raise DataError(f"Pictures of {channels} channels need {channels} numbers in mean and in std.")
    if not all(abs(value) <= _LARGEST_SCALE for value in (*mean, *std)) or min(std) < 1 / _LARGEST_SCALE:
        raise DataError("mean takes finite numbers and std positive ones, in units where white is 1.")
    return mean, std


def _shown_by(rows: np.ndarray, reading: Reading) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the scaling by which thumbnails show inputs: the one that was given, or one over all training inputs."""
    low = high = 0.0
    for start in range(0, len(rows), _AT_ONCE):
        block = rows[start : start + _AT_ONCE]
        low, high = (block.min(), block.max()) if not start else (min(low, block.min()), max(high, block.max()))
    mean, std = scaling_between(float(low), float(high), rows.shape[1:])
    given = _given_scaling(reading, len(mean))
    return (mean, std) if given[0] is None or given[1] is None else (given[0], given[1])


def _thumbnails(rows: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    parts = [thumbnails(rows[start : start + _AT_ONCE], mean=mean, std=std) for start in range(0, len(rows), _AT_ONCE)]
    return np.concatenate(parts)


def _check_uploads(data: Dataset, reading: Reading, files: Sequence[Path]) -> None:
    """Raise DataError if uploads would not become inputs of the data's form, or others than training files became."""
    shape = data.train.inputs.shape[1:]
    if reading.load is None:
        pixels = np.random.default_rng(0).integers(0, 256, (LARGEST, LARGEST, 3), dtype=np.uint8)
        found, *again = (_uploaded(picture(pixels), shape, "A picture", reading) for _ in range(_REPEATED))
        if any(not np.array_equal(found, other) for other in again):
            raise DataError(
                "transform makes another input of the same picture each time; give it without random augmentation, as "
                "for testing."
            )
        if found.shape != shape or found.dtype != np.float32:
            raise DataError(
                f"transform makes {_form(found)} of a picture, and the inputs are float32 of shape {shape}; give the "
                "function that made them."
            )
    rows = [row for row, file in enumerate(files[:_SAME]) if file.is_file()]
    if rows and not any(_becomes(files[row], row, data, reading) for row in rows):
        how = " and ".join(name for name in ("load", "transform") if getattr(reading, name) is not None)
        raise DataError(
            f"By {how}, {files[rows[0]]} becomes another input than the training set has in row {rows[0]}, so uploads "
            "would not go the way of training images; give the functions that the training set uses."
        )


def _uploaded(given: Any, shape: Sequence[int], what: str, reading: Reading) -> np.ndarray:
    """Return the input that a picture becomes when it is uploaded."""
    return in_colour_or_grey(given, shape, lambda made: transformed(made, what, reading))


def _becomes(file: Path, row: int, data: Dataset, reading: Reading) -> bool:
    """Return whether a file that is uploaded becomes the stored input of a row."""
    stored = np.asarray(data.train.inputs[row : row + 1])[0]
    if reading.load is not None:
        found = input_of(file, row, "training", reading)
    else:
        try:
            read = decode(file.read_bytes(), file.name, reading.decoding)
        except (OSError, NatscopeError):  # which the upload of such a file would be told, too
            return True
        found = _uploaded(read, stored.shape, f"The file {file}", reading)
    return found.shape == stored.shape and float(abs(found - stored).max()) <= _CLOSE * float(abs(stored).max())
