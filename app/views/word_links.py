"""How much each word of the query, and of the training texts behind a prediction, carries of the link between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import streamlit as st

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.components.grid import Card
from natscope.app.components.passage import Passage, Piece, pairs, passage
from natscope.app.modalities import page_of
from natscope.app.views.notice import complain
from natscope.app.words import with_minus
from natscope.core.bundle.request import Attribution, QueryExample
from natscope.core.errors import NatscopeError
from natscope.core.reading import Reading
from natscope.core.tokens import SEPARATOR
from natscope.core.words import Link

_MOST = 30  # training texts whose links are split
_LETTERS = 240  # of a card
_FAINT, _STRONGEST = 0.04, 0.55  # tints: the least that is drawn, and the largest
_NAMED, _PAIRS = 3, 8  # words that a card names, and pairs that are drawn
_ABOUT = (
    "Each word’s share is its part of k(x, q) = φ(x)ᵀφ(q), the similarity of two texts by the network’s gradients, "
    "exactly; it is not what would happen without the word."
)
_ABOUT_PLAIN = (
    "Each word’s share is its exact part of how alike two texts are to the network; it is not what would happen "
    "without the word."
)
Pieces = list[Piece]


@dataclass(frozen=True, eq=False)
class Linked:
    """The links of a query with the training texts of a ranking.

    Args:
        links: of the first ones, in its order.
        texts: those training texts, in the same order.
        query: the query's text.
        reading: what the network makes of the query's text.
        word: the word of the query that orders them; None for the order of the ranking.
    """

    links: list[Link]
    texts: Sequence[str]
    query: str
    reading: Reading
    word: int | None = None

    @property
    def order(self) -> list[int]:
        """Places in the ranking, in the order in which they are shown."""
        places = list(range(len(self.links)))
        if self.word is None:
            return places
        return sorted(places, key=lambda place: -self.links[place].query_shares()[self.word])

    def dressed(self, cards: Sequence[Card]) -> list[Card]:
        """Return the cards of the ranking in the order in which they are shown, with their words tinted."""
        largest = max((float(np.abs(link.shares()[:-1]).max(initial=0)) for link in self.links), default=0.0)
        found = [self._dressed(place, cards[place], largest) for place in self.order]
        return found + list(cards[len(self.links) :])

    def _dressed(self, place: int, card: Card, largest: float) -> Card:
        link, text = self.links[place], self.texts[place]
        shares = link.shares()
        strongest = ", ".join(_said(text, link.words, shares, _NAMED))
        note = f"{_rounded(shares[-1])} of this link belongs to no word"
        said = f"{card.alt}; strongest words: {strongest}; {note}"
        changed: dict[str, Any] = {"alt": said, "title": escape.isolated(escape.visible(said)), "note": note}
        changed["text"] = excerpt(text, link.words, shares, largest)
        if self.word is not None:
            share = link.query_shares()
            most = max(float(np.abs(each.query_shares()[self.word])) for each in self.links) or 1.0
            own = float(share[self.word])
            changed |= {
                "value": with_minus(f"{own:+.2%}"),
                "strength": abs(own) / most,
                "tone": "against" if own < 0 else "for",
            }
        return Card(**(vars(card) | changed))


def linked(
    attributor: Served,
    query: QueryExample,
    result: Attribution,
    word: int | None = None,
) -> Linked | None:
    """Return the links of a ranking; None where there are none.

    Args:
        attributor: the opened bundle.
        query: what was asked about.
        result: the ranking.
        word: the chosen word of the query; one that the query does not have counts as none.
    """
    if not page_of(attributor.bundle.modality).worded:
        return None
    rows = tuple(item.train_index for item in result.items[:_MOST])
    links = _links(attributor, query, result.target, rows)
    if not links:
        return None
    train = cast(Any, attributor.bundle.examples("train"))
    asked = cast(Any, query.example)
    word = word if word is not None and word < len(links[0].query_words) else None
    return Linked(links, [train.text(row) for row in rows], asked.text(0), asked.reading(0), word)


def _links(attributor: Served, query: QueryExample, target: int, rows: tuple[int, ...]) -> list[Link] | None:
    try:
        return attributor.word_links(query, target, rows)
    except NatscopeError as error:  # the ranking stands without them
        complain(error)
        return None


def draw_query(found: Linked, on_pick: Callable[[int | None], None], *, plain: bool) -> None:
    """Draw the query's words, which can be chosen.

    Args:
        found: its links.
        on_pick: called with another word, or None, when that is chosen.
        plain: whether to use no technical terms.
    """
    words, whole = found.links[0].query_words, sum(link.total for link in found.links) or 1.0
    shares = sum(link.parts.sum(axis=0, dtype=np.float64) for link in found.links) / whole
    largest = float(np.abs(shares[:-1]).max(initial=0))
    many = len(found.links)
    st.markdown(
        f"**The words that link it to {'this text' if many == 1 else f'these {many} texts'}**: click one to rank them "
        "by its share, and once more to go back."
    )
    passage(
        Passage(pieces_of(found.query, words, shares, largest, found.reading), ()),
        key="query_words",
        label="Words of the query",
        chosen=found.word,
        on_pick=lambda word: on_pick(None if word == found.word else word),
    )
    named = escape.isolated(escape.markdown(", ".join(_said(found.query, words, shares, 2 * _NAMED))))
    about = _ABOUT_PLAIN if plain else _ABOUT
    those = "this link belongs" if many == 1 else "these links belong"
    st.caption(
        f"Strongest words: {named}; here the strongest tint stands for {largest:.1%}. {_rounded(shares[-1])} of "
        f"{those} to no word, but to layers and tokens that take the text as a whole. {about}"
    )
    if found.word is not None:
        name = escape.markdown(found.query[slice(*words[found.word])])
        st.markdown(escape.isolated(f"Ranked by the share of “{name}” in each link."))


def pair(
    attributor: Served, query: QueryExample, index: int, target: int | None, titles: Sequence[Sequence[str]]
) -> bool:
    """Draw the query and a training text with their strongest pairs of words; return False where there are none.

    Args:
        attributor: the opened bundle.
        query: the query.
        index: of the training text.
        target: the class whose logit is explained; the predicted one when None.
        titles: lines above the query, and above the training text.
    """
    found = _links(attributor, query, query.predicted if target is None else target, (index,))
    if not found:
        return False
    asked, train = cast(Any, query.example), cast(Any, attributor.bundle.examples("train"))
    (link,), texts = found, (asked.text(0), train.text(index))
    shown = []
    for text, words, shares, title in zip(
        texts, (link.query_words, link.words), (link.query_shares(), link.shares()), titles, strict=True
    ):
        shown.append(Passage(pieces_of(text, words, shares, float(np.abs(shares[:-1]).max(initial=0))), title))
    lines = []
    strongest = link.strongest(_PAIRS)
    most = max((abs(share) for *_, share in strongest), default=1.0)
    for own, other, share in strongest:
        said = (
            f"“{texts[0][slice(*link.query_words[other])]}” – “{texts[1][slice(*link.words[own])]}”: {_signed(share)}"
        )
        lines.append((other, own, share / most, escape.isolated(escape.visible(said))))
    pairs(shown[0], shown[1], lines, key=f"pairs_{index}", label="The strongest pairs of words")
    st.caption(f"{_rounded(_unassigned(link))} of this link belongs to no pair of words. {_ABOUT_PLAIN}")
    return True


def _unassigned(link: Link) -> float:
    return 1 - float(link.parts[:-1, :-1].sum(dtype=np.float64)) / (link.total or 1.0)


def pieces_of(
    text: str, words: np.ndarray, shares: np.ndarray, largest: float, reading: Reading | None = None
) -> Pieces:
    """Return a text in pieces, tinted by the shares of its words, of which the largest is given.

    Args:
        text: the text.
        words: (W, 2), where its words begin and end.
        shares: (W + 1,).
        largest: of all that are compared.
        reading: what the network makes of the words, if that is shown.
    """
    pieces: Pieces = []
    end = 0
    for number, (begin, after) in enumerate(words.tolist()):
        if begin > end:
            pieces.append((_plain(text[end:begin]), 0.0, None, ""))
        fate = "" if reading is None else reading.fate(begin, after)
        pieces.append((text[begin:after], _tint(shares[number], largest), number, fate))
        end = after
    if end < len(text):
        pieces.append((_plain(text[end:]), 0.0, None, "" if reading is None else reading.fate(end, len(text))))
    return pieces


def excerpt(text: str, words: np.ndarray, shares: np.ndarray, largest: float) -> list[tuple[str, float]]:
    """Return the part of a text for a card whose words carry most, in pieces with their tints."""
    pieces, place, first = pieces_of(text, words, shares, largest), 0, 0
    if len(text) > _LETTERS and len(words):
        sums = np.append(0, np.cumsum(np.abs(shares[:-1])))
        after = np.searchsorted(words[:, 1], words[:, 0] + _LETTERS, side="right")
        carried = sums[after] - sums[:-1]
        first = int(words[int(np.argmax(carried > 0.999 * carried.max())), 0])
        first = 0 if first < _LETTERS // 4 else first
    found: list[tuple[str, float]] = [("… ", 0.0)] if first else []
    for said, tint, *_ in pieces:
        if first <= place < first + 2 * _LETTERS:
            found.append((said, tint))
        place += len(said)
    return found


def _tint(share: float, largest: float) -> float:
    tint = _STRONGEST * float(share) / largest if largest else 0.0
    return tint if abs(tint) >= _FAINT else 0.0


def _said(text: str, words: np.ndarray, shares: np.ndarray, count: int) -> list[str]:
    """Return the words with the largest shares, and those."""
    order: Any = np.argsort(-np.abs(shares[:-1]), kind="stable")[:count]
    return [f"“{text[slice(*words[number])]}” {_signed(shares[number])}" for number in order]


def _signed(share: float) -> str:
    return with_minus(f"{share:+.1%}")


def _rounded(share: float) -> str:
    return with_minus(f"{round(100 * share) + 0}%")


def _plain(text: str) -> str:
    """Return what stands between words; between the parts of a text, as long, a new line."""
    return text.replace(SEPARATOR, "\n")
