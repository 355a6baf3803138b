"""Data sets from a folder of images: train/CLASS/* and test/CLASS/*, or CLASS/* and a split."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from pathlib import Path

import numpy as np

from natscope.core.errors import DataError, FileError, QueryError
from natscope.core.files import sha256_of, size
from natscope.core.progress import Progress, silent
from natscope.core.text import UNSEEN
from natscope.precompute.data.datasets import FOLDER, Dataset, load_dataset
from natscope.precompute.data.decode import EXTENSIONS, decode, fit

_LISTED = 10  # unreadable files named in a message
_LEAST_STD = 1e-3  # of a channel that is the same everywhere
_LARGEST_FILE = 2**28  # bytes; files of the largest picture allowed are smaller in every format

_HELD_OUT = {"val", "valid", "validation", "dev", "testing"}  # other names for the test split


@dataclass(frozen=True)
class FolderSpec:
    """How a folder becomes a data set.

    Args:
        image_size: side in pixels to which every image is scaled; the aspect ratio is kept.
        test_share: share of each class that becomes the test set if the folder has no train and test.
        skip_broken: leave out files that cannot be read, instead of refusing the folder.
    """

    image_size: int = 32
    test_share: float = 0.2
    skip_broken: bool = False


def load_named(
    name: str,
    spec: FolderSpec,
    progress: Progress = silent,
    *,
    sample: int | None = None,
) -> tuple[Dataset, list[str]]:
    """Load a data set by the name that a bundle gives it: a key of `DATASETS`, or "folder:PATH", see `load_folder`.

    Raises:
        DataError: if it cannot be loaded.
    """
    if not name.startswith(FOLDER):
        return load_dataset(name), []
    return load_folder(Path(name.removeprefix(FOLDER)).absolute(), spec, progress, sample=sample)


def load_folder(
    path: Path,
    spec: FolderSpec,
    progress: Progress = silent,
    *,
    sample: int | None = None,
) -> tuple[Dataset, list[str]]:
    """Read the images of a folder; grey if no image has colour.

    Args:
        path: the folder. Classes are its subfolders (or those of its train and test), in the order of their names.
        spec: size and split.
        progress: called now and then with files read and files in all.
        sample: read only about this many files, evenly over both splits, and leave the other images black: enough to
            describe the data.

    Returns:
        The data set, and a line for each skipped file with its path within the folder and the reason.

    Raises:
        DataError: if there are fewer than two classes, a class is empty, or files cannot be read and may not be
            skipped.
    """
    if not 4 <= spec.image_size <= 512 or not 0 < spec.test_share < 1:
        raise DataError("Images need a side of 4 to 512 pixels, and the test share must lie between 0 and 1.")
    classes, train, test = _listed(path, spec.test_share)
    files = [*train, *test]
    try:
        pixels = np.zeros((len(files), spec.image_size, spec.image_size, 3), dtype=np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{len(files):,} images of {spec.image_size} by {spec.image_size} pixels do not fit in memory; choose a "
            "smaller --image-size."
        ) from error
    read = np.unique(np.linspace(0, len(files) - 1, min(sample or len(files), len(files)), dtype=np.int64))
    broken: dict[int, str] = {}
    for done, position in enumerate(read):
        if done % 500 == 0:
            progress("Reading images", done, len(read))
        try:
            pixels[position] = _read(files[position][0], spec.image_size)
        except (OSError, QueryError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error).split(";")[0].rstrip(".")
            broken[position] = f"{_shown(files[position][0].relative_to(path))}: {reason}"
    progress("Reading images", len(read), len(read))
    if broken and not spec.skip_broken:
        raise DataError(_complaint(path, list(broken.values()), len(read)))
    kept = np.ones(len(files), dtype=bool)
    kept[list(broken)] = False
    labels = np.array([label for _, label in files], dtype=np.int64)
    split = np.arange(len(files)) < len(train)
    for name, rows in (("training", split & kept), ("test", ~split & kept)):
        for label in np.flatnonzero(np.bincount(labels[rows], minlength=len(classes)) == 0):
            raise DataError(_empty(path, classes[label], name, alone=int((labels == label).sum()) == 1))
    good = read[kept[read]]
    if all((pixels[part, ..., :1] == pixels[part]).all() for part in np.array_split(good, len(good) // 1000 + 1)):
        pixels = pixels[..., 0]
    mean, std = _moments(pixels, good[good < len(train)])
    parts = slice(None, len(train)), slice(len(train), None)
    images = [np.ascontiguousarray(pixels[p][kept[p]] if broken else pixels[p]) for p in parts]
    names = [_shown(file.relative_to(path)) for file, _ in files]
    data = Dataset(
        name=f"folder:{_shown(Path(path.resolve().name))}",
        classes=classes,
        train_images=images[0],
        train_labels=labels[split & kept],
        test_images=images[1],
        test_labels=labels[~split & kept],
        mean=mean,
        std=std,
        train_sources=tuple(compress(names, split & kept)),
        test_sources=tuple(compress(names, ~split & kept)),
    )
    return data, list(broken.values())


def fingerprint(path: Path) -> str:
    """Hash the names and contents of a folder's images, by which a build notices changes.

    Files whose size and time of change are known are not read again.

    Raises:
        DataError: if the folder cannot be used.
    """
    _, train, test = _listed(path, 0.5)
    digest = hashlib.sha256()
    for file in sorted(file for file, _ in [*train, *test]):
        found = file.lstat() if _dangles(file) else file.stat()
        content = _content(file, found.st_size, found.st_mtime_ns)
        digest.update(f"{file.relative_to(path).as_posix()}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=2**20)
def _content(file: Path, length: int, changed: int) -> str:
    """Return the checksum of a file, or its length if it cannot be read, which is reported when the images are read."""
    try:
        return sha256_of(file)
    except FileError:
        return str(length)


Labelled = list[tuple[Path, int]]


def _read(file: Path, side: int) -> np.ndarray:
    if file.stat().st_size > _LARGEST_FILE:
        raise QueryError(f"The file is larger than {size(_LARGEST_FILE)}.")
    return fit(decode(file.read_bytes(), file.name), (side, side), 3)


def _listed(path: Path, test_share: float) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """Return the classes and the files of both splits, by name, so that the order is the same everywhere."""
    try:
        if not path.is_dir():
            raise DataError(f"There is no folder {path}; --dataset folder:PATH names one that holds images by class.")
        parts = {name.lower(): name for name in _subfolders(path)}
        if "train" in parts and len(parts) > 1 and set(parts) - {"train"} <= _HELD_OUT:
            raise DataError(f"{path} has a folder {parts['train']} and none named test; rename the one to test on.")
        if {"train", "test"} <= set(parts):
            train, test = path / parts["train"], path / parts["test"]
            names = _class_names(train)
            unknown = set(_class_names(test)) - set(names)
            if unknown:
                raise DataError(f"{test} has a class {min(unknown)} that {train} does not have.")
            splits = [_files(folder, names) for folder in (train, test)]
        else:
            names = _class_names(path)
            splits = _divided(_files(path, names), len(names), test_share)
    except OSError as error:
        raise DataError(f"The folder {error.filename or path} cannot be read: {error.strerror}.") from error
    if len(names) < 2:
        raise DataError(
            f"{path} has {len(names)} {'class' if len(names) == 1 else 'classes'}, and a classifier needs at least "
            "two: put each class's images into a subfolder of its own, or into train/CLASS and test/CLASS."
        )
    return tuple(names), splits[0], splits[1]


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    """Return the classes of a folder; names that some systems or commands cannot tell apart are refused."""
    names, known = _subfolders(folder), dict[str, str]()
    for name in names:
        if not name.isprintable():
            raise DataError(f"The class folder {_shown(Path(name))!r} in {folder} has no printable name; rename it.")
        other = known.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(
                f"The classes {other} and {name} of {folder} differ in nothing but upper and lower case or the way an "
                "accent is written; merge or rename one."
            )
    return names


def _files(folder: Path, names: Sequence[str]) -> Labelled:
    """Return the images of every class, at any depth; hidden files and files of other kinds are left out."""
    return [
        (file, label)
        for label, name in enumerate(names)
        if (folder / name).is_dir()
        for file in sorted(_walk(folder / name))
    ]


def _walk(folder: Path) -> list[Path]:
    """Return the images in a folder and those below it, without following links to folders, which may loop."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(parent, name) for name in names if not name.startswith(".")]
        found += [f for f in files if f.suffix.lower() in EXTENSIONS and (f.is_file() or _dangles(f))]
    return found


