"""A button that shows an example as large as the page allows."""

from typing import Any

import streamlit as st

from natscope.app import escape
from natscope.app.modalities import STYLE, page_of
from natscope.app.views.notice import errors_shown
from natscope.precompute.data.shown import shown


def enlarge(example: Any, title: str, *, key: str) -> None:
    """Draw the button; it opens in a dialog.

    Args:
        example: one, alone.
        title: title of the dialog, and what a screen reader says of it.
        key: unique on the page.
    """
    if st.button("Enlarge", icon=":material/zoom_in:", type="tertiary", key=key):
        _show_large(example, title)


def _show_large(example: Any, title: str) -> None:
    """Open a dialog with the example, once.

    Args:
        example: one, alone.
        title: title of the dialog, and what a screen reader says of it.
    """

    @st.dialog(escape.markdown(title), width="medium")
    @errors_shown()
    def show() -> None:
        st.html(f"<style>{STYLE}</style>")
        st.html(shown(example, alt=f"{escape.visible(title)}, enlarged", whole=True))
        st.caption(page_of(example.modality).size(example))

    show()
