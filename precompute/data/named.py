"""Data sets by the names that bundles and commands give them: natscope's own, folders, and a user's own functions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from natscope.core.errors import DataError
from natscope.core.images import Images
from natscope.core.progress import Progress, silent
from natscope.core.text import kind_of
from natscope.core.thumbnails import scaling_between, thumbnails
from natscope.precompute.data.datasets import FOLDER, Dataset, load_dataset
from natscope.precompute.data.folders import FolderSpec, allotted, divided, evenly, load_folder, title_of
from natscope.precompute.data.items import Items, Reading, input_of
from natscope.precompute.data.own import own_dataset
from natscope.precompute.data.splits import shown
from natscope.precompute.data.text_sources import TextSpec, of_texts
from natscope.precompute.data.texts import text_dataset
from natscope.precompute.training.models import function_in, function_of, made
from natscope.precompute.training.trusted import find, trust

_TEXT = TextSpec()


def load_named(
    name: str,
    spec: FolderSpec,
    progress: Progress = silent,
    *,
    text: TextSpec = _TEXT,
    sample: int | None = None,
) -> tuple[Dataset, list[str]]:
    """Load a data set by the name that a bundle gives it.

    It is a key of `DATASETS`, "folder:PATH" (see `load_folder`), or of texts (see `text_dataset`).

    Raises:
        DataError: if it cannot be loaded.
    """
    if of_texts(name):
        return text_dataset(name, text, progress)
    if not name.startswith(FOLDER):
        return load_dataset(name), []
    path = Path(name.removeprefix(FOLDER)).absolute()
    load = _load_own_folder if spec.load or spec.transform else load_folder
    return load(path, spec, progress, sample=sample)


def made_by(
    name: str,
    *,
    load: str = "",
    transform: str = "",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Return the data set that a user's own function gives, which is trusted from then on.

    Args:
        name: the function, as "module:function"; it takes no arguments and returns a training and a test set as
            `own_dataset` takes them, and perhaps the titles of the classes.
        load: the user's own function that reads a file, likewise; natscope's own if empty.
        transform: the user's own function that makes an input of what was read; none if empty.
        mean: as in `Reading`.
        std: likewise.
        progress: called with the stage's name, steps done and steps in all.

    Raises:
        BuildError: if there is no such function, or it fails.
        DataError: if it gives something else, or data that cannot be used.
    """
    trust(name, "--data")
    found = made(find(name), function_in, seed=0)  # a random division is the same when the build is resumed
    if not isinstance(found, tuple | list) or len(found) not in (2, 3) or any(part is None for part in found[:2]):
        raise DataError(f"{name}() gave {kind_of(found)}; it returns (train_set, test_set), or those and the classes.")
    reading = own_reading(load, transform, classes=found[2] if len(found) == 3 else None, mean=mean, std=std)
    return with_code(own_dataset(found[0], found[1], reading, name=name, progress=progress), load, transform)


def own_reading(load: str, transform: str, **others: Any) -> Reading:
    """Return how items become inputs by a user's own functions, "module:function" or empty, which are trusted now."""
    for name, option in ((load, "load"), (transform, "transform")):
        if name:
            trust(name, f"--{option} ({option}= in Python)")
    functions = [function_of(name) if name else None for name in (load, transform)]
    return Reading(load=functions[0], transform=functions[1], **others)


def with_code(data: Dataset, load: str, transform: str) -> Dataset:
    """Return a data set that names the functions by which files become inputs; it must hold such.

    Raises:
        DataError: if it holds pixels.
    """
    if not (load or transform):
        return data
    if not isinstance(data.train, Images) or not isinstance(data.test, Images) or not data.foreign:
        given = " and ".join(word for word, name in (("load", load), ("transform", transform)) if name)
        raise DataError(f"By {given}, inputs are pixels of uint8; they must be what the network takes.")
    train, test = (replace(images, load=load, transform=transform) for images in (data.train, data.test))
    return replace(data, train=train, test=test)


