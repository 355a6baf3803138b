"""The tab Curves: how much of the information each ranking recovers, and how far the numbers can be trusted."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st

from natscope.app import escape, lanes, tasks, words
from natscope.app.bundles import Served
from natscope.app.components.bars import Bar, bars
from natscope.app.downloads import draw, offer
from natscope.app.figures import on_page
from natscope.app.figures.chart import Lines
from natscope.app.figures.curves import lengths, relative
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.style import FORMATS
from natscope.app.links import LARGEST_CURVE, MOST_CURVES, CurvesView
from natscope.app.views import frame
from natscope.app.views.controls import control
from natscope.app.views.job import run_job
from natscope.app.views.notice import warn
from natscope.app.views.results import pointer
from natscope.core.analysis.curves import Curve, Line
from natscope.core.bundle.request import QueryExample
from natscope.core.methods import GAINS, METHODS, REFERENCE
from natscope.core.parameters import ROLES, WEIGHTS, imbalance
from natscope.core.sketch_error import SketchError

_VIEW, _KEY, _TAB = "curves_view", "curves_", frame.CURVES
SESSION = (_KEY,)  # what belongs to a bundle
_CONTROLS = tuple(_KEY + name for name in ("mean", "count", "method", "sigma2s", "fixed", "others", "largest"))
_FIXED = 9  # of the values of σ²: a thousand times the scale
_SAMPLED = 300  # images whose Gram is compared with the exact one


def view(attributor: Served) -> CurvesView:
    """Return what the tab shows."""
    grid = attributor.bundle.sigma2s()

    def complete(view: CurvesView) -> CurvesView:
        many = view.many or not view.query
        return replace(view, many=many, sigma2s=view.sigma2s or grid[6:], fixed=view.fixed or grid[_FIXED])

    return frame.view(_VIEW, attributor, CurvesView(), tab=_TAB, controls=_CONTROLS, complete=complete)


def show(attributor: Served, query: QueryExample) -> None:
    """Draw the tab."""
    st.title("How much of the information is found")
    st.markdown(
        f"{METHODS[REFERENCE].title} searches for the {attributor.many} whose loss would cost most. Each curve says "
        f"how much of that the first M {attributor.many} of another ranking carry: 100% = as good."
    )
    controls, charts = st.columns([1, 2.9], gap="large")
    alone = query.origin == "test"  # else there are no curves of the image
    with controls:
        view = _settings(attributor, st.session_state[_VIEW], alone=alone)
    frame.keep(_VIEW, view, attributor, tab=_TAB)
    with charts:
        _live(attributor, view if alone else replace(view, many=True))
    st.divider()
    left, right = st.columns([1.25, 1], gap="large")
    with left:
        pointer("relative-information", attributor)
    with right:
        _kernel(attributor)
        _trust(attributor)


def _settings(attributor: Served, view: CurvesView, *, alone: bool) -> CurvesView:
    values = {
        "mean": view.many,
        "count": view.count,
        "method": view.method,
        "sigma2s": list(view.sigma2s),
        "fixed": view.fixed,
        "others": list(view.others),
        "largest": view.largest,
    }
    for key, value in values.items():
        st.session_state.setdefault(_KEY + key, value)
    about = f"Off: the curves of the {attributor.one} above, if it is a test {attributor.one}."
    mean = control(
        st.toggle, f"Mean over many test {attributor.many}", key=f"{_KEY}mean", help=about, disabled=not alone
    )
    if mean or not alone:
        about = (
            f"Test {attributor.many} that the model gets right, drawn at random, always the same ones. Bands: one "
            "standard error."
        )
        count = control(st.slider, f"Test {attributor.many}", 1, MOST_CURVES, key=f"{_KEY}count", help=about)
    else:
        count = view.count
    largest = control(st.slider, "Largest M", 10, LARGEST_CURVE, step=10, key=f"{_KEY}largest")
    method, grid = GAINS[0], attributor.bundle.sigma2s()
    if len(GAINS) > 1:
        method = control(st.selectbox, "Method", GAINS, key=f"{_KEY}method", format_func=_title)
    sigma2s = control(
        st.multiselect, "Top chart: σ²", grid, key=f"{_KEY}sigma2s", format_func=words.sigma2_text, max_selections=9
    )
    fixed = control(st.select_slider, "Bottom chart: σ²", grid, key=f"{_KEY}fixed", format_func=words.sigma2_text)
    drawn = _compared(method)
    others = control(
        st.multiselect,
        "Bottom chart: also show",
        [name for name in METHODS if name not in drawn and name != REFERENCE],
        key=f"{_KEY}others",
        format_func=_title,
        help="Any other method’s ranking, scored the same way.",
    )
    return CurvesView(frame.shared_query(), count, method, tuple(sorted(sigma2s)), fixed, tuple(others), largest, mean)


def _title(name: str) -> str:
    return METHODS[name].title


def _compared(method: str) -> tuple[str, ...]:
    return (method, *(name for name, m in METHODS.items() if m.approximates == method))


def _live(attributor: Served, view: CurvesView) -> None:
    if not view.sigma2s:
        st.info("Choose at least one σ² for the top chart.", icon=":material/show_chart:")
        return
    upper = [Line(view.method, sigma2) for sigma2 in view.sigma2s]
    lower = [Line(name, view.fixed) for name in (*_compared(view.method), *view.others)]
    lines = tuple(dict.fromkeys([*upper, *lower]))

    index = None if view.many else int(view.query.partition(":")[2])
    arguments = (index, view.count, lines, view.largest)
    found: dict[Line, Curve] | None = run_job(
        ("curves", attributor.place, *arguments),
        tasks.curves,
        *(attributor.place, *arguments),
        name=f"{_KEY}job",
        label="Compute the curves",
    )
    if found is None:
        steps = (view.count if view.many else 1) * len(lines)
        st.caption(f"{steps} rankings, about {max(1, round(0.2 * steps))} s on two cores for fast methods.")
        return
    by_sigma2, by_method = [found[line] for line in upper], [found[line] for line in lower]
    panels = (
        relative(f"{_title(view.method)} at several σ²", by_sigma2, by_method=False),
        relative(f"At σ² = {words.sigma2_text(view.fixed)}", by_method, by_method=True),
    )
    st.markdown(_finding(by_sigma2, by_method, view, attributor.many))
    for position, chart in enumerate(panels):
        st.subheader(chart.title)
        on_page.show(chart, f"{_KEY}chart_{position}")
    undefined = max(curve.undefined for curve in found.values())
    if undefined:
        st.caption(f"{undefined} {attributor.many} are left out: no subset carries information about them.")
    _downloads(attributor, view, list(found.values()), panels)


def _finding(upper: Sequence[Curve], lower: Sequence[Curve], view: CurvesView, many: str) -> str:
    """Return a sentence on the sigma2 at which nearly everything is found, and how close the approximation is."""
    enough = [curve.line.sigma2 for curve in upper if curve.mean.min() >= 0.99]
    worst = min(upper, key=lambda curve: curve.mean[-1])
    size = len(worst.mean)
    first = (
        f"From **σ² = {words.sigma2_text(min(enough))}** on, at least 99% is found at every M"
        if enough
        else "At none of these σ² is 99% found at every M"
    )
    first += f"; least at σ² = {words.sigma2_text(worst.line.sigma2)}, {worst.mean[-1]:.0%} with {size} {many}."
    if len(lower) < 2:
        return first
    gap = float(np.abs(lower[0].mean - lower[1].mean).max())
    return (
        f"{first} At σ² = {words.sigma2_text(view.fixed)}, {_title(lower[1].line.method)} stays within "
        f"{100 * gap:.1f} points of {_title(lower[0].line.method)}."
    )


def _downloads(attributor: Served, view: CurvesView, curves: Sequence[Curve], panels: Sequence[Lines]) -> None:

    def table() -> str:
        return escape.table(
            ("method", "sigma2", "m", "relative_information", "standard_error", "queries"),
            (
                [curve.line.method, curve.line.sigma2, size, mean, error, len(curve.values)]
                for curve in curves
                for size, (mean, error) in enumerate(zip(curve.mean, curve.error, strict=True), 1)
            ),
        )

    def everything() -> str:
        settings = {
            "query": None if view.many else view.query,
            "queries": view.count,
            "bundle": attributor.bundle.manifest.name,
        }
        data = settings | {"identity": attributor.bundle.identity, "curves": [curve.to_dict() for curve in curves]}
        return json.dumps(data, indent=2, allow_nan=False)

    offers: list[tuple[str, str, Callable[[], Any]]] = [
        (kind, mime, lambda kind=kind: draw(chart_file, *panels, kind=kind))  # type: ignore[misc]
        for kind, mime in FORMATS.items()
    ]
    offers += [("CSV", "text/csv", table), ("JSON", "application/json", everything)]
    with st.container(horizontal=True, vertical_alignment="center"):
        for kind, mime, make in offers:
            offer(kind, make, f"natscope-curves.{kind.lower()}", mime, key=f"{_KEY}download_{kind}")


def _kernel(attributor: Served) -> None:
    st.subheader("What the kernel is made of")
    manifest, kernel = attributor.bundle.manifest, attributor.bundle.manifest.results["kernel"]
    shares = kernel["shares"]
    scaled = "in the NTK parameterisation" if manifest.ntk else "without NTK scaling"
    chosen = f" of {', '.join(manifest.layers)}" if manifest.layers else ""
    st.markdown(
        f"Jacobians{escape.markdown(chosen)} {scaled}; mean k(x, x) = **{kernel['mean']:.3g}**. Shares of the mean "
        "squared Jacobian:"
    )
    tones = dict.fromkeys(ROLES, "") | {WEIGHTS: "good"}
    bars([Bar(role, shares[role], f"{shares[role]:.1%}", "", tones[role]) for role in ROLES if role in shares])
    if whole := kernel.get("whole"):
        st.markdown("Shares of all parameters’ squared Jacobian, what the kernel leaves out among them:")
        tones = {role: "good" if role in shares else "" for role in ROLES}
        bars([Bar(role, whole[role], f"{whole[role]:.1%}", "", tones[role]) for role in ROLES if role in whole])
    if (warning := imbalance(shares, whole)) is not None:
        warn(warning, icon=":material/balance:")


def _trust(attributor: Served) -> None:
    st.subheader("How far the sketch can be trusted")
    key = ("sketch error", attributor.place)
    found: SketchError | None = lanes.ask(
        lanes.shared().quick, key, tasks.sketch_error, attributor.place, _SAMPLED, bar=True
    )
    if found is None:
        st.caption("This bundle uses the exact kernel: no sketch, no error.")
        return
    if not len(found.ratios):
        st.caption(
            f"The network does not respond to the training {attributor.many} at all: there is nothing to measure."
        )
        return
    how = "against the exact inner products" if found.exact else "estimated from independent sketches"
    st.markdown(
        f"Over {len(found.ratios):,} training {attributor.many}, {how}: the Gram matrix errs by **{found.error:.1%}** "
        f"(relative Frobenius error), and squared lengths scatter by **{found.spread:.1%}**; {found.expected:.1%} is "
        f"what K = {attributor.bundle.sketch_spec.dim:,} random dimensions allow (√(2/K))."
    )
    on_page.show(lengths(found.ratios), f"{_KEY}lengths")
