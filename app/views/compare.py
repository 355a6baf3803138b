"""The tab Compare: the same query, every method, side by side."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from natscope.app import escape, links, words
from natscope.app.bundles import Served
from natscope.app.components.comparison import Strip, Tile, comparison, marks
from natscope.app.links import LARGEST_COMPARED, MOST_COMPARED, ComparisonView
from natscope.app.modalities import page_of
from natscope.app.theme import FRAMES
from natscope.app.views import attribute, frame
from natscope.app.views.compare_results import agreement_section, downloads
from natscope.app.views.controls import control, sigma2_slider
from natscope.app.views.inspector import inspect, inspector
from natscope.app.views.notice import complain, warn
from natscope.app.views.stability import stability
from natscope.core.analysis.comparison import Row, shared_images
from natscope.core.bundle.request import QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, REFERENCE
from natscope.core.text import beginning

_VIEW, _KEY, _TAB = "compare_view", "compare_", frame.COMPARE
SESSION = (_KEY,)  # what belongs to a bundle
_CONTROLS = tuple(
    _KEY + name for name in ("methods", "budget", "target", "exponent", "pool", "conditioning", "same", "own_")
)
_ITS_ANSWER = -1
_FEWEST = 2
_NAMED = 24  # characters of a pinned text that name it
_PAINT = 0.4  # seconds between two drawings of rows that come one after another


def view(attributor: Served) -> ComparisonView:
    """Return what the tab shows: at first what Attribution asks; its method's σ² is followed from there on."""
    asked, seen = st.session_state.get(attribute.VIEW), f"{_KEY}seen"
    from_there = (
        _VIEW not in st.session_state
        and st.query_params.get(frame.TAB, _TAB) != _TAB
        and st.session_state.get(f"{attribute.VIEW}_of") == attributor.place
    )
    default = frame.compared(asked, attributor) if asked is not None and from_there else ComparisonView()
    found = frame.view(
        _VIEW,
        attributor,
        default,
        tab=_TAB,
        controls=_CONTROLS,
        complete=lambda view: _usual_sigma2s(view, attributor),
    )
    elsewhere = frame.shared_sigma2(attributor)
    before = st.session_state.get(seen) if not from_there else ()
    if elsewhere is not None and before is not None and elsewhere != before and found.own:
        name, sigma2 = elsewhere
        found = st.session_state[_VIEW] = replace(found, own=found.own | {name: sigma2})  # type: ignore[operator]
        st.session_state.pop(f"{_KEY}own_{name}", None)
    st.session_state[seen] = elsewhere
    return found


def show(attributor: Served, query: QueryExample) -> None:
    """Draw the tab."""
    st.title("Compare methods")
    st.markdown(
        f"Every method is asked about the same prediction; {attributor.a_one} that several name has the same letter "
        "in each."
    )
    view: ComparisonView = st.session_state[_VIEW]
    queries = _queries(view, query, attributor)
    _restore(view, attributor)
    chosen = _methods(attributor)
    controls, figure = st.columns([1, 3.7], gap="large")
    with controls:
        _pins(attributor)
        view = _settings(attributor, chosen)
    frame.keep(_VIEW, view, attributor, tab=_TAB)
    methods = view.methods or attributor.usable(fast=True)
    with figure:
        if min(len(chosen), len(methods)) < _FEWEST:
            st.info("Choose at least two methods to compare.", icon=":material/compare:")
            return
        requests = [view.request(name) for name in methods]
        slots = [(st.empty(), st.empty()) for _ in queries]
        rows: list[list[Row]] = []
        try:
            for position, (asked, (slot, waiting)) in enumerate(zip(queries, slots, strict=True)):
                rows.append(_answers(attributor, asked, requests, view.sigma2, slot, waiting, position))
                with slot.container():
                    _block(attributor, asked, rows[-1], f"{position}")
        except QueryError as error:  # it may be waiting for a computation further down, which can be stopped there
            complain(error)
            rows = []
        if rows:
            st.caption(_marked(attributor, rows))
            downloads(attributor, queries, rows, view)
    if rows:
        agreement_section(attributor, rows, view)
    stability(attributor, view.query, queries[0], requests)
    for position, asked in enumerate(queries):
        place = f"{_TAB}_{position}"
        inspector(attributor, place, request=requests[0], query=asked, explain=frame.explain)


def _answers(
    attributor: Served,
    query: QueryExample,
    requests: Sequence[Request],
    sigma2: float,
    slot: DeltaGenerator,
    waiting: DeltaGenerator,
    position: int,
) -> list[Row]:
    """Return the rows of an image; those that are there are drawn while others are computed, the slowest last."""
    found: dict[Request, Row] = {}
    if attributor.compared(query, requests, sigma2):
        with waiting.container():
            return attributor.compare(query, requests, sigma2)
    painted = 0.0
    for request in sorted(requests, key=lambda each: METHODS[each.method].ekfac):
        with waiting.container():
            (found[request],) = attributor.compare(query, [request], sigma2)
        if len(found) < len(requests) and time.monotonic() - painted > _PAINT:
            with slot.container():
                _block(
                    attributor, query, [found[each] for each in requests if each in found], f"{position}_{len(found)}"
                )
            painted = time.monotonic()
    return [found[each] for each in requests]


