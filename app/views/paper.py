"""Paper: the experiments beside ours, and what each method means."""

import streamlit as st

from natscope.app.views import frame, methods, results

_RESULTS, _METHODS = "results", "methods"
_TABS = {_RESULTS: ("Results", results.draw), _METHODS: ("Methods", methods.draw)}
_KEY = "paper_tab"


def page() -> None:
    """Draw the page; the address says which part."""
    _draw(_RESULTS)


def measured() -> None:
    """Draw the page as the address of an earlier version's page Results shows it."""
    _draw(_RESULTS)


def explained() -> None:
    """Draw the page as the address of an earlier version's page Methods shows it."""
    _draw(_METHODS)


def _draw(usual: str) -> None:
    frame.ignore_unknown(frame.TAB)
    tab = frame.restore_tab(_KEY, _TABS, usual)
    frame.tab_control("What to read", {name: title for name, (title, _) in _TABS.items()}, _KEY)
    if st.query_params.get(frame.TAB, usual) != tab:
        st.query_params[frame.TAB] = tab
    _TABS[tab][1]()
