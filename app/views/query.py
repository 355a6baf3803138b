"""The query's side of the Attribute page: what the model says of the image, and how to choose another one."""

import random
from collections.abc import Callable

import numpy as np
import streamlit as st
from scipy.special import softmax
from streamlit.runtime.uploaded_file_manager import UploadedFile

from natscope.app import escape, lanes
from natscope.app.bundles import Served
from natscope.app.components.grid import Card, data_uri, grid
from natscope.app.links import pack_image
from natscope.app.uploads import Upload, form_of, usual_background
from natscope.app.views.enlarge import SHARP
from natscope.app.views.notice import complain
from natscope.core.bundle.request import QueryImage
from natscope.core.errors import QueryError

_THUMBNAILS = 30
_UNSURE = 0.6  # a prediction below this probability counts as unsure
_SOURCES = {"test": "Test images", "train": "Training images", "image": "Upload"}
_OUTCOMES = ("All", "Right", "Wrong", "Unsure")
_INVERT = {"by its border": None, "as it is": False, "swap light and dark": True}
_GROUNDS = {
    "dark": "The training images show light objects on black. By its border: a light border means that the image is "
    "inverted.",
    "light": "The training images show their objects on a light ground. By its border: a dark border means that the "
    "image is inverted.",
    "mixed": "The training images have light and dark grounds alike, so by its border nothing is inverted.",
}
Take = Callable[[str], None]


def prediction(query: QueryImage, attributor: Served) -> None:
    """Draw the image as the model sees it, with the model's probabilities."""
    classes = attributor.bundle.classes
    top = np.argsort(-query.probabilities)[:4]
    bars = "".join(_bar(classes[c], float(query.probabilities[c]), strong=c == query.predicted) for c in top)
    if query.label is None:
        verdict = "Your image, as the model sees it"
    else:
        right = query.label == query.predicted
        mark = "✓ right" if right else f"✗ wrong, it is labelled {escape.html(classes[query.label])}"
        name = "Test" if query.origin == "test" else "Training"
        verdict = f"{name} image {query.index} · {mark}"
    st.html(
        f'<div class="ns-query"><img src="{data_uri(query.image)}" alt="the query image">'
        f'<div><div class="ns-answer">{escape.html(classes[query.predicted])}</div>{bars}</div></div>'
        f'<div class="ns-verdict">{verdict}</div><style>{SHARP}{_STYLE}</style>'
    )
    if query.ood > 1:
        st.warning(
            "This image is out of distribution: it lies further from every training image than 99.5 % of "
            "test images do. Treat the prediction and its attribution with caution.",
            icon=":material/explore:",
        )


def picker(attributor: Served, query: QueryImage, take: Take) -> None:
    """Draw the ways to choose another query; `take` is called with "test:I", "train:I" or "image:DATA"."""
    origin = "image" if query.origin == "upload" else query.origin
    st.session_state.setdefault("source", origin)
    source = st.segmented_control(
        "Choose another image",
        list(_SOURCES),
        format_func=_SOURCES.__getitem__,
        key="source",
        required=True,
        width="stretch",
    )
    if source == "image":
        _upload(attributor, take)
    else:
        gallery(attributor, source or "test", take)


