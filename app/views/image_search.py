"""The field that takes an example by its number, its file's name or what it says."""

from collections.abc import Callable

import streamlit as st

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.modalities import page_of
from natscope.app.views.cards import KINDS
from natscope.core.errors import NatscopeError

_LONGEST = 200  # characters


def search_field(label: str, attributor: Served, split: str, take: Callable[[str], None], *, key: str) -> None:
    """Draw the field that takes an example of a split by its number, a part of its file's name, or what it says.

    Args:
        label: the field's name.
        attributor: the opened bundle.
        split: "test" or "train".
        take: called with "test:I" or "train:I".
        key: the field's key.
    """
    sources = attributor.bundle.sources(split)

    def search() -> None:
        text = str(st.session_state.get(key) or "").strip()
        st.session_state[key] = ""  # so that the same can be asked for again
        if text.isascii() and text.isdecimal() and int(text) < len(sources):
            take(f"{split}:{int(text)}")
        elif text:
            _take_named(text, attributor, split, take, after=f"{key}_{text}")

    st.text_input(
        label,
        placeholder=f"0 – {len(sources) - 1:,}, or {page_of(attributor.bundle.modality).hint}",
        key=key,
        on_change=search,
        label_visibility="collapsed",
        max_chars=_LONGEST,
        width=170,
    )


def _take_named(text: str, attributor: Served, split: str, take: Callable[[str], None], *, after: str) -> None:
    """Take the first example whose source has a text, a whole name before others, or the next one when asked again.

    Where no source has it, the first example that says it. What was taken last is kept under `after`.
    """
    wanted, named = text.casefold(), escape.markdown(text)
    found = [(i, source.casefold()) for i, source in enumerate(attributor.bundle.sources(split))]
    found = [(i, source) for i, source in found if wanted in source]
    numbers = [i for i, source in sorted(found, key=lambda pair: not f"/{pair[1]}".endswith(f"/{wanted}"))]
    where, worded = f"files with “{named}” in their names", attributor.bundle.modality.text is not None
    if worded and not numbers:
        try:
            numbers = attributor.saying(split, wanted)
        except NatscopeError as error:
            st.toast(escape.sentence(str(error)))
            return
        where = f"{attributor.many} with “{named}”"
    if not numbers:
        said = "number, file name or words" if worded else "number or file name"
        st.toast(f"No {KINDS[split]} {attributor.one} has the {said} “{named}”.")
        return
    place = st.session_state.get(after, -1) + 1
    st.session_state[after] = place = place if place < len(numbers) else 0
    if len(numbers) > 1:
        st.toast(f"{place + 1:,} of {len(numbers):,} {where}; search again for the next.")
    take(f"{split}:{numbers[place]}")
