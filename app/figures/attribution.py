"""Figures: the information curve on the page, and the ranking as a picture to take away."""

import io

import numpy as np
import plotly.graph_objects as go

from natscope.app import escape
from natscope.app.figures.style import Axes, Figure
from natscope.app.words import nats
from natscope.core.bundle.request import Attribution, QueryImage
from natscope.core.methods import Method

_COLUMNS = 10
_ACROSS = {"xref": "x domain", "yref": "y"}  # a place by its share of the width and its value
_NAME = 16  # characters of a class's name over an image


def curve(result: Attribution, selected: int | None, *, colours: tuple[str, str]) -> go.Figure:
    """Draw cumulative nats against M; the selected image's point is larger.

    Args:
        result: an attribution whose items have nats.
        selected: place of the marked item, or None.
        colours: of the line and of the total.
    """
    line, muted = colours
    ranks = [i.rank for i in result.items]
    values = [i.nats for i in result.items]
    marked = [13 if place == selected else 7 for place in range(len(ranks))]
    top = max(v for v in values if v is not None)
    shown = [result.total_nats] if result.total_nats is not None and result.total_nats < 4 * max(top, 1e-12) else []
    return go.Figure(
        go.Scatter(
            x=ranks,
            y=values,
            mode="lines+markers",
            marker={"size": marked, "color": line},
            line={"color": line, "width": 2},
            customdata=[i.train_index for i in result.items],
            hovertemplate="first %{x}: %{y:.4g} nats<br>training image %{customdata}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
        ),
        # All at once: this is drawn at every click, and update_layout and add_hline take six times as long.
        go.Layout(
            height=260,
            margin={"l": 10, "r": 10, "t": 10, "b": 10},
            xaxis={"title": "images taken together, M", "rangemode": "tozero", "tickformat": "d", "fixedrange": True},
            yaxis={"title": "nats", "rangemode": "tozero", "fixedrange": True},
            shapes=[
                {**_ACROSS, "type": "line", "x0": 0, "x1": 1, "y0": total, "y1": total}
                | {"line": {"color": muted, "dash": "dot"}}
                for total in shown
            ],
            annotations=[
                {**_ACROSS, "text": "all candidates", "x": 1, "y": total, "xanchor": "right", "yanchor": "bottom"}
                | {"showarrow": False, "font": {"color": muted}}
                for total in shown
            ],
            showlegend=False,
            dragmode=False,
        ),
    )


def ranking_png(
    query: QueryImage, images: np.ndarray, result: Attribution, method: Method, classes: tuple[str, ...]
) -> bytes:
    """Draw the query and its ranked images as a PNG, 200 dots an inch.

    Args:
        query: the query.
        images: (M, H, W) or (M, H, W, 3) uint8, in the order of the ranking.
        result: the attribution.
        method: the method that made it.
        classes: names by label.
    """
    names = [escape.mathtext(name, _NAME) for name in classes]
    rows = max(2, -(-len(images) // _COLUMNS))  # the query is as high as two
    figure = Figure(figsize=(1.05 * (_COLUMNS + 2), 1.35 * rows + 0.5), dpi=200, layout="constrained")
    # Two grids side by side in one: the query takes two columns, the ranking the others.
    cells = figure.add_gridspec(rows, _COLUMNS + 2)
    _show(
        figure.add_subplot(cells[:2, :2]),
        query.image,
        f"{_title(query, names)}\npredicted {names[query.predicted]}",
    )
    before = 0.0
    for place, (image, item, rank) in enumerate(zip(images, result.items, result.places, strict=True)):
        arrow = {1: " ▲", -1: " ▼", 0: ""}[item.sign]
        amount = f"{item.score:.3g}" if item.nats is None else nats(item.nats - before)
        before = item.nats or 0.0
        row, column = divmod(place, _COLUMNS)
        _show(figure.add_subplot(cells[row, column + 2]), image, f"{rank}  {names[item.label]}\n{amount}{arrow}")
    sigma2 = f", σ² = {result.request.sigma2:.3g}" if method.uses_sigma2 else ""
    figure.suptitle(f"{method.title}{sigma2}: training images behind “{names[result.target]}”", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, pad=2, fontsize=7)
    axes.axis("off")


def _title(query: QueryImage, names: list[str]) -> str:
    if query.index is None:
        return "uploaded image"
    return f"{query.origin} image {query.index}: {names[query.label or 0]}"
