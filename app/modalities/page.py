"""What a page has to know of a modality to show its examples and to take new ones."""

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from natscope.app.figures.thumbnails import Sheet

if TYPE_CHECKING:  # only pages need Streamlit, and only figures Matplotlib
    from natscope.app.bundles import Served
    from natscope.app.figures.style import Axes


def squeezed(content: bytes) -> str:
    """Return bytes as a link holds them."""
    return base64.urlsafe_b64encode(zlib.compress(content, 9)).decode().rstrip("=")


def unsqueezed(text: str, most: int) -> tuple[bytes, bool]:
    """Undo `squeezed`: return at most so many bytes, and whether they are all; raises ValueError for other texts."""
    unpacker = zlib.decompressobj()
    try:
        return unpacker.decompress(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), most), unpacker.eof
    except zlib.error as error:
        raise ValueError("not compressed") from error


@dataclass(frozen=True)
class Page:
    """How pages show examples of one modality; functions are called with examples and, where there are several, a row.

    Args:
        look: returns the fields of a `Card` or `Tile` that draw an example: a picture, or pieces of text.
        draw: draws an example into a figure's axes.
        size: says how large an example is, below it.
        pack: returns an example that a user gave, alone, as a link holds it; raises QueryError if it is too long.
        unpack: returns what `Examples.given` takes, by what `pack` returned; raises QueryError.
        choose: draws what takes an example of the user's, by the opened bundle and what is called with its query.
        yours: the title of that.
        sheet: returns small pictures of some rows, for the map; None where its labels say more.
        note: returns what the map's labels say of an example.
        by: what a search goes by, beside a number: "file", "words".
        hint: the same in the field, "a file".
        style: of what `natscope.precompute.data.shown` makes.
        smooth: whether a closer look can blur the edges of pixels.
        worded: whether the link of two examples can be split over their words.
        at_once: how many examples a page of a gallery shows.
        poisoned: whether page Backdoor tells of triggers in such examples.
    """

    look: Callable[[Any, int], dict[str, Any]]
    draw: Callable[[Any, int, "Axes"], None]
    size: Callable[[Any], str]
    pack: Callable[[Any], str]
    unpack: Callable[[str, Any], Any]
    choose: Callable[["Served", Callable[[str], None]], None]
    yours: str
    sheet: Callable[[Any, np.ndarray], Sheet] | None
    note: Callable[[Any, int], str]
    by: str
    hint: str
    style: str
    smooth: bool
    worded: bool
    at_once: int
    poisoned: bool
