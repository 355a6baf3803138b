"""The comparison figure on a page: one query, one row a method, images that several rows share marked by colour."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from natscope.app.components import clicked, component
from natscope.app.theme import FRAMES


@dataclass(frozen=True)
class Tile:
    """One image of a row; `tag` is a letter if other rows have the image too, `colour` its frame; both may be ""."""

    src: str
    alt: str
    title: str
    caption: str
    rank: str
    image: int
    tag: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Strip:
    """One method's row: its title, a note such as its sigma2, and its images, or a sentence instead."""

    title: str
    note: str
    tiles: tuple[Tile, ...]
    failure: str = ""


def marks(shared: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return a letter and a colour for each shared image, the first ones A, B, C and so on."""
    return {image: (_letters(position), FRAMES[position % len(FRAMES)]) for position, image in enumerate(shared)}


def _letters(position: int) -> str:
    return chr(65 + position % 26) + (str(position // 26 + 1) if position >= 26 else "")


def comparison(
    query_src: str, query_text: tuple[str, str], strips: Sequence[Strip], *, key: str, on_pick: Callable[[int], None]
) -> None:
    """Draw the figure for one query.

    Args:
        query_src: data URI of the query's image.
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
            "query": {"src": query_src, "name": query_text[0], "says": query_text[1]},
            "strips": [asdict(strip) for strip in strips],
        },
        on_picked_change=picked,
    )
