"""The image in hand: what the model says of it, and how to choose another one."""

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import streamlit as st
from scipy.special import softmax
from streamlit.runtime.uploaded_file_manager import UploadedFile

from natscope.app import escape, lanes
from natscope.app.bundles import FILES, Served
from natscope.app.components.grid import data_uri, grid
from natscope.app.components.keys import keys
from natscope.app.components.matrix import matrix
from natscope.app.guard import MAX_UPLOADS
from natscope.app.links import pack_image
from natscope.app.uploads import Upload
from natscope.app.views.cards import KINDS, cards_of
from natscope.app.views.controls import control
from natscope.app.views.enlarge import SHARP, enlarge
from natscope.app.views.image_search import search_field
from natscope.app.views.notice import complain
from natscope.app.views.tags import tag_button
from natscope.core.bundle.request import QueryExample
from natscope.core.errors import NatscopeError, QueryError
from natscope.precompute.bundles.asking import takes_files
from natscope.precompute.data.form import form_of, usual_background

_THUMBNAILS = 30
_UNSURE = 0.6  # a prediction below this probability counts as unsure
_SOURCES = {"test": "Test images", "train": "Training images", "image": "Upload"}
_OUTCOMES = ("All", "Right", "Wrong", "Unsure")
_ORDERS = ("By number", "Least sure first", "Surest first")
_SEARCH = "Go to image number or file"
_LARGEST = 10  # MB of an upload
_LONGEST = 40  # characters of a file's name in a sentence
_ALIKE = "A file like those of the data set"
_PREVIEW = 160  # pixels of an upload, and of what the model sees of it
_LARGEST_MATRIX = 20  # classes of which a confusion matrix can be read
_INVERT = {"Automatic": None, "Keep": False, "Invert": True}
_GROUNDS = {
    "dark": "The training images show light objects on black. Automatic: a light border means that the image is "
    "inverted.",
    "light": "The training images show their objects on a light ground. Automatic: a dark border means that the "
    "image is inverted.",
    "mixed": "The training images have light and dark grounds alike, so automatically nothing is inverted.",
}
Take = Callable[[str], None]


def image_bar(attributor: Served, query: QueryExample, take: Take, actions: Mapping[str, Callable[[], None]]) -> None:
    """Draw the image with its prediction, and the ways to another one.

    Args:
        attributor: the opened bundle.
        query: the image.
        take: called with "test:I", "train:I", "image:DATA" or "file:SUM".
        actions: what more keys do, beside those that go to another image.
    """
    _prediction(query, attributor)
    split = "train" if query.origin == "train" else "test"
    count = len(attributor.train_labels if split == "train" else attributor.test_labels)

    def step(by: int) -> None:
        take(f"{split}:{((query.index or 0) + by) % count}")

    alone = query.index is None
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        _button("Previous image", ":material/chevron_left:", lambda: step(-1), disabled=alone)
        _button("Next image", ":material/chevron_right:", lambda: step(1), disabled=alone)
        _button("Shuffle", ":material/shuffle:", lambda: take(f"{split}:{random.randrange(count)}"))
        search_field(_SEARCH, split, attributor.bundle.sources(split), take, key="image_search")
        enlarge(query.example.images[0], title_of(query), key="enlarge_query")
        if not alone:
            own = [f"{query.origin}:{query.index}"]
            tag_button(attributor, own, "Tag", key="tag_query")
    steps = {} if alone else {"ArrowLeft": lambda: step(-1), "ArrowRight": lambda: step(1)}
    keys(steps | dict(actions), key="image_keys", find=_SEARCH)


def title_of(query: QueryExample) -> str:
    """Return a name of the image for people."""
    split = "Test" if query.origin == "test" else "Training"
    return "Your image" if query.index is None else f"{split} image {query.index}"


def _button(label: str, icon: str, do: Callable[[], None], *, disabled: bool = False) -> None:
    key = label.lower().replace(" ", "_")
    st.button(label, icon=icon, key=key, on_click=do, disabled=disabled, type="tertiary")


def _prediction(query: QueryExample, attributor: Served) -> None:
    classes = attributor.bundle.classes
    top = np.argsort(-query.probabilities)[:3]
    bars = "".join(_bar(classes[c], float(query.probabilities[c]), strong=c == query.predicted) for c in top)
    if query.label is None:
        verdict = "Your image, as the model sees it"
    else:
        right = query.label == query.predicted
        mark = "✓ right" if right else f"✗ labelled {escape.html(classes[query.label])}"
        verdict = f"{title_of(query)} · {mark}"
    if query.source and query.source != f"{query.origin} row {query.index}":
        verdict += f"<br>{escape.html(query.source)}"
    st.html(
        f'<div class="ns-query"><img src="{data_uri(query.example.images[0])}" alt="{title_of(query)}">'
        f'<div class="ns-said"><div class="ns-answer">Predicted {escape.html(classes[query.predicted])}</div>'
        f'<div class="ns-verdict">{verdict}</div></div><div class="ns-bars">{bars}</div></div>'
        f"<style>{SHARP}{_STYLE}</style>"
    )
    if query.ood > 1:
        st.warning(
            "This image is out of distribution: it lies further from every training image than 99.5% of "
            "test images do. Treat the prediction and its attribution with caution.",
            icon=":material/explore:",
        )


