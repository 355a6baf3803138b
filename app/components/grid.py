"""Images on pages: one component that draws a whole grid, and the conversion of arrays to inline PNGs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from natscope.app.components import clicked, component
from natscope.precompute.data import decode

_KEPT, _SMALL = 4096, 2**13  # encoded images that are remembered, for all visitors, and bytes of the largest such image


@dataclass(frozen=True)
class Card:
    """One image of a grid.

    Args:
        src: data URI of the picture.
        alt: what a screen reader says.
        title: the tooltip.
        rank: its rank as text, such as "1".
        value: its number with unit and sign.
        caption: its label; a grid without ranks is a gallery.
        tone: "for" or "against".
        strength: share of the strongest card, 0 to 1, drawn as a bar.
        framed: whether it is framed as an outlier.
        tag: what the visitor tagged it with.
        href: address that a click on it opens in another tab, as `st.link_button` does; none picks the card.
    """

    src: str
    alt: str
    title: str = ""
    rank: str = ""
    value: str = ""
    caption: str = ""
    tone: str = "for"
    strength: float = 0.0
    framed: bool = False
    tag: str = ""
    href: str = ""


def grid(
    cards: Sequence[Card],
    *,
    key: str,
    label: str,
    size: int,
    selected: int | None = None,
    reuse: str = "",
    appear: bool = False,
    on_pick: Callable[[int], None],
    on_reuse: Callable[[int], None] | None = None,
) -> None:
    """Draw cards in one element.

    Args:
        cards: what to draw.
        key: unique on the page.
        label: what the grid is, for screen readers.
        size: least width of a card, in pixels.
        selected: position of the card that is marked.
        reuse: tooltip of the small button on each card; no button when empty.
        appear: whether cards appear one after another, all in view on a phone too; framing some dims the rest.
        on_pick: called with a card's position when it is clicked.
        on_reuse: called with a card's position when its small button is clicked.
    """

    def call(trigger: str, function: Callable[[int], None] | None) -> Callable[[], None]:
        def handle() -> None:
            position = clicked(key, trigger)
            if function is not None and position is not None and 0 <= position < len(cards):
                function(position)

        return handle

    component("grid", '<div class="grid" role="group"></div>')(
        key=key,
        data={
            "items": [vars(card) for card in cards],
            "label": label,
            "size": size,
            "selected": selected,
            "reuse": reuse,
            "appear": appear,
        },
        on_picked_change=call("picked", on_pick),
        on_reused_change=call("reused", on_reuse),
    )


def data_uri(image: np.ndarray | Image.Image) -> str:
    """Encode an image, (H, W) or (H, W, 3) uint8, as an inline PNG."""
    if isinstance(image, np.ndarray) and image.nbytes <= _SMALL:
        return _thumbnail(image.tobytes(), image.shape)
    return decode.data_uri(image)


@lru_cache(maxsize=_KEPT)  # a page that shows the same images at every click would encode them each time
def _thumbnail(pixels: bytes, shape: tuple[int, ...]) -> str:
    return decode.data_uri(np.frombuffer(pixels, np.uint8).reshape(shape))
