"""Coreset: a few training images that tell most about many test images, and what a network learns from these alone."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import streamlit as st

from natscope.app import escape, lanes, links, tasks, words
from natscope.app.bundles import Served
from natscope.app.components.grid import grid
from natscope.app.downloads import offer
from natscope.app.figures import on_page
from natscope.app.figures.coreset import class_balance, information
from natscope.app.links import CoresetView, largest_coreset
from natscope.app.modalities import page_of
from natscope.app.views import frame
from natscope.app.views.cards import cards_of
from natscope.app.views.controls import control, sigma2_slider
from natscope.app.views.coreset_queries import KEY, VIEW, asked, query_controls, whom
from natscope.app.views.coreset_results import others, worth
from natscope.app.views.inspector import inspect, inspector, usual_request
from natscope.app.views.notice import complain, fragment, inform
from natscope.app.views.results import pointer
from natscope.core.analysis.coreset import FREE, PER_CLASS, QUOTAS, missing
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, RANDOM

_SIZES = (10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2500, 5000)
_EVERY = 20
_SHOWN, _TEXTS_SHOWN = 300, 36  # examples of the sheet, unless all are requested: texts take far more room


def _variants(attributor: Served) -> dict[str, str]:
    own = f"Each class for its own {attributor.many}"
    return {FREE: "Freely", QUOTAS: "Equal numbers per class", PER_CLASS: own}


def page() -> None:
    """Draw the page."""
    attributor = frame.heading(
        "Coreset: a few examples for the whole training set",
        "Choose test examples. natscope picks the training examples that together tell most about them, and a "
        "network that sees only these shows what they are worth.",
        forget=lambda: frame.forget(KEY),
    )
    if lacking := missing(attributor, RANDOM):
        inform(lacking, icon=":material/extension_off:")
        return
    largest = largest_coreset(len(attributor.train_labels))
    usual = CoresetView(budget=min(CoresetView().budget, largest))
    view = frame.view(VIEW, attributor, usual, controls=(KEY,))
    controls, results = st.columns([1, 2.9], gap="large")
    with controls:
        view = _settings(attributor, query_controls(attributor, view))
    frame.keep(VIEW, view, attributor)
    with results:
        _results(attributor, view)
    st.divider()
    pointer("coreset", attributor)


def _settings(attributor: Served, view: CoresetView) -> CoresetView:
    variants = _variants(attributor)
    for key, value in {"method": view.method, "variant": view.variant, "budget": view.budget}.items():
        st.session_state.setdefault(KEY + key, value)
    largest = largest_coreset(len(attributor.train_labels))
    budget = 1
    if largest > budget:  # a slider needs two values
        budget = control(
            st.select_slider,
            f"How many training {attributor.many}, M",
            sorted({*_sizes(largest), st.session_state[f"{KEY}budget"]}),
            key=f"{KEY}budget",
            help=f"Up to a tenth of the {len(attributor.train_labels):,}.",
        )
    name = control(
        st.selectbox,
        "Method",
        list(METHODS),
        key=f"{KEY}method",
        on_change=frame.forget_usual,
        args=(VIEW, f"{KEY}exponent"),
        format_func=lambda n: METHODS[n].title + (" (not in this bundle)" if missing(attributor, n) else ""),
        help=f"{words.informative()} choose for all test {attributor.many} together; the others rank by their mean "
        "score over them.",
    )
    variant = control(
        st.selectbox,
        "Classes",
        list(variants),
        key=f"{KEY}variant",
        format_func=variants.__getitem__,
        help=f"“{variants[FREE]}”: the method chooses among all training {attributor.many} at once; the first time "
        f"that takes a minute. “{variants[QUOTAS]}”: the same, but no class gives more than its share. "
        f"“{variants[PER_CLASS]}”: each class gives as many, those that tell most about its own test "
        f"{attributor.many} (about all of them, if none is of the class).",
    )
    usual = attributor.bundle.sigma2(name, purpose="coreset")
    st.session_state.setdefault(f"{KEY}exponent", links.exponent_of(view.sigma2 or usual))
    about = (
        f"{words.EXPERT.sigma2_help} The information of every method’s choice is counted at this σ². The features here "
        "are those of the margin, whose mean k(x, x) differs from that of the logit on other pages."
    )
    sigma2 = sigma2_slider(
        st.container(), words.EXPERT.sigma2, attributor, f"{KEY}exponent", purpose="coreset", help=about
    )
    own = None if np.isclose(sigma2, usual, rtol=1e-5) else sigma2
    return replace(view, method=name, variant=variant, budget=budget, sigma2=own)


def _sizes(largest: int) -> tuple[int, ...]:
    """Return the sizes of a coreset that are offered up to the largest one: every one where there are few."""
    if largest <= _EVERY:
        return tuple(range(1, largest + 1))
    return (*(size for size in _SIZES if size < largest), largest)


def _results(attributor: Served, view: CoresetView) -> None:
    try:
        rows = asked(attributor, view)
        sigma2 = view.sigma2 or attributor.bundle.sigma2(view.method, purpose="coreset")
        chosen = _chosen(attributor, view, rows, sigma2)
    except QueryError as error:
        complain(error)
        return
    st.markdown(f"##### {_finding(attributor, chosen, whom(attributor, view, len(rows)), len(rows))}", help=words.NAT)
    _sheet(attributor, chosen.indices, view.method)
    left, right = st.columns([1, 1.2], gap="large")
    with left:
        st.subheader("How many of each class")
        counts = np.bincount(attributor.train_labels[chosen.indices], minlength=len(attributor.bundle.classes))
        on_page.show(class_balance(counts, attributor.bundle.classes, view.method), f"{KEY}balance")
    with right:
        st.subheader("How the information adds up")
        on_page.show(information(chosen.nats, chosen.random_nats, view.method), f"{KEY}information")
    _downloads(attributor, view, rows, sigma2, chosen)
    worth(attributor, view.method, rows, chosen.indices, chosen.at_random)
    others(attributor, view, rows, chosen.indices)


def _chosen(attributor: Served, view: CoresetView, rows: np.ndarray, sigma2: float) -> tasks.Chosen:
    return lanes.ask(
        lanes.shared().heavy,
        ("coreset", attributor.place, rows.tobytes(), view.method, view.variant, view.budget, sigma2),
        tasks.coreset,
        *(attributor.place, rows, view.method, view.variant, view.budget, sigma2),
        bar=True,
    )


def _finding(attributor: Served, chosen: tasks.Chosen, about: str, queries: int) -> str:
    count, nats = len(chosen.indices), float(chosen.nats[-1])
    these = f"This {attributor.one} tells" if count == 1 else f"These {count:,} {attributor.many} tell"
    at_random = (
        f"one random {attributor.one} gives" if count == 1 else f"the same number of random {attributor.many} give"
    )
    others, joint = words.nats(float(chosen.random_nats[-1])), words.nats(chosen.joint)
    if queries == 1:
        return f"{these} **{words.nats(nats)}** about {about}; {at_random} {others}."
    return (
        f"{these} **{words.nats(nats)}** about each of {about}, on average, and {joint} about all of them together; "
        f"{at_random} {others} and {words.nats(chosen.random_joint)}."
    )


@fragment()
def _sheet(attributor: Served, indices: np.ndarray, method: str) -> None:
    """Draw the chosen images class by class; a click opens one, and reruns this part alone."""
    classes, labels = attributor.bundle.classes, attributor.train_labels
    worded = page_of(attributor.bundle.modality).worded
    most = _TEXTS_SHOWN if worded else _SHOWN
    whole = len(indices) <= most or st.toggle(f"Show all {len(indices):,}", key=f"{KEY}all")
    shown = indices if whole else indices[:most]
    counts, card = Counter(labels[indices].tolist()), cards_of(attributor, "train")
    for label in sorted(counts):
        own = shown[labels[shown] == label]
        name, row = (st.container(), st.container()) if worded else st.columns([1, 6], vertical_alignment="top")
        name.markdown(
            f"**{escape.markdown(classes[label])}** · {counts[label]}"
            + ("" if len(own) else " (none of the first shown)")
        )
        cards = [card(int(index), caption="") for index in own]
        if cards:
            with row:
                grid(
                    cards,
                    key=f"{KEY}sheet_{label}",
                    label=f"Chosen {attributor.many} of class {classes[label]}",
                    size=40,
                    on_pick=partial(inspect, KEY, own),
                )
    inspector(attributor, KEY, request=usual_request(attributor))


def _downloads(attributor: Served, view: CoresetView, rows: np.ndarray, sigma2: float, chosen: tasks.Chosen) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        offer(
            "CSV",
            lambda: _table(attributor, chosen),
            "natscope-coreset.csv",
            "text/csv",
            key=f"{KEY}download_CSV",
            help=f"The chosen training {attributor.many}, one per line.",
        )
        offer(
            "JSON",
            lambda: _everything(attributor, view, rows, sigma2, chosen),
            "natscope-coreset.json",
            "application/json",
            key=f"{KEY}download_JSON",
            help=f"The same with the test {attributor.many} and every setting.",
        )
        st.caption("Copy this page’s URL to share this view.", width="content")


def _table(attributor: Served, chosen: tasks.Chosen) -> str:
    classes, labels, sources = attributor.bundle.classes, attributor.train_labels, attributor.bundle.sources("train")
    return escape.table(
        ("rank", "train_index", "source", "label", "label_name", "nats_cumulative"),
        (
            [rank, int(index), sources[index], int(labels[index]), classes[labels[index]], float(nats)]
            for rank, (index, nats) in enumerate(zip(chosen.indices, chosen.nats, strict=True), 1)
        ),
    )


def _everything(attributor: Served, view: CoresetView, rows: np.ndarray, sigma2: float, chosen: tasks.Chosen) -> str:
    data = {
        "bundle": {"name": attributor.bundle.manifest.name, "identity": attributor.bundle.identity},
        "test_indices": rows.tolist(),
        "method": view.method,
        "variant": view.variant,
        "sigma2": sigma2,
        "train_indices": chosen.indices.tolist(),
        "nats": chosen.nats.tolist(),
        "joint_nats": chosen.joint,
    }
    return json.dumps(data, indent=2, allow_nan=False)
