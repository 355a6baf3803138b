"""Charts on a page, drawn by Plotly."""

from collections.abc import Callable, Sequence
from math import isnan, log10
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from natscope.app import escape
from natscope.app.figures.chart import DASHES, Axis, Bars, Chart, Heatmap, Lines, PointMap, Points, Reference, Series
from natscope.app.theme import PALETTES, Palette

Layout = dict[str, Any]
_LINE = 2.2  # pixels


def show(chart: Chart, key: str, *, on_point: Callable[[int], None] | None = None) -> None:
    """Draw a chart in the colours of the page.

    Args:
        chart: the chart.
        key: unique on the page.
        on_point: called with the position of a point that is clicked.
    """

    def clicked() -> None:
        points = key in st.session_state and st.session_state[key]["selection"]["points"]
        if points and on_point:
            on_point(int(points[0]["point_index"]))

    drawn = figure(chart, PALETTES["dark" if st.context.theme.type == "dark" else "light"])
    selecting: dict[str, Any] = {"on_select": clicked, "selection_mode": "points"} if on_point else {}
    st.plotly_chart(drawn, key=key, config={"displayModeBar": False}, **selecting)


def show_map(chart: PointMap, key: str, *, on_select: Callable[[list[int]], None]) -> None:
    """Draw a map in the colours of the page.

    Args:
        chart: the map.
        key: unique on the page.
        on_select: called with the numbers of the points that are clicked, or within a lasso or a box.
    """

    def selected() -> None:
        points = key in st.session_state and st.session_state[key]["selection"]["points"]
        numbers = (_number(point.get("customdata")) for point in points or ())
        on_select(sorted({number for number in numbers if number is not None}))

    st.plotly_chart(
        map_figure(chart, PALETTES["dark" if st.context.theme.type == "dark" else "light"]),
        key=key,
        config={"displaylogo": False, "modeBarButtonsToRemove": ["toImage", "autoScale2d"]},
        on_select=selected,
        alt=chart.about,
    )


def _number(value: Any) -> int | None:
    """Return a point's number as a browser sends it back, alone or in a list; None if it is none."""
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else None


def map_figure(chart: PointMap, palette: Palette) -> go.Figure:
    """Return a map as Plotly's figure."""
    hidden = {"visible": False, "automargin": False}
    layout = {
        "height": chart.height,
        "margin": {"l": 0, "r": 40, "t": 0, "b": 0},  # the buttons stand on the right
        "modebar": {"orientation": "v", "bgcolor": "rgba(0,0,0,0)"},
        "xaxis": hidden,
        "yaxis": {**hidden, "scaleanchor": "x"},
        "dragmode": "lasso",
        "hovermode": "closest",
        "showlegend": len(chart.kinds) > 1,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0, "itemsizing": "constant"},
        "annotations": [_name(kind, palette) for kind in chart.kinds if kind.named and len(kind.x)],
    }
    return go.Figure([_points(kind, chart, palette) for kind in chart.kinds], layout)


def _points(kind: Points, chart: PointMap, palette: Palette) -> Any:
    notes = {note: "<br>".join(map(escape.chart, note.split("\n"))) for note in set(kind.notes)}  # many are equal
    outline = 0 if kind.symbol == "circle" and isinstance(kind.size, float) else 1  # where points overlap
    return go.Scatter(  # not by WebGL, for which Plotly runs text as code, and the pages' policy forbids that
        x=kind.x,
        y=kind.y,
        name=escape.chart(kind.name),
        mode="markers",
        marker={
            "color": palette.colour(kind.colour),
            "symbol": kind.symbol,
            "size": kind.size,
            "opacity": kind.opacity,
            "line": {"width": outline, "color": palette.background},
        },
        customdata=kind.numbers,
        text=[notes[note] for note in kind.notes] or None,
        hovertemplate=f"{chart.noun} %{{customdata}}<br>%{{text}}<extra></extra>",
        selected={"marker": {"opacity": 1}},
        unselected={"marker": {"opacity": 0.25}},
    )


