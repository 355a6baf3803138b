"""A line under the navigation while something is being added to a bundle that the app serves."""

from pathlib import Path

import streamlit as st

from app import shared
from core.errors import BundleError
from precompute.background import Adding, adding

_EVERY = 2.0  # seconds between two looks


def banner() -> None:
    """Draw the line where there is something to say; it keeps itself up to date and goes when it is done."""
    busy = _now()
    if busy:
        _line()


@st.fragment(run_every=_EVERY)
def _line() -> None:
    busy = _now()
    if not busy:
        st.toast("Ready: another method can be chosen now.", icon=":material/check_circle:")
        st.rerun()
    for what in busy.values():
        if what.error:
            st.caption(f":material/error: {what.method} could not be prepared: {what.error}")
        else:
            st.progress(
                min(what.share, 1.0),
                f"{what.method} is being prepared in the background and can be chosen when it is ready. "
                f"{what.stage}, {what.share:.0%}",
            )


def _now() -> dict[Path, Adding]:
    try:
        paths = shared.bundle_paths().values()
    except BundleError:
        return {}
    return {path: what for path in paths if (what := adding(path))}
