"""The picture of the backdoor: an image, a patch that can be drawn on, and the two put together."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from natscope.app.components import clicked, component


@dataclass(frozen=True)
class Shown:
    """An image and the model's answer.

    Args:
        src: data URI.
        title: what it is.
        says: the model's answer.
        share: its probability as text.
        wrong: whether the answer is wrong.
    """

    src: str
    title: str
    says: str
    share: str
    wrong: bool


def trigger_patch(
    clean: Shown,
    pattern: Sequence[Sequence[int]],
    note: str,
    stamped: Shown,
    *,
    key: str,
    on_draw: Callable[[int], None],
) -> None:
    """Draw the picture.

    Args:
        clean: the image as it was.
        pattern: rows of 0 (black) and 1 (white).
        note: the line under the patch.
        stamped: the image with the patch.
        key: unique on the page.
        on_draw: called with the position, row by row, of the square of the patch that was clicked.
    """
    squares = sum(len(row) for row in pattern)

    def drawn() -> None:
        position = clicked(key, "drawn")
        if position is not None and 0 <= position < squares:
            on_draw(position)

    component("trigger_patch", '<div class="trigger-patch"></div>')(
        key=key,
        data={
            "clean": asdict(clean),
            "pattern": [list(map(int, row)) for row in pattern],
            "note": note,
            "stamped": asdict(stamped),
        },
        on_drawn_change=drawn,
    )
