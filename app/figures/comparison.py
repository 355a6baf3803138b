"""Figures of the Compare page: the matrix of agreement, and the comparison as a picture to take away."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from natscope.app import escape
from natscope.app.components.comparison import marks
from natscope.app.figures.style import Figure, Rectangle
from natscope.app.words import sigma2_text
from natscope.core.analysis.comparison import Row, shared_images
from natscope.core.bundle.request import QueryImage
from natscope.core.methods import METHODS

_NAME = 14  # characters of a class's name under an image
FORMATS = {"PNG": "image/png", "SVG": "image/svg+xml", "PDF": "application/pdf"}


def agreement(matrix: np.ndarray, titles: Sequence[str], *, dark: bool) -> go.Figure:
    """Draw overlaps (R, R), 0 to 1, with their numbers; NaN stays empty.

    Args:
        matrix: mean overlaps.
        titles: of the methods.
        dark: whether the page is dark.
    """
    ends = ("#12161c", "#5cc3d6") if dark else ("#fbfaf7", "#0f6e84")
    shown = matrix.copy()
    np.fill_diagonal(shown, np.nan)
    text = [["" if np.isnan(value) else f"{value:.2f}" for value in line] for line in shown]
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            x=list(titles),
            y=list(titles),
            text=text,
            texttemplate="%{text}",
            colorscale=[[0, ends[0]], [1, ends[1]]],
            zmin=0,
            zmax=1,
            showscale=False,
            xgap=2,
            ygap=2,
            hovertemplate="%{y} and %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        height=34 * len(titles) + 120,
        margin={"l": 10, "r": 10, "t": 10, "b": 110},
        xaxis={"fixedrange": True, "showgrid": False, "tickangle": -40, "automargin": True},
        yaxis={"fixedrange": True, "showgrid": False, "automargin": True, "autorange": "reversed"},
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure


def comparison_file(
    queries: Sequence[QueryImage],
    rows: Sequence[Sequence[Row]],
    images: Mapping[int, np.ndarray] | np.ndarray,
    classes: tuple[str, ...],
    *,
    kind: str,
) -> bytes:
    """Draw the figure in print quality, the query on the left and one row a method, one block a query.

    Args:
        queries: the queries.
        rows: for each query, the rows of the same methods.
        images: of every training index in the rows, (H, W) or (H, W, 3) uint8.
        classes: names by label.
        kind: a key of `FORMATS`; PNG has 300 dots an inch.
    """
    names = [escape.mathtext(name, _NAME) for name in classes]
    methods, budget = len(rows[0]), max(1, max(len(row.picks) for block in rows for row in block))
    figure = Figure(figsize=(2.9 + 0.62 * budget, 0.15 + 0.82 * methods * len(queries)), layout=None)
    cell, height = 1 / figure.get_figwidth(), 1 / figure.get_figheight()
    top = 1.0 - 0.05 * height
    for query, block in zip(queries, rows, strict=True):
        tags = marks(list(shared_images(block)))
        _picture(figure, query.image, (0.06 * cell, top - 1.02 * height, 1.0 * cell, 0.98 * height))
        name = f"{query.origin} image {query.index}" if query.index is not None else "uploaded image"
        said = f"{names[query.predicted]}\n{name}"
        figure.text(0.56 * cell, top - 1.07 * height, said, ha="center", va="top", fontsize=7)
        for place, row in enumerate(block):
            upper = top - 0.82 * place * height
            method = METHODS[row.request.method]
            note = f"\nσ² = {sigma2_text(row.request.sigma2)}" if method.uses_sigma2 else ""
            figure.text(1.25 * cell, upper - 0.3 * height, method.title + note, va="center", fontsize=8)
            if row.answer is None:
                figure.text(2.75 * cell, upper - 0.3 * height, "no result", va="center", fontsize=7, style="italic")
                continue
            for column, item in enumerate(row.answer.items):
                left = (2.75 + 0.62 * column) * cell
                box = (left, upper - 0.58 * height, 0.56 * cell, 0.56 * height)
                _picture(figure, images[item.train_index], box, tags.get(item.train_index))
                middle = left + 0.28 * cell
                label = names[item.label]
                figure.text(middle, upper - 0.6 * height, label, ha="center", va="top", fontsize=5.5)
        top -= 0.82 * methods * height
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind.lower(), dpi=300, facecolor="white")
    return buffer.getvalue()


def _picture(
    figure: Figure, image: np.ndarray, box: tuple[float, float, float, float], mark: tuple[str, str] | None = None
) -> None:
    axes = figure.add_axes(box)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")
    if mark:
        letter, colour = mark
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=colour, linewidth=2.2)
        frame.set_clip_on(False)
        axes.add_patch(frame)
        axes.text(
            0.02,
            0.98,
            letter,
            transform=axes.transAxes,
            fontsize=5.5,
            fontweight="bold",
            ha="left",
            va="top",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
        )
