"""The measured search as a figure: time of a selection, and the information it recovers, against the pool's size."""

import io
from typing import Any

from natscope.app.figures.style import Figure
from natscope.core.index.spec import KINDS

_NAMES = {"scan": "scan", "gram": "Gram path"} | {kind: f"{title} index" for kind, title in KINDS.items()}
_COLOURS = {  # told apart by colour-blind people, and by their marks
    "scan": "#999999",
    "gram": "#000000",
    "flat": "#E69F00",
    "ivf": "#0072B2",
    "ivfpq": "#56B4E9",
    "hnsw": "#009E73",
}
_MARKS = {"scan": "x", "gram": "s", "flat": "D", "ivf": "o", "ivfpq": "^", "hnsw": "v"}


def search_file(result: dict[str, Any], *, kind: str) -> bytes:
    """Draw the result of `python -m benchmarks search`, at its smallest sigma2, as a PNG or SVG.

    Args:
        result: the JSON object.
        kind: "png" or "svg".
    """
    sigma2 = min(row["sigma2"] for row in result["rows"])
    figure = Figure(figsize=(8.2, 3.4), layout="constrained")
    times, nats = figure.subplots(1, 2)
    for search, name in _NAMES.items():
        rows = sorted(
            (r for r in result["rows"] if (r["search"], r["sigma2"]) == (search, sigma2)), key=lambda r: r["n"]
        )
        sizes, style = [r["n"] for r in rows], {"color": _COLOURS[search], "marker": _MARKS[search], "markersize": 5}
        if rows:
            times.plot(sizes, [r["seconds"] for r in rows], label=name, **style)
        if rows and search in {"ivf", "ivfpq", "hnsw"}:
            nats.plot(sizes, [r["information"] for r in rows], label=name, **style)
    setting = result["setting"]
    times.set(xscale="log", yscale="log", xlabel="candidates N", ylabel=f"seconds for M = {setting['budget']}")
    nats.set(xscale="log", xlabel="candidates N", ylabel="information, share of exact greedy", ylim=(0.9, 1.02))
    nats.axhline(0.98, color="#D55E00", linestyle="--", linewidth=1)
    times.legend(frameon=False, fontsize=8)
    for axes in (times, nats):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
    figure.suptitle(f"K = {setting['dim']}, σ² = {sigma2:g}, {setting['threads']} threads", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
