"""The image in hand: what the model says of it, and how to choose another one."""

import random
from collections.abc import Callable, Mapping

import numpy as np
import streamlit as st
from scipy.special import softmax

from natscope.app import escape, words
from natscope.app.bundles import Served
from natscope.app.components.grid import grid
from natscope.app.components.keys import keys
from natscope.app.components.matrix import matrix
from natscope.app.modalities import STYLE, page_of
from natscope.app.views.cards import KINDS, cards_of
from natscope.app.views.controls import control
from natscope.app.views.enlarge import enlarge
from natscope.app.views.image_search import search_field
from natscope.app.views.notice import warn
from natscope.app.views.tags import tag_button
from natscope.core.bundle.request import QueryExample
from natscope.precompute.data.shown import shown

_UNSURE = 0.6  # a prediction below this probability counts as unsure
_YOURS = "image"  # where the visitor's own come from
_OUTCOMES = ("All", "Right", "Wrong", "Unsure")
_ORDERS = ("By number", "Least sure first", "Surest first")
_LARGEST_MATRIX = 20  # classes of which a confusion matrix can be read
Take = Callable[[str], None]


def image_bar(
    attributor: Served,
    query: QueryExample,
    take: Take,
    actions: Mapping[str, Callable[[], None]],
    *,
    brief: bool = False,
) -> None:
    """Draw the image with its prediction, and the ways to another one.

    Args:
        attributor: the opened bundle.
        query: the image.
        take: called with "test:I", "train:I", "image:DATA" or "file:SUM".
        actions: what more keys do, beside those that go to another image.
        brief: whether a text takes a line alone, for all of it is shown further down.
    """
    _prediction(query, attributor, brief=brief)
    split = "train" if query.origin == "train" else "test"
    count = len(attributor.train_labels if split == "train" else attributor.test_labels)

    def step(by: int) -> None:
        take(f"{split}:{((query.index or 0) + by) % count}")

    alone, own_page = query.index is None, page_of(attributor.bundle.modality)
    search = f"Go to {attributor.one} number or {own_page.by}"
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        _button(
            f"Previous {attributor.one}",
            ":material/chevron_left:",
            lambda: step(-1),
            key="previous_image",
            disabled=alone,
        )
        _button(f"Next {attributor.one}", ":material/chevron_right:", lambda: step(1), key="next_image", disabled=alone)
        _button("Shuffle", ":material/shuffle:", lambda: take(f"{split}:{random.randrange(count)}"), key="shuffle")
        search_field(search, attributor, split, take, key="image_search")
        enlarge(query.example, title_of(query), key="enlarge_query")
        if not alone:
            own = [f"{query.origin}:{query.index}"]
            tag_button(attributor, own, "Tag", key="tag_query")
    steps = {} if alone else {"ArrowLeft": lambda: step(-1), "ArrowRight": lambda: step(1)}
    keys(steps | dict(actions), key="image_keys", find=search)


def title_of(query: QueryExample) -> str:
    """Return a name of the example for people."""
    one = query.example.modality.one
    split = "Test" if query.origin == "test" else "Training"
    return f"Your {one}" if query.index is None else f"{split} {one} {query.index}"


def _button(label: str, icon: str, do: Callable[[], None], *, key: str, disabled: bool = False) -> None:
    st.button(label, icon=icon, key=key, on_click=do, disabled=disabled, type="tertiary")


def _prediction(query: QueryExample, attributor: Served, *, brief: bool) -> None:
    classes = attributor.bundle.classes
    top = np.argsort(-query.probabilities)[:3]
    bars = "".join(_bar(classes[c], float(query.probabilities[c]), strong=c == query.predicted) for c in top)
    if query.label is None:
        verdict = f"Your {attributor.one}, as the model sees it"
    else:
        right = query.label == query.predicted
        mark = "✓ right" if right else f"✗ labelled {escape.html(classes[query.label])}"
        verdict = f"{title_of(query)} · {mark}"
    if query.source and query.source != f"{query.origin} row {query.index}":
        verdict += f"<br>{escape.html(query.source)}"
    if (reading := query.example.reading(0)) is not None and (said := reading.sentence()):
        verdict += f"<br>{escape.isolated(escape.html(said))}"
    st.html(
        f'<div class="ns-query{" brief" if brief else ""}">{shown(query.example, alt=title_of(query))}'
        f'<div class="ns-said"><div class="ns-answer">Predicted {escape.html(classes[query.predicted])}</div>'
        f'<div class="ns-verdict">{verdict}</div></div><div class="ns-bars">{bars}</div></div>'
        f"<style>{STYLE}{_STYLE}</style>"
    )
    if query.ood > 1:
        warn(
            words.unlike(attributor.bundle.modality, len(attributor.test_labels)),
            icon=":material/explore:",
        )


