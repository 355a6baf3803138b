"""What went wrong, said on a page: the one way for sentences that may hold text from outside."""

import streamlit as st

from natscope.app import escape


def complain(error: Exception | str, icon: str = ":material/error:") -> None:
    """Draw an error: natscope's own, or its sentence."""
    st.error(escape.sentence(str(error)), icon=icon)


def warn(*sentences: Exception | str, icon: str) -> None:
    """Draw a warning for each sentence."""
    for sentence in sentences:
        st.warning(escape.sentence(str(sentence)), icon=icon)


def inform(sentence: Exception | str, icon: str) -> None:
    """Draw a piece of information."""
    st.info(escape.sentence(str(sentence)), icon=icon)
