"""The picture of the backdoor: an image, a patch that can be drawn on, and the two put together."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import streamlit as st

from natscope.app.components import component

_SENT = re.compile(r"(?P<turn>[0-9]{1,9})\.(?P<number>[0-9]{1,9})\.(?P<bits>[01]+)")


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

    The browser draws on the patch at once and sends all of it, numbered, shortly after the last click. Until that
    number has been heard, it keeps what was drawn, so that no click is lost while the server is busy; `forget_drawing`
    begins another turn, in which what was drawn before no longer counts.

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
        sent = (st.session_state.get(key) or {}).get("drawn")
        said = _SENT.fullmatch(sent) if isinstance(sent, str) else None
        if said and len(said["bits"]) == squares and int(said["turn"]) == _turn(key):
            st.session_state[heard] = int(said["number"])
            on_draw(said["bits"])

    component("trigger_patch", '<div class="trigger-patch"></div>')(
        key=key,
        data={
            "clean": asdict(clean),
            "pattern": [list(map(int, row)) for row in pattern],
            "note": note,
            "stamped": asdict(stamped),
            "heard": st.session_state.get(heard, 0),
            "turn": _turn(key),
        },
        on_drawn_change=drawn,
    )


def forget_drawing(key: str) -> None:
    """Take no patch any more whose drawing began before now, when another one is put in its place."""
    st.session_state[f"{key}_turn"] = _turn(key) + 1


def _turn(key: str) -> int:
    return int(st.session_state.get(f"{key}_turn", 0))
