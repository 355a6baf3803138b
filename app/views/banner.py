"""A line under the navigation while something is being prepared for the app that is served."""

import os
from pathlib import Path

import streamlit as st

from natscope.app import escape
from natscope.app.serve import BUNDLES
from natscope.app.views.notice import fragment
from natscope.core.bundle.format import MANIFEST
from natscope.precompute.bundles.background import Preparing, preparing, ready

_EVERY = 2.0  # seconds between two looks


def banner() -> None:
    """Draw the line if there is something to say; it updates itself and disappears when the work is done."""
    busy = now()
    if busy:
        _line(busy.what)


def now() -> Preparing | None:
    """Return what is being prepared among the served bundles."""
    folder = _folder()
    return None if (folder / MANIFEST).exists() else preparing(folder)  # a bundle's own files may be a stranger's


def _folder() -> Path:
    return Path(os.environ.get(BUNDLES, "."))


@fragment(run_every=_EVERY)
def _line(started: str) -> None:
    busy = now()
    if not busy or busy.what != started:
        if busy or ready(_folder()):
            st.toast(f"Ready: {escape.markdown(started)}.", icon=":material/check_circle:")
        st.rerun()
    elif busy.error:
        st.caption(f":material/error: {escape.sentence(f'{busy.what} could not be prepared: {busy.error}')}")
    else:
        sentence = f"{busy.what} is being prepared in the background. {busy.stage}, {busy.share:.0%}"
        st.progress(min(busy.share, 1.0), escape.markdown(sentence))
