"""The style of files, and Matplotlib with its default settings.

Matplotlib also reads a `matplotlibrc` in the working directory, which may be a stranger's. Such a file can run TeX on
its own text, be a pipe that blocks, or not be text at all, and makes figures depend on where they were drawn.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from natscope.app.theme import LIGHT


@contextmanager
def _nothing_here() -> Iterator[None]:
    """Let Matplotlib, which reads its settings on import, find none in the working directory."""
    exists = os.path.exists
    os.path.exists = lambda path: path != "matplotlibrc" and exists(path)
    try:
        yield
    finally:
        os.path.exists = exists


with _nothing_here():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.textpath import TextPath
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import blended_transform_factory

__all__ = [
    "FORMATS",
    "Axes",
    "Figure",
    "MaxNLocator",
    "Rectangle",
    "TextPath",
    "blank",
    "blended_transform_factory",
    "saved",
]

FORMATS = {"PNG": "image/png", "SVG": "image/svg+xml", "PDF": "application/pdf"}
_DATED = {"svg": "Date", "pdf": "CreationDate"}  # left out, so that equal figures are equal files

matplotlib.rcdefaults()
matplotlib.rc("font", size=8.5)
matplotlib.rc("text", color=LIGHT.text)
matplotlib.rc("axes", titlesize=9, labelcolor=LIGHT.text, edgecolor=LIGHT.muted, axisbelow=True)
matplotlib.rc("axes.spines", top=False, right=False)
matplotlib.rc("xtick", labelsize=7.5, color=LIGHT.muted, labelcolor=LIGHT.text)
matplotlib.rc("ytick", labelsize=7.5, color=LIGHT.muted, labelcolor=LIGHT.text)
matplotlib.rc("grid", alpha=0.3, linewidth=0.6)
matplotlib.rc("legend", fontsize=7.5, title_fontsize=9, frameon=False, handlelength=3.5)
matplotlib.rc("savefig", dpi=300, facecolor="white")
matplotlib.rc("pdf", fonttype=42)  # TrueType: many publishers refuse Type 3
matplotlib.rc("svg", hashsalt="natscope")


def blank(width: float, height: float, *, arranged: bool = True) -> Figure:
    """Return an empty figure of a size in inches; `arranged` lets its parts make room for one another."""
    return Figure(figsize=(width, height), layout="constrained" if arranged else None)


def saved(figure: Figure, kind: str) -> bytes:
    """Return the figure as a file; `kind` is a key of `FORMATS`, in either case. PNG has 300 dots an inch."""
    buffer, kind = io.BytesIO(), kind.lower()
    metadata: dict[str, Any] = {_DATED[kind]: None} if kind in _DATED else {}
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
