"""What somebody calls a data set, whatever its kind: labels, sources, and inputs that are read one by one."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from natscope.core.errors import DataError, NatscopeError, out_of_memory
from natscope.core.text import few, kind_of, type_of
from natscope.precompute.data.decode import USUAL, Decoding, decode, picture
from natscope.precompute.data.folders import files_of, readable
from natscope.precompute.data.splits import class_names
from natscope.precompute.training.projects import said

MOST_CLASSES, MOST_ITEMS = 10_000, 10**8
_MODES = ("RGB", "L")  # of pictures that transform= is given
_LISTED = 10  # columns in a sentence


@dataclass(frozen=True)
class Reading:
    """How items become inputs and labels.

    Args:
        classes: a title for each label; the data's own, or the labels themselves, when None.
        mean: mean of each channel, in units where white is 1; for pictures of uint8 it scales them for the network, and
            for inputs it only shows them in their own colours.
        std: standard deviation of each channel, in the same units.
        load: reads a file, given its path; a picture in RGB when None.
        transform: makes an input of what is not one yet, a picture that was read or that the data set gives.
        columns: the names of the columns of inputs (or paths of files) and labels in a table.
        decoding: how files become pictures, where `load` does not read them.
    """

    classes: Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    load: Callable[..., Any] | None = None
    transform: Callable[..., Any] | None = None
    columns: tuple[str, str] | None = None
    decoding: Decoding = USUAL


@dataclass(frozen=True, eq=False)
class Items:
    """A training or test set.

    Args:
        part: "training" or "test".
        count: how many items it has.
        sources: where each comes from: a file, or its row.
        read: returns an item's input, float32 or a picture of uint8, and its label, a whole number or a word.
        whole: all inputs (N, ...) and labels, if they are in memory already.
        classes: a title for each label, if the data set says so.
        files: the files that the items come from, if they are pictures that natscope reads.
    """

    part: str
    count: int
    sources: Sequence[str]
    read: Callable[[int], tuple[np.ndarray, int | str]]
    whole: tuple[np.ndarray, Sequence[int] | Sequence[str]] | None = None
    classes: tuple[str, ...] | None = None
    files: Sequence[Path] = ()


def items_of(found: Any, part: str, reading: Reading) -> Items:
    """Return the items of a data set of any kind that natscope knows.

    Args:
        found: a torch Dataset, a pair of arrays, a DataFrame, a split of `datasets`, a folder, or items already.
        part: "training" or "test".
        reading: how items become inputs.

    Raises:
        DataError: if it is of no such kind, or cannot be read.
    """
    if isinstance(found, Items):
        return found
    if isinstance(found, str | Path):
        return _of_folder(Path(found), part, reading)
    if hasattr(found, "iloc") and hasattr(found, "columns"):
        return _of_table(found, part, reading)
    if hasattr(found, "column_names") and hasattr(found, "features"):
        return _of_split(found, part, reading)
    if isinstance(found, tuple | list) and len(found) and _begins_with_text(found[0]):
        raise DataError(
            f"The {part} set holds texts, which natscope.build does not take: build a bundle of a table or a folder of "
            "them by `natscope precompute --dataset text:PATH`, or use natscope.attribute with tokenizer=."
        )
    if isinstance(found, tuple | list) and len(found) == 2 and all(hasattr(each, "shape") for each in found):
        return _of_arrays(found[0], found[1], part, reading)
    stream = isinstance(found, torch.utils.data.IterableDataset)  # which inherits a way to read by number
    if stream or not hasattr(found, "__getitem__"):
        stream = stream or hasattr(found, "__iter__")
        kind = "can only be read from its beginning" if stream else f"is of type {type(found).__name__}"
        raise DataError(
            f"The {part} set {kind}; natscope reads items by number, so give a map-style torch Dataset, a pair of "
            "arrays, a DataFrame or a folder."
        )
    if not hasattr(found, "__len__"):
        raise DataError(f"The {part} set has no length; give it a method __len__, as map-style Datasets have.")
    return _of_dataset(found, part, reading)


def given_items(found: Any, part: str) -> tuple[list[Any], list[Any], Items]:
    """Return what a data set holds, as it is given: inputs, labels, and its items, none of which is made an input.

    Args:
        found: a pair (inputs, labels) of lists, arrays or tensors, or a torch Dataset of (input, label).
        part: "training" or "test".

    Raises:
        DataError: if it is neither, or a label cannot be used.
    """
    if isinstance(found, tuple) and len(found) == 2 and all(hasattr(each, "__len__") for each in found):
        inputs, labels, titles = list(found[0]), _labels(found[1], part), None
        if len(inputs) != len(labels):
            raise DataError(f"The {part} set has {len(labels):,} labels for {len(inputs):,} inputs.")
    elif hasattr(found, "__getitem__") and hasattr(found, "__len__") and not isinstance(found, str):
        rows = [_item(found, row, part) for row in range(_count_of(found, part))]
        inputs, labels, titles = [x for x, _ in rows], _labels([y for _, y in rows], part), _titles(found)
    else:
        raise DataError(f"The {part} set is {kind_of(found)}; give a pair (inputs, labels) or a torch Dataset.")
    sources = [f"row {row}" for row in range(len(inputs))]
    return inputs, labels, Items(part, len(inputs), sources, lambda row: (inputs[row], labels[row]), classes=titles)


def _of_arrays(inputs: Any, labels: Any, part: str, reading: Reading) -> Items:
    if not len(inputs.shape) or not len(labels.shape) or len(inputs) != len(labels):
        raise DataError(
            f"The {part} set has labels of shape {tuple(labels.shape)} for inputs of shape {tuple(inputs.shape)}."
        )
    count, given = len(inputs), _labels(labels, part)
    rows = [f"row {row}" for row in range(count)]
    if reading.transform is not None and is_raw(inputs):
        return Items(part, count, rows, lambda row: (_transformed(inputs[row], row, part, reading), given[row]))
    array = as_array(inputs, f"The {part} set")
    if array.ndim < 2:
        raise DataError(
            f"The {part} set holds one number an item; give inputs of shape (N, ...) with two axes or more."
        )
    return Items(part, count, rows, lambda row: (array[row], given[row]), (array, given))


def _count_of(found: Any, part: str) -> int:
    count: int = _called(lambda: len(found), f"The length of the {part} set cannot be told")
    if count > MOST_ITEMS:
        raise DataError(f"The {part} set says that it has {count:,} items, and natscope takes up to {MOST_ITEMS:,}.")
    return count


def _of_dataset(found: Any, part: str, reading: Reading) -> Items:
    def read(row: int) -> tuple[np.ndarray, int | str]:
        given, label = _item(found, row, part)
        return _transformed(given, row, part, reading), _label(label, row, part)

    count, samples = _count_of(found, part), _samples_of(found)
    sources = [_within(path, root) for path, root in samples] or [f"row {row}" for row in range(count)]
    return Items(part, count, sources, read, classes=_titles(found), files=[Path(path) for path, _ in samples])


def _begins_with_text(found: Any) -> bool:
    """Return whether this is an item that is a text with its label, or some texts."""
    several = isinstance(found, tuple | list) or (isinstance(found, np.ndarray) and found.ndim > 0)
    return several and isinstance(next(iter(found), 0), str)


def _item(found: Any, row: int, part: str) -> tuple[Any, Any]:
    item = _called(lambda: found[row], f"Item {row} of the {part} set cannot be read")
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"Item {row} of the {part} set is {kind_of(item)}; natscope needs items of the form (input, label)."
        )
    return item[0], item[1]


def _samples_of(found: Any) -> list[tuple[str | Path, Any]]:
    """Return the files that a torchvision folder, or a subset of one, was made of, and the folder; none for others."""
    if hasattr(found, "dataset") and hasattr(found, "indices"):
        inner = _samples_of(found.dataset)
        return [inner[int(row)] for row in found.indices] if inner else []
    samples = getattr(found, "samples", None)
    if isinstance(samples, list) and len(samples) == len(found) and all(_names_file(each) for each in samples):
        return [(each[0], getattr(found, "root", "")) for each in samples]
    return []


def _names_file(sample: Any) -> bool:
    return isinstance(sample, tuple) and len(sample) > 0 and isinstance(sample[0], str | Path)


def _within(file: str | Path, root: Any) -> str:
    path = Path(file)
    return path.relative_to(root).as_posix() if root and path.is_relative_to(root) else path.as_posix()


def _titles(found: Any) -> tuple[str, ...] | None:
    """Return the titles that a torchvision data set gives its labels; none if its own function changes labels."""
    if hasattr(found, "dataset") and hasattr(found, "indices"):
        return _titles(found.dataset)
    titles = getattr(found, "classes", None)
    usable = isinstance(titles, list | tuple) and 1 < len(titles) <= MOST_CLASSES
    renumbered = getattr(found, "target_transform", None) is not None
    return tuple(map(str, titles)) if usable and titles is not None and not renumbered else None


def _columns(reading: Reading, usual: str, there: Iterable[Any], what: str) -> tuple[str, str]:
    """Return the columns of the inputs, `usual` if none is named, and of the labels, once they are known to exist."""
    chosen, names = reading.columns or (usual, "label"), list(there)
    for column in chosen:
        if column not in names:
            raise DataError(
                f"The {what} has no column {column}; it has {few(names, _LISTED)}: rename one, or name the columns of "
                "inputs and labels from Python, by columns=."
            )
    return chosen


def _of_table(found: Any, part: str, reading: Reading) -> Items:
    paths, labels = _columns(reading, "path", found.columns, f"{part} table")
    names = list(found[paths])
    for row, name in enumerate(names):
        if not isinstance(name, str | os.PathLike) or not str(name):
            raise DataError(f"Item {row} of the {part} set names no file; its column {paths} holds {str(name)[:60]!r}.")
    return _of_files([Path(name) for name in names], list(found[labels]), part, reading, list(map(str, names)))


def _of_folder(path: Path, part: str, reading: Reading) -> Items:
    if not path.is_dir():
        raise DataError(f"There is no folder {path} for the {part} set.")
    with readable(path):
        names = class_names(path)
        files = files_of(path, names, any_kind=reading.load is not None)
    sources = [file.relative_to(path).as_posix() for file, _ in files]
    return _of_files([file for file, _ in files], [names[label] for _, label in files], part, reading, sources)


def _of_files(
    files: Sequence[Path], labels: Sequence[Any], part: str, reading: Reading, sources: Sequence[str]
) -> Items:
    if reading.load is None and reading.transform is None:
        raise DataError(
            f"The {part} set names files; say how one becomes an input: transform makes it of a picture, load of a "
            "path."
        )

    given = _labels(labels, part)

    def read(row: int) -> tuple[np.ndarray, int | str]:
        return input_of(files[row], row, part, reading), given[row]

    return Items(part, len(files), sources, read, files=files)


def _of_split(found: Any, part: str, reading: Reading) -> Items:
    inputs, labels = _columns(reading, "image", found.column_names, f"{part} split")
    titles = getattr(found.features.get(labels), "names", None)
    given = _labels(_called(lambda: found[labels], f"The labels of the {part} split cannot be read"), part)

    def read(row: int) -> tuple[np.ndarray, int | str]:
        item = _called(lambda: found[row], f"Item {row} of the {part} split cannot be read")
        if item[inputs] is None:
            raise DataError(f"Item {row} of the {part} split has no {inputs}; leave such items out.")
        return _transformed(item[inputs], row, part, reading), given[row]

    rows = [f"row {row}" for row in range(len(found))]
    return Items(part, len(found), rows, read, classes=tuple(titles) if titles else None)


def input_of(file: Path, row: int, part: str, reading: Reading) -> np.ndarray:
    """Return the input that a file becomes.

    Args:
        file: its path.
        row: its number, for messages.
        part: what it is a part of, for messages.
        reading: how it becomes one.
    """
    if reading.load is not None:
        load = reading.load
        found = _called(lambda: load(file), f"Item {row} of the {part} set, {file}, cannot be loaded")
    else:
        try:
            found = decode(file.read_bytes(), file.name, reading.decoding)
        except (OSError, NatscopeError) as error:
            raise DataError(f"Item {row} of the {part} set, {file}, cannot be read: {said(error)}.") from error
    return _transformed(found, row, part, reading)


def _transformed(found: Any, row: int, part: str, reading: Reading) -> np.ndarray:
    return transformed(found, f"Item {row} of the {part} set", reading)


def transformed(found: Any, what: str, reading: Reading) -> np.ndarray:
    """Return what the network takes for what a data set holds: pictures are transformed, inputs are not again.

    Args:
        found: a picture, or an input.
        what: how a sentence names it.
        reading: how it becomes an input.
    """
    if reading.transform is not None and is_raw(found):
        transform, given = reading.transform, found if reading.load is not None else as_picture(found)
        if reading.load is None and getattr(given, "mode", _MODES[0]) not in _MODES:
            raise DataError(
                f"{what} is a picture in {given.mode}, and uploads are given to transform= in RGB or grey; let the "
                "data set give pictures in one of these, or name load= too."
            )
        found = _called(lambda: transform(given), f"{what} cannot be transformed")
    return as_array(found, what)


def as_picture(found: Any) -> Any:
    """Return pixels of uint8, (H, W) and 1 or 3 channels first or last, as a picture; anything else as it is."""
    pixels = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or not pixels.size:
        return found
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    plain = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    return picture(np.ascontiguousarray(pixels)) if plain else found


def is_raw(found: Any) -> bool:
    """Return whether something is no tensor or array of floating-point numbers, and so no input yet."""
    if isinstance(found, torch.Tensor):
        return not found.is_floating_point()
    return not (isinstance(found, np.ndarray) and found.dtype.kind == "f")


def _called(call: Callable[[], Any], what: str) -> Any:
    """Turn whatever somebody's code raises into one sentence."""
    try:
        return call()
    except (NatscopeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if out_of_memory(error):
            raise
        raise DataError(f"{what}: {said(error)}.") from error


def _labels(labels: Any, part: str) -> list[Any]:
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    return [_label(label, row, part) for row, label in enumerate(values)]


def _label(label: Any, row: int, part: str) -> int | str:
    """Return a label as Python's own number or word."""
    if isinstance(label, torch.Tensor | np.ndarray | np.generic) and np.ndim(label) == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise DataError(
            f"Item {row} of the {part} set has the label {str(label)[:60]!r}; labels are whole numbers or words."
        )
    return label


def as_array(value: Any, what: str) -> np.ndarray:
    """Return an input as an array of float32, or of uint8 if it is one of pictures.

    Args:
        value: a tensor, an array or a picture.
        what: how a sentence names it.

    Raises:
        DataError: if its numbers are of another kind.
    """
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().resolve_neg()
            value = (value.float() if value.is_floating_point() else value).numpy()
        found = np.asarray(value)
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:  # sparse, meta or nested, say
        if out_of_memory(error):
            raise
        raise DataError(f"{what} is {type_of(value)}, which is no array of numbers.") from error
    if found.dtype == np.uint8:
        return found
    if found.dtype.kind != "f":
        raise DataError(
            f"{what} is of type {type(value).__name__ if found.dtype == object else found.dtype}; natscope takes "
            "floating-point inputs, and pictures of uint8."
        )
    with np.errstate(over="ignore"):
        return found.astype(np.float32, copy=False)
