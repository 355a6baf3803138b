"""Examples on pages: one component that draws a whole grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from natscope.app.components import clicked, component

_LEAST_TEXT = 210  # pixels of a card's width that a text needs


@dataclass(frozen=True)
class Card:
    """One example of a grid.

    Args:
        alt: what a screen reader says.
        src: data URI of the picture, if it is one.
        text: otherwise its pieces, each with its tint from -1, against, to 1, for; a part of the text each.
        title: the tooltip.
        rank: its rank as text, such as "1".
        value: its number with unit and sign.
        caption: its label; a grid without ranks is a gallery.
        note: a line below it.
        tone: "for" or "against".
        strength: share of the strongest card, 0 to 1, drawn as a bar.
        framed: whether it is framed as an outlier.
        tag: what the visitor tagged it with.
        href: address that a click on it opens in another tab, as `st.link_button` does; none picks the card.
    """

    alt: str
    src: str = ""
    text: Sequence[Sequence[Any]] = ()
    title: str = ""
    rank: str = ""
    value: str = ""
    caption: str = ""
    note: str = ""
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
        size: least width of a card, in pixels; a text needs more.
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
            "size": max(size, _LEAST_TEXT) if any(card.text for card in cards) else size,
            "selected": selected,
            "reuse": reuse,
            "appear": appear,
        },
        on_picked_change=call("picked", on_pick),
        on_reused_change=call("reused", on_reuse),
    )