def gallery(attributor: Served, split: str, take: Take) -> None:
    """Draw the "test" or "train" images with filters; `take` is called with "test:I" or "train:I"."""
    bundle, classes = attributor.bundle, attributor.bundle.classes
    labels = attributor.test_labels if split == "test" else attributor.train_labels
    filters = st.container(horizontal=True)
    wanted = filters.selectbox(
        "Label",
        [None, *range(len(classes))],
        format_func=lambda c: "Any" if c is None else classes[c],
        key=f"{split}_class",
    )
    outcome = filters.selectbox(
        "The model is",
        _OUTCOMES,
        key=f"{split}_outcome",
        help=f"Unsure: its answer has a probability below {_UNSURE:.0%}.",
    )
    numbers = _filtered(bundle.array(f"{split}_logits"), labels, wanted, outcome)
    pages = max(1, -(-len(numbers) // _THUMBNAILS))
    page = min(st.session_state.get(f"{split}_page", 0), pages - 1)
    shown = numbers[page * _THUMBNAILS : (page + 1) * _THUMBNAILS]
    if not len(numbers):
        st.info("No image fits these filters; widen one of them.", icon=":material/filter_alt_off:")
    images = bundle.array(f"{split}_images")
    cards = [
        Card(
            src=data_uri(np.asarray(images[i])),
            alt=f"{split} image {i}, {classes[labels[i]]}",
            title=f"{classes[labels[i]]}, image {i}",
        )
        for i in shown
    ]
    if cards:
        grid(
            cards,
            key=f"{split}_gallery",
            label="Images to choose from",
            size=44,
            on_pick=lambda position: take(f"{split}:{shown[position]}"),
        )
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        _turner("‹", split, page - 1, disabled=page == 0, help_text="Earlier images")
        st.html(f'<div class="ns-where">{len(numbers):,} images<br>page {page + 1} of {pages:,}</div>', width="content")
        _turner("›", split, page + 1, disabled=page + 1 >= pages, help_text="Later images")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(
            "Random",
            icon=":material/shuffle:",
            key=f"{split}_random",
            disabled=not len(numbers),
            on_click=lambda: take(f"{split}:{random.choice(numbers)}"),
            width=130,
        )
        st.number_input(
            "Image number",
            min_value=0,
            max_value=len(labels) - 1,
            value=None,
            step=1,
            placeholder=f"0 – {len(labels) - 1:,}",
            key=f"{split}_number",
            on_change=lambda: _by_number(split, take),
            width="stretch",
        )


def _turner(text: str, split: str, page: int, *, disabled: bool, help_text: str) -> None:
    st.button(
        text,
        key=f"{split}_turn_{text}",
        disabled=disabled,
        on_click=_turn,
        args=(split, page),
        width=56,
        help=help_text,
    )


def _filtered(logits: np.ndarray, labels: np.ndarray, wanted: int | None, outcome: str) -> np.ndarray:
    """Return the numbers of the images that fit the filters, (n,) int64."""
    keep = np.ones(len(labels), dtype=bool) if wanted is None else labels == wanted
    if outcome == "Right":
        keep &= logits.argmax(1) == labels
    elif outcome == "Wrong":
        keep &= logits.argmax(1) != labels
    elif outcome == "Unsure":
        keep &= softmax(logits, axis=1).max(1) < _UNSURE
    return np.flatnonzero(keep)


def _turn(split: str, page: int) -> None:
    st.session_state[f"{split}_page"] = page


def _by_number(split: str, take: Take) -> None:
    number = st.session_state.get(f"{split}_number")
    if number is not None:
        take(f"{split}:{number}")


def _upload(attributor: Served, take: Take) -> None:
    images = attributor.bundle.array("train_images")

    def read() -> None:
        _read(images, take)

    st.file_uploader("One object on a plain background, up to 10 MB", key="file", on_change=read)
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
        yours, seen = st.columns(2)
        yours.image(upload.original, width="stretch")
        yours.caption("yours")
        seen.html(f'<img class="ns-seen" src="{data_uri(upload.image)}" alt="the image as the model sees it">')
        seen.caption("what the model sees" + (", inverted" if upload.inverted else ""))


def _read(images: np.ndarray, take: Take) -> None:
    st.session_state["upload_error"], st.session_state["upload"] = None, None
    file = st.session_state.get("file")
    if not isinstance(file, UploadedFile):  # none is chosen, or the server no longer has it
        return
    try:
        invert = _INVERT[st.session_state.get("invert", "by its border")] if images.ndim == 3 else None
        upload = lanes.read_upload(file.getvalue(), file.name, form_of(images) | {"invert": invert})
    except QueryError as error:
        st.session_state["upload_error"] = str(error)
        return
    st.session_state["upload"] = upload
    take(pack_image(upload.image))


def _bar(name: str, share: float, *, strong: bool) -> str:
    weight = "ns-bar strong" if strong else "ns-bar"
    return (
        f'<div class="{weight}"><span class="ns-name">{escape.html(name)}</span>'
        f'<span class="ns-track"><span style="width:{max(share, 0.005):.1%}"></span></span>'
        f'<span class="ns-share">{share:.1%}</span></div>'
    )


_STYLE = """
.ns-query { display: flex; gap: 1rem; align-items: center; }
.ns-query img { width: 7.5rem; height: 7.5rem; image-rendering: pixelated; border-radius: 8px; flex: none; }
.ns-query > div { flex: 1; min-width: 0; overflow-wrap: anywhere; }
.ns-answer { font-size: 1.35rem; font-weight: 650; margin-bottom: .35rem; }
.ns-bar { display: grid; grid-template-columns: minmax(0, 1fr) minmax(2rem, 1fr) 2.8rem; gap: .4rem; align-items:
center; font-size: .8rem;
  line-height: 1.5; opacity: .8; }
.ns-bar.strong { opacity: 1; font-weight: 600; }
.ns-name { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.ns-track { height: 6px; border-radius: 3px; background: color-mix(in srgb, currentColor 14%, transparent); overflow:
hidden; } .ns-track span { display: block; height: 100%; background: #1b8aa3; border-radius: 3px; }
.ns-share { text-align: right; font-variant-numeric: tabular-nums; }
.ns-verdict { overflow-wrap: anywhere; margin-top: .5rem; font-size: .85rem; opacity: .85; }
.ns-where { text-align: center; font-size: .78rem; line-height: 1.25; opacity: .85; }
"""
