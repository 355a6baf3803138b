"""Tags: what a visitor notes about images, kept in her own browser, collected in a tray and exported."""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from urllib.parse import urljoin

import numpy as np
import streamlit as st
from scipy.special import softmax

from natscope.app import bundles, escape
from natscope.app.bundles import Served
from natscope.app.components.grid import Card, grid
from natscope.app.components.storage import storage
from natscope.app.downloads import offer
from natscope.app.links import AttributeView
from natscope.app.modalities import page_of
from natscope.app.views import frame, telling
from natscope.app.views.controls import control
from natscope.app.views.notice import errors_shown

_TAGS = "tags"  # key of the session's tags: a text for each image, such as "train:12", of each bundle
_DRAWN, _LOADED = "tags_drawn", "tags_loaded"  # what the tray shows, and whether the browser's tags were taken
_CHANGE, _KEPT = "tags_change", "tags_change_kept"  # what the browser is to keep, and which change it last was given
USUAL = ("mislabelled", "duplicate", "interesting")
_LONGEST, _MOST, _BUNDLES = 60, 1000, 20  # letters of a tag, images of a bundle, and bundles
_SHOWN, _OWN = 60, 6  # of the tagged images, and of the visitor's own words
_SPLITS = ("train", "test")
_FOR = "\t"  # in what is kept of an image: between its tag and the image whose prediction it was tagged for, if any


def tag(attributor: Served, images: Sequence[str], *, key: str, asked: str = "") -> None:
    """Draw the controls that tag images: a usual word, which a second click takes away again, or the visitor's own.

    Args:
        attributor: the opened bundle.
        images: "train:I" or "test:I", which all get the same tag.
        key: unique on the page.
        asked: the image whose prediction they are tagged for, likewise, if any.
    """
    own, name = tagged(attributor), f"{key}_{images[0]}_{len(images)}"
    found, typed = _common(own, images), f"{name}_typed"
    st.session_state[name] = found or None  # also after the tray was emptied
    often = [word for word, _ in Counter(own.values()).most_common(_OWN)]
    control(
        st.pills,
        "Tag",
        list(dict.fromkeys([*USUAL, *([found] if found else []), *often])),
        key=name,
        format_func=escape.markdown,
        on_change=lambda: _set(attributor, images, st.session_state.get(name) or "", asked),
        label_visibility="collapsed",
    )

    def take() -> None:
        if text := _clean(st.session_state.get(typed) or ""):
            _set(attributor, images, text, asked)
        st.session_state[typed] = ""

    st.text_input(
        "Other tag",
        key=typed,
        placeholder="Other tag",
        max_chars=_LONGEST,
        on_change=take,
        label_visibility="collapsed",
        width=180,
    )


def tag_button(attributor: Served, images: Sequence[str], label: str, *, key: str) -> None:
    """Draw a button that says the tag which images have in common, and opens what tags them; arguments as of `tag`."""
    found, opened = _common(tagged(attributor), images), f"{key}_open"

    @st.dialog(label, width="small", on_dismiss=lambda: st.session_state.pop(opened, None))
    @errors_shown()
    def draw() -> None:
        tag(attributor, images, key=key)

    text = f"{label}: {escape.markdown(found)}" if found else label
    st.button(text, icon=":material/sell:", key=f"{key}_button", type="tertiary", on_click=_open, args=(opened, images))
    if st.session_state.get(opened) == tuple(images):
        draw()


def _open(opened: str, images: Sequence[str]) -> None:
    st.session_state[opened] = tuple(images)


def tagged(attributor: Served) -> dict[str, str]:
    """Return the tags of a bundle's images, such as "train:12"."""
    return {image: kept.partition(_FOR)[0] for image, kept in _own(attributor).items()}


def of_bundle(name: str | None) -> dict[str, str]:
    """Return the tags of the images of a bundle, by its folder's name, which need not be open; none of another."""
    path = bundles.bundle_paths().get(name or "")
    found = (st.session_state.get(_TAGS) or {}).get(bundles.listed(path).identity, {}) if path else {}
    return {image: kept.partition(_FOR)[0] for image, kept in found.items()}


def changed() -> bool:
    """Return whether tags changed since the tray was drawn, which a part of the page that is redrawn alone does not."""
    return st.session_state.get(_TAGS) is not st.session_state.get(_DRAWN)


def keep() -> None:
    """Have the browser keep what changed since the last time, and give what it kept before this session."""
    change = st.session_state.get(_CHANGE)
    st.session_state[_KEPT] = change and change["id"]
    storage("natscope tags", change, known=_LOADED in st.session_state, key="tags_kept", on_load=_load)


def tray(attributor: Served, take: Callable[[str], None]) -> None:
    """Draw the tagged images, if there are any, and their list as a file; `take` is called with one that is clicked."""
    st.session_state[_DRAWN] = st.session_state.get(_TAGS)
    own, tags = _own(attributor), tagged(attributor)
    if not tags:
        return
    classes, images = attributor.bundle.classes, list(tags)
    with st.expander(f"Tagged {attributor.many} ({len(tags)})", icon=":material/sell:"):
        grid(
            [_card(attributor, image, tags[image]) for image in images[:_SHOWN]],
            key="tagged",
            label=f"Tagged {attributor.many}",
            size=64,
            on_pick=lambda position: take(images[position]),
        )

        if len(images) > _SHOWN:
            st.caption(f"The first {_SHOWN}, and {len(images) - _SHOWN} more in the file.")

        page, bundle = st.context.url or "", attributor.bundle.manifest.name

        def link(image: str) -> str:
            return urljoin(page, frame.tab_address(frame.ATTRIBUTION, AttributeView(image), attributor))

        def source(image: str) -> str:
            return attributor.bundle.sources(image.partition(":")[0])[_number(image)]

        def table() -> str:
            rows = (
                (image, tags[image], own[image].partition(_FOR)[2], *_labels(attributor, image)) for image in images
            )
            return escape.table(
                ("data", "image", "source", "tag", "label", "predicted", "confidence", "tagged_for", "link"),
                (
                    [
                        *(bundle, image, source(image), text, classes[label], classes[answer], f"{share:.4f}"),
                        *(asked, link(asked or image)),
                    ]
                    for image, text, asked, label, answer, share in rows
                ),
            )

        with st.container(horizontal=True):
            offer("CSV", table, "natscope-tags.csv", "text/csv", key="download_tags", icon=":material/table:")
            st.button("Remove all tags", key="untag", on_click=lambda: _clear(attributor), type="tertiary")


