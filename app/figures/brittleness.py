"""Figures of the brittleness experiment: on a page, and as files."""

import io
from typing import Any

import plotly.graph_objects as go

from natscope.app.figures.curves import COLOURS, DASHES, PLACES
from natscope.app.figures.style import Figure
from natscope.core.methods import METHODS


def flips(result: dict[str, Any]) -> go.Figure:
    """Draw the share of flipped predictions against the number of images removed, a line with error bars a method."""
    figure, grid = go.Figure(), result["setting"]["grid"]
    for row in result["rows"]:
        place, title = PLACES[row["method"]], METHODS[row["method"]].title
        errors = [100 * (value["error"] or 0) for value in row["flips"]]
        figure.add_scatter(
            x=grid,
            y=[100 * value["mean"] for value in row["flips"]],
            error_y={"type": "data", "array": errors, "thickness": 1, "width": 3},
            mode="lines+markers",
            line={"color": COLOURS[place % len(COLOURS)], "width": 2.2, "dash": DASHES[place % len(DASHES)]},
            marker={"size": 6},
            name=title,
            customdata=errors,
            hovertemplate=title + ", %{x} removed: %{y:.0f} % ± %{customdata:.0f}<extra></extra>",
        )
    figure.update_layout(
        height=360,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis={"title": "training images removed, M", "tickvals": grid, "fixedrange": True},
        yaxis={"title": "predictions flipped, %", "rangemode": "tozero", "fixedrange": True},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    return figure


def flips_file(result: dict[str, Any], *, kind: str) -> bytes:
    """Draw the same in print quality; `kind` is "png", "svg" or "pdf"."""
    figure, grid = Figure(figsize=(5.6, 3.6), layout="constrained"), result["setting"]["grid"]
    axes = figure.add_subplot()
    for row in result["rows"]:
        place = PLACES[row["method"]]
        axes.errorbar(
            grid,
            [100 * value["mean"] for value in row["flips"]],
            yerr=[100 * (value["error"] or 0) for value in row["flips"]],
            linestyle=("-", "--", ":", "-.")[place % 4],
            color=COLOURS[place % len(COLOURS)],
            marker="o",
            markersize=3.5,
            linewidth=1.5,
            capsize=2,
            label=METHODS[row["method"]].title,
        )
    axes.set(xlabel="training images removed, M", ylabel="predictions flipped, %", xticks=grid)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=300)
    return buffer.getvalue()


def flips_table(result: dict[str, Any]) -> str:
    """Write the result as a table (Markdown), the method that flips most first."""
    grid = result["setting"]["grid"]
    lines = [
        "| method | σ² | margin lost at M = " + f"{grid[0]} | " + " | ".join(f"M = {count}" for count in grid) + " |",
        "|" + "---|" * (3 + len(grid)),
    ]
    for row in sorted(result["rows"], key=lambda row: -sum(value["mean"] for value in row["flips"])):
        sigma2 = " / ".join(f"{value:g}" for value in dict.fromkeys(row["sigma2"] or []))
        shares = " | ".join(_percent(value) for value in row["flips"])
        lost = row["margin_drop"]
        margin = f"{lost['mean']:.2f}" + ("" if lost["error"] is None else f" ± {lost['error']:.2f}")
        lines.append(f"| {METHODS[row['method']].title} | {sigma2} | {margin} | {shares} |")
    return "\n".join(lines) + "\n"


def _percent(value: dict[str, Any]) -> str:
    error = "" if value["error"] is None else f" ± {100 * value['error']:.0f}"
    return f"{100 * value['mean']:.0f}{error} %"
