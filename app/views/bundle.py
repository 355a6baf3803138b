"""The choice among the bundles that are served, on every page that shows one."""

from collections.abc import Callable, Mapping
from pathlib import Path

import streamlit as st

from natscope.app import session


def choose_bundle(on_change: Callable[[], None]) -> Path:
    """Choose among the bundles that are served; the choice is hidden when there is one.

    Args:
        on_change: called when another bundle is chosen, to forget what belongs to the last one.
    """
    paths = session.bundle_paths()
    names = list(paths)
    if len(names) == 1:
        return paths[names[0]]
    wanted = st.query_params.get("bundle")
    st.session_state.setdefault("bundle", wanted if wanted in names else names[0])
    chosen = st.selectbox(
        "Bundle",
        names,
        key="bundle",
        format_func=titles(paths).__getitem__,
        on_change=on_change,
        label_visibility="collapsed",  # beside the page's title its place and its entries say what it is
    )
    return paths[chosen]


def titles(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the title of each bundle by its folder's name, which is added where another has the same title.

    A list to choose from knows its entries by what they are called.
    """
    told: dict[str, str] = {}
    for name, path in paths.items():
        title = session.bundle_title(path)
        while title in told.values():
            title = f"{title} ({name})"
        told[name] = title
    return told
