"""A text of the visitor's own: written on the page."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.modalities import packed
from natscope.app.modalities.texts import ENGLISH
from natscope.app.views import frame
from natscope.app.views.notice import complain
from natscope.core.errors import QueryError

_KEY, _WRONG = "upload_text_", "upload_text_error"  # of the session


def choose(attributor: Served, take: Callable[[str], None]) -> None:
    """Draw a field for each part of a text, and the button; `take` is called with the query."""
    texts: Any = attributor.bundle.examples("train")
    st.caption(
        f"The network reads {texts.longest:,} tokens at most. The page’s link keeps the text, which must fit in it: "
        f"some {ENGLISH:,} characters of English, fewer in other scripts."
    )
    with st.form(f"{_KEY}form", border=False):
        for number, title in enumerate(texts.columns):
            st.text_area(escape.markdown(title) or "Text", key=f"{_KEY}{number}", height=140)
        st.form_submit_button("Explain this text", icon=":material/my_location:", on_click=_read, args=(texts, take))
    error, query = st.session_state.get(_WRONG) or ("", "")
    if query != frame.shared_query():  # another text is shown
        st.session_state[_WRONG] = None
    elif error:
        complain(error, icon=":material/edit_off:")


def _read(texts: Any, take: Callable[[str], None]) -> None:
    parts = tuple(str(st.session_state.get(f"{_KEY}{number}") or "") for number in range(len(texts.columns)))
    try:
        asked = packed(texts.given(parts))
    except QueryError as error:
        st.session_state[_WRONG] = (str(error), frame.shared_query())
        return
    st.session_state[_WRONG] = None
    take(asked)
