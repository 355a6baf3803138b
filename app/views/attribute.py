"""Attribute: pick an image, see which training images the prediction owes its certainty to."""

import json
import math
from dataclasses import replace

import numpy as np
import streamlit as st
from scipy.special import softmax

from natscope.app import escape, links, words
from natscope.app.bundles import Served
from natscope.app.components.grid import Card, data_uri, grid
from natscope.app.downloads import draw, offer
from natscope.app.figures import on_page
from natscope.app.figures.attribution import curve
from natscope.app.figures.sheets import ranking_png
from natscope.app.links import AttributeView
from natscope.app.views import frame
from natscope.app.views.enlarge import enlarge
from natscope.app.views.notice import complain, fragment
from natscope.app.views.query import picker, prediction
from natscope.app.views.sigma2 import slider
from natscope.core.bundle.request import Attribution, QueryImage
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, Method

_WIDGETS = ("method", "exponent", "budget", "pool", "conditioning", "target")
_VIEW = "view"
_SESSION = (_VIEW, "picked", "plain_words", "upload", *_WIDGETS)  # what belongs to a bundle
_ITS_ANSWER = -1  # the choice of target that means whatever the model predicts


def page() -> None:
    """Draw the page."""
    attributor, switch = frame.heading(
        "Which training images shaped this prediction?",
        "Choose an image. natscope ranks the training images that the network’s answer relies on most, and says "
        "how much each contributes.",
        forget=lambda: frame.forget(*_SESSION),
    )
    view = frame.view(_VIEW, attributor, AttributeView(), complete=lambda view: _usual_sigma2(view, attributor))
    st.session_state.setdefault("plain_words", view.plain)
    plain = switch.toggle("Plain words", key="plain_words", help="Explain without technical terms.")
    left, right = st.columns([1, 2.6], gap="large")
    with left:
        query = frame.query(_VIEW, attributor)
        prediction(query, attributor)
        with st.container(horizontal=True, gap="small"):
            enlarge(query.image, _title(query), key="enlarge_query")
            _comparison_link(attributor)
        picker(attributor, query, _take)
    with right:
        _answer(attributor, query, st.session_state[_VIEW].query, plain)


def _title(query: QueryImage) -> str:
    return "Your image" if query.index is None else f"{query.origin.capitalize()} image {query.index}"


def _restore_controls(view: AttributeView) -> None:
    """Set the controls to the view's values; Streamlit forgets a control's value as soon as it is not drawn."""
    target = _ITS_ANSWER if view.target is None else view.target
    values = (view.method, links.exponent_of(view.sigma2), view.budget, view.pool, view.conditioning, target)
    for key, value in zip(_WIDGETS, values, strict=True):
        st.session_state.setdefault(key, value)


def _usual_sigma2(view: AttributeView, attributor: Served) -> AttributeView:
    return replace(view, sigma2=view.sigma2 or attributor.bundle.sigma2(view.method))


def _comparison_link(attributor: Served) -> None:
    st.link_button(
        "Compare methods on this image",
        frame.comparison(st.session_state[_VIEW], attributor),
        icon=":material/compare:",
        type="tertiary",
        help="Opens the comparison in a new tab.",
    )


def _take(query: str) -> None:
    """Make an image the query; the settings are kept, except the target class."""
    frame.change(_VIEW, query=query, target=None)
    st.session_state["target"] = _ITS_ANSWER
    st.session_state["picked"] = None


