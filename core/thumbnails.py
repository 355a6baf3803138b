"""Small pictures, for people, of inputs that are no pictures of natscope's own: tensors of any shape."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d, pad

LARGEST = 64  # pixels along the longer side
_LEAST, _MOST = 1e-6, 1e6  # of a deviation that a manifest may record, and of the size of a mean


def colours(shape: Sequence[int]) -> int:
    """Return the channels of the thumbnail of one input: 3 for one of shape (3, H, W), else 1."""
    return 3 if len(shape) == 3 and shape[0] == 3 else 1


def scaling_between(low: float, high: float, shape: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation of each channel with which `low` is shown black and `high` white.

    They relate the pixels of thumbnails to inputs as those of any data set do: input = (pixel - mean) / deviation,
    white being 1.

    Args:
        low: the least number in the data.
        high: the largest.
        shape: of one input.
    """
    low, high = float(low), float(high)
    deviation = min(max(1 / (high - low), _LEAST), _MOST) if high > low else 1.0
    mean = min(max(-low * deviation, -_MOST), _MOST)
    return (mean,) * colours(shape), (deviation,) * colours(shape)


def thumbnails(inputs: np.ndarray, *, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return a picture of each input, at most `LARGEST` pixels a side.

    A tensor (3, H, W) gives a colour picture, (1, H, W) or (H, W) a grey one; of other (C, H, W) the mean over the
    first axis is shown. A vector is laid out row by row in a square, and what has more axes as a table whose columns
    are the last one.

    Args:
        inputs: (B, ...) float32.
        mean: mean of each channel of the picture, in units where white is 1: see `scaling_between`.
        std: standard deviation of each channel, in the same units.

    Returns:
        (B, h, w) or (B, h, w, 3) uint8.
    """
    planes = _planes(torch.from_numpy(np.array(inputs, dtype=np.float32)))
    shape = (1, len(std), 1, 1)
    pixels = planes * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    height, width = pixels.shape[2:]
    share = min(1.0, LARGEST / max(height, width))
    size = (max(1, round(share * height)), max(1, round(share * width)))
    pixels = adaptive_avg_pool2d(pixels, size) if share < 1 else pixels
    found = (255 * pixels.clamp(0, 1)).round().to(torch.uint8).numpy()
    return np.ascontiguousarray(found[:, 0] if found.shape[1] == 1 else np.moveaxis(found, 1, 3))


def _planes(inputs: torch.Tensor) -> torch.Tensor:
    """Return inputs (B, ...) as (B, 1, H, W) or (B, 3, H, W)."""
    count, *shape = inputs.shape
    if len(shape) == 1:
        width = math.isqrt(max(shape[0] - 1, 0)) + 1
        height = -(-shape[0] // width)
        return pad(inputs, (0, height * width - shape[0])).view(count, 1, height, width)
    if len(shape) == 3:
        return inputs if shape[0] in (1, 3) else inputs.mean(1, keepdim=True)
    return inputs.reshape(count, 1, -1, shape[-1])
