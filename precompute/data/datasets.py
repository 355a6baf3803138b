"""Data sets by name: examples as stored, labels and class names."""

import gzip
import hashlib
import itertools
import json
import math
import socket
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from natscope import assets
from natscope.core.bundle.bounds import MOST_AXES, MOST_NUMBERS
from natscope.core.bundle.manifest import LONGEST_SOURCE
from natscope.core.errors import DataError
from natscope.core.examples import Examples, Modality
from natscope.core.images import Images
from natscope.core.text import plain
from natscope.precompute.data.on_disk import some_of
from natscope.precompute.data.remote import displayed
from natscope.precompute.paths import home

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package dataset-fashion-mnist puts it
_IDX_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}
FOLDER = "folder:"  # prefix of the path of a data set that is a folder of images
_LARGEST_SCALE = 1e6  # of a mean or deviation: beyond it float32 leaves no digits for the pixels
_AT_ONCE = 256  # rows that are read to take a checksum
_TIMEOUT = 30.0  # seconds without an answer before a download counts as failed


@dataclass(frozen=True)
class Dataset:
    """A data set in memory; its arrays are read-only.

    Args:
        name: key in `DATASETS`.
        classes: a title for each label.
        train: the training examples.
        train_labels: (N,) int64.
        test: the test examples.
        test_labels: (M,) int64.
        train_sources: where each training example comes from, such as its file within the data set; its row if empty.
        test_sources: likewise.
        remarks: what a person should know of how it was read.

    Raises:
        DataError: if examples and labels do not fit each other.
    """

    name: str
    classes: tuple[str, ...]
    train: Examples
    train_labels: np.ndarray
    test: Examples
    test_labels: np.ndarray
    train_sources: tuple[str, ...] = ()
    test_sources: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the arrays fit each other and lock them."""
        many = self.train.modality.many
        for split in ("train", "test"):
            examples, labels = getattr(self, split), getattr(self, f"{split}_labels")
            if len(examples) != len(labels) or not len(labels):
                raise DataError(f"The {split} part of {self.name} has {len(examples)} {many} and {len(labels)} labels.")
            sources = getattr(self, f"{split}_sources") or tuple(f"{split} row {row}" for row in range(len(labels)))
            if len(sources) != len(labels):
                raise DataError(f"The {split} part of {self.name} has {len(labels)} {many}, {len(sources)} sources.")
            if any(not plain(source) or len(source.encode()) > LONGEST_SOURCE for source in sources):
                raise DataError(f"A source of the {split} part of {self.name} is too long, or no text of one line.")
            object.__setattr__(self, f"{split}_sources", sources)
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise DataError(f"The {split} part of {self.name} has labels outside 0..{len(self.classes) - 1}.")
            for array in (*examples.arrays().values(), labels):
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False
        if self.train.form != self.test.form:
            raise DataError(f"Training and test {many} of {self.name} have different sizes.")
        self._check_inputs()

    def _check_inputs(self) -> None:
        stored = self.train.modality.stored
        train, test = (examples.arrays().get(stored or "") for examples in (self.train, self.test))
        if train is None and test is None:
            return
        if train is None or test is None:
            raise DataError(f"{self.name} has inputs for one of its parts alone; give both, or neither.")
        if len(train) != len(self.train_labels) or len(test) != len(self.test_labels):
            raise DataError(f"{self.name} has other numbers of inputs than of labels.")
        if len(train.shape) < 2 or train.shape[1:] != test.shape[1:]:
            raise DataError(f"Training and test inputs of {self.name} have different shapes.")
        if len(train.shape) > MOST_AXES or not 1 <= math.prod(train.shape[1:]) <= MOST_NUMBERS:
            raise DataError(
                f"An input of {self.name} has shape {tuple(train.shape[1:])}, and natscope takes up to {MOST_AXES - 1} "
                f"axes and {MOST_NUMBERS:,} numbers."
            )

    @property
    def modality(self) -> Modality:
        """The kind of the examples."""
        return self.train.modality

    @property
    def foreign(self) -> bool:
        """Whether the network takes what natscope cannot make of the examples, so that it is stored."""
        return self.modality.stored in self.train.arrays()

    @cached_property
    def content(self) -> str:
        """A checksum of all that the data set holds."""
        about = [self.classes, self.train.about(), self.train_sources, self.test_sources]
        digest = hashlib.sha256(json.dumps(about).encode())
        for split in ("train", "test"):
            examples, labels = getattr(self, split), getattr(self, f"{split}_labels")
            for name, rows in ({"labels": labels} | examples.arrays()).items():
                for start in range(0, len(rows), _AT_ONCE):
                    block = np.ascontiguousarray(rows[start : start + _AT_ONCE])
                    digest.update(f"{split} {name} {block.shape} {block.dtype}".encode())
                    digest.update(block.data)
        for name, content in self.train.files().items():
            digest.update(name.encode() + content)
        return digest.hexdigest()


def load_dataset(name: str, *, root: Path | None = None) -> Dataset:
    """Load a data set, downloading it first if it does not ship with natscope.

    Args:
        name: a key of `DATASETS`.
        root: where downloads are kept; `datasets` in natscope's home by default.

    Raises:
        DataError: if the name is unknown, a file is missing or damaged, or a download fails.
    """
    if name not in DATASETS:
        raise DataError(
            f"There is no data set {displayed(name)!r}; choose one of {', '.join(sorted(DATASETS))}, or a folder of "
            "yours as folder:PATH or folder:URL."
        )
    return DATASETS[name](root)


def of_classes(data: Dataset, classes: Sequence[int]) -> Dataset:
    """Keep the examples of some classes; labels are renumbered in the given order, everything else stays.

    Raises:
        DataError: if there are fewer than two, one twice, or one that the data set does not have.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(f"Choose two or more different classes, not {', '.join(map(str, classes)) or 'none'}.")
    unknown = [label for label in classes if not 0 <= label < len(data.classes)]
    if unknown:
        raise DataError(f"{data.name} has no class {unknown[0]}; choose from 0 to {len(data.classes) - 1}.")
    number = np.full(len(data.classes), -1, dtype=np.int64)
    number[list(classes)] = np.arange(len(classes))
    kept: dict[str, Any] = {}
    for split in ("train", "test"):
        labels = number[getattr(data, f"{split}_labels")]
        rows = labels >= 0
        kept |= {split: some_of(getattr(data, split), np.flatnonzero(rows)), f"{split}_labels": labels[rows]}
        kept[f"{split}_sources"] = tuple(itertools.compress(getattr(data, f"{split}_sources"), rows))
    return replace(data, classes=tuple(data.classes[label] for label in classes), **kept)


