"""The tab Attribution: which training images an image's prediction relies on."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from natscope.app import escape, links, words
from natscope.app.bundles import Served
from natscope.app.components.grid import Card, grid
from natscope.app.figures import on_page
from natscope.app.figures.attribution import curve, spread
from natscope.app.links import AttributeView
from natscope.app.modalities import page_of
from natscope.app.views import frame, tags
from natscope.app.views.cards import cards_of
from natscope.app.views.controls import control, sigma2_slider
from natscope.app.views.inspector import inspect, inspector
from natscope.app.views.notice import complain, fragment, warn
from natscope.app.views.ranking_files import ranking_files
from natscope.app.views.word_links import Linked, draw_query, linked
from natscope.core.bundle.request import Attribution, Item, QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, Method

_WIDGETS = ("method", "exponent", "budget", "pool", "conditioning", "target")
VIEW, _TAB = "view", frame.ATTRIBUTION
SESSION = (VIEW, "plain_words", "upload", *_WIDGETS)  # what belongs to a bundle
_ITS_ANSWER = -1  # the choice of target that means whatever the model predicts


def view(attributor: Served) -> AttributeView:
    """Return what the tab shows."""
    found = frame.view(
        VIEW,
        attributor,
        AttributeView(),
        tab=_TAB,
        controls=(*_WIDGETS, "plain_words"),
        complete=lambda view: _usual_sigma2(view, attributor),
    )
    shared = frame.shared_sigma2(attributor)
    if shared is not None and not math.isclose(shared[1], found.sigma2, rel_tol=1e-5):  # usual again on another tab
        found = st.session_state[VIEW] = replace(found, sigma2=shared[1])
        st.session_state.pop("exponent", None)
    return found


def ask(method: str) -> None:
    """Choose the method, as its control does."""
    st.session_state["method"] = method


def show(attributor: Served, query: QueryExample) -> None:
    """Draw the tab."""
    question, switch = st.columns([3.6, 1], vertical_alignment="bottom")
    question.title(f"Which training {attributor.many} shaped this prediction?")
    st.session_state.setdefault("plain_words", st.session_state[VIEW].plain)
    plain = control(switch.toggle, "Plain words", key="plain_words", help="Explain without technical terms.")
    _answer(attributor, query, frame.shared_query(), plain)


def _restore_controls(view: AttributeView) -> None:
    """Set the controls to the view's values; Streamlit forgets a control's value as soon as it is not drawn."""
    target = _ITS_ANSWER if view.target is None else view.target
    values = (view.method, links.exponent_of(view.sigma2), view.budget, view.pool, view.conditioning, target)
    for key, value in zip(_WIDGETS, values, strict=True):
        st.session_state.setdefault(key, value)


def _usual_sigma2(view: AttributeView, attributor: Served) -> AttributeView:
    return replace(view, sigma2=view.sigma2 or attributor.bundle.sigma2(view.method))


@fragment()
def _answer(attributor: Served, query: QueryExample, shown: str, plain: bool) -> None:
    """Draw the controls and the ranking; a change reruns this part alone, unless it makes another image the query."""
    if VIEW not in st.session_state or frame.shared_query() != shown or tags.changed():
        st.rerun()
    word = st.session_state[VIEW].word
    view = replace(_controls(attributor, query, words.PLAIN if plain else words.EXPERT), word=word, plain=plain)
    frame.keep(VIEW, view, attributor, tab=_TAB)
    wrong = query.label != query.predicted and view.target is None and not attributor.heavy(view.request())
    against = query.label if wrong else None
    try:
        result = attributor.attribute(query, view.request())
    except QueryError as error:
        complain(error)
        return
    other = None if against is None else _support_of(against, attributor, query, view.request())
    method, classes = METHODS[view.method], attributor.bundle.classes
    said = words.finding(
        result,
        method,
        classes[result.target],
        of=attributor.bundle.modality,
        plain=plain,
        predicted=view.target is None,
    )
    if plain:
        said = f"{words.verdict(query, classes)} {said}"
    st.markdown(f"##### {said}", help=None if plain else words.NAT)
    largest = max(abs(amount) for shown in (result, other) if shown for amount in shown.amounts) or 1.0
    note, pick = st.container(), partial(_pick_word, shown)
    words_of = linked(attributor, query, result, view.word)
    if words_of is not None:
        draw_query(words_of, pick, plain=plain)
    failed = page_of(attributor.bundle.modality).worded and words_of is None  # which was said
    if view.word is not None and not failed and (words_of is None or words_of.word is None):
        with note:
            warn(frame.not_valid([f"word “{view.word}”"]), icon=":material/link_off:")
        view = replace(view, word=None)
        frame.keep(VIEW, view, attributor, tab=_TAB)
    _ranking(attributor, result, method, largest, words_of, plain=plain)
    if other is not None:
        other_words = None if words_of is None else linked(attributor, query, other)
        _support_of_the_label(attributor, other, method, largest, other_words, plain=plain)
    if result.regime is not None:
        st.caption(f":material/info: {words.regime_hint(result.regime, plain=plain)}")
    if result.index is not None:
        st.caption(words.searched(result.index))
    _among_all(attributor, query, result, largest, plain=plain)
    ranking_files(attributor, query, result)
    inspector(
        attributor,
        _TAB,
        request=view.request(),
        query=query,
        about=lambda index: _about([found for found in (result, other) if found], index, plain=plain),
        explain=frame.explain,
    )


def _pick_word(shown: str, word: int | None) -> None:
    if frame.shared_query() == shown:
        frame.change(VIEW, word=word)


def _support_of(label: int, attributor: Served, query: QueryExample, request: Request) -> Attribution | None:
    """Return what supports another class; None if that has no training images."""
    try:
        return attributor.attribute(query, replace(request, target=label))
    except QueryError as error:
        complain(error)
        return None


def _support_of_the_label(
    attributor: Served, result: Attribution, method: Method, largest: float, words_of: Linked | None, *, plain: bool
) -> None:
    """Draw what supports the label of an image that the network gets wrong, on the same scale as its answer."""
    classes = attributor.bundle.classes
    said = words.finding(
        result, method, classes[result.target], of=attributor.bundle.modality, plain=plain, predicted=False
    )
    st.markdown(f"**Why not {escape.markdown(classes[result.target])}, its label?** {said}")
    cards = _cards(attributor, result, largest)
    if words_of is not None:
        cards = words_of.dressed(cards)
    grid(
        cards,
        key="ranking_of_the_label",
        label=f"Training {attributor.many} that support {classes[result.target]}, ranked by {method.title}",
        size=76,
        **_clicks(attributor, [item.train_index for item in result.items]),
    )


def _controls(attributor: Served, query: QueryExample, labels: words.Labels) -> AttributeView:
    view: AttributeView = st.session_state[VIEW]
    _restore_controls(view)
    classes = attributor.bundle.classes
    first, second, third = st.columns([1.1, 1.3, 1.1])
    name = control(
        first.selectbox,
        "Method",
        list(METHODS),
        key="method",
        format_func=lambda n: METHODS[n].title + (" (not in this bundle)" if attributor.missing(METHODS[n]) else ""),
        help="The page Paper explains each, under Methods.",
    )
    method = METHODS[name]
    target = control(
        second.selectbox,
        "Explain",
        [_ITS_ANSWER, *(c for c in range(len(classes)) if c != query.predicted)],
        key="target",
        format_func=lambda c: (
            f"{classes[query.predicted]} (its answer)" if c == _ITS_ANSWER else f"why not {classes[c]}?"
        ),
        help="The class whose support is attributed: the model’s answer, or another class.",
    )
    budget = control(third.slider, labels.budget, 1, links.LARGEST_BUDGET, key="budget", help=labels.budget_help)
    first, second, third = st.expander("More settings", icon=":material/tune:").columns([1.3, 1.1, 1.1])
    sigma2, conditioning = view.sigma2, view.conditioning  # of a method that uses them, to which they come back
    if method.uses_sigma2:
        sigma2 = sigma2_slider(first, labels.sigma2, attributor, "exponent", help=labels.sigma2_help)
    pool = control(
        second.segmented_control,
        labels.pool,
        list(labels.pools),
        key="pool",
        format_func=labels.pools.__getitem__,
        help=labels.pool_help,
        required=True,
    )
    if method.conditions:
        conditioning = control(
            third.segmented_control,
            labels.conditioning,
            list(labels.conditionings),
            key="conditioning",
            format_func=labels.conditionings.__getitem__,
            help=labels.conditioning_help,
            required=True,
        )
    return AttributeView(
        view.query,
        name,
        sigma2,
        budget,
        pool or "same-class",
        conditioning or "pool",
        None if target == _ITS_ANSWER else target,
    )


def _ranking(
    attributor: Served, result: Attribution, method: Method, largest: float, words_of: Linked | None, *, plain: bool
) -> None:
    cards, found = _cards(attributor, result, largest), [item.train_index for item in result.items]
    if words_of is not None:
        cards = words_of.dressed(cards)
        found = [found[place] for place in words_of.order] + found[len(words_of.links) :]
    grid(
        cards,
        key="ranking",
        label=f"Training {attributor.many} ranked by {method.title}",
        size=76,
        **_clicks(attributor, found),
    )
    if result.nats is None:
        unit = "its score" if plain else f"its {method.score}"
    else:
        unit = "the share it adds" if result.total_nats else "its nats"
    signs = " · ▲ supports the class, ▼ speaks against it" if _signs_differ(result) else ""
    alike = "" if plain or math.isnan(result.redundancy) else f" · redundancy {result.redundancy:.2f}"
    st.caption(
        f"Each {attributor.one}: its rank, {unit}, its label{signs}{alike}",
        help="Redundancy: the mean cosine of the features of all pairs in this list; near 1, they all say the same."
        if alike
        else None,
    )


def _cards(attributor: Served, result: Attribution, largest: float, ranks: Sequence[str] = ()) -> list[Card]:
    cards, differ, total = [], _signs_differ(result), None if result.nats is None else result.total_nats
    card, classes = cards_of(attributor, "train"), attributor.bundle.classes
    for item, rank, amount in zip(result.items, ranks or result.rank_labels, result.amounts, strict=True):
        arrow = {1: " ▲", -1: " ▼", 0: ""}[item.sign] if differ else ""
        unit = "nats" if item.nats is not None else "score"
        tooltip = (
            f"{classes[item.label]}, training {attributor.one} {item.train_index}: {words.number(amount, 4)} {unit}"
        )
        if item.nats is not None:
            tooltip += f"; the first {item.rank} contribute {words.number(item.nats, 4)} nats"
        cards.append(
            card(
                item.train_index,
                title=f"rank {rank}, {tooltip}",
                rank=rank,
                value=f"{words.percent(amount / total) if total else _short(amount)}{arrow}",
                tone="against" if item.sign < 0 else "for",
                strength=abs(amount) / largest,
            )
        )
    return cards


def _signs_differ(result: Attribution) -> bool:
    return {item.sign for item in result.items} >= {-1, 1}


def _short(value: float) -> str:
    return words.with_minus(f"{value:.1e}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else f"{value:.3f}")


def _clicks(attributor: Served, found: list[int]) -> dict[str, Any]:
    """Return what a grid of a ranking does: a click opens the inspector, the small button makes an image the query."""
    return {
        "reuse": f"Explain this {attributor.one}",
        "on_pick": partial(inspect, _TAB, found),
        "on_reuse": lambda position: frame.take(f"train:{found[position]}"),
    }


def _about(results: list[Attribution], index: int, *, plain: bool) -> str:
    """Return what the answers say of a training image, for the inspector."""
    for result in results:
        for item, rank, amount in zip(result.items, result.rank_labels, result.amounts, strict=True):
            if item.train_index == index:
                parts = [f"Rank {rank}"]
                if result.total_nats:
                    parts.append(words.percent(amount / result.total_nats))
                if not plain:
                    parts += [] if item.nats is None else [f"adds {words.nats(amount)}"]
                    parts += [
                        f"score {words.number(item.score, 4)}",
                        f"marginal variance {words.number(item.variance)}",
                    ]
                return " · ".join(parts)
    return ""


def _among_all(attributor: Served, query: QueryExample, result: Attribution, largest: float, *, plain: bool) -> None:
    """Draw what speaks against, how the information adds up, and where the picks lie among all candidates."""
    method = METHODS[result.request.method]
    scored = None
    if not (method.at_random or attributor.heavy(result.request)):
        try:
            scored = attributor.score_each(query, result.request)
        except QueryError as error:
            complain(error)
    if scored is not None and method.signed:
        _against(attributor, result, *scored, largest)
    if plain:
        if scored is not None:
            everything, picks = _own_scores(result, *scored)
            st.caption(words.special(picks, everything, method, of=attributor.bundle.modality, plain=True))
        return
    first, second = st.columns(2, gap="large")
    if result.nats is None:
        first, second = second, first
        first.caption(
            f"This method ranks {attributor.many} but does not measure information, so there is no curve. "
            f"{words.informative()} have one."
        )
    else:
        with first:
            st.subheader("How the information adds up")
            found = [item.train_index for item in result.items]
            on_page.show(curve(result), "curve", on_point=partial(inspect, _TAB, found))
    if scored is not None:
        with second:
            _spread(attributor, result, *scored)


def _own_scores(result: Attribution, rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return all candidates' scores by themselves, information without its sign, and those of the picks."""
    shown = np.abs(scores) if METHODS[result.request.method].information else scores
    own = dict(zip(rows.tolist(), shown.tolist(), strict=True))
    return shown, [own[item.train_index] for item in result.items]


