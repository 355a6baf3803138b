"""How one example looks in HTML, on the app's pages and in notebooks, by its modality."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from natscope.core.examples import Examples
from natscope.core.text import beginning
from natscope.precompute.data.decode import data_uri

LETTERS = 300  # of a text that is shown with others, at most


@dataclass(frozen=True)
class Look:
    """How examples of one modality look.

    Args:
        html: returns an element of class "ns-seen", by examples, the number of one, what a screen reader says of it (""
            if that stands beside it), the element's own style, and whether all of a long one is wanted.
        width: of one in a notebook, in pixels.
        style: of one in a notebook.
    """

    html: Callable[[Any, int, str, str, bool], str]
    width: int
    style: str


def shown(examples: Examples, index: int = 0, *, alt: str = "", style: str = "", whole: bool = False) -> str:
    """Return an example as an element of HTML: see `Look.html`."""
    return LOOKS[examples.modality.name].html(examples, index, alt, style, whole)


def card(examples: Examples, index: int, title: str, amount: str, source: str) -> str:
    """Return an example as notebooks show it, with what there is to say of it."""
    look = LOOKS[examples.modality.name]
    return (
        f'<figure style="margin:0;width:{look.width}px;font-size:11px" title="{escape(source)}">'
        f"{shown(examples, index, alt=title, style=look.style)}"
        f'<figcaption style="overflow-wrap:anywhere"><b>{escape(title)}</b><br>{escape(amount)}<br>'
        f"{escape(source)}</figcaption></figure>"
    )


def _image(images: Any, index: int, alt: str, style: str, whole: bool) -> str:
    pixels = np.asarray(images.images[index])
    height, width = pixels.shape[:2]
    own = f' style="{style}"' if style else ""
    return f'<img class="ns-seen" src="{data_uri(pixels)}" alt="{escape(alt)}" width="{width}" height="{height}"{own}>'


def _text(texts: Any, index: int, alt: str, style: str, whole: bool) -> str:
    own = f' style="{style}"' if style else ""
    parts = [part if whole else beginning(part, LETTERS) for part in texts.parts(index)]
    body = "".join(f'<span dir="auto">{escape(part)}</span>' for part in parts)
    name = f' role="group" aria-label="{escape(alt)}"' if alt else ""
    return f'<span class="ns-seen ns-text"{name}{own}>{body}</span>'


LOOKS: dict[str, Look] = {
    "image": Look(_image, 96, "width:96px;height:96px;object-fit:contain;image-rendering:pixelated"),
    "text": Look(_text, 220, "display:block;max-height:8em;overflow:hidden;white-space:pre-wrap"),
} | {entry.name: entry.load() for entry in entry_points(group="natscope.looks")}
