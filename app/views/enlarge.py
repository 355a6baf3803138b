"""A button that shows an image as large as the page allows."""

import numpy as np
import streamlit as st

from natscope.app import escape
from natscope.app.components.grid import data_uri
from natscope.app.views.notice import errors_shown


def enlarge(image: np.ndarray, title: str, *, key: str) -> None:
    """Draw the button; the image opens in a dialog.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        title: title of the dialog, and what a screen reader says of the image.
        key: unique on the page.
    """
    if st.button("Enlarge", icon=":material/zoom_in:", type="tertiary", key=key):
        _show_large(image, title)


def _show_large(image: np.ndarray, title: str) -> None:
    """Open a dialog with the image, once.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        title: title of the dialog, and what a screen reader says of the image.
    """
    height, width = image.shape[:2]

    @st.dialog(escape.markdown(title), width="medium")
    @errors_shown()
    def show() -> None:
        st.html(f"<style>{SHARP}</style>")
        st.html(f'<img class="ns-seen" src="{data_uri(image)}" alt="{escape.html(title)}, enlarged">')
        st.caption(f"{width} × {height} pixels, as the model sees it.")

    show()


SHARP = ".ns-seen { width: 100%; image-rendering: pixelated; border-radius: 8px; }"
