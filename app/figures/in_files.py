"""Charts in files, drawn by Matplotlib for print."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from natscope.app import escape
from natscope.app.figures import printed
from natscope.app.figures.chart import DASHES, MARKERS, Axis, Bars, Chart, Heatmap, Lines, Reference, Series
from natscope.app.figures.style import Axes, MaxNLocator, blank, saved
from natscope.app.figures.tables import Table
from natscope.app.theme import LIGHT

_NAME = 40  # characters of a name
# Inches: a panel, one of several side by side, its height without a legend, and the margin left of its axis.
_WIDTH, _BESIDE, _HEIGHT, _MARGIN = 5.4, 4.3, 2.9, 0.5
_LETTER, _SAMPLE, _ROW = 0.055, 0.6, 0.17  # of a legend: a letter, the sample before a name, and a line
_MARKERS = dict(zip(MARKERS, "os^DvX*Ph", strict=True)) | {"": ""}
_ERRORS: dict[str, Any] = {"capsize": 2.2, "elinewidth": 0.9}


def chart_file(*charts: Chart | Table, kind: str, columns: int = 1, title: str = "") -> bytes:
    """Draw charts, and tables, as the panels of a file.

    Args:
        charts: the panels, row by row.
        kind: a key of `natscope.app.figures.style.FORMATS`, in either case.
        columns: how many panels stand side by side.
        title: over all panels.
    """
    width = _WIDTH if columns == 1 else _BESIDE
    if columns == 1 and any(isinstance(chart, Table) for chart in charts):
        width = max(printed.width(chart) if isinstance(chart, Table) else _WIDTH for chart in charts)
    heights = [_height(chart, width) for chart in charts[::columns]]
    figure = blank(width * columns, sum(heights))
    panels = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).flat
    for axes in panels[len(charts) :]:
        axes.remove()
    for axes, chart in zip(panels, charts, strict=False):
        if isinstance(chart, Table):
            printed.draw(axes, chart, width)
            continue
        if isinstance(chart, Lines):
            _lines(axes, chart)
        elif isinstance(chart, Bars):
            _bars(axes, chart)
        else:
            _heatmap(axes, chart)
        handles, names = axes.get_legend_handles_labels()
        about = {"title": _text(chart.title), "ncols": _columns(chart, width), "alignment": "left"}
        axes.legend(handles, names, **about, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    figure.suptitle(title, fontsize=9)
    return saved(figure, kind)


def _columns(chart: Chart, width: float) -> int:
    """Return how many columns of a legend fit a width in inches."""
    names = [series.name for series in chart.series] if isinstance(chart, Lines) else []
    return max(1, int((width - _MARGIN) / (_SAMPLE + _LETTER * max(map(len, names), default=0))))


def _height(chart: Chart | Table, width: float) -> float:
    if isinstance(chart, Table):
        return printed.height(chart)
    if isinstance(chart, Lines):
        return _HEIGHT + _ROW * -(-len(chart.series) // _columns(chart, width))
    return (0.3 if isinstance(chart, Bars) else 0.42) * len(chart.names) + 1


def _lines(axes: Axes, chart: Lines) -> None:
    axes.grid(visible=True)
    for series in chart.series:
        _line(axes, series)
    _references(axes, chart.references)  # first, so that the limits include them
    _axis(axes, "x", chart.x, [value for series in chart.series for value in series.x])
    _axis(axes, "y", chart.y, [value for series in chart.series for value in series.y])


def _line(axes: Axes, series: Series) -> None:
    x, y, error = np.array(series.x), np.array(series.y), np.array(series.error or [0.0] * len(series.x))
    colour, marker = LIGHT.colour(series.colour), _MARKERS[series.marker] or ("o" if len(series.x) == 1 else "")
    shape: dict[str, Any] = {
        "linestyle": "none" if series.alone else (0, DASHES[series.dash] or None),
        "drawstyle": "steps-mid" if series.area else "default",
    }
    axes.plot(x, y, color=colour, marker=marker, markersize=4, label=_text(series.name) or None, **shape)
    for position in series.large:
        axes.plot(x[position], y[position], "o", color=colour, markersize=8)
    if series.area:
        axes.fill_between(x, y, step="mid", color=colour, alpha=0.35, linewidth=0)
    if series.band:
        axes.fill_between(x, y - error, y + error, color=colour, alpha=0.18, linewidth=0)
    elif error.any():
        axes.errorbar(x, y, error, color=colour, linestyle="", **_ERRORS)


def _bars(axes: Axes, chart: Bars) -> None:
    positions = range(len(chart.names))
    bars = axes.barh(positions, chart.values, color=[LIGHT.colour(colour) for colour in chart.colours], height=0.66)
    if chart.error:
        axes.errorbar(chart.values, positions, xerr=chart.error, color=LIGHT.text, linestyle="", **_ERRORS)
    for position, mark in enumerate(chart.marks):
        if mark is not None:
            axes.plot(mark, position, "D", color=LIGHT.text, markerfacecolor="none", markersize=5, clip_on=False)
    if chart.text:
        axes.bar_label(bars, chart.labels(chart.text, _text), padding=3, fontsize=7.5)
    axes.set_yticks(positions, [_text(name) for name in chart.names])
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x")
    _references(axes, chart.references)
    _axis(axes, "x", chart.x, chart.values)


def _heatmap(axes: Axes, chart: Heatmap) -> None:
    positions, names = range(len(chart.names)), [_text(name) for name in chart.names]
    axes.imshow(np.array(chart.values), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(positions, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(positions, names)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(chart.values):
        ink, text = "white" if value > 0.6 else LIGHT.text, "" if np.isnan(value) else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7.5)


def _axis(axes: Axes, name: str, axis: Axis, values: Sequence[float]) -> None:
    own = axes.xaxis if name == "x" else axes.yaxis
    settings: dict[str, Any] = {f"{name}label": axis.title}
    if axis.zero and min(values, default=0) >= 0:
        settings[f"{name}lim"] = (0, None)
    if axis.range:
        settings[f"{name}lim"] = axis.range
    if axis.log:
        settings[f"{name}scale"] = "log"
    axes.set(**settings)
    if not axis.log:
        own.set_major_formatter(lambda value, _: _number(value))
    if axis.whole:
        own.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if axis.ticks:
        own.set_ticks(axis.ticks, list(map(_number, axis.ticks)))
        own.set_ticks([], minor=True)


def _number(value: float) -> str:
    """Return a number for a tick, without what rounding adds."""
    return f"{value:,.6g}".replace("-", "−")


def _references(axes: Axes, references: Sequence[Reference]) -> None:
    for reference in references:
        style: dict[str, Any] = {"color": LIGHT.muted, "linestyle": (0, DASHES["dot"]), "linewidth": 1.2}
        label: dict[str, Any] = {"color": LIGHT.muted, "fontsize": 7.5, "va": "bottom"}
        if reference.axis == "y":
            axes.axhline(reference.value, **style)
            axes.text(1, reference.value, reference.label, transform=axes.get_yaxis_transform(), ha="right", **label)
        else:
            axes.axvline(reference.value, **style)
            axes.text(reference.value, 0, f" {reference.label}", transform=axes.get_xaxis_transform(), **label)


def _text(name: str) -> str:
    return escape.mathtext(name, _NAME)
