"""Keys of the keyboard that do something anywhere on a page."""

from collections.abc import Callable, Mapping

import streamlit as st

from natscope.app.components import component


def keys(actions: Mapping[str, Callable[[], None]], *, key: str, find: str = "") -> None:
    """Listen to keys.

    Args:
        actions: what each key does, by its name in JavaScript, such as "ArrowLeft" or "?".
        key: unique on the page.
        find: the label of the input that "/" goes to.
    """

    def handle() -> None:
        pressed = (st.session_state.get(key) or {}).get("pressed")
        if isinstance(pressed, str) and pressed in actions:
            actions[pressed]()

    component("keys", "<span></span>")(key=key, data={"keys": list(actions), "find": find}, on_pressed_change=handle)