@fragment()
def _answer(attributor: Served, query: QueryImage, shown: str, plain: bool) -> None:
    """Draw the controls and the ranking; a change reruns this part alone, unless it makes another image the query."""
    view = st.session_state.get(_VIEW)
    if view is None or view.query != shown:
        st.rerun()
    view = replace(_controls(attributor, query, words.PLAIN if plain else words.EXPERT), plain=plain)
    frame.keep(_VIEW, view, attributor)
    try:
        result = attributor.attribute(query, view.request())
    except QueryError as error:
        complain(error)
        return
    method, classes = METHODS[view.method], attributor.bundle.classes
    st.markdown(f"##### {words.finding(result, method, classes[result.target], plain=plain)}", help=words.NAT)
    picked = st.session_state.get("picked")
    picked = picked if picked is not None and picked < len(result.items) else None
    images = np.asarray(attributor.bundle.array("train_images")[[item.train_index for item in result.items]])
    _ranking(result, method, images, classes, picked)
    if result.regime is not None:
        st.caption(f":material/info: {words.regime_hint(result.regime, plain=plain)}")
    if result.index is not None:
        st.caption(words.searched(result.index))
    chart, details = st.columns([1.35, 1], gap="medium")
    with chart:
        _curve(result, picked)
    with details:
        _details(attributor, result, images, picked)
    _downloads(query, images, result, classes)


def _controls(attributor: Served, query: QueryImage, labels: words.Labels) -> AttributeView:
    view: AttributeView = st.session_state[_VIEW]
    _restore_controls(view)
    classes = attributor.bundle.classes
    first, second, third = st.columns([1.1, 1.3, 1.1])
    name = first.selectbox(
        "Method",
        list(METHODS),
        key="method",
        format_func=lambda n: METHODS[n].title + (" (not in this bundle)" if attributor.missing(METHODS[n]) else ""),
        help="The page Methods explains each.",
    )
    method = METHODS[name]
    target = second.selectbox(
        "Explain",
        [_ITS_ANSWER, *(c for c in range(len(classes)) if c != query.predicted)],
        key="target",
        format_func=lambda c: (
            f"{classes[query.predicted]} (its answer)" if c == _ITS_ANSWER else f"why not {classes[c]}?"
        ),
        help="The class whose support is attributed: the model’s answer, or another class.",
    )
    pool = third.segmented_control(
        labels.pool,
        list(labels.pools),
        key="pool",
        format_func=labels.pools.__getitem__,
        help=labels.pool_help,
        required=True,
    )
    first, second, third = st.columns([1.1, 1.3, 1.1])
    budget = first.slider(labels.budget, 1, links.LARGEST_BUDGET, key="budget", help=labels.budget_help)
    # Unused controls are disabled, not left out: one that comes back while the page is still being drawn can
    # show its default instead of its value.
    sigma2 = slider(
        second, labels.sigma2, attributor, "exponent", disabled=not method.uses_sigma2, help=labels.sigma2_help
    )
    conditioning = third.segmented_control(
        labels.conditioning,
        list(labels.conditionings),
        key="conditioning",
        format_func=labels.conditionings.__getitem__,
        disabled=not method.conditions,
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
    result: Attribution, method: Method, images: np.ndarray, classes: tuple[str, ...], picked: int | None
) -> None:
    grid(
        _cards(result, images, classes),
        key="ranking",
        label=f"Training images ranked by {method.title}",
        size=76,
        selected=picked,
        reuse="Explain this image",
        on_pick=_pick,
        on_reuse=lambda position: _take(f"train:{result.items[position].train_index}"),
    )
    unit = "the nats it adds" if result.nats is not None else f"its {method.score}"
    signs = "" if not any(i.sign for i in result.items) else " · ▲ supports the class, ▼ speaks against it"
    alike = "" if math.isnan(result.redundancy) else f" · redundancy {result.redundancy:.2f}"
    st.caption(
        f"Each image: its rank, {unit}, its label{signs}{alike}",
        help="Redundancy: the mean cosine of the features of all pairs in this list; near 1, they all say the same.",
    )