def _usual_sigma2s(view: ComparisonView, attributor: Served) -> ComparisonView:
    if view.sigma2:
        return view
    own = frame.usual_sigma2s(attributor)
    return replace(view, sigma2=attributor.bundle.sigma2(REFERENCE), own=view.own or own)


def _queries(view: ComparisonView, query: QueryExample, attributor: Served) -> list[QueryExample]:
    """Open the pinned images beside the current one; report and leave out what cannot be opened."""
    current = frame.shared_query()
    opened: list[tuple[str, QueryExample]] = [(current, query)]
    for text in view.pins:
        if text != current:
            try:
                opened.append((text, links.open_query(text, attributor)))
            except QueryError as error:
                warn(error, icon=":material/link_off:")
    texts = tuple(text for text, _ in opened)
    pins = tuple(pin for pin in view.pins if pin in texts)
    st.session_state[_VIEW] = replace(view, query=current, pins=pins)
    return [query for _, query in opened]


_change = partial(frame.change, _VIEW)


def _pins(attributor: Served) -> None:
    """Draw what keeps images in view beside the current one."""
    view: ComparisonView = st.session_state[_VIEW]
    st.button(
        f"Pin this {attributor.one}",
        help=f"Keep this {attributor.one} in view and go on to others; {MOST_COMPARED} at most.",
        on_click=lambda: _change(pins=(view.query, *view.pins)),
        key=f"{_KEY}pin",
        icon=":material/keep:",
        disabled=len(view.pins) + 1 >= MOST_COMPARED or view.query in view.pins,
        width="stretch",
    )
    if view.pins:
        gone = st.pills(
            "Pinned (click to remove)",
            list(view.pins),
            format_func=lambda text: f"{_pin_title(attributor, text, view.pins.index(text) + 1)} ✕",
            key=f"{_KEY}unpin_{len(view.pins)}_{view.query[:20]}",
        )
        if gone:
            _change(pins=tuple(pin for pin in view.pins if pin != gone))
            st.rerun()


def _pin_title(attributor: Served, query: str, number: int) -> str:
    """Return what names a pinned query among others, as Markdown."""
    split, _, rest = query.partition(":")
    if split in ("test", "train"):
        return f"{split} {rest}"
    page = page_of(attributor.bundle.modality)
    if not page.worded:
        return f"upload {number}"
    try:
        given = page.unpack(rest, attributor.bundle.examples("train"))
    except QueryError:
        return f"upload {number}"
    said = " ".join((given if isinstance(given, str) else given[0]).split())
    return f"{number}: {escape.isolated(escape.markdown(beginning(said, _NAMED)))}"


def _methods(attributor: Served) -> tuple[str, ...]:
    """Draw the control of the methods, and return those that are chosen."""
    names = control(
        st.pills,
        "Methods",
        list(METHODS),
        selection_mode="multi",
        key=f"{_KEY}methods",
        format_func=lambda n: METHODS[n].title + (" (minutes)" if attributor.slow(METHODS[n]) else ""),
        help="Two or more. A method that this bundle lacks says in its row how to add it; one that takes minutes an "
        f"{attributor.one} on this network is not chosen at first.",
    )
    return tuple(name for name in METHODS if name in names)


def _settings(attributor: Served, chosen: tuple[str, ...]) -> ComparisonView:
    """Draw the other settings and return the view that they and the chosen methods describe."""
    view: ComparisonView = st.session_state[_VIEW]
    classes, labels = attributor.bundle.classes, words.EXPERT
    budget = control(st.slider, labels.budget, 1, LARGEST_COMPARED, key=f"{_KEY}budget", help=labels.budget_help)
    target = control(
        st.selectbox,
        "Explain",
        [_ITS_ANSWER, *range(len(classes))],
        key=f"{_KEY}target",
        format_func=lambda c: "the model’s answer" if c == _ITS_ANSWER else classes[c],
        help=f"The class whose support is attributed, for every {attributor.one} in view.",
    )
    about = labels.sigma2_help + " The information that each subset contributes is counted at this σ² too."
    sigma2 = sigma2_slider(st.container(), f"{labels.sigma2} for scoring", attributor, f"{_KEY}exponent", help=about)
    more = st.expander("More settings", icon=":material/tune:")
    with more:
        own = _own_sigma2(attributor, view, chosen, sigma2)
    pool = control(
        more.segmented_control,
        labels.pool,
        list(labels.pools),
        key=f"{_KEY}pool",
        format_func=labels.pools.__getitem__,
        help=labels.pool_help,
        required=True,
        width="stretch",
    )
    conditioning = control(
        more.segmented_control,
        labels.conditioning,
        list(labels.conditionings),
        key=f"{_KEY}conditioning",
        format_func=labels.conditionings.__getitem__,
        help=labels.conditioning_help,
        required=True,
        width="stretch",
    )
    return replace(
        view,
        methods=() if chosen == attributor.usable(fast=True) else chosen,
        budget=budget,
        target=None if target == _ITS_ANSWER else target,
        sigma2=sigma2,
        own=own,
        pool=pool or "same-class",
        conditioning=conditioning or "pool",
    )


