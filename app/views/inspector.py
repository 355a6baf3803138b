"""The inspector: a training image beside the query, what the model makes of it, and who else relies on it.

Every click on a picture of a training image opens it, on any page; a point of the map is selected first.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import streamlit as st
from scipy.special import softmax

from natscope.app import escape, tasks
from natscope.app.bundles import Served
from natscope.app.components.dialog_stops import dialog_stops
from natscope.app.components.grid import Card, grid
from natscope.app.links import AttributeView
from natscope.app.modalities import STYLE, page_of
from natscope.app.views import frame, tags, word_links
from natscope.app.views.cards import cards_of
from natscope.app.views.job import run_job
from natscope.app.views.notice import complain, errors_shown
from natscope.app.views.query import title_of
from natscope.core.bundle.request import QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.examples import Examples
from natscope.core.methods import METHODS, REFERENCE
from natscope.precompute.data.shown import shown

Explain = Callable[[str, str], None]
_OPEN = "inspected"  # key of the place that opened it, the query then, its images, and the position of the shown one
_NEIGHBOURS, _FIRST = 5, 10  # picks that are shown for the image, and among which others must have it
_WAYS = (
    ("Explain this {}", "my_location", frame.ATTRIBUTION),
    ("Compare methods", "compare", frame.COMPARE),
)
_ASKED, _SHOWN = 200, 30  # test images that are asked, and shown


def inspect(place: str, images: Sequence[int], position: int) -> None:
    """Open the inspector when the page is drawn.

    Args:
        place: the part of a page that was clicked.
        images: training indices, through which one can go on.
        position: of the one that was clicked.
    """
    st.session_state[_OPEN] = (place, frame.shared_query(), tuple(map(int, images)), position)


def usual_request(attributor: Served) -> Request:
    """Return what is asked about training images where no method was chosen."""
    return Request(REFERENCE, attributor.bundle.sigma2(REFERENCE))


def inspector(
    attributor: Served,
    place: str,
    *,
    request: Request,
    query: QueryExample | None = None,
    about: Callable[[int], str] = lambda index: "",
    explain: Explain | None = None,
) -> None:
    """Draw the inspector, if this place opened it.

    Args:
        attributor: the opened bundle.
        place: as it was given to `inspect`.
        request: the method and settings by which the image's own neighbours are found.
        query: the image whose picks are inspected, if the page has one.
        about: returns what is to be said of a training image here (Markdown).
        explain: makes an image the query, such as "train:5", and goes to a tab of Explain if one is named; where it is
            None, links do it.
    """
    found = st.session_state.get(_OPEN)
    if found is None or found[0] != place:
        return
    if found[1] != frame.shared_query() or max(found[2]) >= len(attributor.train_labels):  # that page was left
        _close()
        return
    if METHODS[request.method].at_random:  # whose picks for other images say nothing
        request = usual_request(attributor)

    width: Literal["large", "medium"] = "large" if page_of(attributor.bundle.modality).worded else "medium"

    @st.dialog("A closer look", width=width, on_dismiss=_close)
    @errors_shown()
    def draw() -> None:
        if _OPEN not in st.session_state:  # something in it led elsewhere
            st.rerun()
        _, _, images, position = st.session_state[_OPEN]
        dialog_stops("inspector_stops")
        _draw(attributor, images, position, query, request, about, explain)

    draw()


def _close() -> None:
    st.session_state.pop(_OPEN, None)


def _go(images: tuple[int, ...], position: int) -> None:
    if (found := st.session_state.get(_OPEN)) is not None:
        st.session_state[_OPEN] = (*found[:2], images, position)


def _draw(
    attributor: Served,
    images: tuple[int, ...],
    position: int,
    query: QueryExample | None,
    request: Request,
    about: Callable[[int], str],
    explain: Explain | None,
) -> None:
    index, classes = images[position], attributor.bundle.classes
    shares = softmax(np.asarray(attributor.bundle.array("train_logits")[index], dtype=np.float64))
    label, answer = int(attributor.train_labels[index]), int(shares.argmax())
    page = page_of(attributor.bundle.modality)
    _steps(images, position, smooth=page.smooth)
    own = attributor.bundle.examples("train")[np.array([index])]
    pair = [(own, f"Training {attributor.one} {index}", _described(classes, label, answer, shares))]
    if query is not None:
        said = _described(classes, query.label, query.predicted, query.probabilities)
        pair.insert(0, (query.example, title_of(query), said))
    titles = [(title, said) for _, title, said in pair]
    if query is None or not page.worded or not word_links.pair(attributor, query, index, request.target, titles):
        _pair(pair)
    if said := about(index):
        st.markdown(said)
    st.caption("Source")
    st.code(escape.visible(attributor.bundle.sources("train")[index]), language=None, wrap_lines=True)
    _actions(attributor, index, request, explain)
    if attributor.heavy(request):
        st.caption("Its own picks are shown where the pool and what is assumed known are the usual ones.")
        return
    _neighbours(attributor, index, request)
    _others(attributor, index, label, request, explain)


def _described(classes: Sequence[str], label: int | None, answer: int, shares: np.ndarray) -> str:
    known = "" if label is None else f"labelled {classes[label]}, "
    return f"{known}predicted {classes[answer]}{'' if label in (None, answer) else ' ✗'} ({shares[answer]:.1%})"


def _steps(images: tuple[int, ...], position: int, *, smooth: bool) -> None:
    steps = (("Previous", "chevron_left", position - 1), ("Next", "chevron_right", position + 1))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for text, icon, to in steps if len(images) > 1 else ():
            st.button(
                text,
                icon=f":material/{icon}:",
                key=f"inspector_{text}",
                on_click=_go,
                args=(images, to),
                disabled=not 0 <= to < len(images),
                type="tertiary",
            )
        if len(images) > 1:
            st.caption(f"{position + 1} of {len(images):,}", width="content")
        if smooth:
            st.toggle("Smooth", key="inspector_smooth", help="Off: every pixel as the model sees it.")


def _pair(pair: Sequence[tuple[Examples, str, str]]) -> None:
    smooth = " smooth" if st.session_state.get("inspector_smooth") else ""
    figures = "".join(
        f"<figure>{shown(example, alt=f'{escape.visible(title)}, enlarged', whole=True)}"
        f"<figcaption>{escape.html(title)}<br>{escape.html(said)}</figcaption></figure>"
        for example, title, said in pair
    )
    st.html(f'<div class="ns-pair{smooth}">{figures}</div><style>{STYLE}{_STYLE}</style>')


def _actions(attributor: Served, index: int, request: Request, explain: Explain | None) -> None:
    asked = _asked(attributor, f"train:{index}", request)
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        for form, icon, tab in _WAYS:
            text = form.format(attributor.one)
            if explain is not None:
                go = partial(_lead, explain, f"train:{index}", tab)
                st.button(text, icon=f":material/{icon}:", key=f"inspector_{tab}", on_click=go)
            else:
                st.link_button(text, frame.tab_address(tab, asked, attributor), icon=f":material/{icon}:")
    about = frame.shared_query() if explain is not None else ""
    asked_for = about if about.startswith(("test:", "train:")) else ""  # an upload has no name
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        tags.tag(attributor, [f"train:{index}"], key="tag_inspected", asked=asked_for)


def _asked(attributor: Served, image: str, request: Request) -> AttributeView:
    return AttributeView(image, request.method, request.sigma2 or attributor.bundle.sigma2(request.method))


def _lead(explain: Explain, image: str, tab: str) -> None:
    _close()
    explain(image, tab)


def _neighbours(attributor: Served, index: int, request: Request) -> None:
    """Draw what the prediction for a training image itself relies on most."""
    try:
        asked = replace(request, budget=_NEIGHBOURS, target=None)
        items = attributor.attribute(attributor.query("train", index), asked).items
    except QueryError as error:
        complain(error)
        return
    found = [item.train_index for item in items]
    st.caption(f"Its own prediction relies most on (by {METHODS[request.method].title})")
    grid(
        list(map(cards_of(attributor, "train"), found)),
        key="neighbours",
        label=f"Training {attributor.many} that the prediction for training {attributor.one} {index} relies on most",
        size=64,
        on_pick=lambda position: _go(tuple(found), position),
    )


def _others(attributor: Served, index: int, label: int, request: Request, explain: Explain | None) -> None:
    """Draw the test images that have a training image among their first picks, once they have been asked."""
    asked = replace(request, budget=_FIRST, target=None)
    found = run_job(
        ("reliance", attributor.place, label, asked),
        tasks.reliance,
        *(attributor.place, label, asked, _ASKED),
        name="reliance",
        label="Who else relies on it?",
        icon=":material/group:",
    )
    if found is None:
        return
    tests, name = found.of(index), escape.markdown(attributor.bundle.classes[label])
    more = f" The first {_SHOWN} are shown." if len(tests) > _SHOWN else ""
    st.caption(
        f"Among the first {_FIRST} picks of **{len(tests)}** of the {len(found.tests)} test {attributor.many} that "
        f"were asked (predicted {name}).{more}"
    )

    def lead(position: int) -> None:
        if explain is not None:
            _lead(explain, f"test:{tests[position]}", frame.ATTRIBUTION)

    card = cards_of(attributor, "test")

    def shown(number: int) -> Card:
        title = f"Explain {attributor.bundle.classes[attributor.test_labels[number]]}, test {attributor.one} {number}"
        asked = _asked(attributor, f"test:{number}", request)
        address = "" if explain is not None else frame.tab_address(frame.ATTRIBUTION, asked, attributor)
        return card(number, title=title, href=address)

    if len(tests):
        grid(
            [shown(int(number)) for number in tests[:_SHOWN]],
            key="reliant",
            label=f"Test {attributor.many} that rely on training {attributor.one} {index}",
            size=48,
            on_pick=lead,
        )


_STYLE = """
.ns-pair { display: flex; gap: .8rem; flex-wrap: wrap; }
.ns-pair figure { margin: 0; width: min(14rem, 47%); }
.ns-pair figure:has(.ns-text) { width: 100%; }
.ns-pair .ns-text { max-height: 24rem; overflow: auto; }
.ns-pair img { width: 100%; height: auto; aspect-ratio: 1; border-radius: 8px;
  image-rendering: pixelated; background: #000; }
.ns-pair.smooth img { image-rendering: auto; }
.ns-pair figcaption { font-size: .85rem; line-height: 1.35; margin-top: .25rem; }
"""
