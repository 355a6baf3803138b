"""The comparison figure on a page: one query, one row a method, images that several rows share marked by colour."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from natscope.app.components import clicked, component
from natscope.app.theme import FRAME, FRAMES


@dataclass(frozen=True)
class Tile:
    """One example of a row: a picture, or else pieces of text, as of a card.

    `tag` is the letter or letters of an example that other rows have too, `colour` its frame; both may be "".
    """

    alt: str
    title: str
    caption: str
    rank: str
    image: int
    tag: str = ""
    colour: str = ""
    src: str = ""
    text: Sequence[Sequence[Any]] = ()


@dataclass(frozen=True)
class Strip:
    """One method's row: its title, a note such as its sigma2, and its images, or a sentence instead."""

    title: str
    note: str
    tiles: tuple[Tile, ...]
    failure: str = ""


def marks(shared: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return letters for each shared image, A to Z, then AA, AB and so on, and a colour: grey once all are taken."""
    colours = (*FRAMES, *[FRAME] * len(shared))
    return {image: (_letters(position), colours[position]) for position, image in enumerate(shared)}


def _letters(position: int) -> str:
    before, last = divmod(position, 26)
    return (_letters(before - 1) if before else "") + chr(65 + last)


def comparison(
    look: dict[str, Any],
    query_text: tuple[str, str],
    strips: Sequence[Strip],
    *,
    key: str,
    on_pick: Callable[[int], None],
) -> None:
    """Draw the figure for one query.

    Args:
        look: the query's `src` or `text`, as of a tile.
        query_text: its name and the model's answer.
        strips: the rows.
        key: unique on the page.
        on_pick: called with the training index of an image that is clicked.
    """

    def picked() -> None:
        image = clicked(key, "picked")
        if image is not None and any(tile.image == image for strip in strips for tile in strip.tiles):
            on_pick(image)

    component("comparison", '<div class="comparison"></div>')(
        key=key,
        data={
            "query": look | {"name": query_text[0], "says": query_text[1]},
            "strips": [asdict(strip) for strip in strips],
        },
        on_picked_change=picked,
    )
