"""The tab Remove & retrain: remove what a prediction relies on, retrain, and ask again."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from natscope.app import escape, links, tasks, words
from natscope.app.bundles import Served
from natscope.app.components.bars import Bar, bars
from natscope.app.components.grid import grid
from natscope.app.links import FEWEST_REMOVED, MOST_REMOVED, CounterfactualView
from natscope.app.views import frame
from natscope.app.views.cards import cards_of
from natscope.app.views.controls import control, sigma2_slider
from natscope.app.views.inspector import inspect, inspector
from natscope.app.views.job import run_job
from natscope.app.views.notice import complain
from natscope.app.views.results import pointer
from natscope.core.bundle.request import QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, RANDOM
from natscope.precompute.paths import home
from natscope.precompute.training.removal import Answer, as_many_others, identity_of, name_of
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import patience, too_slow

_VIEW, _KEY, _TAB = "counterfactual_view", "counterfactual_", frame.REMOVE
SESSION = (_KEY,)  # what belongs to a bundle
_CONTROLS = tuple(_KEY + name for name in ("method", "budget", "exponent"))
_SHOWN = 40  # removed images that are drawn
_COARSE = 100  # removed images from which tens will do
_LISTED = 12  # earlier runs


def view(attributor: Served) -> CounterfactualView:
    """Return what the tab shows."""
    return frame.view(_VIEW, attributor, CounterfactualView(), tab=_TAB, controls=_CONTROLS)


def ask(method: str) -> None:
    """Choose the method whose images are removed, as its control does."""
    st.session_state[f"{_KEY}method"] = method
    frame.forget_usual(_VIEW, f"{_KEY}exponent")


def show(attributor: Served, query: QueryExample) -> None:
    """Draw the tab."""
    st.title("What if we remove them?")
    st.markdown(
        f"Remove the training {attributor.many} that the prediction relies on, retrain the network from the same "
        "start, and ask it again. A method is useful if that changes more than removing as many others."
    )
    _removal(attributor, query)
    st.divider()
    pointer("brittleness", attributor)


def _controls(attributor: Served, query: QueryExample) -> CounterfactualView:
    view: CounterfactualView = st.session_state[_VIEW]
    usable = attributor.usable()
    pool = len(_pool(attributor, query))
    most = max(FEWEST_REMOVED, min(MOST_REMOVED, pool // 2))  # so that as many others are left
    st.session_state.setdefault(f"{_KEY}method", view.method if view.method in usable else usable[0])
    st.session_state.setdefault(f"{_KEY}budget", min(view.budget, most))
    usual = attributor.bundle.sigma2(st.session_state[f"{_KEY}method"])
    exponent = links.exponent_of(usual if view.sigma2 is None else view.sigma2)
    st.session_state.setdefault(f"{_KEY}exponent", exponent)
    st.session_state[f"{_KEY}budget"] = min(st.session_state[f"{_KEY}budget"], most)
    first, second, third = st.columns([1, 1.2, 1.2])
    name = control(
        first.selectbox,
        "Found by",
        usable,
        key=f"{_KEY}method",
        on_change=frame.forget_usual,
        args=(_VIEW, f"{_KEY}exponent"),
        format_func=lambda n: METHODS[n].title,
    )
    budget = FEWEST_REMOVED
    if most > FEWEST_REMOVED:  # a slider needs two values
        budget = control(
            second.slider,
            f"{attributor.many.capitalize()} removed",
            FEWEST_REMOVED,
            most,
            step=10 if most >= _COARSE else 1,
            key=f"{_KEY}budget",
            help=f"Of the {pool:,} with this label.",
        )
    sigma2 = 10**exponent  # of a method that uses it, to which it comes back
    if METHODS[name].uses_sigma2:
        sigma2 = sigma2_slider(third, words.EXPERT.sigma2, attributor, f"{_KEY}exponent", help=words.EXPERT.sigma2_help)
    chosen = None if np.isclose(sigma2, attributor.bundle.sigma2(name), rtol=1e-5) else sigma2
    return replace(view, method=name, budget=budget, sigma2=chosen)


def _pool(attributor: Served, query: QueryExample) -> np.ndarray:
    """Return the training images that may be removed: those labelled as the prediction, the query itself left out."""
    rows = np.flatnonzero(attributor.train_labels == query.predicted)
    return rows[rows != query.index] if query.origin == "train" else rows


def _removal(attributor: Served, query: QueryExample) -> None:
    if (count := len(_pool(attributor, query))) < 2 * FEWEST_REMOVED:
        label = escape.markdown(attributor.bundle.classes[query.predicted])
        which = f"other training {attributor.many}" if query.origin == "train" else f"training {attributor.many}"
        st.info(
            f"Only {count} {which} are labelled {label}: too few to remove {FEWEST_REMOVED} and as many more.",
            icon=":material/info:",
        )
        frame.keep(_VIEW, st.session_state[_VIEW], attributor, tab=_TAB)
        return
    view = _controls(attributor, query)
    frame.keep(_VIEW, view, attributor, tab=_TAB)
    sigma2 = attributor.bundle.sigma2(view.method) if view.sigma2 is None else view.sigma2
    request = Request(view.method, sigma2=sigma2, budget=view.budget)
    try:
        ranked = attributor.attribute(query, request)
    except QueryError as error:
        complain(error)
        return
    found = tuple(item.train_index for item in ranked.items)
    pool = _pool(attributor, query)
    others = tuple(as_many_others(pool, found).tolist())
    title, label = METHODS[view.method].title, attributor.bundle.classes[query.predicted]
    named = escape.markdown(label)
    st.markdown(
        f"**{title}** names these {len(found)} of {len(pool):,} training {attributor.many} labelled {named}. Would "
        f"the network still say **{named}** without them?"
    )
    _contact_sheet(attributor, found)
    inspector(attributor, _TAB, request=replace(request, budget=10), query=query, explain=frame.explain)
    if why := too_slow(attributor.bundle, linear=attributor.linear):
        st.info(
            why + " On the models that come with natscope this is live; below is what was measured over many "
            f"{attributor.many}.",
            icon=":material/hourglass_disabled:",
        )
        return
    file = home() / "counterfactuals" / f"{identity_of(attributor.bundle)}.json"
    cache = ResultCache(file)
    asked = f"an uploaded {attributor.one}" if query.index is None else f"{query.origin}:{query.index}"
    about = {"query": asked, "class": label, "method": view.method, "sigma2": sigma2}
    stages = (
        ("As it is", (), about | {"method": None, "removed": 0}),
        ("Training without those found", found, about | {"removed": len(found)}),
        (
            f"Training without as many random {attributor.many}",
            others,
            about | {"method": RANDOM, "removed": len(others)},
        ),
    )
    names = tuple(name_of(query.example, query.predicted, rows) for rows in ((), found, others))
    result = _known(cache, names) or run_job(
        ("removals", attributor.place, *names),
        tasks.removals,
        *(attributor.place, query, stages, file),
        name=f"{_KEY}job",
        label=f"Remove them and retrain ({patience(attributor.bundle, linear=attributor.linear)})",
    )
    if result is not None:
        _outcome(attributor, query, [Answer(**values) for values in result], len(found), title)
    _earlier(attributor, cache)


def _contact_sheet(attributor: Served, found: tuple[int, ...]) -> None:
    classes, card = attributor.bundle.classes, cards_of(attributor, "train")
    cards = [
        card(
            i,
            title=f"rank {rank}: {classes[attributor.train_labels[i]]}, training {attributor.one} {i}; click to "
            "inspect it",
            caption="",
        )
        for rank, i in enumerate(found[:_SHOWN], 1)
    ]
    grid(
        cards,
        key=f"{_KEY}sheet",
        label=f"The {attributor.many} that are removed",
        size=44,
        on_pick=partial(inspect, _TAB, found),
    )
    if len(found) > _SHOWN:
        st.caption(f"The first {_SHOWN}, and {len(found) - _SHOWN} more.")


def _known(cache: ResultCache, names: tuple[str, ...]) -> list[dict[str, Any]] | None:
    return [cache[name]["answer"] for name in names] if all(name in cache for name in names) else None


def _outcome(attributor: Served, query: QueryExample, answers: list[Answer], count: int, title: str) -> None:
    classes = attributor.bundle.classes
    label = classes[query.predicted]
    before, without_found, at_random = answers

    def bar(name: str, found: Answer, tone: str = "") -> Bar:
        changed = "still says" if found.predicted == query.predicted else "now says"
        return Bar(
            name,
            found.probability,
            f"{found.probability:.1%} {label}",
            f"{'says' if found is before else changed} “{classes[found.predicted]}” · margin {_signed(found.margin)}",
            tone,
        )

    bars(
        [
            bar("The network as it is", before, "good"),
            bar(f"Without the {count} that {title} named", without_found),
            bar(f"Without {count} random ones", at_random, "good"),
        ]
    )
    st.markdown(_verdict(before, without_found, at_random, classes, query.predicted, many=attributor.many))
    st.caption(
        "Margin: the log odds of the answer against all others; below 0 another one wins. Same initial weights, same "
        f"order of the {attributor.many} that are left, same recipe."
    )


def _verdict(
    before: Answer, found: Answer, at_random: Answer, classes: tuple[str, ...], target: int, *, many: str = "images"
) -> str:
    lost, by_chance = before.margin - found.margin, before.margin - at_random.margin
    if found.predicted != target:
        tail = (
            "so does removing as many others: this prediction hangs by a thread"
            if at_random.predicted != target
            else f"without as many random {many} it does not"
        )
        return f"**The answer flips** to “{escape.markdown(classes[found.predicted])}”; {tail}."
    if lost > max(by_chance, 0) + 0.1:
        fallen = f"**{lost:.2f}**, by chance {_signed(by_chance)}"
        return f"The answer stays, but it is less sure: the margin falls by {fallen}."
    return (
        "The answer stays, and removing these does no more than chance: the margin changes by "
        f"{_signed(-lost, '+')}, without as many random {many} by {_signed(-by_chance, '+')}."
    )


def _signed(margin: float, plus: str = "") -> str:
    return words.with_minus(f"{margin:{plus}.2f}")


def _earlier(attributor: Served, cache: ResultCache) -> None:
    """List what visitors asked about this network's own images; uploads stay private."""
    runs = [
        part
        for part in cache.parts().values()
        if part["removed"] and part["method"] != RANDOM and part["query"].startswith(("test:", "train:"))
    ]
    if not runs:
        return
    with st.expander(f"Earlier runs on this network ({len(runs)})"):
        st.dataframe(
            escape.cells(
                {
                    "query": run["query"],
                    "label": run["class"],
                    "found by": METHODS[run["method"]].title,
                    "σ²": f"{run['sigma2']:g}" if METHODS[run["method"]].uses_sigma2 else "",
                    "removed": run["removed"],
                    "then says": attributor.bundle.classes[run["answer"]["predicted"]],
                    "margin": run["answer"]["margin"],
                }
                for run in runs[::-1][:_LISTED]
            ),
            hide_index=True,
            column_config={"margin": st.column_config.NumberColumn(format="%.2f")},
        )
