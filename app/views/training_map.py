"""The tab Map: all training images in the plane, those that the network sees as alike close together."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import streamlit as st

from natscope.app import escape, tasks, words
from natscope.app.bundles import Served
from natscope.app.components.grid import grid
from natscope.app.components.hover import pictures
from natscope.app.downloads import offer
from natscope.app.figures import on_page
from natscope.app.figures.chart import PointMap, Points
from natscope.app.links import COLOURINGS, FEATURES, LARGEST_BUDGET, PLANTED, MapView
from natscope.app.modalities import page_of
from natscope.app.tasks import TrainingMap
from natscope.app.views import frame, tags
from natscope.app.views.cards import cards_of
from natscope.app.views.controls import control
from natscope.app.views.inspector import inspect, inspector, usual_request
from natscope.app.views.job import leave_job, run_job
from natscope.app.views.map_groups import Group, finding, groups_of
from natscope.app.views.notice import complain, fragment
from natscope.core.analysis.embedding import MOST
from natscope.core.bundle.request import Attribution, QueryExample
from natscope.core.errors import QueryError
from natscope.precompute.paths import home

_VIEW, _KEY, _TAB = "map_view", "map_", frame.MAP
SESSION = (_KEY,)  # what belongs to a bundle
_CONTROLS = tuple(_KEY + name for name in ("features", "colour", "budget"))
_SELECTED, _CHART = f"{_KEY}selected", f"{_KEY}chart"
_ARRAYS = {"penultimate": "penultimate", "kernel": "features"}  # of the bundle
_FEATURES = {"penultimate": "Penultimate features", "kernel": "Kernel k(x, x′)"}
_COLOURINGS = {
    "label": "Label",
    "predicted": "Predicted",
    "wrong": "Right or wrong",
    "share": "Share for this {}",
    "tag": "Tag",
    PLANTED: "Planted",
}
_ABOUT = (
    "Penultimate features: what enters the last layer, whatever the label. Kernel: what the methods compare, the "
    "response of each example’s own label, so that labels lie apart."
)
_SHOWN = 60  # selected images that are pictured


def view(attributor: Served) -> MapView:
    """Return what the tab shows."""
    backdoor = attributor.bundle.manifest.backdoor
    squares = 0 if backdoor is None else backdoor.patterns[0].size
    known = _arrangements(attributor)

    def complete(view: MapView) -> MapView:
        return view if view.features in known else replace(view, features=known[0])

    default = MapView()
    return frame.view(_VIEW, attributor, default, squares=squares, tab=_TAB, controls=_CONTROLS, complete=complete)


def leave(attributor: Served) -> None:
    """Wait no longer for a map, so that the visitor can have something else computed."""
    for features in FEATURES:
        leave_job(_job(attributor, features))


def show(attributor: Served, query: QueryExample) -> None:
    """Draw the tab."""
    st.title(f"A map of the training {attributor.many}")
    beside = "for its picture" if page_of(attributor.bundle.modality).sheet else "to read it"
    st.markdown(
        f"Each point is a training {attributor.one}; {attributor.many} that the network sees as alike lie close "
        f"together (t-SNE). Point at one {beside}; click it, or draw a lasso around several, to list them "
        "below."
    )
    _whole(attributor, query, frame.shared_query())


@fragment()
def _whole(attributor: Served, query: QueryExample, shown: str) -> None:
    """Draw the controls, the map and the selected images; a change reruns this part alone."""
    if _VIEW not in st.session_state or frame.shared_query() != shown or tags.changed():
        st.rerun()
    view = _controls(attributor)
    frame.keep(_VIEW, view, attributor, tab=_TAB)
    predicted = _predicted(attributor)
    result = _attribution(attributor, query, view) if view.colour == "share" else None
    groups = groups_of(attributor, view.colour, predicted, result)
    said = (view.colour, predicted, tuple(groups), result)
    if query.origin == "train" and query.index is not None:
        at = np.array([query.index])
        groups.append(Group(f"this {attributor.one}", at, "text", symbol="star", size=17.0, opacity=1.0, kept=True))
    for features in FEATURES:
        if features != view.features:
            leave_job(_job(attributor, features))
    found = map_chart(attributor, groups, key=_CHART, features=view.features, on_select=_select)
    if found is None:
        return
    st.markdown(finding(attributor, found.embedding, *said))
    _selection(attributor, predicted, groups)
    inspector(attributor, _TAB, request=usual_request(attributor), query=query, explain=frame.explain)


def _arrangements(attributor: Served) -> tuple[str, ...]:
    """Return those of `FEATURES` that the bundle has vectors of."""
    bundle = attributor.bundle
    there = {
        "penultimate": bundle.array("penultimate").shape[1] > 0,
        "kernel": bundle.sketch_spec.kind != "exact",
    }
    return tuple(name for name in FEATURES if there[name])


def _controls(attributor: Served) -> MapView:
    view: MapView = st.session_state[_VIEW]
    for name in ("features", "colour", "budget"):
        st.session_state.setdefault(_KEY + name, getattr(view, name))
    first, second, third = st.columns([1.3, 1, 1])
    known = _arrangements(attributor)
    features, budget = known[0], view.budget
    if len(known) == 1:
        kernel = "Arranged by the kernel: the network has no Linear layer, and so no penultimate features."
        exact = "Arranged by penultimate features: the exact kernel has no feature vectors."
        first.caption(exact if features == FEATURES[0] else kernel)
    else:
        features = control(
            first.segmented_control,
            "Arranged by",
            list(known),
            key=f"{_KEY}features",
            format_func=_FEATURES.__getitem__,
            help=_ABOUT,
            required=True,
        )
    colourings = [name for name in COLOURINGS if name != PLANTED or attributor.bundle.manifest.backdoor is not None]
    colour = control(
        second.selectbox,
        "Colour",
        colourings,
        key=f"{_KEY}colour",
        format_func=lambda name: _COLOURINGS[name].format(attributor.one),
    )
    if colour == "share":
        about = words.EXPERT.budget_help
        budget = control(third.slider, words.EXPERT.budget, 1, LARGEST_BUDGET, key=f"{_KEY}budget", help=about)
    return replace(view, features=features, colour=colour, budget=budget)


# The chart


def map_chart(
    attributor: Served,
    groups: Sequence[Group],
    *,
    key: str,
    features: str = FEATURES[0],
    on_select: Callable[[list[int]], None],
) -> TrainingMap | None:
    """Draw the map of a bundle, or how far its computation is: it starts by itself, once for all visitors.

    Args:
        attributor: the bundle.
        groups: what is drawn, the last on top.
        key: unique on the page, without spaces.
        features: one of `natscope.app.links.FEATURES`.
        on_select: called with the numbers of the training images that are clicked or within a lasso.

    Returns:
        The map once it is computed.
    """
    job, count = _job(attributor, features), len(attributor.train_labels)
    found: TrainingMap | None = run_job(
        job, tasks.training_map, *job[1:], name=f"{key}_job", label="Draw the map", at_once=True
    )
    if found is None:
        st.caption(f"The map of {min(count, MOST):,} {attributor.many} usually takes about a minute, and is then kept.")
        return None
    arranged = found.embedding.arranged
    names = escape.visible(", ".join(group.name for group in groups))
    kept = [group.rows for group in groups if group.kept]
    drawn = np.union1d(arranged, np.concatenate(kept)) if kept else arranged
    notes = _notes(attributor)
    on_page.show_map(
        PointMap(
            [_points(group, found, drawn, notes) for group in groups],
            about=f"Map of {len(drawn):,} training {attributor.many}: {names}. The text below says what it shows.",
            noun=f"Training {attributor.one}",
        ),
        key,
        on_select=lambda numbers: on_select([int(n) for n in np.intersect1d(numbers, drawn)]),
    )
    others, shrink = np.setdiff1d(drawn, arranged), page_of(attributor.bundle.modality).sheet
    if found.pictures is not None and shrink is not None:
        small = shrink(attributor.bundle.examples("train"), others)
        pictures([(found.pictures, arranged), (small, others)], chart=key, key=f"{key}_pictures")
    if len(arranged) < count:
        st.caption(
            f"t-SNE arranged {len(arranged):,} of the {count:,} training {attributor.many}, drawn at random. The "
            f"others are drawn only when the page highlights them, next to the {attributor.many} that they resemble "
            "most."
        )
    return found


def _job(attributor: Served, features: str) -> tuple[str, tasks.Place, str, Path]:
    file = home() / "maps" / f"{attributor.bundle.identity}-{features}-{version('natscope')}.npz"
    return "map", attributor.place, _ARRAYS[features], file


def _points(group: Group, found: TrainingMap, drawn: np.ndarray, notes: Sequence[str]) -> Points:
    chosen = np.isin(group.rows, drawn)
    rows, own = group.rows[chosen], np.array(group.notes, dtype=object)[chosen] if len(group.notes) else None
    x, y = found.embedding.positions[rows].T
    return Points(
        name=group.name,
        numbers=rows,
        x=x,
        y=y,
        notes=[notes[row] if own is None else f"{notes[row]}\n{own[place]}" for place, row in enumerate(rows)],
        colour=group.colour,
        symbol=group.symbol,
        size=group.size if isinstance(group.size, float) else group.size[chosen].tolist(),
        opacity=group.opacity,
        named=group.named,
    )


def _notes(attributor: Served) -> list[str]:
    """Return what the map says of each training image when the pointer is on it."""
    classes, own = attributor.bundle.classes, tags.tagged(attributor)
    pairs = zip(attributor.train_labels.tolist(), _predicted(attributor).tolist(), strict=True)
    notes = [f"Labelled {classes[label]}\nPredicted {classes[answer]}" for label, answer in pairs]
    for image, text in own.items():
        split, _, number = image.partition(":")
        if split == "train":
            notes[int(number)] += f"\n{text}"
    examples, say = attributor.bundle.examples("train"), page_of(attributor.bundle.modality).note
    return [f"{note}\n{said}" if (said := say(examples, row)) else note for row, note in enumerate(notes)]


def _predicted(attributor: Served) -> np.ndarray:
    return np.asarray(attributor.bundle.array("train_logits")).argmax(axis=1)


def _attribution(attributor: Served, query: QueryExample, view: MapView) -> Attribution | None:
    sigma2 = attributor.bundle.sigma2(view.method) if view.sigma2 is None else view.sigma2
    try:
        return attributor.attribute(query, replace(view.request(), sigma2=sigma2))
    except QueryError as error:
        complain(error)
        return None


# The selected images


def _select(numbers: Sequence[int]) -> None:
    st.session_state[_SELECTED] = tuple(numbers)


def _selection(attributor: Served, predicted: np.ndarray, groups: Sequence[Group]) -> None:
    """Draw the images that were selected: by lasso, by a click, or all of one colour."""
    count = len(attributor.train_labels)
    rows = [row for row in st.session_state.get(_SELECTED, ()) if row < count]
    names = [group.name for group in groups]
    chosen = f"{_KEY}group"

    def select_group() -> None:
        place = st.session_state.get(chosen)
        if place is not None and place < len(groups):
            _select(np.sort(groups[place].rows).tolist())

    st.subheader(f"Selected {attributor.many} ({len(rows):,})" if rows else f"Selected {attributor.many}")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.session_state[chosen] = None
        st.selectbox(
            "Select all of one colour",
            range(len(groups)),
            key=chosen,
            index=None,
            format_func=lambda place: escape.visible(names[place]),
            placeholder="Choose",
            on_change=select_group,
            width=260,
        )
        if rows:
            _actions(attributor, rows, predicted)
    if not rows:
        st.caption("Click a point, draw a lasso on the map, or choose a colour here.")
        return
    labels, classes = attributor.train_labels, attributor.bundle.classes
    cards, card = [], cards_of(attributor, "train")
    for row in rows[:_SHOWN]:
        title = f"training {attributor.one} {row}, labelled {classes[labels[row]]}, predicted {classes[predicted[row]]}"
        tone = "for" if labels[row] == predicted[row] else "against"
        cards.append(card(row, title=title, tone=tone))
    grid(
        cards,
        key=f"{_KEY}grid",
        label=f"Selected training {attributor.many}",
        size=64,
        on_pick=partial(inspect, _TAB, rows),
    )
    more = f"The first {_SHOWN} of {len(rows):,}, the others in the CSV. " if len(rows) > _SHOWN else ""
    st.caption(f"{more}Click one for a closer look.")


def _actions(attributor: Served, rows: Sequence[int], predicted: np.ndarray) -> None:
    """Draw what can be done with all selected images together."""
    classes, labels = attributor.bundle.classes, attributor.train_labels
    own, sources = tags.tagged(attributor), attributor.bundle.sources("train")

    def table() -> str:
        return escape.table(
            ("image", "source", "label", "predicted", "tag"),
            (
                [
                    *(f"train:{row}", sources[row], classes[labels[row]], classes[predicted[row]]),
                    own.get(f"train:{row}", ""),
                ]
                for row in rows
            ),
        )

    tags.tag_button(attributor, [f"train:{row}" for row in rows], f"Tag all {len(rows):,}", key=f"{_KEY}tag")
    offer("CSV", table, "natscope-selection.csv", "text/csv", key=f"{_KEY}csv", icon=":material/table:")
    st.button("Clear selection", key=f"{_KEY}clear", on_click=_select, args=((),), type="tertiary")
