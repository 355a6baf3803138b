"""Garbage collection, for all sessions at once; after every run of every page it would cost more than the page."""

import functools
import gc

import streamlit as st

_TIDIED = 30.0  # seconds between two collections


@st.cache_resource(ttl=_TIDIED, show_spinner=False)
def tidy() -> None:
    """Collect garbage, unless that was done a moment ago."""
    gc.collect()
    _settle()


@functools.cache
def _settle() -> None:
    """Exclude what exists the first time, mostly the libraries, from every later collection."""
    gc.freeze()