def _restore(view: ComparisonView, attributor: Served) -> None:
    """Set the controls to the view's values; Streamlit forgets a control's value as soon as it is not drawn."""
    now, known = attributor.usable(fast=True), f"{_KEY}usable"
    if not view.methods and st.session_state.get(known, now) != now:
        st.session_state.pop(f"{_KEY}methods", None)  # a method that became ready is offered too
    st.session_state[known] = now
    values = {
        "methods": list(view.methods or now),
        "budget": view.budget,
        "target": _ITS_ANSWER if view.target is None else view.target,
        "exponent": links.exponent_of(view.sigma2),
        "pool": view.pool,
        "conditioning": view.conditioning,
        "same": not view.own,
    }
    for key, value in values.items():
        st.session_state.setdefault(_KEY + key, value)


def _own_sigma2(attributor: Served, view: ComparisonView, methods: Sequence[str], common: float) -> dict[str, float]:
    """Draw one σ² per method that uses one, unless one is shared by all."""
    same = control(
        st.toggle, "Same σ² for every method", key=f"{_KEY}same", help="Off: each method that uses σ² gets its own."
    )
    if same:
        return {}
    own = {}
    for name in (name for name in methods if METHODS[name].uses_sigma2):
        key = f"{_KEY}own_{name}"
        st.session_state.setdefault(key, links.exponent_of(view.own.get(name, common)))
        own[name] = sigma2_slider(st.container(), METHODS[name].title, attributor, key)
    return own


def _marked(attributor: Served, rows: Sequence[Sequence[Row]]) -> str:
    """Return what the letters, colours and numbers of the figures say."""
    lists = "columns" if page_of(attributor.bundle.modality).worded else "rows"
    sentences = [
        f"The number below {attributor.a_one} is its rank.",
        f"{attributor.a_one.capitalize()} that several methods chose has the same letter in all their {lists}.",
    ]
    if max(len(shared_images(block)) for block in rows) > len(FRAMES):
        sentences.append(f"The {len(FRAMES)} that most methods chose have a colour each; the others are grey.")
    if len(rows) > 1:
        sentences.append("Letters and colours count anew in each figure.")
    return " ".join([*sentences, f"Click any {attributor.one} to inspect it."])


def _block(attributor: Served, query: QueryExample, rows: Sequence[Row], part: str) -> None:
    classes, examples = attributor.bundle.classes, attributor.bundle.examples("train")
    look = page_of(examples.modality).look
    tags = marks(list(shared_images(rows)))
    strips = []
    for row in rows:
        method = METHODS[row.request.method]
        note = f"σ² = {words.sigma2_text(row.sigma2)}" if method.uses_sigma2 and row.sigma2 else ""
        tiles = []
        items = zip(row.answer.items, row.answer.rank_labels, strict=True) if row.answer else ()
        for item, rank in items:
            letter, colour = tags.get(item.train_index, ("", ""))
            amount = f"score {words.number(item.score, 4)}" + (
                "" if item.nats is None else f", first {item.rank}: {words.nats(item.nats)}"
            )
            tooltip = f"rank {rank}, {classes[item.label]}, training {attributor.one} {item.train_index}, {amount}"
            place = (rank, item.train_index, letter, colour)
            tiles.append(Tile(tooltip, tooltip, classes[item.label], *place, **look(examples, item.train_index)))
        strips.append(Strip(method.title, note, tuple(tiles), row.failure))
    picks = list(dict.fromkeys(tile.image for strip in strips for tile in strip.tiles))
    name = f"your {attributor.one}" if query.index is None else f"{query.origin} {attributor.one} {query.index}"
    said = f"Predicted {classes[query.predicted]}"
    if query.label is not None:
        said += " ✓" if query.label == query.predicted else f", labelled {classes[query.label]}"
    comparison(
        look(query.example, 0),
        (name, said),
        strips,
        key=f"{_KEY}figure_{part}",
        on_pick=lambda image: inspect(f"{_TAB}_{part.partition('_')[0]}", picks, picks.index(image)),
    )
