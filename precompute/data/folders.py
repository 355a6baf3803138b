"""Data sets from a folder of images: train/CLASS/* and test/CLASS/*, or CLASS/* and a split."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from natscope.core.errors import DataError, FileError, QueryError
from natscope.core.files import sha256_of, size
from natscope.core.images import Images
from natscope.core.progress import Progress, silent
from natscope.core.text import few
from natscope.precompute.data.datasets import FOLDER, Dataset
from natscope.precompute.data.decode import EXTENSIONS, USUAL, Decoding, decode, fit
from natscope.precompute.data.on_disk import blocks, picked, zeros
from natscope.precompute.data.splits import HIDDEN, class_names, parts, shown

_ALWAYS = ("image_size", "test_share", "skip_broken")  # in a bundle's settings
_VERSION = 2  # of fingerprints
_LISTED = 10  # unreadable files named in a message
_LEAST_STD = 1e-3  # of a channel that is the same everywhere
LARGEST_FILE = 2**28  # bytes; files of the largest picture allowed are smaller in every format

_HINTS = {"megapixels": "--largest MEGAPIXELS", "name does not fit": "--by-content", "animation": "--first-frame"}
_HINTS |= {"transparent everywhere": "--background ignore"}

Labelled = list[tuple[Path, int]]


@dataclass(frozen=True)
class FolderSpec:
    """How a folder becomes a data set.

    Args:
        image_size: side in pixels to which every image is scaled; the aspect ratio is kept.
        test_share: share of each class that becomes the test set if the folder has no train and test.
        skip_broken: leave out files that cannot be read, instead of refusing the folder.
        test_folder: name of the folder beside train that holds the test images; the one of a usual name when None.
        missing_classes: go on if a class has no test image, and leave out test images of classes without training ones.
        reading: how files become pixels.
        load: the user's own function that reads a file, as "module:function"; natscope's own if empty.
        transform: the user's own function that makes an input of what was read; none if empty.
    """

    image_size: int = 32
    test_share: float = 0.2
    skip_broken: bool = False
    test_folder: str | None = None
    missing_classes: bool = False
    reading: Decoding = USUAL
    load: str = ""
    transform: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values, without those that were added later and are as before."""
        usual, own = asdict(FolderSpec()), asdict(self)
        own["reading"] = {name: value for name, value in own["reading"].items() if value != usual["reading"][name]}
        return {name: own[name] for name in own if name in _ALWAYS or own[name] not in (usual[name], {})}


def load_folder(
    path: Path,
    spec: FolderSpec,
    progress: Progress = silent,
    *,
    sample: int | None = None,
) -> tuple[Dataset, list[str]]:
    """Read the images of a folder; grey if no image has colour, unless the settings say otherwise.

    Args:
        path: the folder. Classes are its subfolders (or those of its train and test), in the order of their names.
        spec: size and split.
        progress: called now and then with files read and files in all.
        sample: read only about this many files, evenly over both splits, and leave the other images black: enough to
            describe the data.

    Returns:
        The data set, and a line for each skipped file with its path within the folder and the reason. Images that are
        too large for memory together lie in files without a name.

    Raises:
        DataError: if there are fewer than two classes, a class is empty, files cannot be read and may not be skipped,
            or there is no room for the images.
    """
    classes, *splits = divided(path, spec)
    files = [file for split in splits for file in split]
    try:
        pixels = zeros((len(files), spec.image_size, spec.image_size, 3))
    except MemoryError as error:
        raise DataError(
            f"{len(files):,} images of {spec.image_size} by {spec.image_size} pixels do not fit in memory; choose a "
            "smaller --image-size."
        ) from error
    read = evenly(len(files), sample)
    broken: dict[int, str] = {}
    for done, position in enumerate(read):
        if done % 500 == 0:
            progress("Reading images", done, len(read))
        try:
            pixels[position] = _read(files[position][0], spec)
        except (OSError, QueryError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error).split(";")[0].rstrip(".")
            broken[position] = f"{shown(files[position][0].relative_to(path))}: {reason}"
    progress("Reading images", len(read), len(read))
    if broken and not spec.skip_broken:
        raise DataError(_complaint(path, list(broken.values()), len(read)))
    kept = np.ones(len(files), dtype=bool)
    kept[list(broken)] = False
    labels = np.array([label for _, label in files], dtype=np.int64)
    train = allotted(path, spec, classes, splits, kept)
    good = read[kept[read]]
    parts_of = blocks(good, 3 * spec.image_size**2)
    if spec.reading.channels != "colour" and all((pixels[part, ..., :1] == pixels[part]).all() for part in parts_of):
        pixels = pixels[..., 0]
    mean, std = _moments(pixels, good[train[good]])
    images = [picked(pixels, np.flatnonzero(part & kept)) for part in (train, ~train)]
    names = [shown(file.relative_to(path)) for file, _ in files]
    data = Dataset(
        name=title_of(path),
        classes=classes,
        train=Images(images[0], mean, std),
        train_labels=labels[train & kept],
        test=Images(images[1], mean, std),
        test_labels=labels[~train & kept],
        train_sources=tuple(compress(names, train & kept)),
        test_sources=tuple(compress(names, ~train & kept)),
    )
    return data, list(broken.values())


