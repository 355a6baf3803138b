"""What is looked at, told to the notebook beside which this app is served; nobody else asks, and nothing is written."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import streamlit as st

from natscope.app.selected import SELECTED, Selected

_TOLD = "told"  # key of the page and of what returns tags
Tags = Callable[[str | None], Mapping[str, str]]


def tell(page: str, tags: Tags) -> None:
    """Write down this visitor's page, address and tags.

    Args:
        page: its name in the address.
        tags: returns those of a bundle's images, by the name of the bundle's folder.
    """
    st.session_state[_TOLD] = page, tags
    tell_address()


def tell_address() -> None:
    """Write down this visitor's address, which a part of a page that is redrawn alone may change."""
    if SELECTED not in os.environ or _TOLD not in st.session_state:
        return
    (page, tags), address = st.session_state[_TOLD], st.query_params.to_dict()
    with suppress(OSError):  # a full disk is no reason to draw nothing
        Selected.of(page, address, tags(address.get("bundle"))).write(Path(os.environ[SELECTED]))
