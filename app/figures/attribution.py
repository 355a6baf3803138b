"""Charts of one prediction: how the information of its images adds up, and how methods agree about it."""

from collections.abc import Sequence

import numpy as np

from natscope.app.figures.chart import Axis, Heatmap, Lines, Reference, Series, line_of
from natscope.core.bundle.request import Attribution
from natscope.core.methods import METHODS

IMAGES, NATS = Axis("Number of images, M", zero=True, whole=True), Axis("Information (nats)", zero=True)


def curve(result: Attribution, selected: int | None) -> Lines:
    """Return cumulative nats against M; the selected image's point is larger.

    Args:
        result: an attribution whose items have nats.
        selected: position of the marked item, or None.
    """
    nats = [item.nats or 0.0 for item in result.items]
    far = result.total_nats is None or result.total_nats >= 4 * max(*nats, 1e-12)  # it would flatten the curve
    line = Series(
        "",
        [item.rank for item in result.items],
        nats,
        colour=METHODS[result.request.method].colour,
        marker="circle",
        large=() if selected is None else (selected,),
        hover="first {x}: {y:.4g} nats<br>training image {note}",
        notes=[str(item.train_index) for item in result.items],
    )
    total = () if far else (Reference(result.total_nats or 0.0, "all candidates"),)
    return Lines([line], IMAGES, NATS, references=total, height=260)


def agreement(matrix: np.ndarray, titles: Sequence[str]) -> Heatmap:
    """Return the overlaps (R, R), 0 to 1, of methods; each method's overlap with itself is left out."""
    shown = matrix.copy()
    np.fill_diagonal(shown, np.nan)
    return Heatmap(titles, shown.tolist())


def gained(values: np.ndarray, method: str, name: str) -> Series:
    """Return the nats (M,) of a method's first images against their number."""
    sizes = list(range(1, len(values) + 1))
    return line_of(method, sizes, values.tolist(), name=name, hover="{name}, first {x}: {y:.3g} nats")