def title_of(path: Path) -> str:
    """Return what the data set of a folder is called."""
    return f"{FOLDER}{shown(Path(path.resolve().name))}"


def evenly(count: int, sample: int | None) -> np.ndarray:
    """Return the numbers below `count`, or about `sample` of them at even distances."""
    return np.unique(np.linspace(0, count - 1, min(sample or count, count), dtype=np.int64))


def divided(path: Path, spec: FolderSpec) -> tuple[Any, ...]:
    """Return the classes and the files of both splits, or of the whole if unreadable ones are to be left out first.

    Raises:
        DataError: for settings that make no sense, and as `load_folder` does.
    """
    if not 4 <= spec.image_size <= 512 or not 0 < spec.test_share < 1:
        raise DataError("Images need a side of 4 to 512 pixels, and the test share must lie between 0 and 1.")
    spec.reading.check()
    classes, *splits = listed(path, spec)
    if len(splits) == 1 and not spec.skip_broken:
        splits = _divided(splits[0], len(classes), spec.test_share)
    return classes, *splits


def allotted(
    path: Path, spec: FolderSpec, classes: Sequence[str], splits: Sequence[Labelled], kept: np.ndarray
) -> np.ndarray:
    """Return which files, of those that are kept, are for training, (N,) bool.

    Args:
        path: the folder.
        spec: its settings.
        classes: a title for each label.
        splits: the files, as `divided` returns them, N in all.
        kept: which of them can be read, (N,) bool.

    Raises:
        DataError: if nothing is left of a class that is needed.
    """
    labels = np.array([label for split in splits for _, label in split], dtype=np.int64)
    if len(splits) == 1:  # only files that can be read are divided
        whole = [(position, int(labels[position])) for position in np.flatnonzero(kept)]
        train = np.isin(np.arange(len(kept)), [p for p, _ in _divided(whole, len(classes), spec.test_share)[0]])
    else:
        train = np.arange(len(kept)) < len(splits[0])
    for name, rows in (("training", train & kept), ("test", ~train & kept)):
        for label in np.flatnonzero(np.bincount(labels[rows], minlength=len(classes)) == 0):
            if name == "training" or not spec.missing_classes:
                raise DataError(_empty(path, classes[int(label)], name, alone=int((labels == label).sum()) == 1))
    if not (~train & kept).any():
        raise DataError(f"{path} has no test image that can be read.")
    return train


def fingerprint(path: Path, spec: FolderSpec, *, like: object = None) -> str:
    """Hash the names and contents of a folder's images, by which a build notices changes.

    Files that are known to be the same as before are not read again.

    Args:
        path: the folder.
        spec: its settings.
        like: of an earlier build. If it has no version, from names and contents or names and sizes as they are now, the
            same is returned.

    Raises:
        DataError: if the folder cannot be used.
    """
    _, *splits = listed(path, spec)
    contents, sizes = hashlib.sha256(), hashlib.sha256()
    for file in sorted(file for split in splits for file, _ in split):
        name = file.relative_to(path).as_posix()
        length = (file.lstat() if _dangles(file) else file.stat()).st_size
        for digest, value in ((contents, content_of(file)), (sizes, length)):
            digest.update(f"{name}\0{value}\n".encode(errors="surrogateescape"))
    found = contents.hexdigest()[:16]
    return str(like) if like in (found, sizes.hexdigest()[:16]) else f"{_VERSION}:{found}"


