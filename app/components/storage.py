"""A text that a visitor's browser keeps for later sessions."""

from collections.abc import Callable

import streamlit as st

from natscope.app.components import component


def storage(name: str, text: str | None, *, key: str, on_load: Callable[[str], None]) -> None:
    """Keep a text, or ask for the one that is kept.

    Args:
        name: under which the browser keeps it.
        text: the text; None in a session that does not know it yet.
        key: unique on the page.
        on_load: called with the text that the browser kept, which anyone may have written.
    """

    def handle() -> None:
        found = (st.session_state.get(key) or {}).get("loaded")
        if isinstance(found, str):
            on_load(found)

    component("storage", "<span></span>")(key=key, data={"name": name, "text": text}, on_loaded_change=handle)