def finder(attributor: Served, query: QueryExample, take: Take) -> None:
    """Draw the ways to find another image; `take` is called with "test:I" or "image:DATA", say."""
    with st.expander(f"Find another {attributor.one}", icon=":material/search:"):
        _choices(attributor, query, take)


def _choices(attributor: Served, query: QueryExample, take: Take) -> None:
    origin = _YOURS if query.origin == "upload" else query.origin
    st.session_state.setdefault("source", origin)
    sources = {"test": f"Test {attributor.many}", "train": f"Training {attributor.many}"}
    sources[_YOURS] = page_of(attributor.bundle.modality).yours
    source = control(
        st.segmented_control,
        "Where from",
        list(sources),
        format_func=sources.__getitem__,
        key="source",
        required=True,
    )
    if source == _YOURS:
        page_of(attributor.bundle.modality).choose(attributor, take)
        return
    split, shown = source or "test", None if query.index is None else f"{query.origin}:{query.index}"
    if split != query.origin:  # the field beside the image is for the others
        label = f"Number or {page_of(attributor.bundle.modality).by} of the {KINDS[split]} {attributor.one}"
        search_field(label, attributor, split, take, key=f"{split}_search")
    if len(attributor.bundle.classes) > _LARGEST_MATRIX:
        gallery(attributor, split, take, shown=shown)
        return
    table, images = st.columns([1, 1.7], gap="large")
    with table:
        _confusion(attributor, split)
    with images:
        gallery(attributor, split, take, shown=shown)


def _confusion(attributor: Served, split: str) -> None:
    """Draw how often each class is taken for each; a cell filters the gallery, and lifts the filter again."""
    classes, logits = attributor.bundle.classes, attributor.bundle.array(f"{split}_logits")
    labels = attributor.test_labels if split == "test" else attributor.train_labels
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (labels, np.asarray(logits).argmax(axis=1)), 1)
    chosen = st.session_state.get(f"{split}_class"), st.session_state.get(f"{split}_predicted")

    def pick(true: int, predicted: int) -> None:
        values = (None, None) if (true, predicted) == chosen else (true, predicted)
        st.session_state[f"{split}_class"], st.session_state[f"{split}_predicted"] = values
        st.session_state[f"{split}_outcome"], st.session_state[f"{split}_page"] = _OUTCOMES[0], 0

    matrix(
        counts,
        classes,
        key=f"{split}_matrix",
        label="Labelled (rows), predicted (columns)",
        selected=None if None in chosen else chosen,  # type: ignore[arg-type]
        on_pick=pick,
    )


