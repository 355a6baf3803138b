"""In which batches examples are trained on, and how images are moved and mirrored in them."""

import numpy as np
import torch
from torch import Tensor, nn

_SHIFT = 4  # pixels by which crops move an image at most
_PARTS = 4  # of a batch of texts; RTE's are padded to 1.9 times their length in whole batches of 32, 1.2 times in four


def batches_of(
    order: np.ndarray, kept: np.ndarray, size: int, *, refill: bool = False, alone: bool = True
) -> list[Tensor]:
    """Return the rows of each batch.

    Args:
        order: (N,) the rows in the order of an epoch.
        kept: which of them are trained on, (N,) bool.
        size: of a batch.
        refill: whether they fill whole batches; else each batch is what is left of one of all rows, if anything.
        alone: whether what is left of a batch may be one row; else that joins the nearest batch.
    """
    rows = order[kept[order]] if refill else order
    parts = [part if refill else part[kept[part]] for part in np.split(rows, range(size, len(rows), size))]
    for step, part in enumerate(() if alone or kept.all() else parts):
        if len(part) == 1 and (others := [i for i, other in enumerate(parts) if i != step and len(other)]):
            near = min(others, key=lambda i: abs(i - step))
            parts[near], parts[step] = np.concatenate([parts[near], part]), part[:0]
    return [torch.from_numpy(part) for part in parts]


def parts_of(batch: Tensor, lengths: np.ndarray | None) -> list[Tensor]:
    """Return the rows of a batch (B,) in parts of like length that a network takes one by one, so that few are padded.

    A part has two rows or more if the batch has: some networks fail on one.

    Args:
        batch: the rows.
        lengths: of all rows, (N,); None where all have the same, for one part.
    """
    if lengths is None or not len(batch):
        return [batch]
    order = np.argsort(lengths[batch], kind="stable")
    return [batch[part] for part in np.array_split(order, max(1, min(_PARTS, len(batch) // 2)))]


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
