"""Small pictures of many images, side by side in one file, for a page that shows any of them without asking again."""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from natscope.core.rows import Rows

LARGEST = 3_000_000  # bytes, unless the smallest side gives more
_SIDES = (20, 16, 12, 8)  # pixels of a picture: the first that is small enough
_QUALITY = 50  # of JPEG
_BLOCK = 1024  # images read at once


@dataclass(frozen=True, eq=False)
class Sheet:
    """A JPEG with `count` square pictures, row by row, `across` in a row, each of `side` pixels."""

    jpeg: bytes
    count: int
    across: int
    side: int


def sheet(images: Rows, rows: np.ndarray) -> Sheet:
    """Return small pictures of images (N, H, W) or (N, H, W, 3) uint8: of those in `rows` (n,), in this order."""
    for side in _SIDES:
        found = _drawn(images, rows, side)
        if len(found.jpeg) <= LARGEST:
            break
    return found


def _drawn(images: Rows, rows: np.ndarray, side: int) -> Sheet:
    across = max(1, math.isqrt(len(rows)))
    size = (across * side, max(1, -(-len(rows) // across)) * side)
    whole = Image.new("RGB" if len(images.shape) == 4 else "L", size)
    for start in range(0, len(rows), _BLOCK):
        for place, pixels in enumerate(np.asarray(images[rows[start : start + _BLOCK]]), start):
            picture = Image.fromarray(pixels)
            shape = (side, side) if picture.width == picture.height else _within(picture, side)
            whole.paste(
                picture.resize(shape, Image.Resampling.LANCZOS), (place % across * side, place // across * side)
            )
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG", quality=_QUALITY)
    return Sheet(buffer.getvalue(), len(rows), across, side)


def _within(picture: Image.Image, side: int) -> tuple[int, int]:
    """Return the size of a picture, in its own proportions, within a square."""
    share = side / max(picture.size)
    return max(1, round(share * picture.width)), max(1, round(share * picture.height))
