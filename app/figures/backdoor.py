"""Charts of backdoors: how early rankings find the poisoned images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from natscope.app.figures.chart import Axis, Bars, Lines, Reference, Series, line_of, measured
from natscope.app.theme import MUTED
from natscope.core.methods import METHODS


def roc(rankings: Mapping[str, np.ndarray]) -> Lines:
    """Return the share of poisoned images found against the share of clean ones inspected.

    Args:
        rankings: by method, whether each image of a whole ranking is poisoned, best first.
    """
    lines = [Series("Chance", [0, 100], [0, 100], colour=MUTED, dash="dot")]
    for method, hits in rankings.items():
        found, false = np.cumsum(hits) / hits.sum(), np.cumsum(~hits) / max((~hits).sum(), 1)
        x, y = [0, *(100 * false).tolist()], [0, *(100 * found).tolist()]
        said = "{name}: {y:.0f} % found, {x:.1f} % of the clean images inspected"
        lines.append(line_of(method, x, y, hover=said))
    inspected = Axis("Clean images inspected (%)", range=(0, 100))
    return Lines(lines, inspected, Axis("Poisoned images found (%)", range=(0, 102)), height=290)


def recalls(result: dict[str, Any]) -> Bars:
    """Return the experiment's recall of every method with its standard error, the best on top."""
    rows = sorted(result["rows"], key=lambda row: -row["recall"]["mean"])
    recall = measured([row["recall"] for row in rows], 100)
    chance = 100 * result["attack"]["base_rate"]["mean"]
    return Bars(
        [METHODS[row["method"]].title for row in rows],
        recall["y"],
        Axis(f"Recall@{result['setting']['recall_at']} of poisoned images (%)", range=(0, 104)),
        colours=[METHODS[row["method"]].colour for row in rows],
        error=recall["error"],
        hover="{name}: {x:.1f}{spread} %",
        references=[Reference(chance, f"chance, {chance:.1f} %", axis="x")],
    )
