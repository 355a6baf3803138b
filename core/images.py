"""Images: pixels that a network takes scaled, the same for all, or thumbnails of inputs that it takes as they are."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from msgspec import UNSET, Meta, UnsetType
from torch import Tensor

from natscope.core.bundle.bounds import MOST_NUMBERS, Deviation, Reference, Scale
from natscope.core.errors import DataError, QueryError
from natscope.core.examples import Modality, Which, register
from natscope.core.ood import in_blocks, nearest
from natscope.core.rows import Rows, RowView
from natscope.core.thumbnails import thumbnails

PLACES = {
    "top-left": (0, 0),
    "top-right": (0, 1),
    "bottom-left": (1, 0),
    "bottom-right": (1, 1),
}  # whether a patch touches the last row and the last column
_SIDE = 1024  # pixels of an image's side, at most
_LARGEST = 1e15  # of an input's numbers, as in a bundle


def to_input(images: np.ndarray, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale pixels to [0, 1], subtract the mean of each channel and divide by its standard deviation.

    Args:
        images: (B, H, W) grey or (B, H, W, 3) colour, uint8.
        mean: mean of each channel, in units where white is 1.
        std: standard deviation of each channel, in the same units, positive.

    Returns:
        (B, C, H, W) float32, contiguous, sharing no memory with `images`.

    Raises:
        ValueError: if the images have another type or shape, or mean and std do not have one value a channel.
    """
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise ValueError(f"Images must be uint8 of shape (B, H, W) or (B, H, W, 3), not {images.dtype} {images.shape}.")
    channels = 1 if images.ndim == 3 else 3
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"Images of {channels} channels need {channels} means and deviations, not {len(mean)} and {len(std)}."
        )
    if not all(deviation > 0 for deviation in std):
        raise ValueError(f"Standard deviations must be positive, not {tuple(std)}.")
    first = images[:, None] if channels == 1 else np.moveaxis(images, 3, 1)
    scaled = torch.from_numpy(np.array(first, dtype=np.float32, order="C")) / 255
    shape = (1, channels, 1, 1)
    return scaled.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """Stored images that become the network's inputs row by row: memory is that of a batch, whatever N.

    Args:
        images: (N, H, W) or (N, H, W, 3) uint8; a memory map will do.
        mean: mean of each channel, in units where white is 1.
        std: standard deviation of each channel, in the same units, positive.
    """

    images: np.ndarray
    mean: Sequence[float]
    std: Sequence[float]

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def __getitem__(self, rows: slice | np.ndarray | Tensor) -> Tensor:
        """Return the inputs of some rows, (B, C, H, W) float32."""
        picked = self.images[rows.numpy() if isinstance(rows, Tensor) else rows]
        return to_input(picked, mean=self.mean, std=self.std)

    @property
    def lengths(self) -> None:
        """None: all have one size."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W), as the network takes them."""
        count, *size = self.images.shape
        return (count, 1, *size) if len(size) == 2 else (count, size[2], *size[:2])


