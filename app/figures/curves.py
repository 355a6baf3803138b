"""Figures of the page Information curves: on the page, and as files."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from natscope.app.figures.style import Figure
from natscope.app.words import sigma2_text
from natscope.core.analysis.curves import Curve, Line
from natscope.core.methods import METHODS

FORMATS = {"PNG": "image/png", "SVG": "image/svg+xml", "PDF": "application/pdf"}
# Okabe and Ito's colours in an order whose lightness varies; dashes say the same.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8c8c8c", "#B8A800", "#7f4fc9")
PLACES = {name: place for place, name in enumerate(METHODS)}  # in them, of each method: the same in every figure
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash", "dot")


def curve_name(curve: Curve, *, by_method: bool) -> str:
    """Name a curve in a legend, by its method or by its sigma2."""
    return METHODS[curve.line.method].title if by_method else f"σ² = {sigma2_text(curve.line.sigma2)}"


def relative(curves: Sequence[Curve], *, by_method: bool) -> go.Figure:
    """Draw relative information in per cent against M, with a band of one standard error.

    Args:
        curves: to draw, together.
        by_method: whether the legend names methods, or else values of sigma2.
    """
    figure = go.Figure()
    for place, curve in enumerate(curves):
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
        sizes, mean, error = np.arange(1, len(curve.mean) + 1), 100 * curve.mean, 100 * curve.error
        name = curve_name(curve, by_method=by_method)
        if error.any():
            figure.add_scatter(
                x=np.concatenate([sizes, sizes[::-1]]),
                y=np.concatenate([mean + error, (mean - error)[::-1]]),
                fill="toself",
                fillcolor=f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.16)",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        figure.add_scatter(
            x=sizes,
            y=mean,
            mode="lines" if len(sizes) > 1 else "markers",
            line={"color": colour, "width": 2.2, "dash": dash},
            name=name,
            customdata=error,
            hovertemplate=name + ", first %{x}: %{y:.1f} % ± %{customdata:.1f}<extra></extra>",
        )
    figure.update_layout(
        height=330,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": "images taken together, M", "rangemode": "tozero", "tickformat": "d", "fixedrange": True},
        yaxis={"title": "relative information, %", "range": [0, 104], "fixedrange": True},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    return figure


def lengths(ratios: np.ndarray, *, colour: str) -> go.Figure:
    """Draw the histogram of squared lengths after sketching over those before."""
    figure = go.Figure(go.Histogram(x=ratios, nbinsx=30, marker={"color": colour}))
    figure.update_layout(
        height=190,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": "squared length after ÷ before the sketch", "fixedrange": True},
        yaxis={"title": "images", "fixedrange": True},
        bargap=0.05,
    )
    return figure


def curves_file(panels: Sequence[tuple[str, Sequence[Curve], bool]], *, kind: str) -> bytes:
    """Draw panels one above the other in print quality.

    Args:
        panels: of each the title, its curves, and whether the legend names methods.
        kind: a key of `FORMATS`.
    """
    figure = Figure(figsize=(5.2, 3.1 * len(panels)), layout="constrained")
    for place, (title, curves, by_method) in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        for number, curve in enumerate(curves):
            sizes, colour = np.arange(1, len(curve.mean) + 1), COLOURS[number % len(COLOURS)]
            style = ("-", "--", ":", "-.")[number % 4]
            mean, error = 100 * curve.mean, 100 * curve.error
            axes.plot(sizes, mean, style, color=colour, label=curve_name(curve, by_method=by_method), linewidth=1.6)
            axes.fill_between(sizes, mean - error, mean + error, color=colour, alpha=0.16, linewidth=0)
        axes.set(title=title, xlabel="images taken together, M", ylabel="relative information, %", ylim=(0, 104))
        axes.title.set_fontsize(9)
        axes.legend(fontsize=7, ncols=2, frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind.lower(), dpi=300)
    return buffer.getvalue()


def experiment_panels(result: dict[str, Any]) -> list[tuple[str, list[Curve], bool]]:
    """Read an experiment's panels: of each the title, its curves, and whether the legend names methods."""
    return [
        (panel["title"], [_read(curve) for curve in panel["curves"]], panel["by"] == "method")
        for panel in result["panels"]
    ]


def _read(curve: dict[str, Any]) -> Curve:
    """Rebuild a curve from its mean and standard error: two rows have both."""
    mean, error = np.array(curve["mean"]), np.array(curve["standard_error"])
    return Curve(Line(curve["method"], curve["sigma2"]), np.stack([mean - error, mean + error]))
