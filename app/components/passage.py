"""A text whose words can be chosen, one stop of the Tab key however many there are, and two texts with their pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from natscope.app.components import clicked, component

_FATES = {"unknown": "unknown to the network", "unread": "not read by the network"}
Piece = tuple[str, float, int | None, str]


@dataclass(frozen=True)
class Passage:
    """A text as it is drawn.

    Args:
        pieces: its parts in order: each a text, its tint from -1, against, to 1, for, the number of its word, or None
            for what stands between words, and what the network makes of it: "", "unknown" or "unread".
        title: what it is, and what the network says of it, a line each.
    """

    pieces: Sequence[Piece]
    title: Sequence[str]


def passage(shown: Passage, *, key: str, label: str, chosen: int | None, on_pick: Callable[[int], None]) -> None:
    """Draw a text whose words can be clicked.

    Args:
        shown: the text.
        key: unique on the page.
        label: what it is, for screen readers.
        chosen: the word that is marked.
        on_pick: called with the number of a word that is clicked.
    """

    def picked() -> None:
        word = clicked(key, "picked")
        if word is not None and any(word == number for _, _, number, _ in shown.pieces):
            on_pick(word)

    component("passage", '<div class="passage" role="group"></div>')(
        key=key,
        data={"pieces": shown.pieces, "label": label, "chosen": chosen, "fates": _FATES},
        on_picked_change=picked,
    )


def pairs(one: Passage, other: Passage, lines: Sequence[tuple[int, int, float, str]], *, key: str, label: str) -> None:
    """Draw two texts, and lines between pairs of their words.

    Args:
        one: the text on the left, above on a phone.
        other: the other one.
        lines: for each pair the number of its word in either, its strength from -1 to 1, and what there is to say of
            it.
        key: unique on the page.
        label: what the pairs are, above their list.
    """
    texts: list[dict[str, Any]] = [{"pieces": each.pieces, "title": each.title} for each in (one, other)]
    component("pairs", '<div class="pairs"></div>')(key=key, data={"texts": texts, "lines": lines, "label": label})
