"""In which batches examples are trained on, and how images are moved and mirrored in them."""

import numpy as np
import torch
from torch import Tensor, nn

_SHIFT = 4  # pixels by which crops move an image at most


def batches_of(order: np.ndarray, kept: np.ndarray, size: int, *, refill: bool) -> list[Tensor]:
    """Return the rows of each batch; unless they are refilled, each is what is left of one of all rows, if anything."""
    if refill:
        return list(torch.from_numpy(order[kept[order]]).split(size))
    return [torch.from_numpy(part[kept[part]]) for part in np.split(order, range(size, len(order), size))]


def draw_moves(count: int, random: np.random.Generator) -> Tensor:
    """Draw how images are augmented: rows and columns up to twice 4, and whether mirrored, (count, 3) int64."""
    return torch.from_numpy(random.integers(0, (2 * _SHIFT + 1, 2 * _SHIFT + 1, 2), (count, 3)))


def augmented(images: Tensor, moves: Tensor) -> Tensor:
    """Move each image of a batch (B, C, H, W) by up to 4 pixels and mirror some, as `draw_moves` (B, 3) says."""
    count, _, height, width = images.shape
    top, left, mirrored = moves.unbind(1)
    mirrored = mirrored.bool()
    padded = nn.functional.pad(images, (_SHIFT,) * 4)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