def first_of_each(data: Dataset, count: int) -> Dataset:
    """Keep the first training examples of each class, at most `count`, in their order, and all test examples.

    Raises:
        DataError: if `count` is not positive.
    """
    if count < 1:
        raise DataError("At least one training example of each class must be kept.")
    labels = data.train_labels
    rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(len(data.classes))]))
    sources = tuple(data.train_sources[row] for row in rows)
    return replace(data, train=some_of(data.train, rows), train_labels=labels[rows], train_sources=sources)


def scaled(data: Dataset, mean: Sequence[float], std: Sequence[float]) -> Dataset:
    """Return the same images with another scaling, as a network trained elsewhere expects.

    Raises:
        DataError: unless there are one finite mean and one positive deviation a channel.
    """
    if not isinstance(data.train, Images) or not isinstance(data.test, Images) or data.foreign:
        raise DataError(f"The network takes the inputs of {data.name} as they are; there are no pixels to scale.")
    channels = 1 if data.train.images.ndim == 3 else 3
    if len(mean) != channels or len(std) != channels:
        raise DataError(f"Images of {channels} channels need {channels} numbers in --mean and in --std.")
    if not all(abs(value) <= _LARGEST_SCALE for value in (*mean, *std)) or min(std) < 1 / _LARGEST_SCALE:
        raise DataError("--mean takes finite numbers and --std positive ones, in units where white is 1.")
    train, test = (replace(images, mean=tuple(mean), std=tuple(std)) for images in (data.train, data.test))
    return replace(data, train=train, test=test)


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file, compressed if its name ends in .gz, as an array of uint8 or int32 of native byte order.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError as error:
        raise DataError(f"The file {path} is missing; fetch it or reinstall what it came with.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"The file {path} is damaged or unreadable; delete it and fetch it again.") from error
    damaged = DataError(f"The file {path} is damaged: it is not a complete IDX file; delete it and fetch it again.")
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise damaged
    dtype, start = _IDX_TYPES[data[2]], 4 + 4 * data[3]
    if len(data) < start:
        raise damaged
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", data[3], 4))
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise damaged
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _fashion_mnist_quarter(root: Path | None) -> Dataset:
    return _fashion_mnist_from("fashion-mnist-quarter", assets.path("fashion_mnist"), ".gz")


def _fashion_mnist(root: Path | None) -> Dataset:
    if DEBIAN_FOLDER.is_dir():
        return _fashion_mnist_from("fashion-mnist", DEBIAN_FOLDER, ".gz")
    root = root or _downloads()
    raw = root / "FashionMNIST" / "raw"
    if not all((raw / name).is_file() for name in _FILES):
        _download_fashion_mnist(root)
    return _fashion_mnist_from("fashion-mnist", raw, "")


_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _fashion_mnist_from(name: str, folder: Path, suffix: str) -> Dataset:
    paths = [folder / (file + suffix) for file in _FILES]
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    for path, array, axes in zip(
        paths, (train_images, train_labels, test_images, test_labels), (3, 1, 3, 1), strict=True
    ):
        if array.ndim != axes or array.dtype != np.uint8:
            raise DataError(f"The file {path} is damaged: its content does not match its name; fetch it again.")
    return Dataset(
        name=name,
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        train=Images(train_images, (0.2860,), (0.3530,)),
        train_labels=train_labels.astype(np.int64),
        test=Images(test_images, (0.2860,), (0.3530,)),
        test_labels=test_labels.astype(np.int64),
    )


def _download_fashion_mnist(root: Path) -> None:
    instead = (
        "install the Debian package dataset-fashion-mnist, or use the data set fashion-mnist-quarter, which ships with "
        "natscope"
    )
    _from_torchvision("FashionMNIST", "Fashion-MNIST", root, instead)


def _cifar10(root: Path | None) -> Dataset:
    instead = "or use images of your own with --dataset folder:PATH"
    train, test = _from_torchvision("CIFAR10", "CIFAR-10", root or _downloads(), instead)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Dataset(
        name="cifar10",
        classes=tuple(train.classes),
        train=Images(np.asarray(train.data), mean, std),
        train_labels=np.array(train.targets, dtype=np.int64),
        test=Images(np.asarray(test.data), mean, std),
        test_labels=np.array(test.targets, dtype=np.int64),
    )


def _downloads() -> Path:
    return home() / "datasets"


def _from_torchvision(name: str, title: str, root: Path, instead: str) -> list[Any]:
    """Return torchvision's training and test set, downloaded with progress and checked if they are missing."""
    try:
        import torchvision.datasets
    except ImportError as error:
        raise DataError(f"Downloading {title} needs torchvision; install it, {instead}.") from error
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        return [getattr(torchvision.datasets, name)(str(root), train=part, download=True) for part in (True, False)]
    except (OSError, EOFError, RuntimeError, ValueError, HTTPException, zlib.error) as error:
        raise DataError(
            f"{title} could not be downloaded to {root}; check the network and the disk, {instead}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "fashion-mnist-quarter": _fashion_mnist_quarter,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
}