def content_of(file: Path) -> str:
    """Return the checksum of a file, or its length if it cannot be read, which is reported when the images are read."""
    found = file.lstat() if _dangles(file) else file.stat()
    return _content_of(file, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(maxsize=2**20)
def _content_of(file: Path, length: int, *known_by: int) -> str:
    try:
        return sha256_of(file)
    except FileError:
        return str(length)


def _read(file: Path, spec: FolderSpec) -> np.ndarray:
    if file.stat().st_size > LARGEST_FILE:
        raise QueryError(f"The file is larger than {size(LARGEST_FILE)}.")
    picture, side = decode(file.read_bytes(), file.name, spec.reading), spec.image_size
    found = fit(picture, (side, side), 1 if spec.reading.channels == "grey" else 3, spec.reading.fit)
    return found if found.ndim == 3 else found[..., None]  # the same in every channel


def listed(path: Path, spec: FolderSpec) -> tuple[Any, ...]:
    """Return the classes, and the files of both splits or of one that is still to be divided.

    They are sorted by name, so that the order is the same everywhere.
    """
    with readable(path):
        if not path.is_dir():
            raise DataError(f"There is no folder {path}; --dataset folder:PATH names one that holds images by class.")
        train, held_out, _ = parts(path, spec.test_folder)
        names = class_names(path / train)
        splits = [files_of(path / train, names, any_kind=bool(spec.load))]
        if held_out is not None:
            unknown = sorted(set(class_names(path / held_out)) - set(names))
            if unknown and not spec.missing_classes:
                raise DataError(
                    f"{path / held_out} has a class {unknown[0]} that {path / train} does not have; go on without its "
                    "images with --missing-classes."
                )
            splits.append(files_of(path / held_out, names, any_kind=bool(spec.load)))
    if len(names) < 2:
        raise DataError(
            f"{path} has {len(names)} {'class' if len(names) == 1 else 'classes'}, and a classifier needs at least "
            "two: put each class's images into a subfolder of its own, or into train/CLASS and test/CLASS."
        )
    return tuple(names), *splits


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the system says of a folder that cannot be listed into one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(f"The folder {error.filename or path} cannot be read: {error.strerror}.") from error


def files_of(folder: Path, names: Sequence[str], *, any_kind: bool) -> Labelled:
    """Return the images of every class, at any depth; hidden files and usually files of other kinds are left out.

    Args:
        folder: holds the folders of the classes.
        names: theirs, in the order of the labels.
        any_kind: whether files that are no images are wanted, too.
    """
    return [
        (file, label)
        for label, name in enumerate(names)
        if (folder / name).is_dir()
        for file in sorted(_walk(folder / name, any_kind))
    ]


def _walk(folder: Path, any_kind: bool) -> list[Path]:
    """Return the images in a folder and those below it, without following links to folders, which may loop."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        files = [Path(parent, name) for name in names if not name.startswith(".")]
        wanted = [f for f in files if any_kind or f.suffix.lower() in EXTENSIONS]
        found += [f for f in wanted if f.is_file() or _dangles(f)]
    return found


def _dangles(file: Path) -> bool:
    """Return whether a file is a link to nothing: such a file counts as an unreadable image."""
    return file.is_symlink() and not file.exists()


def _divided(files: Sequence[tuple[Any, int]], classes: int, share: float) -> list[list[tuple[Any, int]]]:
    """Return both splits, with the same random share of every class for testing, at least one image; repeatable."""
    test: set[int] = set()
    labels = np.array([label for _, label in files])
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            count = min(max(1, round(share * len(rows))), len(rows) - 1)
            test |= set(np.random.default_rng([0, label]).choice(rows, count, replace=False).tolist())
    return [[f for row, f in enumerate(files) if (row in test) is wanted] for wanted in (False, True)]


def _empty(path: Path, title: str, split: str, *, alone: bool) -> str:
    on = "" if split == "training" else "; go on without with --missing-classes"
    if alone:
        return f"The class {title} of {path} has one image; it needs at least two, one of them for testing{on}."
    return f"The class {title} of {path} has no {split} image that can be read{on}."


def _complaint(path: Path, broken: Sequence[str], count: int) -> str:
    options = [option for words, option in _HINTS.items() if any(words in reason for reason in broken)]
    read = f" read them with {' '.join(options)}," if options else ""
    return (
        f"{len(broken):,} of {count:,} images in {path} cannot be read: {few(broken, _LISTED, '; ')}. Remove them,"
        f"{read} or go on without them with --skip-broken."
    )


def _moments(images: np.ndarray, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, white being 1, in four digits that a manifest shows whole."""
    channels = 1 if images.ndim == 3 else 3
    mean, square, count = np.zeros(channels), np.zeros(channels), len(rows) * images.shape[1] * images.shape[2]
    for part in blocks(rows, 3 * images.shape[1] * images.shape[2]):
        values = images[part].reshape(-1, channels).astype(np.float64) / 255
        mean += values.sum(axis=0)
        square += (values**2).sum(axis=0)
    mean, square = mean / count, square / count
    std = np.sqrt(np.maximum(square - mean**2, _LEAST_STD**2))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())
