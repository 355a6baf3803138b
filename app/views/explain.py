"""Explain: one image in hand, and five ways to look at what its prediction relies on."""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import streamlit as st

from natscope.app import bundles
from natscope.app.bundles import Served
from natscope.app.views import attribute, compare, counterfactual, curves, frame, tags, training_map
from natscope.app.views.frame import ATTRIBUTION, COMPARE, CURVES, MAP, REMOVE
from natscope.app.views.notice import errors_shown
from natscope.app.views.query import finder, image_bar
from natscope.core.methods import METHODS

_TABS: dict[str, tuple[str, ModuleType]] = {
    ATTRIBUTION: ("Attribution", attribute),
    COMPARE: ("Compare", compare),
    REMOVE: ("Remove & retrain", counterfactual),
    CURVES: ("Curves", curves),
    MAP: ("Map", training_map),
}
_LAST, _HELP = "last tab", "list keys"
SESSION = tuple(key for _, module in _TABS.values() for key in module.SESSION)  # what belongs to a bundle


def page() -> None:
    """Draw the page; the address says which tab, and which image."""
    _draw(st.session_state.get(_LAST, ATTRIBUTION))


def attributed() -> None:
    """Draw the page as the address of an earlier version's page Attribute shows it."""
    _draw(ATTRIBUTION)


def compared() -> None:
    """Draw the page as the address of an earlier version's page Compare shows it."""
    _draw(COMPARE)


def removed() -> None:
    """Draw the page as the address of an earlier version's page Counterfactual shows it."""
    _draw(REMOVE)


def drawn() -> None:
    """Draw the page as the address of an earlier version's page Information curves shows it."""
    _draw(CURVES)


def _draw(usual: str) -> None:
    bar, choice = st.columns([3.6, 1])
    with choice:
        path = frame.choose_bundle(bundles.bundle_paths(), forget=lambda: frame.forget(*SESSION))
    attributor = bundles.served(path)
    tab = st.session_state[_LAST] = frame.restore_tab(frame.TAB, _TABS, usual)
    module = _TABS[tab][1]
    if tab != frame.MAP:
        training_map.leave(attributor)
    module.view(attributor)
    query = frame.query(attributor)
    with bar.container(key="image_bar"):
        image_bar(attributor, query, frame.take, _keys(tab, attributor), brief=tab in (ATTRIBUTION, COMPARE))
    finder(attributor, query, frame.take)
    with st.container():  # also while it is empty, so that the first tag moves nothing that has the focus
        tags.tray(attributor, frame.take)
    frame.tab_control("What to look at", {name: title for name, (title, _) in _TABS.items()}, frame.TAB)
    module.show(attributor, query)
    if st.session_state.pop(_HELP, False):
        _list_keys(attributor)


def _keys(tab: str, attributor: Served) -> dict[str, Callable[[], None]]:
    """Return what keys do on a tab."""
    ask = {ATTRIBUTION: attribute.ask, REMOVE: counterfactual.ask}.get(tab)
    usable = attributor.usable() if tab == REMOVE else tuple(METHODS)
    names = list(METHODS)[:9] if ask else []
    methods = {str(number): partial(ask, name) for number, name in enumerate(names, 1) if ask and name in usable}
    return methods | {"?": lambda: st.session_state.update({_HELP: True})}


@st.dialog("Keys")
@errors_shown()
def _list_keys(attributor: Served) -> None:
    methods = ", ".join(f"{number} {METHODS[name].title}" for number, name in enumerate(METHODS, 1) if number < 10)
    st.markdown(
        f"| key | |\n|---|---|\n| `←` `→` | previous and next {attributor.one}, or picture of a list |\n| `/` | go to "
        f"{attributor.a_one} by its number or file |\n| `1` – `9` | method: {methods} |\n| `?` | this list |\n\nThe "
        "browser’s Back undoes the last step."
    )
