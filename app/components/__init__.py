"""Parts of pages with HTML, CSS or JavaScript of their own."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import streamlit as st

_FOLDER = Path(__file__).parent


@cache
def component(name: str, html: str) -> Callable:
    """Declare a component by the name of its JavaScript and CSS files in this folder, once; return what draws it."""
    js, css = (_FOLDER / f"{name}.js").read_text(encoding="utf-8"), _FOLDER / f"{name}.css"
    looks = css.read_text(encoding="utf-8") if css.exists() else None  # what is not seen has none
    return st.components.v2.component(f"natscope_{name}", html=html, css=looks, js=js)


def clicked(key: str, trigger: str) -> int | None:
    """Return the number that a component sends for a click; None if it is not valid, or the component is gone.

    Args:
        key: the component's key.
        trigger: the name under which it sends.
    """
    number = (st.session_state.get(key) or {}).get(trigger)
    return number if type(number) is int else None  # a browser can send true, which is an int for Python
