"""Charts of one prediction: how the information of its images adds up, and how methods agree about it."""

from collections.abc import Sequence

import numpy as np

from natscope.app.figures.chart import Axis, Heatmap, Lines, Reference, Series, line_of
from natscope.core.bundle.request import Attribution
from natscope.core.methods import METHODS

IMAGES, NATS = Axis("Number of examples, M", zero=True, whole=True), Axis("Information (nats)", zero=True)
_BINS = 40
_FLOOR, _LIFT = 0.5, 0.1  # of a logarithmic axis, and how high above it the marks are, as a share of its length


def curve(result: Attribution) -> Lines:
    """Return cumulative nats against M.

    Args:
        result: an attribution whose items have nats.
    """
    nats = [item.nats or 0.0 for item in result.items]
    far = result.total_nats is None or result.total_nats >= 4 * max(*nats, 1e-12)  # it would flatten the curve
    line = Series(
        "",
        [item.rank for item in result.items],
        nats,
        colour=METHODS[result.request.method].colour,
        marker="circle",
        hover="first {x}: {y:.4g} nats<br>training example {note}",
        notes=[str(item.train_index) for item in result.items],
    )
    total = () if far else (Reference(result.total_nats or 0.0, "all candidates"),)
    return Lines([line], IMAGES, NATS, references=total, height=260)


def spread(scores: np.ndarray, picks: Sequence[float], result: Attribution) -> Lines:
    """Return the histogram of all candidates' scores, with those of the picks marked.

    Args:
        scores: (n,) of every candidate by itself.
        picks: (M,) those of the ranked images.
        result: the attribution.
    """
    method = METHODS[result.request.method]
    counts, edges = np.histogram(scores, bins=_BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    tallest = float(counts.max())
    bars = Series("candidates", middles.tolist(), np.maximum(counts, _FLOOR).tolist(), area=True)
    marks = Series(
        "picks",
        list(picks),
        [_FLOOR * (tallest / _FLOOR) ** _LIFT] * len(picks),
        colour=method.colour,
        marker="diamond",
        alone=True,
        hover="rank {note}: {x:.3g}",
        notes=list(result.rank_labels),
    )
    units = {"gain": "What the example alone tells (nats)", "loss": "What is lost without it alone (nats)"}
    unit = units[method.information] if method.information else method.score.capitalize()
    return Lines([bars, marks], Axis(unit), Axis("Candidates", (_FLOOR, 2 * tallest), log=True), height=260)


def agreement(matrix: np.ndarray, titles: Sequence[str]) -> Heatmap:
    """Return the overlaps (R, R), 0 to 1, of methods; each method's overlap with itself is left out."""
    shown = matrix.copy()
    np.fill_diagonal(shown, np.nan)
    return Heatmap(titles, shown.tolist())


def gained(values: np.ndarray, method: str, name: str) -> Series:
    """Return the nats (M,) of a method's first images against their number."""
    sizes = list(range(1, len(values) + 1))
    return line_of(method, sizes, values.tolist(), name=name, hover="{name}, first {x}: {y:.3g} nats")
