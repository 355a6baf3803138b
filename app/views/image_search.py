"""The field that takes an image by its number or its file's name."""

from collections.abc import Callable, Sequence

import streamlit as st

from natscope.app import escape
from natscope.app.views.cards import KINDS

_LONGEST = 200  # characters


def search_field(label: str, split: str, sources: Sequence[str], take: Callable[[str], None], *, key: str) -> None:
    """Draw the field that takes an image of a split by its number, or by a part of its file's name.

    Args:
        label: the field's name.
        split: "test" or "train".
        sources: where each image of the split comes from, as `Bundle.sources` returns it.
        take: called with "test:I" or "train:I".
        key: the field's key.
    """

    def search() -> None:
        text = str(st.session_state.get(key) or "").strip()
        st.session_state[key] = ""  # so that the same can be asked for again
        if text.isascii() and text.isdecimal() and int(text) < len(sources):
            take(f"{split}:{int(text)}")
        elif text:
            _take_named(text, split, sources, take, after=f"{key}_{text}")

    st.text_input(
        label,
        placeholder=f"0 – {len(sources) - 1:,}, or a file",
        key=key,
        on_change=search,
        label_visibility="collapsed",
        max_chars=_LONGEST,
        width=170,
    )


def _take_named(text: str, split: str, sources: Sequence[str], take: Callable[[str], None], *, after: str) -> None:
    """Take the first image whose source contains a text, a whole name before others, or the next one when asked again.

    What was taken last is kept under `after`.
    """
    wanted = text.casefold()
    found = [(i, source.casefold()) for i, source in enumerate(sources) if wanted in source.casefold()]
    numbers = [i for i, source in sorted(found, key=lambda pair: not f"/{pair[1]}".endswith(f"/{wanted}"))]
    if not numbers:
        st.toast(f"No {KINDS[split]} image has the number or file name “{escape.markdown(text)}”.")
        return
    place = st.session_state.get(after, -1) + 1
    st.session_state[after] = place = place if place < len(numbers) else 0
    if len(numbers) > 1:
        st.toast(
            f"{place + 1:,} of {len(numbers):,} files with “{escape.markdown(text)}” in their names; search again for "
            "the next."
        )
    take(f"{split}:{numbers[place]}")
