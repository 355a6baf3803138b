"""The figure of the choice of sigma2: on a page, and as a file."""

import io
from typing import Any

import plotly.graph_objects as go

from natscope.app.figures.curves import COLOURS, DASHES, PLACES
from natscope.app.figures.style import Figure
from natscope.core.methods import METHODS

_SIGMA2 = "σ²"


def scores(result: dict[str, Any]) -> go.Figure:
    """Draw the score against sigma2 with its standard error, a line a method; the chosen ones are ringed."""
    figure = go.Figure()
    for name, curve in result["curves"].items():
        place = PLACES[name]
        chosen = result["sigma2"][name]
        title = METHODS[name].title
        figure.add_scatter(
            x=[point["sigma2"] for point in curve],
            y=[point["mean"] for point in curve],
            error_y={"type": "data", "array": [point["error"] or 0 for point in curve], "thickness": 1, "width": 3},
            mode="lines+markers",
            line={"color": COLOURS[place], "width": 2, "dash": DASHES[place]},
            marker={"size": [13 if point["sigma2"] == chosen else 5 for point in curve]},
            name=f"{title}: {chosen:g}",
            hovertemplate=title + ", σ² = %{x:g}: %{y:.2f}<extra></extra>",
        )
    figure.update_layout(
        height=300,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": _SIGMA2, "type": "log", "exponentformat": "power", "fixedrange": True},
        yaxis={"title": result["axis"], "fixedrange": True},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    return figure


def scores_file(result: dict[str, Any], *, kind: str) -> bytes:
    """Draw the same in print quality; `kind` is "png", "svg" or "pdf"."""
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in result["curves"].items():
        place = PLACES[name]
        at = [point["sigma2"] for point in curve]
        means = [point["mean"] for point in curve]
        style, colour = ("-", "--", ":", "-.")[place % 4], COLOURS[place]
        errors = [point["error"] or 0 for point in curve]
        axes.errorbar(at, means, yerr=errors, linestyle=style, color=colour, linewidth=1.5, capsize=2)
        chosen = result["sigma2"][name]
        axes.plot([chosen], [means[at.index(chosen)]], "o", color=colour, label=f"{METHODS[name].title}: {chosen:g}")
    axes.set(xlabel=_SIGMA2, ylabel=result["axis"], xscale="log")
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=300)
    return buffer.getvalue()
