"""Texts on pages."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from natscope.app import escape
from natscope.app.modalities.page import Page, squeezed, unsqueezed
from natscope.core.errors import QueryError
from natscope.core.text import beginning
from natscope.core.texts import on_one_line
from natscope.core.tokens import LONGEST_TEXT, SEPARATOR
from natscope.precompute.data.shown import LETTERS

if TYPE_CHECKING:
    from natscope.app.bundles import Served
    from natscope.app.figures.style import Axes

LONGEST_LINK = 8_000  # characters of a text in a link, packed
ENGLISH = LONGEST_LINK * 3 // 2  # characters of English that fit: packed, one takes 0.58
_NOTED, _LINE = 120, 38  # characters of a label on the map, and of a line of it
_DRAWN, _WIDE = 150, 26  # characters of a text in a figure, and of a line of it


def _look(texts: Any, row: int) -> dict[str, Any]:
    parts = texts.parts(row)
    pieces: list[tuple[str, float]] = []
    for part in parts:
        pieces += [("\n", 0.0)] * bool(pieces) + [(beginning(part, LETTERS // len(parts)), 0.0)]
    return {"text": pieces}


def _draw(texts: Any, row: int, axes: "Axes") -> None:
    text = beginning(on_one_line(texts, row), _DRAWN)
    lines = "\n".join(textwrap.wrap(escape.mathtext(text, 2 * _DRAWN), _WIDE))
    axes.text(0, 1, lines, transform=axes.transAxes, fontsize=3.2, va="top", ha="left", family="serif", clip_on=True)


def _size(text: Any) -> str:
    return f"{len(text.token_spans(0)):,} tokens, as the model reads it."


def _pack(text: Any) -> str:
    packed = squeezed(SEPARATOR.join(text.parts(0)).encode())
    if len(packed) > LONGEST_LINK:
        raise QueryError("The text is too long for a link, which keeps it; give a part of it.")
    return packed


def _unpack(packed: str, texts: Any) -> Any:
    damaged = "The text in this link is damaged; write it again."
    if len(packed) > LONGEST_LINK:
        raise QueryError(damaged)
    try:
        raw, whole = unsqueezed(packed, 4 * LONGEST_TEXT)
        parts = raw.decode().split(SEPARATOR)
        if not whole:
            raise QueryError(damaged)
    except ValueError as error:
        raise QueryError(damaged) from error
    return parts[0] if len(parts) == 1 else tuple(parts)


def _choose(attributor: "Served", take: Callable[[str], None]) -> None:
    from natscope.app.views.own_text import choose

    choose(attributor, take)


def _note(texts: Any, row: int) -> str:
    return "\n".join(textwrap.wrap(beginning(on_one_line(texts, row), _NOTED), _LINE))


PAGE = Page(
    look=_look,
    draw=_draw,
    size=_size,
    pack=_pack,
    unpack=_unpack,
    choose=_choose,
    yours="Write your own",
    sheet=None,
    note=_note,
    by="words",
    hint="words",
    style="""
.ns-text { display: block; width: auto; font-family: Georgia, "Source Serif 4", "Noto Serif", serif; line-height: 1.5;
  white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 0; }
.ns-text > span { display: block; }
.ns-text > span + span { margin-top: .4em; padding-top: .4em;
  border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
""",
    smooth=False,
    worded=True,
    at_once=12,
    poisoned=False,
)