def _cards(result: Attribution, images: np.ndarray, classes: tuple[str, ...]) -> list[Card]:
    amounts = [abs(a) for a in _amounts(result)]
    strongest = max(amounts) or 1.0
    cards = []
    for item, rank, image, amount in zip(result.items, result.rank_labels, images, _amounts(result), strict=True):
        arrow = {1: " ▲", -1: " ▼", 0: ""}[item.sign]
        unit = "nats" if item.nats is not None else "score"
        tooltip = f"{classes[item.label]}, training image {item.train_index}: {amount:.4g} {unit}"
        cards.append(
            Card(
                src=data_uri(image),
                alt=f"rank {rank}, {tooltip}",
                title=tooltip if item.nats is None else f"{tooltip}; the first {item.rank} carry {item.nats:.4g} nats",
                rank=rank,
                value=f"{_short(amount)}{arrow}",
                caption=classes[item.label],
                tone="against" if item.sign < 0 else "for",
                strength=abs(amount) / strongest,
            )
        )
    return cards


def _amounts(result: Attribution) -> list[float]:
    """Return what each image adds: nats, or its score if the method has no nats."""
    if result.nats is None:
        return [i.score for i in result.items]
    return np.diff([i.nats for i in result.items], prepend=0.0).tolist()


def _short(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def _pick(position: int) -> None:
    st.session_state["picked"] = None if st.session_state.get("picked") == position else position


def _curve(result: Attribution, picked: int | None) -> None:
    st.subheader("How the information adds up")
    if result.nats is None:
        st.caption(
            "This method orders images and has no unit of information, so there is no curve. "
            f"{words.informative()} have one."
        )
        return

    def picked_on(position: int) -> None:
        st.session_state["picked"] = position

    on_page.show(curve(result, picked), "curve", on_point=picked_on)


def _details(attributor: Served, result: Attribution, images: np.ndarray, picked: int | None) -> None:
    st.subheader("A closer look")
    if picked is None:
        st.caption("Click an image, or a point of the curve, to see what the model makes of it.")
        return
    item, classes = result.items[picked], attributor.bundle.classes
    logits = np.asarray(attributor.bundle.array("train_logits")[item.train_index], dtype=np.float64)
    shares = softmax(logits)
    answer = int(shares.argmax())
    picture, facts = st.columns([1, 1.7])
    picture.html(f'<img class="ns-seen" src="{data_uri(images[picked])}" alt="training image {item.train_index}">')
    cumulative = "" if item.nats is None else f"first {item.rank} together: **{words.nats(item.nats)}**  \n"
    facts.markdown(
        f"Training image **{item.train_index}**  \nlabelled **{escape.markdown(classes[item.label])}**  \n"
        f"the model says {escape.markdown(classes[answer])} ({shares[answer]:.1%})  \n{cumulative}"
        f"score {item.score:.4g} · marginal variance {item.variance:.3g}"
    )
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.button(
            "Explain this image",
            icon=":material/my_location:",
            key="make_query",
            on_click=_take,
            args=(f"train:{item.train_index}",),
        )
        enlarge(images[picked], f"Training image {item.train_index}: {classes[item.label]}", key="enlarge_picked")


def _downloads(query: QueryImage, images: np.ndarray, result: Attribution, classes: tuple[str, ...]) -> None:
    name = f"natscope-{query.origin}{'' if query.index is None else f'-{query.index}'}-{result.request.method}"
    offers = (
        (
            "PNG",
            "image/png",
            ":material/image:",
            "The figure, in print quality.",
            lambda: draw(ranking_png, query, images, result, classes),
        ),
        ("CSV", "text/csv", ":material/table:", "The ranking as a table.", lambda: _table(result, classes)),
        (
            "JSON",
            "application/json",
            ":material/data_object:",
            "The ranking with every setting.",
            lambda: json.dumps(result.to_dict(query, classes), indent=2),
        ),
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, mime, icon, about, make in offers:
            offer(label, make, f"{name}.{label.lower()}", mime, icon=icon, help=about, key=f"download_{label}")
        st.caption("Copy this page’s URL to share this view.", width="content")


def _table(result: Attribution, classes: tuple[str, ...]) -> str:
    columns = ("rank", "train_index", "label", "label_name", "score", "nats_cumulative", "sign")
    return escape.table(
        columns,
        (
            [i.rank, i.train_index, i.label, classes[i.label], i.score, "" if i.nats is None else i.nats, i.sign]
            for i in result.items
        ),
    )
