"""Charts of the information curves."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from natscope.app.figures.attribution import IMAGES
from natscope.app.figures.chart import DASHES, Axis, Lines, Series, line_of
from natscope.app.theme import ramp
from natscope.app.words import sigma2_text
from natscope.core.analysis.curves import Curve, Line


def relative(title: str, curves: Sequence[Curve], *, by_method: bool) -> Lines:
    """Return relative information in per cent against M, with a band of one standard error.

    Args:
        title: the panel's title.
        curves: to draw, together.
        by_method: whether the legend names methods, or else values of sigma2.
    """
    lines = []
    for curve, colour, dash in zip(curves, ramp(len(curves)), cycle(DASHES), strict=False):
        by_sigma2 = {"name": f"σ² = {sigma2_text(curve.line.sigma2)}", "colour": colour, "dash": dash}
        lines.append(
            line_of(
                curve.line.method,
                list(range(1, len(curve.mean) + 1)),
                (100 * curve.mean).tolist(),
                error=(100 * curve.error).tolist(),
                band=True,
                hover="{name}, first {x}: {y:.1f}{spread}%",
                **{} if by_method else by_sigma2,
            )
        )
    return Lines(lines, IMAGES, Axis("Relative information (%)", range=(0, 104)), title=title)


def relative_charts(result: dict[str, Any]) -> list[Lines]:
    """Return the charts of the experiment."""
    return [
        relative(panel["title"], [_read(curve) for curve in panel["curves"]], by_method=panel["by"] == "method")
        for panel in result["panels"]
    ]


def lengths(ratios: np.ndarray) -> Lines:
    """Return the histogram of squared lengths after sketching over those before."""
    counts, edges = np.histogram(ratios, bins=30)
    width = edges[1] - edges[0]
    middles = np.linspace(edges[0] - width / 2, edges[-1] + width / 2, len(counts) + 2)  # empty ones at both ends
    bins = Series("", middles.tolist(), [0, *counts.tolist(), 0], area=True, hover="{x:.3f}: {y} examples")
    return Lines([bins], Axis("Squared length, sketched ÷ exact"), Axis("Examples", zero=True, whole=True), height=200)


def _read(curve: dict[str, Any]) -> Curve:
    """Rebuild a curve from its mean and standard error: two rows have both."""
    mean, error = np.array(curve["mean"]), np.array(curve["standard_error"])
    return Curve(Line(curve["method"], curve["sigma2"]), np.stack([mean - error, mean + error]))