def _card(attributor: Served, image: str, text: str) -> Card:
    split, _, number = image.partition(":")
    label, predicted, _ = _labels(attributor, image)
    classes = attributor.bundle.classes
    title = f"{split} {attributor.one} {number}, labelled {classes[label]}, predicted {classes[predicted]}: {text}"
    look = page_of(attributor.bundle.modality).look(attributor.bundle.examples(split), int(number))
    return Card(alt=title, title=title, caption=text, **look)


def _labels(attributor: Served, image: str) -> tuple[int, int, float]:
    """Return an image's label, the predicted class and its probability."""
    split, _, number = image.partition(":")
    labels = attributor.train_labels if split == "train" else attributor.test_labels
    shares = softmax(np.asarray(attributor.bundle.array(f"{split}_logits")[int(number)], dtype=np.float64))
    return int(labels[int(number)]), int(shares.argmax()), float(shares.max())


def _own(attributor: Served) -> dict[str, str]:
    """Return what is kept of a bundle's images, see `_FOR`; those of images that it does not have are left out."""
    counts = {"train": len(attributor.train_labels), "test": len(attributor.test_labels)}
    found = (st.session_state.get(_TAGS) or {}).get(attributor.bundle.identity, {})
    return {image: text for image, text in found.items() if _number(image) < counts[image.partition(":")[0]]}


def _number(image: str) -> int:
    return int(image.partition(":")[2])


def _common(own: dict[str, str], images: Sequence[str]) -> str:
    found = {own.get(image, "") for image in images}
    return found.pop() if len(found) == 1 else ""


def _set(attributor: Served, images: Sequence[str], text: str, asked: str) -> None:
    """Tag images with a text, or take their tags away; where more than may be tagged would be, none of them."""
    bundle = attributor.bundle.identity
    own = _own(attributor)
    said = dict.fromkeys(images, f"{found}{_FOR}{asked}".removesuffix(_FOR) if (found := _clean(text)) else "")
    kept = {image: tag for image, tag in (own | said).items() if tag}
    if len(kept) > max(_MOST, len(own)):
        there = f" and {len(own):,} are tagged already; remove some tags first" if own else ""
        st.toast(f"At most {_MOST:,} {attributor.many} can be tagged{there}. These would be {len(kept):,}.")
        return
    st.session_state[_TAGS] = (st.session_state.get(_TAGS) or {}) | {bundle: kept}
    _remember(bundle, said)


def _clear(attributor: Served) -> None:
    gone = dict.fromkeys(_own(attributor), "")
    st.session_state[_TAGS] = (st.session_state.get(_TAGS) or {}) | {attributor.bundle.identity: {}}
    _remember(attributor.bundle.identity, gone)


def _remember(bundle: str, tags: dict[str, str]) -> None:
    """Note what the browser is to keep: changes alone, as other tabs of it may have changed other tags meanwhile."""
    change = st.session_state.get(_CHANGE)
    pending = {} if change is None or change["id"] == st.session_state.get(_KEPT) else change["bundles"]
    pending = pending | {bundle: pending.get(bundle, {}) | tags}
    st.session_state[_CHANGE] = {"id": secrets.token_hex(8), "bundles": pending}
    telling.tell(frame.place(), of_bundle)


def _load(text: str) -> None:
    """Take tags from a browser, which may send anything; what was tagged meanwhile wins."""
    found, now = read(text), st.session_state.get(_TAGS) or {}
    st.session_state[_TAGS] = {name: found.get(name, {}) | now.get(name, {}) for name in {**found, **now}}
    st.session_state[_LOADED] = True


def read(text: str) -> dict[str, dict[str, str]]:
    """Return the tags of each bundle in a text from outside; what is not a tag is left out."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    every = found.items() if isinstance(found, dict) else ()
    return {name: _valid(tags) for name, tags in list(every)[:_BUNDLES] if isinstance(tags, dict)}


def _valid(tags: dict[str, object]) -> dict[str, str]:
    kept = {}
    for image, text in list(tags.items())[:_MOST]:
        if not isinstance(text, str):
            continue
        said, _, asked = text[: 2 * _LONGEST].partition(_FOR)
        if (name := _named(image)) and (said := _clean(said)):
            kept[name] = f"{said}{_FOR}{found}" if (found := _named(asked)) else said
    return kept


def _named(image: str) -> str:
    """Return a text such as "train:012" as natscope writes it, "train:12"; "" if it names no image."""
    split, _, number = image.partition(":")
    whole = number.isascii() and number.isdecimal() and len(number) < 10
    return f"{split}:{int(number)}" if split in _SPLITS and whole else ""


def _clean(text: str) -> str:
    return escape.visible(text[:_LONGEST].strip())[:_LONGEST]