@dataclass(frozen=True, eq=False)
class StoredInputs:
    """Inputs that are stored as the network takes them, and read row by row: memory is that of a batch, whatever N.

    Args:
        rows: (N, ...) float32; a memory map, or whatever reads rows when they are requested.
    """

    rows: Rows

    def __len__(self) -> int:
        """Return N."""
        return len(self.rows)

    def __getitem__(self, rows: slice | np.ndarray | Tensor) -> Tensor:
        """Return some rows, (B, ...) float32, sharing no memory with what is stored."""
        picked = self.rows[rows.numpy() if isinstance(rows, Tensor) else rows]
        return torch.from_numpy(np.array(picked, dtype=np.float32, order="C"))

    @property
    def lengths(self) -> None:
        """None: all have one shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return self.rows.shape


class _About(msgspec.Struct, forbid_unknown_fields=True):
    """What a manifest says of images."""

    mean: Annotated[list[Scale], Meta(min_length=1, max_length=3)]
    std: Annotated[list[Deviation], Meta(min_length=1, max_length=3)]
    load: Reference | UnsetType = UNSET
    transform: Reference | UnsetType = UNSET


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one split, and what the network takes for them, where that is not the images, scaled.

    Args:
        images: (N, H, W) or (N, H, W, 3) uint8; a memory map will do.
        mean: mean of each channel, in units where white is 1.
        std: standard deviation of each channel, in the same units, positive.
        stored: (N, ...) float32, what the network takes, as an array or as rows that are read when they are requested;
            the images are then thumbnails, and mean and std relate them to the inputs for people alone. None where the
            network takes the images, scaled.
        load: the user's own function that reads a file of this kind, as "module:function"; natscope's own if empty.
        transform: the user's own function that makes an input of what was read; none if empty.
    """

    images: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stored: Rows | None = None
    load: str = ""
    transform: str = ""

    @property
    def modality(self) -> Modality:
        """Images."""
        return IMAGE

    @property
    def inputs(self) -> ImageInputs | StoredInputs:
        """What the network takes: the stored inputs where there are any, else the images, scaled."""
        return ImageInputs(self.images, self.mean, self.std) if self.stored is None else StoredInputs(self.stored)

    @property
    def form(self) -> tuple[int, ...]:
        """(H, W) or (H, W, 3)."""
        return self.images.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of images and stored inputs."""
        return self.images.nbytes + (0 if self.stored is None else 4 * math.prod(self.stored.shape))

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def replaced(self, rows: np.ndarray, others: "Images") -> "Images":
        """Return copies, of which those at `rows` (n,) are others; only of images that the network takes."""
        images = np.array(self.images)
        images[rows] = others.images
        return replace(self, images=images)

    def __getitem__(self, rows: Which) -> "Images":
        """Return some of them; of inputs that are stored none is read."""
        stored = self.stored
        if stored is not None:
            stored = RowView(stored, np.arange(len(stored))[rows])
        return replace(self, images=self.images[rows], stored=stored)

    def arrays(self) -> dict[str, Rows]:
        """Return images, and inputs if they are stored."""
        return {"images": self.images} | ({} if self.stored is None else {"inputs": self.stored})

    def files(self) -> dict[str, bytes]:
        """Return nothing."""
        return {}

    def about(self) -> dict[str, Any]:
        """Return the scaling, and the user's own functions."""
        named = {"load": self.load, "transform": self.transform}
        return {"mean": list(self.mean), "std": list(self.std)} | {key: name for key, name in named.items() if name}

    def reading(self, index: int) -> None:
        """Return nothing: a network takes all of an image."""

    def distances(self, train: "Images") -> np.ndarray:
        """Return each image's Euclidean distance to its nearest training image, of pixels in [0, 1], (n,)."""
        return nearest(_pixels(self.images), map(_pixels, in_blocks(train.images)))

    def marked(self, triggers: Sequence[np.ndarray], which: np.ndarray, place: str) -> "Images":
        """Return copies with black and white patches in a corner.

        Args:
            triggers: patches, (S, S) of 0 and 1.
            which: (N,), the number of each image's patch.
            place: a key of `PLACES`.
        """
        images = np.array(self.images)
        for number in np.unique(which):
            images[which == number] = stamp(images[which == number], triggers[number], place)
        return replace(self, images=images)

    def present(self) -> np.ndarray:
        """Return which are not black all over, as files that were not read are, (N,) bool."""
        return np.asarray(np.asarray(self.images).reshape(len(self), -1).any(axis=1))

    def described(self) -> str:
        """Return the size of an image, or of an input."""
        if self.stored is not None:
            return f"inputs of shape {tuple(self.stored.shape[1:])}"
        return f"{self.form[0]} × {self.form[1]} pixels, {'grey' if len(self.form) == 2 else 'colour'}"

    def scaling(self) -> str:
        """Return how pixels are scaled."""
        if self.stored is not None:
            return ""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"pixels scaled by mean {mean} and deviation {std}"

    def triggers(self, count: int, size: int, random: np.random.Generator) -> list[np.ndarray]:
        """Draw different patches (S, S) of 0 and 1, neither all black nor all white.

        Raises:
            DataError: if the network takes other inputs than pixels, or there are not as many patches of this size, or
                they do not fit.
        """
        side = min(self.form[:2])
        if self.stored is not None:
            raise DataError("A backdoor is planted in pixels, and the network does not take those of this data set.")
        if not 1 <= size <= side or 2 ** (size**2) - 2 < count:
            raise DataError(
                f"Patches of {size} by {size} pixels cannot tell {count} classes apart on images of {side} by {side} "
                "pixels; choose another size."
            )
        found: dict[bytes, np.ndarray] = {}
        while len(found) < count:
            pattern = random.integers(0, 2, (size, size), dtype=np.uint8)
            if 0 < pattern.sum() < size * size:
                found.setdefault(pattern.tobytes(), pattern)
        return list(found.values())

    def given(self, found: Any) -> "Images":
        """Return one image, made of pixels of the data's form, uint8, or of an input as the network takes it, float32.

        Raises:
            QueryError: if the network takes other inputs than pixels, it has another shape than the data's inputs, or
                numbers that are not finite or too large.
        """
        if found.dtype == np.uint8:
            if self.stored is not None:
                raise QueryError(self.no_pictures())
            if found.shape != self.form:
                raise QueryError(f"This bundle's pictures have shape {self.form}, not {found.shape}.")
            return replace(self, images=found[None])
        shape = self.inputs.shape[1:]
        if found.shape != shape:
            raise QueryError(f"This bundle's network takes inputs of shape {shape}, not {found.shape}.")
        if not bool((np.abs(found) <= _LARGEST).all()):
            raise QueryError("The input holds numbers that are not finite, or too large for float32.")
        values = np.array(found, dtype=np.float32, order="C")[None]
        return replace(self, images=thumbnails(values, mean=self.mean, std=self.std), stored=values)

    @property
    def takes_files(self) -> bool:
        """Whether a file can become one: natscope reads it, or there is the user's own code that does."""
        return self.stored is None or bool(self.load or self.transform)

    def no_pictures(self) -> str:
        """Return why a picture cannot be one where the network takes other inputs, in one sentence."""
        if self.load or self.transform:
            return (
                "This bundle's network takes inputs that its own code makes of a file; give the file, not its pixels."
            )
        return (
            "This bundle's network takes inputs that natscope cannot make from a picture; build it with `transform=`, "
            "the function that made them, to ask about new ones."
        )