def _load_own_folder(
    path: Path, spec: FolderSpec, progress: Progress, *, sample: int | None
) -> tuple[Dataset, list[str]]:
    """Read a folder as `load_folder` does, but by a user's own functions.

    Of a sample the inputs are read when they are requested, and the thumbnails are white where they can be, else black:
    where files may be skipped, those that were not tried are unknown.
    """
    reading = own_reading(spec.load, spec.transform, decoding=spec.reading)
    classes, *splits = divided(path, spec)
    files = [file for split in splits for file, _ in split]
    labels = np.array([label for split in splits for _, label in split], dtype=np.int64)
    broken: dict[int, str] = {}
    tried = evenly(len(files), sample if spec.skip_broken else None)
    for done, position in enumerate(tried if spec.skip_broken else ()):
        progress("Trying the files", done, len(tried))
        try:
            input_of(files[position], position, "whole", reading)
        except DataError as error:
            reason = str(error.__cause__ or error).split(";")[0].rstrip(".")
            broken[int(position)] = f"{shown(files[position].relative_to(path))}: {reason}"
    kept = np.ones(len(files), dtype=bool)
    kept[list(broken)] = False
    train = allotted(path, spec, classes, splits, kept)
    rows = [np.flatnonzero(train & kept), np.flatnonzero(~train & kept)]
    own = [
        _items(path, part, [files[row] for row in some], labels[some], classes, reading)
        for part, some in zip(("training", "test"), rows, strict=True)
    ]
    if sample is None:
        data = own_dataset(own[0], own[1], reading, name=title_of(path), progress=progress)
    else:
        known = [np.isin(some, tried) for some in rows]
        data = _described(own, [labels[some] for some in rows], known, title_of(path), classes)
    return with_code(data, spec.load, spec.transform), list(broken.values())


def _items(
    path: Path, part: str, files: Sequence[Path], labels: np.ndarray, classes: tuple[str, ...], reading: Reading
) -> Items:
    def read(row: int) -> tuple[np.ndarray, int]:
        try:
            values = input_of(files[row], row, part, reading)
        except DataError as error:
            if error.__cause__ is None:
                raise
            raise DataError(f"{str(error).rstrip('.')}; go on without such files with --skip-broken.") from error
        if values.dtype == np.uint8:
            raise DataError(f"{files[row]} becomes pixels of uint8; let --transform give what the network takes.")
        return values, int(labels[row])

    sources = [shown(file.relative_to(path)) for file in files]
    return Items(part, len(files), sources, read, classes=classes, files=files)


class _Files:
    """Inputs (N, ...) of items that are read when they are requested."""

    def __init__(self, items: Items, example: int) -> None:
        self._items, self.shape = items, (items.count, *items.read(example)[0].shape)

    def __len__(self) -> int:
        return self._items.count

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.stack([self._items.read(int(row))[0] for row in np.arange(len(self))[rows]])


def _described(
    own: Sequence[Items],
    labels: Sequence[np.ndarray],
    known: Sequence[np.ndarray],
    name: str,
    classes: tuple[str, ...],
) -> Dataset:
    """Return a data set whose inputs are read when they are requested.

    Args:
        own: both parts.
        labels: of each, (N,) int64.
        known: of each, (N,) bool, which files can be read as far as is known.
        name: what the data set is called.
        classes: a title for each label.
    """
    train, test = (_Files(items, int(np.argmax(some))) for items, some in zip(own, known, strict=True))
    first = train[[int(np.argmax(known[0]))]]
    mean, std = scaling_between(float(first.min()), float(first.max()), first.shape[1:])
    size = thumbnails(first, mean=mean, std=std).shape[1:]
    images = [np.zeros((len(some), *size), np.uint8) for some in known]
    for black, some in zip(images, known, strict=True):
        black[some] = 255
    return Dataset(
        name=name,
        classes=classes,
        train=Images(images[0], mean, std, train),
        train_labels=labels[0],
        test=Images(images[1], mean, std, test),
        test_labels=labels[1],
        train_sources=tuple(own[0].sources),
        test_sources=tuple(own[1].sources),
    )