def _spread(attributor: Served, result: Attribution, rows: np.ndarray, scores: np.ndarray) -> None:
    method = METHODS[result.request.method]
    shown, picks = _own_scores(result, rows, scores)
    st.subheader("How do they compare with the other candidates?")
    st.caption(words.special(picks, shown, method, of=attributor.bundle.modality))
    on_page.show(spread(shown, picks, result), "spread")


def _against(attributor: Served, result: Attribution, rows: np.ndarray, scores: np.ndarray, largest: float) -> None:
    """Draw the candidates with the most negative scores, as many as the ranking has images."""
    order = np.argsort(scores, kind="stable")[: len(result.items)]
    items = tuple(
        Item(len(rows) - place, int(rows[row]), int(attributor.train_labels[rows[row]]), scores[row], None, -1, 0.0)
        for place, row in enumerate(order.tolist())
        if scores[row] < 0
    )
    target = escape.markdown(attributor.bundle.classes[result.target])
    if not items:
        st.caption(f"No candidate speaks against {target}: no score is negative.")
        return
    st.markdown(f"**Against {target}:** the candidates with the most negative scores.")
    last = replace(result, items=items)
    grid(
        _cards(attributor, last, max(largest, *(abs(i.score) for i in items)), [f"{i.rank:,}" for i in items]),
        key="against",
        label=f"Training {attributor.many} that speak against {attributor.bundle.classes[result.target]}",
        size=76,
        **_clicks(attributor, [item.train_index for item in items]),
    )
