"""Charts of coresets."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from natscope.app.figures.attribution import IMAGES, gained
from natscope.app.figures.chart import Axis, Bars, Lines, Reference, marked_line, measured
from natscope.app.theme import MUTED
from natscope.core.analysis.coreset import FREE, PER_CLASS, QUOTAS
from natscope.core.methods import METHODS, RANDOM
from natscope.precompute.experiments.coreset import whole_title

_TITLES = {
    FREE: "Figure 5: chosen freely",
    QUOTAS: "Figure 6: a quota for every class",
    PER_CLASS: "Ours: each class for its own queries",
}


def class_balance(counts: np.ndarray, classes: Sequence[str], method: str) -> Bars:
    """Return how many images of each class (C,) were chosen."""
    colours = [METHODS[method].colour] * len(classes)
    return Bars(classes, counts.tolist(), Axis("Examples", zero=True, whole=True), colours)


def information(nats: np.ndarray, at_random: np.ndarray, method: str) -> Lines:
    """Return the nats (M,) of a coreset's first images, and of as many random ones, against their number."""
    lines = [gained(nats, method, "this coreset"), gained(at_random, RANDOM, "random examples")]
    return Lines(lines, IMAGES, Axis("Nats per test example", zero=True), height=290)


def overlap(methods: Sequence[str], shares: Sequence[float]) -> Bars:
    """Return the Jaccard overlap with other methods' coresets, the largest on top."""
    order = np.argsort(shares, kind="stable")[::-1]
    return Bars(
        [METHODS[methods[position]].title for position in order],
        [shares[position] for position in order],
        Axis("Overlap (Jaccard)", range=(0, 1.02)),
        colours=[METHODS[methods[position]].colour for position in order],
        hover="{name}: {x:.2f}",
    )


def shares_right(titles: Sequence[str], shares: Sequence[float], method: str) -> Bars:
    """Return the accuracy of networks trained on all images, on a method's and on random ones, the first on top."""
    return Bars(
        titles,
        [100 * share for share in shares],
        Axis("Test accuracy (%)", range=(0, 109)),
        colours=[MUTED, METHODS[method].colour, METHODS[RANDOM].colour],
        hover="{name}: {x:.1f}%",
        text="{x:.1f}%",
    )


def accuracies(result: dict[str, Any]) -> list[Lines]:
    """Return the experiment's accuracies against the budget, with standard errors: a chart for each variant."""
    grid, everything = result["setting"]["grid"], 100 * result["all_data"]["mean"]
    highest = max(100 * (value["mean"] + (value["error"] or 0)) for row in result["rows"] for value in row["accuracy"])
    x, y = (
        Axis("Coreset size", log=True, ticks=grid),
        Axis("Test accuracy (%)", range=(0, 1.06 * max(highest, everything))),
    )
    charts = []
    for variant, title in _TITLES.items():
        rows = [row for row in result["rows"] if row["variant"] == variant]
        if not rows:
            continue
        lines = [
            marked_line(
                row["method"],
                grid,
                **measured(row["accuracy"], 100),
                hover="{name}, {x:,} examples: {y:.1f}{spread}%",
            )
            for row in rows
        ]
        whole = Reference(everything, whole_title(result["setting"]))
        charts.append(Lines(lines, x, y, references=[whole], title=title, height=380))
    return charts
