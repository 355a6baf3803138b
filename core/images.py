"""From what is stored to the network's input: pixels that are scaled, the same for all, or the inputs themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from natscope.core.rows import Rows


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
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return self.rows.shape


Inputs = ImageInputs | StoredInputs


def inputs_of(images: np.ndarray, inputs: Rows | None, *, mean: Sequence[float], std: Sequence[float]) -> Inputs:
    """Return what a network takes: the stored inputs where there are any, else the images, scaled.

    Nothing else decides between the two, for data sets and bundles alike.

    Args:
        images: (N, H, W) or (N, H, W, 3) uint8.
        inputs: (N, ...) float32; None where the images are all that there is.
        mean: mean of each channel of the images, in units where white is 1.
        std: standard deviation of each channel, in the same units, positive.
    """
    return ImageInputs(images, mean, std) if inputs is None else StoredInputs(inputs)