def stamp(images: np.ndarray, pattern: np.ndarray, place: str) -> np.ndarray:
    """Return copies of images (N, H, W[, 3]) uint8 with a black and white patch (S, S) in a corner."""
    result = images.copy()
    size = len(pattern)
    bottom, right = PLACES[place]
    rows = slice(-size, None) if bottom else slice(size)
    columns = slice(-size, None) if right else slice(size)
    white = (255 * np.asarray(pattern)).astype(np.uint8)
    result[:, rows, columns] = white if images.ndim == 3 else white[..., None]
    return result


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _read(array: Callable[[str], Any], file: Callable[[str], bytes], about: Mapping[str, Any]) -> Images:
    images = array("images")
    own = {key: about.get(key, "") for key in ("load", "transform")}
    return Images(images, tuple(about["mean"]), tuple(about["std"]), array("inputs"), **own)


def _form(about: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return (H, W) or (H, W, 3)."""
    images = shapes["images"]
    if len(images) not in (3, 4) or not all(1 <= side <= _SIDE for side in images[1:3]) or images[3:] not in ((), (3,)):
        raise ValueError("does not record 'train_images' as images")
    if not len(about["mean"]) == len(about["std"]) == (images[3] if len(images) == 4 else 1):
        raise ValueError("has other means and deviations than the images have channels")
    if {"load", "transform"} & about.keys() and "inputs" not in shapes:
        raise ValueError("names a transform, and stores no inputs")
    return images[1:]


def _fits(name: str, shape: tuple[int, ...], count: int, train: Mapping[str, tuple[int, ...]]) -> bool:
    if shape != (count, *train[name][1:]):
        return False
    return name == "images" or (len(shape) > 1 and 1 <= math.prod(shape[1:]) <= MOST_NUMBERS)


def _suits(patterns: Sequence[Any], size: int, form: tuple[int, ...]) -> bool:
    if size > min(form[:2]):
        return False
    return all(
        isinstance(pattern, list)
        and len(pattern) == size
        and all(
            isinstance(row, list) and len(row) == size and all(type(b) is int and b in (0, 1) for b in row)
            for row in pattern
        )
        for pattern in patterns
    )


IMAGE = register(
    Modality(
        name="image",
        one="image",
        many="images",
        about=_About,
        arrays={"images": ("uint8",), "inputs": ("float32",)},
        needed=("images",),
        form=_form,
        fits=_fits,
        read=_read,
        networks={"mlp": lambda form: (math.prod(form),), "resnet9": lambda form: (3 if len(form) == 3 else 1,)},
        stored="inputs",
        places=tuple(PLACES),
        suits=_suits,
    )
)
