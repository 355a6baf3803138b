"""Errors and notes on a page: the only way to show sentences that may contain text from outside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import streamlit as st

from natscope.app import escape
from natscope.core.errors import NatscopeError, explained, out_of_memory

Parameters = ParamSpec("Parameters")


def complain(error: Exception | str, icon: str = ":material/error:") -> None:
    """Draw one of natscope's errors, or a sentence."""
    st.error(escape.sentence(str(error)), icon=icon)


def warn(*sentences: Exception | str, icon: str) -> None:
    """Draw a warning for each sentence."""
    for sentence in sentences:
        st.warning(escape.sentence(str(sentence)), icon=icon)


def inform(sentence: Exception | str, icon: str) -> None:
    """Draw a piece of information."""
    st.info(escape.sentence(str(sentence)), icon=icon)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Draw the sentence of an error that a visitor can understand, instead of the rest of the page."""
    try:
        yield
    except NatscopeError as error:
        complain(error)
    except Exception as error:
        if not out_of_memory(error):
            raise
        complain(str(explained(error)))


def fragment(*, run_every: float | None = None) -> Callable[[Callable[Parameters, None]], Callable[Parameters, None]]:
    """Return a decorator of a function that draws a part of a page, which can be redrawn alone.

    Streamlit would show an error raised by such a part as an empty box, so it is shown here.

    Args:
        run_every: seconds after which it is redrawn automatically.
    """
    return lambda function: st.fragment(errors_shown()(function), run_every=run_every)