def _dangles(file: Path) -> bool:
    """Return whether a file is a link to nothing: such a file counts as an unreadable image."""
    return file.is_symlink() and not file.exists()


def _divided(files: Labelled, classes: int, share: float) -> list[Labelled]:
    """Return both splits, with the same random share of every class for testing, at least one image; repeatable."""
    test: set[int] = set()
    labels = np.array([label for _, label in files])
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
            test |= set(np.random.default_rng([0, label]).choice(rows, count, replace=False).tolist())
    return [[f for row, f in enumerate(files) if (row in test) is wanted] for wanted in (False, True)]


def _shown(path: Path) -> str:
    """Return a path as text that can be printed; what is not text in it becomes question marks."""
    return UNSEEN.sub("\ufffd", os.fsencode(path).decode(errors="replace"))


def _empty(path: Path, title: str, split: str, *, alone: bool) -> str:
    if alone:
        return f"The class {title} of {path} has one image; it needs at least two, one of them for testing."
    return f"The class {title} of {path} has no {split} image that can be read."


def _complaint(path: Path, broken: Sequence[str], count: int) -> str:
    more = f" and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
    return (
        f"{len(broken):,} of {count:,} images in {path} cannot be read: {'; '.join(broken[:_LISTED])}{more}. Remove "
        "them, or go on without them with --skip-broken."
    )


def _moments(images: np.ndarray, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, white being 1, in four digits that a manifest shows whole."""
    channels = 1 if images.ndim == 3 else 3
    mean, square, count = np.zeros(channels), np.zeros(channels), len(rows) * images.shape[1] * images.shape[2]
    for part in np.array_split(rows, len(rows) // 1000 + 1):
        values = images[part].reshape(-1, channels).astype(np.float64) / 255
        mean += values.sum(axis=0)
        square += (values**2).sum(axis=0)
    mean, square = mean / count, square / count
    std = np.sqrt(np.maximum(square - mean**2, _LEAST_STD**2))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())
