"""Figures of the page Coreset, and of the experiment behind it."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from natscope.app import escape
from natscope.app.figures.curves import COLOURS, PLACES
from natscope.app.figures.style import Figure
from natscope.core.methods import METHODS

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "triangle-left", "star")
_MARGIN = {"l": 10, "r": 10, "t": 10, "b": 10}
KINDS = ((False, "Chosen freely"), (True, "As many of every class"))


def class_balance(counts: np.ndarray, classes: Sequence[str], *, colour: str) -> go.Figure:
    """Draw how many images of each class (C,) were chosen."""
    places, names = list(range(len(classes))), [escape.chart(name) for name in classes]
    figure = go.Figure(
        go.Bar(
            x=counts,
            y=places,
            orientation="h",
            marker={"color": colour},
            customdata=names,
            hovertemplate="%{customdata}: %{x}<extra></extra>",
        )
    )
    figure.update_layout(
        height=max(150, 24 * len(classes) + 50),
        margin=_MARGIN,
        xaxis={"title": "images", "rangemode": "tozero", "tickformat": "d", "fixedrange": True},
        # Names as texts of ticks: as values, some would be read as numbers or dates, and those alike be one bar.
        yaxis={
            "tickvals": places,
            "ticktext": names,
            "autorange": "reversed",
            "fixedrange": True,
            "automargin": True,
        },
        bargap=0.3,
        dragmode=False,
    )
    return figure


def information(nats: np.ndarray, blind: np.ndarray, *, colours: tuple[str, str]) -> go.Figure:
    """Draw nats (M,) of the first images of a coreset, and of as many random ones, against their number."""
    figure = go.Figure()
    for values, name, colour, dash in (
        (nats, "these", colours[0], "solid"),
        (blind, "as many random ones", colours[1], "dot"),
    ):
        figure.add_scatter(
            x=np.arange(1, len(values) + 1),
            y=values,
            mode="lines" if len(values) > 1 else "markers",
            line={"color": colour, "width": 2.2, "dash": dash},
            name=name,
            hovertemplate=name + ", first %{x}: %{y:.3g} nats<extra></extra>",
        )
    figure.update_layout(
        height=290,
        margin=_MARGIN,
        xaxis={"title": "images, M", "rangemode": "tozero", "tickformat": "d", "fixedrange": True},
        yaxis={"title": "nats about a test image", "rangemode": "tozero", "fixedrange": True},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        dragmode=False,
    )
    return figure


def overlap(titles: Sequence[str], shares: Sequence[float], *, colour: str) -> go.Figure:
    """Draw the Jaccard overlap with other methods' coresets, the largest on top."""
    order = np.argsort(shares, kind="stable")
    figure = go.Figure(
        go.Bar(
            x=[shares[place] for place in order],
            y=[titles[place] for place in order],
            orientation="h",
            marker={"color": colour},
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        )
    )
    figure.update_layout(
        height=28 * len(titles) + 60,
        margin=_MARGIN,
        xaxis={"title": "overlap (Jaccard)", "range": [0, 1.02], "fixedrange": True},
        yaxis={"fixedrange": True, "automargin": True},
        bargap=0.35,
        dragmode=False,
    )
    return figure


def shares_right(titles: Sequence[str], shares: Sequence[float], *, colours: Sequence[str]) -> go.Figure:
    """Draw the share of test images that each of some networks gets right, the first on top."""
    figure = go.Figure(
        go.Bar(
            x=list(shares)[::-1],
            y=list(titles)[::-1],
            orientation="h",
            marker={"color": list(colours)[::-1]},
            text=[f"{share:.1%}" for share in shares][::-1],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.update_layout(
        height=32 * len(titles) + 60,
        margin=_MARGIN,
        xaxis={"title": "test images it gets right", "tickformat": ".0%", "range": [0, 1.06], "fixedrange": True},
        yaxis={"fixedrange": True, "automargin": True},
        bargap=0.3,
        dragmode=False,
    )
    return figure


def accuracies(result: dict[str, Any], *, balanced: bool) -> go.Figure:
    """Draw the experiment's accuracies in per cent against the budget, with standard errors."""
    grid, figure = result["setting"]["grid"], go.Figure()
    for row in (row for row in result["rows"] if row["balanced"] == balanced):
        place = PLACES[row["method"]]
        figure.add_scatter(
            x=grid,
            y=[100 * value["mean"] for value in row["accuracy"]],
            error_y={"type": "data", "array": [100 * (v["error"] or 0.0) for v in row["accuracy"]], "thickness": 1.2},
            mode="lines+markers",
            line={"color": COLOURS[place % len(COLOURS)], "width": 2},
            marker={"symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 7},
            name=METHODS[row["method"]].title,
            hovertemplate=METHODS[row["method"]].title + ", %{x} images: %{y:.1f} %<extra></extra>",
        )
    figure.add_hline(
        y=100 * result["all_data"]["mean"],
        line={"color": "#8c8c8c", "dash": "dot"},
        annotation={"text": "all training images", "font": {"color": "#8c8c8c"}},
    )
    figure.update_layout(
        height=360,
        margin=_MARGIN,
        xaxis={"title": "images trained on", "type": "log", "tickvals": grid, "ticktext": grid, "fixedrange": True},
        yaxis={"title": "right on other test images, %", "fixedrange": True},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    return figure


def coreset_file(result: dict[str, Any], *, kind: str) -> bytes:
    """Draw the experiment in print quality, both kinds of choice side by side."""
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    grid, first = result["setting"]["grid"], None
    for column, (balanced, title) in enumerate(KINDS):
        axes = figure.add_subplot(1, 2, column + 1, sharey=first)
        first = first or axes
        for row in (row for row in result["rows"] if row["balanced"] == balanced):
            place = PLACES[row["method"]]
            axes.errorbar(
                grid,
                [100 * value["mean"] for value in row["accuracy"]],
                [100 * (value["error"] or 0.0) for value in row["accuracy"]],
                color=COLOURS[place % len(COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=4,
                capsize=2.5,
                linewidth=1.4,
                label=METHODS[row["method"]].title,
            )
        axes.axhline(100 * result["all_data"]["mean"], color="#8c8c8c", linestyle=":", label="all training images")
        axes.set(xscale="log", xticks=grid, xticklabels=grid, xlabel="images trained on")
        axes.minorticks_off()
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    first.set(ylabel="right on other test images, %")  # type: ignore[union-attr]
    handles, names = first.get_legend_handles_labels()  # type: ignore[union-attr]
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=300)
    return buffer.getvalue()


def coreset_table(result: dict[str, Any]) -> str:
    """Write the accuracies as a table (Markdown), in per cent."""
    grid = result["setting"]["grid"]
    lines = [
        "| chosen by | σ² | " + " | ".join(f"{size:,}" for size in grid) + " |",
        "|---" * (len(grid) + 2) + "|",
    ]
    for row in result["rows"]:
        name = METHODS[row["method"]].title + (", balanced" if row["balanced"] else "")
        sigma2 = " / ".join(f"{value:g}" for value in dict.fromkeys(row["sigma2"] or ()))
        lines.append(f"| {name} | {sigma2} | " + " | ".join(_with_error(value) for value in row["accuracy"]) + " |")
    lines.append(f"| *all training images* | | {_with_error(result['all_data'])} |" + " |" * (len(grid) - 1))
    return "\n".join(lines) + "\n"


def _with_error(value: dict[str, Any]) -> str:
    error = "" if value["error"] is None else f" ± {100 * value['error']:.1f}"
    return f"{100 * value['mean']:.1f}{error}"