def _name(kind: Points, palette: Palette) -> Layout:
    """Return a kind's name, to stand on its point that is nearest to the middle of them."""
    x, y = np.asarray(kind.x), np.asarray(kind.y)
    middle = int(((x - np.median(x)) ** 2 + (y - np.median(y)) ** 2).argmin())
    return {
        "x": float(x[middle]),
        "y": float(y[middle]),
        "text": escape.chart(kind.name),
        "showarrow": False,
        "font": {"size": 12, "color": palette.text},
        "bgcolor": f"{palette.background}cc",
        "borderpad": 2,
        "captureevents": False,
    }


def figure(chart: Chart, palette: Palette) -> go.Figure:
    """Return a chart as Plotly's figure."""
    if isinstance(chart, Lines):
        data, layout = _lines(chart, palette)
    elif isinstance(chart, Bars):
        data, layout = _bars(chart, palette)
    else:
        data, layout = _heatmap(chart, palette)
    # All at once: a chart is drawn at every click, and update_layout and add_hline take six times as long.
    usual: Layout = {"margin": {"l": 10, "r": 10, "t": 10, "b": 10}, "dragmode": False, "showlegend": False}
    quiet = {"color": palette.muted}
    axes = {
        name: layout[name] | {"tickfont": quiet, "title": {"text": layout[name].get("title"), "font": quiet}}
        for name in ("xaxis", "yaxis")
    }
    return go.Figure(data, usual | layout | axes)


def _lines(chart: Lines, palette: Palette) -> tuple[list[Any], Layout]:
    return [trace for series in chart.series for trace in _traces(series, palette)], {
        "height": chart.height,
        "xaxis": _axis(chart.x, [value for series in chart.series for value in series.x]),
        "yaxis": _axis(chart.y, [value for series in chart.series for value in series.y]),
        "showlegend": any(series.name for series in chart.series),
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
        **_references(chart.references, palette),
    }


def _traces(series: Series, palette: Palette) -> list[Any]:
    colour, one = palette.colour(series.colour), len(series.x) == 1
    errors = {"type": "data", "array": series.error, "thickness": 1.2, "width": 3, "color": colour}
    line = go.Scatter(
        x=series.x,
        y=series.y,
        name=escape.chart(series.name),
        mode="markers" if one or series.alone else "lines+markers" if series.marker else "lines",
        line={"color": colour, "width": _LINE, "dash": _dash(series.dash), "shape": "hvh" if series.area else "linear"},
        marker={
            "color": colour,
            "size": [13 if position in series.large else 7 for position in range(len(series.x))],
            "symbol": series.marker or "circle",
        },
        error_y=errors if series.error and not series.band else None,
        fill="tozeroy" if series.area else None,
        text=series.labels(escape.chart) if series.hover else None,
        hoverinfo="text" if series.hover else "skip",
        showlegend=bool(series.name),
        selected={"marker": {"opacity": 1}},  # no point fades when another is clicked
        unselected={"marker": {"opacity": 1}},
    )
    if not (series.band and any(series.error)):
        return [line]
    above = [y + error for y, error in zip(series.y, series.error, strict=True)]
    below = [y - error for y, error in zip(series.y, series.error, strict=True)]
    band = go.Scatter(
        x=[*series.x, *series.x[::-1]],
        y=[*above, *below[::-1]],
        fill="toself",
        fillcolor=f"{colour}2e",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
    )
    return [band, line]


