"""The tab Attribution: which training images an image's prediction relies on."""

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
from natscope.app.views import frame, tags
from natscope.app.views.controls import control, sigma2_slider
from natscope.app.views.enlarge import enlarge
from natscope.app.views.notice import complain, fragment
from natscope.app.views.query import title_of
from natscope.core.bundle.request import Attribution, QueryImage, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, Method

_WIDGETS = ("method", "exponent", "budget", "pool", "conditioning", "target")
VIEW, _TAB = "view", frame.ATTRIBUTION
_PICKED_OF = "picked_of"  # the image whose ranking the picked position is of
SESSION = (VIEW, "picked", "plain_words", "upload", *_WIDGETS)  # what belongs to a bundle
_NEIGHBOURS = 5
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


def show(attributor: Served, query: QueryImage) -> None:
    """Draw the tab."""
    question, switch = st.columns([3.6, 1], vertical_alignment="bottom")
    question.title("Which training images shaped this prediction?")
    st.session_state.setdefault("plain_words", st.session_state[VIEW].plain)
    plain = control(switch.toggle, "Plain words", key="plain_words", help="Explain without technical terms.")
    if st.session_state.get(_PICKED_OF) != (shown := frame.shared_query()):
        st.session_state["picked"], st.session_state[_PICKED_OF] = None, shown
    _answer(attributor, query, shown, plain)


def _restore_controls(view: AttributeView) -> None:
    """Set the controls to the view's values; Streamlit forgets a control's value as soon as it is not drawn."""
    target = _ITS_ANSWER if view.target is None else view.target
    values = (view.method, links.exponent_of(view.sigma2), view.budget, view.pool, view.conditioning, target)
    for key, value in zip(_WIDGETS, values, strict=True):
        st.session_state.setdefault(key, value)


def _usual_sigma2(view: AttributeView, attributor: Served) -> AttributeView:
    return replace(view, sigma2=view.sigma2 or attributor.bundle.sigma2(view.method))


@fragment()
def _answer(attributor: Served, query: QueryImage, shown: str, plain: bool) -> None:
    """Draw the controls and the ranking; a change reruns this part alone, unless it makes another image the query."""
    if VIEW not in st.session_state or frame.shared_query() != shown or tags.changed():
        st.rerun()
    view = replace(_controls(attributor, query, words.PLAIN if plain else words.EXPERT), plain=plain)
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
    said = words.finding(result, method, classes[result.target], plain=plain, predicted=view.target is None)
    st.markdown(f"##### {said}", help=words.NAT)
    picked = st.session_state.get("picked")
    picked = picked if picked is not None and picked < len(result.items) else None
    images = np.asarray(attributor.bundle.array("train_images")[[item.train_index for item in result.items]])
    largest = max(abs(amount) for shown in (result, other) if shown for amount in _amounts(shown)) or 1.0
    _ranking(result, method, images, classes, picked, largest)
    if other is not None:
        _support_of_the_label(attributor, other, method, largest, plain=plain)
    if result.regime is not None:
        st.caption(f":material/info: {words.regime_hint(result.regime, plain=plain)}")
    if result.index is not None:
        st.caption(words.searched(result.index))
    chart, details = st.columns([1.35, 1], gap="medium")
    with chart:
        _curve(result, picked)
    with details:
        _details(attributor, query, result, images, picked)
    _downloads(query, images, result, classes)


def _support_of(label: int, attributor: Served, query: QueryImage, request: Request) -> Attribution | None:
    """Return what supports another class; None if that has no training images."""
    try:
        return attributor.attribute(query, replace(request, target=label))
    except QueryError as error:
        complain(error)
        return None


def _support_of_the_label(
    attributor: Served, result: Attribution, method: Method, largest: float, *, plain: bool
) -> None:
    """Draw what supports the label of an image that the network gets wrong, on the same scale as its answer."""
    classes = attributor.bundle.classes
    said = words.finding(result, method, classes[result.target], plain=plain, predicted=False)
    st.markdown(f"**Why not {escape.markdown(classes[result.target])}, its label?** {said}")
    images = np.asarray(attributor.bundle.array("train_images")[[item.train_index for item in result.items]])

    def explain(position: int) -> None:
        frame.take(f"train:{result.items[position].train_index}")

    grid(
        _cards(result, images, classes, largest),
        key="ranking_of_the_label",
        label=f"Training images that support {classes[result.target]}, ranked by {method.title}",
        size=76,
        reuse="Explain this image",
        on_pick=explain,
        on_reuse=explain,
    )


def _controls(attributor: Served, query: QueryImage, labels: words.Labels) -> AttributeView:
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
    result: Attribution,
    method: Method,
    images: np.ndarray,
    classes: tuple[str, ...],
    picked: int | None,
    largest: float,
) -> None:
    grid(
        _cards(result, images, classes, largest),
        key="ranking",
        label=f"Training images ranked by {method.title}",
        size=76,
        selected=picked,
        reuse="Explain this image",
        on_pick=_pick,
        on_reuse=lambda position: frame.take(f"train:{result.items[position].train_index}"),
    )
    unit = f"its {method.score}" if result.nats is None else "the share it adds" if result.total_nats else "its nats"
    signs = " · ▲ supports the class, ▼ speaks against it" if _signs_differ(result) else ""
    alike = "" if math.isnan(result.redundancy) else f" · redundancy {result.redundancy:.2f}"
    st.caption(
        f"Each image: its rank, {unit}, its label{signs}{alike}",
        help="Redundancy: the mean cosine of the features of all pairs in this list; near 1, they all say the same.",
    )


