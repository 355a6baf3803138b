"""Texts by name that a visitor's browser keeps for later sessions."""

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from natscope.app.components import component


def storage(
    name: str, change: Mapping[str, Any] | None, *, known: bool, key: str, on_load: Callable[[str], None]
) -> None:
    """Keep a change, and ask for what is kept.

    Args:
        name: under which the browser keeps everything.
        change: what the browser has not kept yet: an "id", and for each of "bundles" the changed tags, "" for none.
        known: whether this session has what the browser kept before.
        key: unique on the page.
        on_load: called with the text that the browser kept, which anyone may have written.
    """

    def handle() -> None:
        found = (st.session_state.get(key) or {}).get("loaded")
        if isinstance(found, str):
            on_load(found)

    data = {"name": name, "change": change, "known": known}
    component("storage", "<span></span>")(key=key, data=data, on_loaded_change=handle)
