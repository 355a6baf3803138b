"""Data sets from a folder of images: train/CLASS/* and test/CLASS/*, or CLASS/* and a split."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import DataError, QueryError
from precompute.datasets import Dataset
from precompute.pictures import EXTENSIONS, decode, fit

_LISTED = 10  # unreadable files named in a message
_LEAST_STD = 1e-3  # of a channel that is the same everywhere

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FolderSpec:
    """How a folder becomes a data set.

    Args:
        image_size: side in pixels to which every image is brought; the aspect ratio is kept.
        test_share: share of each class that becomes the test set where the folder has no train and test.
        skip_broken: leave out files that cannot be read, in place of refusing the folder.
    """

    image_size: int = 32
    test_share: float = 0.2
    skip_broken: bool = False


def load_folder(
    path: Path, spec: FolderSpec, progress: Progress = lambda stage, done, total: None
) -> tuple[Dataset, list[str]]:
    """Read the images of a folder; grey if no image has colour.

    Args:
        path: the folder. Classes are its subfolders (or those of its train and test), in the order of their names.
        spec: size and split.
        progress: called now and then with files read and files in all.

    Returns:
        The data set, and of each file that was skipped its path and why.

    Raises:
        DataError: if there are fewer than two classes, a class is empty, or files cannot be read and are not to be
            skipped.
    """
    if not 4 <= spec.image_size <= 512 or not 0 < spec.test_share < 1:
        raise DataError("Images need a side of 4 to 512 pixels, and the test share must lie between 0 and 1.")
    classes, train, test = _listed(path, spec)
    files = [*train, *test]
    pixels = np.empty((len(files), spec.image_size, spec.image_size, 3), dtype=np.uint8)
    broken: dict[int, str] = {}
    for place, (file, _) in enumerate(files):
        if place % 500 == 0:
            progress("Reading images", place, len(files))
        try:
            pixels[place] = fit(decode(file.read_bytes(), file.name), (spec.image_size, spec.image_size), 3)
        except OSError as error:
            broken[place] = f"{file}: {error.strerror or error}"
        except QueryError as error:
            broken[place] = f"{file}: {str(error).split(';')[0].rstrip('.')}"
    progress("Reading images", len(files), len(files))
    if broken and not spec.skip_broken:
        raise DataError(_complaint(list(broken.values()), len(files)))
    kept = np.array([place not in broken for place in range(len(files))])
    labels = np.array([label for _, label in files], dtype=np.int64)
    split = np.arange(len(files)) < len(train)
    for name, rows in (("training", split & kept), ("test", ~split & kept)):
        for label in np.flatnonzero(np.bincount(labels[rows], minlength=len(classes)) == 0):
            raise DataError(f"The class {classes[label]} of {path} has no {name} image that can be read.")
    if (pixels[..., :1] == pixels).all():
        pixels = pixels[..., 0]
    mean, std = _moments(pixels[split & kept])
    data = Dataset(
        name=f"folder:{path}",
        classes=classes,
        train_images=pixels[split & kept],
        train_labels=labels[split & kept],
        test_images=pixels[~split & kept],
        test_labels=labels[~split & kept],
        mean=mean,
        std=std,
    )
    return data, list(broken.values())


def fingerprint(path: Path) -> str:
    """Hash the names and sizes of a folder's files, by which a build notices that it is another one.

    Raises:
        DataError: if there is no such folder.
    """
    if not path.is_dir():
        raise DataError(f"There is no folder {path}; --dataset folder:PATH names one that holds images by class.")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in EXTENSIONS and file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


Labelled = list[tuple[Path, int]]


def _listed(path: Path, spec: FolderSpec) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """Give the classes and the files of both splits, by name, so that the order is the same everywhere."""
    if not path.is_dir():
        raise DataError(f"There is no folder {path}; --dataset folder:PATH names one that holds images by class.")
    try:
        parts = _subfolders(path)
        if {part.name.lower() for part in parts} >= {"train", "test"}:
            train, test = (next(p for p in parts if p.name.lower() == name) for name in ("train", "test"))
            names = _class_names(train)
            unknown = set(_class_names(test)) - set(names)
            if unknown:
                raise DataError(f"{test} has a class {min(unknown)} that {train} does not have.")
            splits = [_files(folder, names) for folder in (train, test)]
        else:
            names = _class_names(path)
            splits = _divided(_files(path, names), len(names), spec.test_share)
    except OSError as error:
        raise DataError(f"The folder {path} cannot be read: {error.strerror}.") from error
    if len(names) < 2:
        raise DataError(
            f"{path} has {len(names)} {'class' if len(names) == 1 else 'classes'}, and a classifier needs at least "
            "two: put each class's images into a subfolder of its own, or into train/CLASS and test/CLASS."
        )
    return tuple(names), splits[0], splits[1]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    return [p.name for p in _subfolders(folder)]


def _files(folder: Path, names: Sequence[str]) -> Labelled:
    """Give the images of every class, at any depth; hidden files and files of other kinds are none."""
    return [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
    ]


def _divided(files: Labelled, classes: int, share: float) -> list[Labelled]:
    """Take the same share of every class for testing, at random but the same each time, at least one image."""
    test: set[int] = set()
    for label in range(classes):
        rows = np.array([row for row, (_, own) in enumerate(files) if own == label])
        if len(rows) > 1:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
            test |= set(np.random.default_rng([0, label]).choice(rows, count, replace=False).tolist())
    return [[f for row, f in enumerate(files) if (row in test) is wanted] for wanted in (False, True)]


def _complaint(broken: Sequence[str], count: int) -> str:
    more = f" and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
    return (
        f"{len(broken)} of {count:,} images cannot be read: {'; '.join(broken[:_LISTED])}{more}. Remove them, or go on "
        "without them with --skip-broken."
    )


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give mean and standard deviation of each channel, white being 1, in four digits that a manifest shows whole."""
    channels = images.reshape(-1, 1 if images.ndim == 3 else 3)
    mean, square = np.zeros(channels.shape[1]), np.zeros(channels.shape[1])
    for part in np.array_split(channels, max(1, len(channels) // 2**22)):
        values = part.astype(np.float64) / 255
        mean += values.sum(axis=0)
        square += (values**2).sum(axis=0)
    mean, square = mean / len(channels), square / len(channels)
    std = np.sqrt(np.maximum(square - mean**2, _LEAST_STD**2))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())
