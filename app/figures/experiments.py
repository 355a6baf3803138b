"""What accompanies an experiment's JSON: its charts, on a page and as files, and its table."""

from collections.abc import Callable, Sequence
from typing import Any

from natscope.app.figures.backdoor import recalls
from natscope.app.figures.chart import Axis, Chart, Lines, marked_line, measured
from natscope.app.figures.coreset import accuracies
from natscope.app.figures.curves import relative_charts
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.tables import TABLES, Table
from natscope.app.words import sigma2_text
from natscope.core.methods import METHODS


def charts(result: dict[str, Any]) -> Sequence[Chart]:
    """Return the charts of an experiment."""
    return _CHARTS[result["experiment"]](result)


def table(result: dict[str, Any]) -> Table | None:
    """Return an experiment's table; nothing where its charts say it all."""
    make = TABLES.get(result["experiment"])
    return make(result) if make else None


def is_table(result: dict[str, Any]) -> bool:
    """Return whether the table is what an experiment is shown as, whether or not a chart goes with it."""
    return result["experiment"] in _SHOWN_AS_TABLES


def panels(result: dict[str, Any]) -> list[Chart | Table]:
    """Return what an experiment is shown as: its charts, its table, or both."""
    own = table(result) if is_table(result) else None
    return [*charts(result), *([own] if own else [])]


def columns(result: dict[str, Any]) -> int:
    """Return in how many columns the charts of an experiment stand in a file."""
    return 2 if result["experiment"] == "coreset" else 1


def experiment_files(result: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Draw an experiment; return the suffix and the content of each file."""
    files, own = [], table(result)
    if drawn := charts(result):
        files = [(suffix, chart_file(*drawn, kind=suffix, columns=columns(result))) for suffix in ("png", "svg")]
    return [*files, ("md", own.markdown().encode())] if own else files


def flips(result: dict[str, Any]) -> Lines:
    """Return the share of flipped predictions against the number of examples removed, one line per method."""
    grid = result["setting"]["grid"]
    lines = [
        marked_line(
            row["method"],
            grid,
            **measured(row["flips"], 100),
            hover="{name}, {x} removed: {y:.0f}{spread}%",
        )
        for row in result["rows"]
    ]
    return Lines(lines, Axis("Examples removed, M", ticks=grid), Axis("Predictions flipped (%)", zero=True), height=380)


def scores(result: dict[str, Any]) -> Lines:
    """Return the score against sigma2 with its standard error, one line per method; the chosen points are larger."""
    lines = []
    for method, points in result["curves"].items():
        sigma2s, chosen = [point["sigma2"] for point in points], result["sigma2"][method]
        lines.append(
            marked_line(
                method,
                sigma2s,
                **measured(points),
                name=f"{METHODS[method].title}: {sigma2_text(chosen)}",
                large=[sigma2s.index(chosen)],
                hover="{name}; σ² = {x:g}: {y:.2f}{spread}",
            )
        )
    return Lines(lines, Axis("Noise variance, σ²", log=True), Axis(result["axis"]), title=_BEST)


_BEST = "Best σ² of each method (large points)"
_SHOWN_AS_TABLES = ("backdoor", "lds", "retraining")
_CHARTS: dict[str, Callable[[dict[str, Any]], Sequence[Chart]]] = {
    "relative-information": relative_charts,
    "brittleness": lambda result: [flips(result)],
    "backdoor": lambda result: [recalls(result)],
    "coreset": accuracies,
    "lds": lambda result: [],
    "retraining": lambda result: [],
    "tune": lambda result: [scores(result)],
}
