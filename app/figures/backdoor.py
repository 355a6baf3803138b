"""Figures of the Backdoor page."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


def roc(rankings: Mapping[str, np.ndarray]) -> go.Figure:
    """Draw the share of poisoned images found against the share of honest ones looked at.

    Args:
        rankings: by title, whether each image of a whole ranking is poisoned, best first.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#8c8c8c"}, name="chance", hoverinfo="skip"
    )
    for colour, (title, hits) in zip(_COLOURS, rankings.items(), strict=False):
        found, false = np.cumsum(hits) / hits.sum(), np.cumsum(~hits) / (~hits).sum()
        figure.add_scatter(x=[0, *false], y=[0, *found], mode="lines", line={"color": colour, "width": 2.2}, name=title)
    figure.update_layout(
        height=260,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": "honest images looked at", "tickformat": ".0%", "range": [0, 1], "fixedrange": True},
        yaxis={"title": "planted images found", "tickformat": ".0%", "range": [0, 1.02], "fixedrange": True},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    return figure


def recalls(titles: list[str], means: list[float], errors: list[float], chance: float, *, colour: str) -> go.Figure:
    """Draw recall of every method with its standard error, the best on top."""
    figure = go.Figure(
        go.Bar(
            y=titles[::-1],
            x=means[::-1],
            error_x={"type": "data", "array": errors[::-1], "thickness": 1.2},
            orientation="h",
            marker={"color": colour},
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.add_vline(x=chance, line={"dash": "dot", "color": "#d55e00"})
    figure.update_layout(
        height=30 * len(titles) + 70,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={
            "title": "planted images among the first 50",
            "tickformat": ".0%",
            "range": [0, 1.03],
            "fixedrange": True,
        },
        yaxis={"fixedrange": True, "automargin": True},
        bargap=0.35,
    )
    return figure