def finder(attributor: Served, query: QueryExample, take: Take) -> None:
    """Draw the ways to find another image; `take` is called with "test:I" or "image:DATA", say."""
    with st.expander("Find another image", icon=":material/image_search:"):
        _choices(attributor, query, take)


def _choices(attributor: Served, query: QueryExample, take: Take) -> None:
    origin = "image" if query.origin == "upload" else query.origin
    st.session_state.setdefault("source", origin)
    source = control(
        st.segmented_control,
        "Where from",
        list(_SOURCES),
        format_func=_SOURCES.__getitem__,
        key="source",
        required=True,
    )
    if source == "image":
        _upload(attributor, take)
        return
    split, shown = source or "test", None if query.index is None else f"{query.origin}:{query.index}"
    if split != query.origin:  # the field beside the image is for the others
        label = f"Number or file of the {KINDS[split]} image"
        search_field(label, split, attributor.bundle.sources(split), take, key=f"{split}_search")
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
    pages = max(1, -(-len(numbers) // _THUMBNAILS))
    page = min(st.session_state.get(f"{split}_page", 0), pages - 1)
    drawn = numbers[page * _THUMBNAILS : (page + 1) * _THUMBNAILS]
    if not len(numbers):
        st.info("No image fits these filters; widen one of them.", icon=":material/filter_alt_off:")
    card = cards_of(attributor, split)
    cards = [
        card(
            int(i),
            title=f"{KINDS[split].capitalize()} image {i}, labelled {classes[labels[i]]}, predicted {classes[answer]}",
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
            label="Images to choose from",
            size=56,
            selected=places[0] if places else None,
            on_pick=lambda position: take(f"{split}:{drawn[position]}"),
        )
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        _turner("Back", split, page - 1, disabled=page == 0, icon=":material/chevron_left:")
        st.html(f'<div class="ns-where">{len(numbers):,} images<br>page {page + 1} of {pages:,}</div>', width="content")
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


def _upload(attributor: Served, take: Take) -> None:
    if attributor.bundle.stores_inputs:
        _upload_file(attributor, take)
        return
    images, settings = attributor.bundle.examples("train").images, attributor.bundle.manifest.results["settings"]

    def read() -> None:
        _read(images, settings, take)

    wanted = "One object on a plain background" if images.ndim == 3 else _ALIKE
    st.file_uploader(wanted, key="file", on_change=read, max_upload_size=_LARGEST)
    if images.ndim == 3:
        st.radio(
            "Light and dark",
            list(_INVERT),
            key="invert",
            on_change=read,
            horizontal=True,
            help=_GROUNDS[usual_background(images)],
        )
    if st.session_state.get("upload_error"):
        complain(st.session_state["upload_error"], icon=":material/broken_image:")
    upload: Upload | None = st.session_state.get("upload")
    if upload is not None:
        with st.container(horizontal=True):
            yours, seen = st.container(width=_PREVIEW), st.container(width=_PREVIEW)
        yours.image(upload.original, width="stretch")
        yours.caption("yours")
        seen.html(f'<img class="ns-seen" src="{data_uri(upload.image)}" alt="the image as the model sees it">')
        seen.caption("what the model sees" + (", inverted" if upload.inverted else ""))


def _upload_file(attributor: Served, take: Take) -> None:
    """Draw the upload of a file that the bundle's own code makes an input of, or say why there is none."""
    if not takes_files(attributor.bundle):
        st.info(attributor.bundle.examples("train").no_pictures(), icon=":material/upload_file:")
        return

    def read() -> None:
        st.session_state["upload_error"], chosen = None, st.session_state.get("file")
        if not isinstance(chosen, UploadedFile):
            return
        data, digest = chosen.getvalue(), hashlib.sha256(chosen.getvalue()).hexdigest()
        try:
            if "load" not in attributor.bundle.manifest.dataset:  # in a process of its own, before all else reads it
                lanes.read_upload(data, chosen.name, form_of(attributor.bundle.examples("train").images))
            attributor.file(digest, data, chosen.name)
        except NatscopeError as error:
            _refuse(chosen, error)
            return
        kept = [*st.session_state.get(FILES, {}).items(), (digest, (data, chosen.name))]
        st.session_state[FILES] = dict(kept[-MAX_UPLOADS:])
        take(f"file:{digest}")

    st.file_uploader(_ALIKE, key="file", on_change=read, max_upload_size=_LARGEST)
    if st.session_state.get("upload_error"):
        complain(st.session_state["upload_error"], icon=":material/broken_image:")


def _read(images: np.ndarray, settings: Mapping[str, Any], take: Take) -> None:
    st.session_state["upload_error"], st.session_state["upload"] = None, None
    file = st.session_state.get("file")
    if not isinstance(file, UploadedFile):  # none is chosen, or the server no longer has it
        return
    try:
        invert = _INVERT[st.session_state.get("invert", "Automatic")] if images.ndim == 3 else None
        upload = lanes.read_upload(file.getvalue(), file.name, form_of(images, settings) | {"invert": invert})
    except QueryError as error:
        _refuse(file, error)
        return
    st.session_state["upload"] = upload
    take(pack_image(upload.image))


def _refuse(file: UploadedFile, error: NatscopeError) -> None:
    """Keep what is wrong with a file, and its name: the browser itself may refuse the next one, and list both."""
    name = file.name if len(file.name) <= _LONGEST else f"{file.name[:_LONGEST]}…"
    st.session_state["upload_error"] = f"{name}: {error}"


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