def _bars(chart: Bars, palette: Palette) -> tuple[list[Any], Layout]:
    bars = go.Bar(
        x=chart.values,
        y=list(range(len(chart.names))),
        orientation="h",
        marker={"color": [palette.colour(colour) for colour in chart.colours]},
        error_x={"type": "data", "array": chart.error, "thickness": 1.2, "color": palette.text}
        if chart.error
        else None,
        hovertext=chart.labels(chart.hover, escape.chart),
        hoverinfo="text",
        text=chart.labels(chart.text, escape.chart) if chart.text else None,
        textposition="outside" if chart.text else "none",
        cliponaxis=False,
    )
    marked = [(mark, position) for position, mark in enumerate(chart.marks) if mark is not None]
    marks = go.Scatter(
        x=[mark for mark, _ in marked],
        y=[position for _, position in marked],
        mode="markers",
        marker={"symbol": "diamond-open", "size": 9, "color": palette.text},
        hoverinfo="x",
        cliponaxis=False,
    )
    return [bars, marks] if marked else [bars], {
        "height": max(150, 28 * len(chart.names) + 60),
        "xaxis": _axis(chart.x, chart.values),
        "yaxis": {**_named(chart.names), "autorange": "reversed"},
        "bargap": 0.35,
        **_references(chart.references, palette),
    }


def _heatmap(chart: Heatmap, palette: Palette) -> tuple[list[Any], Layout]:
    axis = _named(chart.names)
    squares = go.Heatmap(
        z=chart.values,
        text=[["" if isnan(value) else f"{value:.2f}" for value in row] for row in chart.values],
        texttemplate="%{text}",
        textfont={"color": palette.text},
        hovertext=[[f"{one} and {other}" for other in axis["ticktext"]] for one in axis["ticktext"]],
        hovertemplate="%{hovertext}: %{z:.3f}<extra></extra>",
        colorscale=[[0, palette.background], [1, palette.accent]],
        zmin=0,
        zmax=2,  # half the accent at most, on which the text is read
        showscale=False,
        xgap=2,
        ygap=2,
    )
    return [squares], {
        "height": 34 * len(chart.names) + 120,
        "xaxis": {**axis, "tickangle": -40},
        "yaxis": {**axis, "autorange": "reversed"},
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def _named(names: Sequence[str]) -> Layout:
    """Return names as tick labels: as values, some would be parsed as numbers or dates, and duplicates merged."""
    ticks = {"tickvals": list(range(len(names))), "ticktext": [escape.chart(name) for name in names]}
    return {**ticks, "fixedrange": True, "automargin": True, "showgrid": False, "zeroline": False}


def _axis(axis: Axis, values: Sequence[float]) -> Layout:
    layout: Layout = {"title": axis.title, "fixedrange": True, "automargin": True}
    if axis.range:
        layout["range"] = [log10(end) for end in axis.range] if axis.log else axis.range
    if axis.zero:
        layout["rangemode"] = "tozero"
    if axis.log:
        layout |= {"type": "log", "exponentformat": "power"}
    else:
        layout |= {"exponentformat": "none", "separatethousands": True}
    if axis.whole:
        layout |= {"tickformat": ",d"} | ({"dtick": 1} if max(values, default=0) <= 10 else {})
    if axis.ticks:
        layout |= {"tickvals": axis.ticks, "ticktext": [f"{tick:,g}" for tick in axis.ticks]}
    return layout


def _dash(name: str) -> str:
    return ",".join(f"{_LINE * length:.1f}px" for length in DASHES[name]) or "solid"


def _references(references: Sequence[Reference], palette: Palette) -> Layout:
    shapes, labels = [], []
    for reference in references:
        value = reference.value
        if reference.axis == "y":
            axes, ends = {"xref": "x domain", "yref": "y"}, {"x0": 0, "x1": 1, "y0": value, "y1": value}
            at = {"x": 1, "y": value, "xanchor": "right", "yanchor": "bottom"}
        else:
            axes, ends = {"xref": "x", "yref": "y domain"}, {"x0": value, "x1": value, "y0": 0, "y1": 1}
            at = {"x": value, "y": 0, "xanchor": "left", "yanchor": "bottom", "xshift": 3}
        shapes.append({**axes, **ends, "type": "line", "line": {"color": palette.muted, "dash": "dot"}})
        labels.append({**axes, **at, "text": reference.label, "showarrow": False, "font": {"color": palette.muted}})
    return {"shapes": shapes, "annotations": labels}
