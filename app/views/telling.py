"""What is looked at, told to the notebook beside which this app is served; nobody else asks, and nothing is written."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import streamlit as st

from natscope.app.selected import SELECTED, Selected
from natscope.app.views import frame


def tell(tags: Callable[[str | None], Mapping[str, str]]) -> None:
    """Write down this visitor's page, address and tags.

    Args:
        tags: returns those of a bundle's images, by the name of the bundle's folder.
    """
    if SELECTED not in os.environ:
        return
    address = st.query_params.to_dict()
    with suppress(OSError):  # a full disk is no reason to draw nothing
        Selected.of(frame.place(), address, tags(address.get("bundle"))).write(Path(os.environ[SELECTED]))
