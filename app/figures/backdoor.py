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
        said = "{name}: {y:.0f}% found, {x:.1f}% of the clean images inspected"
        lines.append(line_of(method, x, y, hover=said))
    inspected = Axis("Clean images inspected (%)", range=(0, 100))
    return Lines(lines, inspected, Axis("Poisoned images found (%)", range=(0, 102)), height=290)


def recalls(result: dict[str, Any]) -> Bars:
    """Return the experiment's recall of every method with its standard error, the best on top, and the oracle's."""
    rows = sorted(result["rows"], key=lambda row: -row["recall"]["mean"])
    recall = measured([row["recall"] for row in rows], 100)
    chance = 100 * result["attack"]["base_rate"]["mean"]
    oracles = [row["oracle"] for row in rows]
    return Bars(
        [METHODS[row["method"]].title for row in rows],
        recall["y"],
        Axis(f"Recall@{result['setting']['recall_at']} (%), ◇ with the oracle’s σ²", range=(0, 104)),
        colours=[METHODS[row["method"]].colour for row in rows],
        error=recall["error"],
        hover="{name}: {x:.1f}{spread}%",
        marks=[100 * oracle["recall"]["mean"] if oracle else None for oracle in oracles],
        references=[Reference(chance, f"chance, {chance:.1f}%", axis="x")],
    )


def sigma2_chosen(result: dict[str, Any]) -> str:
    """Return in a sentence how the experiment's σ² was chosen."""
    tuned_on = f"{result['setting']['tuned_on']} other poisoned queries of each network"
    sources: dict[str, list[str]] = {}
    for row in result["rows"]:
        for file in dict.fromkeys(row["tuned"] or ()):
            source = f"taken from {file}" if file else "the default multiple of the features’ scale"
            sources.setdefault(source, []).append(METHODS[row["method"]].title)
    usual = "; ".join(f"{', '.join(titles)}: {source}" for source, titles in sources.items())
    return (
        f"σ² was chosen without using poisoned images ({usual or 'no method uses it'}). The oracle’s is the one of the "
        f"highest recall on {tuned_on}."
    )
