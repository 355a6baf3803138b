"""Images on pages."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from natscope.app.figures.thumbnails import Sheet, sheet
from natscope.app.modalities.page import Page, squeezed, unsqueezed
from natscope.core.errors import QueryError
from natscope.precompute.data.decode import data_uri

if TYPE_CHECKING:
    from natscope.app.bundles import Served
    from natscope.app.figures.style import Axes


def _look(images: Any, row: int) -> dict[str, Any]:
    return {"src": data_uri(np.asarray(images.images[row]))}


def _draw(images: Any, row: int, axes: "Axes") -> None:
    axes.imshow(images.images[row], cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _size(image: Any) -> str:
    height, width = image.images.shape[1:3]
    return f"{width} × {height} pixels, as the model sees it."


def _pack(image: Any) -> str:
    return squeezed(np.asarray(image.images[0]).tobytes())


def _unpack(packed: str, images: Any) -> np.ndarray:
    shape = images.images.shape[1:]
    try:
        raw, _ = unsqueezed(packed, math.prod(shape) + 1)
    except ValueError as error:
        raise QueryError("The image in this link is damaged; upload it again.") from error
    if len(raw) != math.prod(shape):
        raise QueryError("The image in this link has another size than this bundle's images; upload it again.")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _choose(attributor: "Served", take: Callable[[str], None]) -> None:
    from natscope.app.views.own_image import choose

    choose(attributor, take)


def _sheet(images: Any, rows: np.ndarray) -> Sheet:
    return sheet(images.images, rows)


PAGE = Page(
    look=_look,
    draw=_draw,
    size=_size,
    pack=_pack,
    unpack=_unpack,
    choose=_choose,
    yours="Upload",
    sheet=_sheet,
    note=lambda images, row: "",
    by="file",
    hint="a file",
    style=".ns-seen { width: 100%; image-rendering: pixelated; border-radius: 8px; }",
    smooth=True,
    worded=False,
    at_once=30,
    poisoned=True,
)
