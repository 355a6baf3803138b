"""The measured search: time of a selection, and the information it recovers, against the pool's size."""

import itertools
from typing import Any

from natscope.app.figures.chart import Axis, Lines, Reference, Series
from natscope.app.theme import ramp
from natscope.core.index.spec import EXACT, TITLES

_NAMES = {"scan": "scan", "gram": "Gram path"} | {kind: f"{title} index" for kind, title in TITLES.items()}
_EXACT = {"scan", "gram", *EXACT}
_MARKERS = ("x", "square", "diamond", "circle", "triangle-up", "triangle-down")
_ENOUGH = 0.98


def search_charts(result: dict[str, Any]) -> list[Lines]:
    """Return the result of `python -m benchmarks search`, at its smallest sigma2: seconds, and nats found."""
    size, budget = Axis("Candidates, N", log=True), result["setting"]["budget"]
    nats = Axis("Share of exact greedy’s nats", range=(0.9, 1.02))
    return [
        Lines(_lines(result, "seconds"), size, Axis(f"Seconds for M = {budget}", log=True)),
        Lines(
            [line for line in _lines(result, "information") if line.name not in {_NAMES[kind] for kind in _EXACT}],
            size,
            nats,
            references=[Reference(_ENOUGH, f"{_ENOUGH:g}")],
        ),
    ]


def search_title(result: dict[str, Any]) -> str:
    """Return a title that says what was measured."""
    setting = result["setting"]
    threads = f"{setting['threads']} thread{'' if setting['threads'] == 1 else 's'}"
    return f"K = {setting['dim']:,}, σ² = {_sigma2(result):g}, {threads}"


def _lines(result: dict[str, Any], quantity: str) -> list[Series]:
    measured = {row["search"] for row in result["rows"]}
    names = [(search, name) for search, name in _NAMES.items() if search in measured]
    lines, colours, markers = [], ramp(len(names)), itertools.cycle(_MARKERS)
    for (search, name), colour, marker in zip(names, colours, markers, strict=False):
        rows = [row for row in result["rows"] if (row["search"], row["sigma2"]) == (search, _sigma2(result))]
        rows = sorted((row for row in rows if row.get(quantity) is not None), key=lambda row: row["n"])
        if rows:
            sizes, values = [row["n"] for row in rows], [row[quantity] for row in rows]
            lines.append(Series(name, sizes, values, colour=colour, marker=marker))
    return lines


def _sigma2(result: dict[str, Any]) -> float:
    return min(row["sigma2"] for row in result["rows"])
