"""Charts of coresets."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from natscope.app.figures.attribution import IMAGES, gained
from natscope.app.figures.chart import Axis, Bars, Lines, Reference, line_of, measured
from natscope.app.theme import MUTED
from natscope.core.methods import METHODS, RANDOM

_MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down")
_KINDS = ((False, "Classes as they come"), (True, "Balanced classes"))


def class_balance(counts: np.ndarray, classes: Sequence[str], method: str) -> Bars:
    """Return how many images of each class (C,) were chosen."""
    colours = [METHODS[method].colour] * len(classes)
    return Bars(classes, counts.tolist(), Axis("Images", zero=True, whole=True), colours)


def information(nats: np.ndarray, at_random: np.ndarray, method: str) -> Lines:
    """Return the nats (M,) of a coreset's first images, and of as many random ones, against their number."""
    lines = [gained(nats, method, "this coreset"), gained(at_random, RANDOM, "random images")]
    return Lines(lines, IMAGES, Axis("Nats per test image", zero=True), height=290)


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
        hover="{name}: {x:.1f} %",
        text="{x:.1f} %",
    )


def accuracies(result: dict[str, Any]) -> list[Lines]:
    """Return the experiment's accuracies against the budget, with standard errors: without and with balance."""
    grid, everything = result["setting"]["grid"], 100 * result["all_data"]["mean"]
    charts = []
    for balanced, title in _KINDS:
        rows = [row for row in result["rows"] if row["balanced"] == balanced]
        lines = [
            line_of(
                row["method"],
                grid,
                **measured(row["accuracy"], 100),
                marker=_MARKERS[position % len(_MARKERS)],
                hover="{name}, {x:,} images: {y:.1f}{spread} %",
            )
            for position, row in enumerate(rows)
        ]
        whole = Reference(everything, "all training images")
        x, y = Axis("Coreset size", log=True, ticks=grid), Axis("Test accuracy (%)", zero=True)
        charts.append(Lines(lines, x, y, references=[whole], title=title, height=380))
    return charts