def _cards(result: Attribution, images: np.ndarray, classes: tuple[str, ...], largest: float) -> list[Card]:
    cards, differ, total = [], _signs_differ(result), None if result.nats is None else result.total_nats
    for item, rank, image, amount in zip(result.items, result.rank_labels, images, _amounts(result), strict=True):
        arrow = {1: " ▲", -1: " ▼", 0: ""}[item.sign] if differ else ""
        unit = "nats" if item.nats is not None else "score"
        tooltip = f"{classes[item.label]}, training image {item.train_index}: {amount:.4g} {unit}"
        cards.append(
            Card(
                src=data_uri(image),
                alt=f"rank {rank}, {tooltip}",
                title=tooltip
                if item.nats is None
                else f"{tooltip}; the first {item.rank} contribute {item.nats:.4g} nats",
                rank=rank,
                value=f"{words.percent(amount / total) if total else _short(amount)}{arrow}",
                caption=classes[item.label],
                tone="against" if item.sign < 0 else "for",
                strength=abs(amount) / largest,
            )
        )
    return cards


def _signs_differ(result: Attribution) -> bool:
    return {item.sign for item in result.items} >= {-1, 1}


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
            "This method ranks images but does not measure information, so there is no curve. "
            f"{words.informative()} have one."
        )
        return

    def picked_on(position: int) -> None:
        st.session_state["picked"] = position

    on_page.show(curve(result, picked), "curve", on_point=picked_on)


def _details(
    attributor: Served, query: QueryImage, result: Attribution, images: np.ndarray, picked: int | None
) -> None:
    st.subheader("A closer look")
    if picked is None:
        st.caption("Click an image, or a point of the curve, to see what the model makes of it.")
        return
    item, classes = result.items[picked], attributor.bundle.classes
    logits = np.asarray(attributor.bundle.array("train_logits")[item.train_index], dtype=np.float64)
    shares = softmax(logits)
    answer = int(shares.argmax())
    smooth = st.toggle("Smooth", key="smooth", help="Off: every pixel as the model sees it.")
    pair = ((query.image, title_of(query)), (images[picked], f"Training image {item.train_index}"))
    st.html(
        f'<div class="ns-pair{" smooth" if smooth else ""}">'
        + "".join(f'<figure><img src="{data_uri(i)}" alt=""><figcaption>{t}</figcaption></figure>' for i, t in pair)
        + f"</div><style>{_STYLE}</style>"
    )
    cumulative = "" if item.nats is None else f"first {item.rank} together: **{words.nats(item.nats)}**  \n"
    st.markdown(
        f"Labelled **{escape.markdown(classes[item.label])}**, predicted **{escape.markdown(classes[answer])}** "
        f"({shares[answer]:.1%})  \n{cumulative}score {item.score:.4g} · marginal variance {item.variance:.3g}"
    )
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.button(
            "Explain this image",
            icon=":material/my_location:",
            key="make_query",
            on_click=frame.take,
            args=(f"train:{item.train_index}",),
        )
        enlarge(images[picked], f"Training image {item.train_index}: {classes[item.label]}", key="enlarge_picked")
        tags.tag(attributor, f"train:{item.train_index}", key="tag_picked")
    if not attributor.heavy(result.request):
        _neighbours(attributor, item.train_index, result.request)


def _neighbours(attributor: Served, index: int, request: Request) -> None:
    """Draw what the prediction for a training image itself relies on most."""
    asked = attributor.query("train", index)
    try:
        found = attributor.attribute(asked, replace(request, budget=_NEIGHBOURS, target=None))
    except QueryError as error:
        complain(error)
        return
    images = np.asarray(attributor.bundle.array("train_images")[[item.train_index for item in found.items]])
    amounts = [abs(amount) for amount in _amounts(found)]
    st.caption("Its own prediction relies most on")
    grid(
        _cards(found, images, attributor.bundle.classes, max(amounts, default=0.0) or 1.0),
        key="neighbours",
        label=f"Training images that the prediction for training image {index} relies on most",
        size=64,
        on_pick=lambda position: frame.take(f"train:{found.items[position].train_index}"),
    )


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


_STYLE = """
.ns-pair { display: flex; gap: .8rem; flex-wrap: wrap; }
.ns-pair figure { margin: 0; width: min(14rem, 47%); }
.ns-pair img { width: 100%; border-radius: 8px; image-rendering: pixelated; }
.ns-pair.smooth img { image-rendering: auto; }
.ns-pair figcaption { font-size: .85rem; opacity: .85; margin-top: .2rem; }
"""