def gallery(attributor: Served, split: str, take: Take, *, shown: str | None = None) -> None:
    """Draw the "test" or "train" images with filters.

    Args:
        attributor: the opened bundle.
        split: "test" or "train".
        take: called with "test:I" or "train:I".
        shown: the image that is marked, likewise.
    """
    bundle, classes = attributor.bundle, attributor.bundle.classes
    labels = attributor.test_labels if split == "test" else attributor.train_labels
    logits = np.asarray(bundle.array(f"{split}_logits"))
    filters, anything = st.container(horizontal=True), [None, *range(len(classes))]

    def title(label: int | None) -> str:
        return "Any" if label is None else classes[label]

    wanted = filters.selectbox("Label", anything, format_func=title, key=f"{split}_class", width=150)
    said = filters.selectbox("Predicted", anything, format_func=title, key=f"{split}_predicted", width=150)
    outcome = filters.selectbox(
        "Prediction",
        _OUTCOMES,
        key=f"{split}_outcome",
        help=f"Unsure: the predicted class has a probability below {_UNSURE:.0%}.",
        width=120,
    )
    order = filters.selectbox("Order", _ORDERS, key=f"{split}_order", width=170)
    numbers = _sorted(_filtered(logits, labels, wanted, said, outcome), logits, order)
    at_once = page_of(bundle.modality).at_once
    pages = max(1, -(-len(numbers) // at_once))
    page = min(st.session_state.get(f"{split}_page", 0), pages - 1)
    drawn = numbers[page * at_once : (page + 1) * at_once]
    if not len(numbers):
        st.info(f"No {attributor.one} fits these filters; widen one of them.", icon=":material/filter_alt_off:")
    card = cards_of(attributor, split)
    cards = [
        card(
            int(i),
            title=f"{KINDS[split].capitalize()} {attributor.one} {i}, labelled {classes[labels[i]]}, predicted "
            f"{classes[answer]}",
            caption=classes[answer],
            tone="for" if answer == labels[i] else "against",
        )
        for i, answer in zip(drawn, logits[drawn].argmax(axis=1), strict=True)
    ]
    places = [place for place, i in enumerate(drawn) if f"{split}:{i}" == shown]
    if cards:
        grid(
            cards,
            key=f"{split}_gallery",
            label=f"{attributor.many.capitalize()} to choose from",
            size=56,
            selected=places[0] if places else None,
            on_pick=lambda position: take(f"{split}:{drawn[position]}"),
        )
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        _turner("Back", split, page - 1, disabled=page == 0, icon=":material/chevron_left:")
        st.html(
            f'<div class="ns-where">{len(numbers):,} {attributor.many}<br>page {page + 1} of {pages:,}</div>',
            width="content",
        )
        _turner("More", split, page + 1, disabled=page + 1 >= pages, icon=":material/chevron_right:")
        st.button(
            "Any of these",
            icon=":material/shuffle:",
            key=f"{split}_random",
            disabled=not len(numbers),
            on_click=lambda: take(f"{split}:{random.choice(numbers)}"),
            type="tertiary",
        )


def _turner(text: str, split: str, page: int, *, disabled: bool, icon: str) -> None:
    st.button(
        text,
        key=f"{split}_turn_{text}",
        disabled=disabled,
        on_click=_turn,
        args=(split, page),
        icon=icon,
        type="tertiary",
    )


def _sorted(numbers: np.ndarray, logits: np.ndarray, order: str) -> np.ndarray:
    """Return the numbers of images (n,) in an order of `_ORDERS`."""
    if order == _ORDERS[0]:
        return numbers
    sure = softmax(logits[numbers].astype(np.float64), axis=1).max(axis=1)
    return numbers[np.argsort(sure if order == _ORDERS[1] else -sure, kind="stable")]


def _filtered(logits: np.ndarray, labels: np.ndarray, wanted: int | None, said: int | None, outcome: str) -> np.ndarray:
    """Return the numbers of the images that fit the filters, (n,) int64."""
    keep = np.ones(len(labels), dtype=bool) if wanted is None else labels == wanted
    if said is not None:
        keep &= logits.argmax(1) == said
    if outcome == "Right":
        keep &= logits.argmax(1) == labels
    elif outcome == "Wrong":
        keep &= logits.argmax(1) != labels
    elif outcome == "Unsure":
        keep &= softmax(logits, axis=1).max(1) < _UNSURE
    return np.flatnonzero(keep)


def _turn(split: str, page: int) -> None:
    st.session_state[f"{split}_page"] = page


def _bar(name: str, share: float, *, strong: bool) -> str:
    weight = "ns-bar strong" if strong else "ns-bar"
    return (
        f'<div class="{weight}"><span class="ns-name">{escape.html(name)}</span>'
        f'<span class="ns-track"><span style="width:{max(share, 0.005):.1%}"></span></span>'
        f'<span class="ns-share">{share:.1%}</span></div>'
    )


_STYLE = """
.ns-query { display: flex; gap: .4rem 1.4rem; align-items: center; flex-wrap: wrap; }
.ns-query img { width: 5.5rem; height: 5.5rem; image-rendering: pixelated; border-radius: 8px; flex: none; }
.ns-query > .ns-text { flex: 1 0 100%; max-width: 62rem; }
.ns-query.brief > .ns-text { min-width: 0; }
.ns-query.brief > .ns-text > span { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.ns-said { flex: 1 1 11rem; min-width: 0; overflow-wrap: anywhere; }
.ns-bars { flex: 1 1 15rem; max-width: 24rem; min-width: 0; }
.ns-answer { font-size: 1.45rem; font-weight: 650; line-height: 1.25; }
.ns-bar { display: grid; grid-template-columns: minmax(0, 1fr) minmax(2rem, 1fr) 2.8rem; gap: .4rem; align-items:
center; font-size: .8rem;
  line-height: 1.5; opacity: .8; }
.ns-bar.strong { opacity: 1; font-weight: 600; }
.ns-name { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.ns-track { height: 6px; border-radius: 3px; background: color-mix(in srgb, currentColor 14%, transparent); overflow:
hidden; } .ns-track span { display: block; height: 100%; background: #1b8aa3; border-radius: 3px; }
.ns-share { text-align: right; font-variant-numeric: tabular-nums; }
.ns-verdict { overflow-wrap: anywhere; margin-top: .25rem; font-size: .9rem; opacity: .85; }
.ns-where { text-align: center; font-size: .78rem; line-height: 1.25; opacity: .85; }
"""
