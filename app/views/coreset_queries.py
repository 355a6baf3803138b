"""What the Coreset page asks about: a random sample, a class, what the model gets wrong, or images marked by hand."""

from dataclasses import replace
from functools import partial

import numpy as np
import streamlit as st

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.components.grid import grid
from natscope.app.links import GROUPS, MOST_MARKED, CoresetView
from natscope.app.modalities import page_of
from natscope.app.views import frame
from natscope.app.views.cards import cards_of
from natscope.app.views.controls import control
from natscope.app.views.image_search import search_field
from natscope.app.views.query import gallery
from natscope.core.analysis.coreset import MOST_QUERIES, draw
from natscope.core.errors import QueryError

KEY = "coreset_"  # prefix of all widgets and of all that the session keeps for this page
VIEW = f"{KEY}view"
_FEWEST = 2
_GROUPS = ("any test {}", "one class", "those the model gets wrong", "my selection")


change = partial(frame.change, VIEW)


def query_controls(attributor: Served, view: CoresetView) -> CoresetView:
    """Draw the choice of test images, and return the changed view."""
    classes = attributor.bundle.classes
    for key, value in {"group": view.group, "label": view.label}.items():
        st.session_state.setdefault(KEY + key, value)
    group = control(
        st.selectbox,
        "Ask about",
        GROUPS,
        key=f"{KEY}group",
        on_change=_restore_count,
        format_func=lambda group: _GROUPS[GROUPS.index(group)].format(attributor.many),
        help=f"The test {attributor.many} that the chosen training {attributor.many} are to tell most about, all of "
        "them together.",
    )
    label, count = view.label, view.count
    if group == "class":
        label = control(
            st.selectbox,
            "Class",
            range(len(classes)),
            key=f"{KEY}label",
            on_change=_restore_count,
            format_func=classes.__getitem__,
        )
    if group == "marked":
        _marks(attributor, view)
    else:
        count = _count(len(_group(attributor, group, label)), view.count)
    return replace(view, group=group, label=label, count=count)


def _restore_count() -> None:
    """Let another group have as many as were chosen before one that has fewer."""
    st.session_state.pop(f"{KEY}count", None)


def _count(there: int, chosen: int) -> int:
    """Draw how many are asked about, of those that are there, and return it; what was chosen stays if it means all."""
    most, key = min(MOST_QUERIES, there), f"{KEY}count"
    if most < _FEWEST:  # a slider needs two values
        return chosen
    st.session_state[key] = min(st.session_state.get(key, chosen), most)
    about = f"Of the {there:,}; drawn at random, always the same ones."
    count: int = control(st.slider, "How many of them", 1, most, key=key, help=about)
    return max(count, chosen) if count == most else count


def _group(attributor: Served, group: str, label: int) -> np.ndarray:
    """Return the numbers of all test images of a group that nobody marked, a class's for the group "class"."""
    labels = attributor.test_labels
    if group == "class":
        return np.flatnonzero(labels == label)
    if group == "wrong":
        return np.flatnonzero(np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1) != labels)
    return np.arange(len(labels))


def asked(attributor: Served, view: CoresetView) -> np.ndarray:
    """Return the numbers of the test images that a view asks about, (Q,) int64.

    Raises:
        QueryError: if there is no such image.
    """
    if view.group == "marked":
        if not view.marked:
            raise QueryError(f"Mark at least one test {attributor.one} to ask about.")
        return np.array(sorted(view.marked), dtype=np.int64)
    rows = _group(attributor, view.group, view.label)
    if not len(rows) and view.group == "class":
        raise QueryError(
            f"There is no test {attributor.one} of class {attributor.bundle.classes[view.label]}; choose another."
        )
    if not len(rows):
        raise QueryError(f"The model gets every test {attributor.one} right; ask about others.")
    return draw(rows, view.count, seed=0)


def whom(attributor: Served, view: CoresetView, count: int) -> str:
    """Return in words which images are asked about (Markdown)."""
    name = escape.markdown(attributor.bundle.classes[view.label])
    images = f"{count} test {attributor.one}{'' if count == 1 else 's'}"
    return {
        "random": images,
        "class": f"{images} of class {name}",
        "wrong": f"{images} that the model gets wrong",
        "marked": f"the test {attributor.one} that you marked"
        if count == 1
        else f"the {count} test {attributor.many} that you marked",
    }[view.group]


def _marks(attributor: Served, view: CoresetView) -> None:
    classes, labels = attributor.bundle.classes, attributor.test_labels
    with st.popover(f"Mark test {attributor.many}", icon=":material/add_photo_alternate:", width="stretch"):
        mark = partial(_mark, attributor)
        gallery(attributor, "test", mark)
        label = f"Mark the {attributor.one} number or {page_of(attributor.bundle.modality).by}"
        search_field(label, attributor, "test", mark, key="test_search")
    if not view.marked:
        return
    card = cards_of(attributor, "test")
    cards = [
        card(
            i,
            title=f"marked test {attributor.one} {i}, {classes[labels[i]]}; click to unmark it",
            caption="",
        )
        for i in view.marked
    ]

    def let_go(position: int) -> None:
        change(marked=tuple(i for number, i in enumerate(view.marked) if number != position))

    grid(cards, key=f"{KEY}marks", label=f"Marked test {attributor.many}", size=40, on_pick=let_go)
    st.button(f"Unmark all {len(view.marked)}", key=f"{KEY}unmark", type="tertiary", on_click=_unmark)


def _mark(attributor: Served, text: str) -> None:
    index, marked = int(text.partition(":")[2]), st.session_state.get(VIEW, CoresetView()).marked
    if index in marked:
        change(marked=tuple(i for i in marked if i != index))
    elif len(marked) < MOST_MARKED:
        change(marked=(*marked, index))
    else:
        st.toast(f"{MOST_MARKED} {attributor.many} are marked, and that is as many as can be.")


def _unmark() -> None:
    change(marked=())
