"""The picture of the backdoor: an image, a patch that can be drawn on, and the two put together."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import streamlit as st

from natscope.app.components import component


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
    on_draw: Callable[[str], None],
) -> None:
    """Draw the picture.

    The browser draws on the patch at once and sends all of it shortly after the last click. Until that has been heard,
    it keeps what was drawn, so that no click is lost while the server is busy.

    Args:
        clean: the image as it was.
        pattern: rows of 0 (black) and 1 (white).
        note: the line under the patch.
        stamped: the image with the patch.
        key: unique on the page.
        on_draw: called with a patch that was drawn, row by row, "0" black and "1" white.
    """
    squares, heard = sum(len(row) for row in pattern), f"{key}_heard"

    def drawn() -> None:
        text = (st.session_state.get(key) or {}).get("drawn")
        if isinstance(text, str) and len(text) == squares and set(text) <= {"0", "1"}:
            st.session_state[heard] = text
            on_draw(text)

    component("trigger_patch", '<div class="trigger-patch"></div>')(
        key=key,
        data={
            "clean": asdict(clean),
            "pattern": [list(map(int, row)) for row in pattern],
            "note": note,
            "stamped": asdict(stamped),
            "heard": st.session_state.get(heard, ""),
        },
        on_drawn_change=drawn,
    )
