"""Sheets of examples to download: a ranking, and the comparison of methods."""

from collections.abc import Sequence

import numpy as np

from natscope.app import escape
from natscope.app.components.comparison import marks
from natscope.app.figures.style import Axes, Figure, Rectangle, blank, saved
from natscope.app.modalities import page_of
from natscope.app.words import nats, number, sigma2_text
from natscope.core.analysis.comparison import Row, shared_images
from natscope.core.bundle.request import Attribution, QueryExample
from natscope.core.examples import Examples
from natscope.core.methods import METHODS

_COLUMNS = 10
_SHORT, _LONG = 14, 16  # characters of a class's name at an image


def ranking_file(
    query: QueryExample, ranked: Examples, result: Attribution, classes: tuple[str, ...], *, kind: str
) -> bytes:
    """Draw the query and its ranked examples.

    Args:
        query: the query.
        ranked: the training examples, in the order of the ranking.
        result: the attribution.
        classes: names by label.
        kind: a key of `natscope.app.figures.style.FORMATS`.
    """
    names = [escape.mathtext(name, _LONG) for name in classes]
    rows = max(2, -(-len(ranked) // _COLUMNS))  # the query is as high as two
    figure = blank(1.05 * (_COLUMNS + 2), 1.35 * rows + 0.5)
    # Two grids side by side in one: the query takes two columns, the ranking the others.
    cells = figure.add_gridspec(rows, _COLUMNS + 2)
    title = f"{_title(query, names)}\npredicted {names[query.predicted]}"
    _show(figure.add_subplot(cells[:2, :2]), query.example, 0, title)
    before = 0.0
    for position, (item, rank) in enumerate(zip(result.items, result.rank_labels, strict=True)):
        arrow = {1: " ▲", -1: " ▼", 0: ""}[item.sign]
        amount = number(item.score) if item.nats is None else nats(item.nats - before)
        before = item.nats or 0.0
        row, column = divmod(position, _COLUMNS)
        title = f"{rank}  {names[item.label]}\n{amount}{arrow}"
        _show(figure.add_subplot(cells[row, column + 2]), ranked, position, title)
    method = METHODS[result.request.method]
    sigma2 = f", σ² = {result.sigma2:.3g}" if method.uses_sigma2 else ""
    figure.suptitle(
        f"{method.title}{sigma2}: training {ranked.modality.many} behind “{names[result.target]}”", fontsize=9
    )
    return saved(figure, kind)


def comparison_file(
    queries: Sequence[QueryExample],
    rows: Sequence[Sequence[Row]],
    picks: np.ndarray,
    train: Examples,
    classes: tuple[str, ...],
    *,
    kind: str,
) -> bytes:
    """Draw the figure in print quality, the query on the left and one row per method, one block per query.

    Args:
        queries: the queries.
        rows: for each query, the rows of the same methods.
        picks: (P,) every training index in the rows, rising.
        train: those training examples.
        classes: names by label.
        kind: a key of `natscope.app.figures.style.FORMATS`.
    """
    names = [escape.mathtext(name, _SHORT) for name in classes]
    methods, budget = len(rows[0]), max(1, max(len(row.picks) for block in rows for row in block))
    figure = blank(2.9 + 0.62 * budget, 0.15 + 0.82 * methods * len(queries), arranged=False)
    cell, height = 1 / figure.get_figwidth(), 1 / figure.get_figheight()
    top = 1.0 - 0.05 * height
    for query, block in zip(queries, rows, strict=True):
        tags = marks(list(shared_images(block)))
        _picture(figure, query.example, 0, (0.06 * cell, top - 1.02 * height, 1.0 * cell, 0.98 * height))
        said = f"{_title(query, names)}\npredicted {names[query.predicted]}"
        figure.text(0.56 * cell, top - 1.07 * height, said, ha="center", va="top", fontsize=7)
        for position, row in enumerate(block):
            upper = top - 0.82 * position * height
            method = METHODS[row.request.method]
            note = f"\nσ² = {sigma2_text(row.sigma2)}" if method.uses_sigma2 and row.sigma2 else ""
            figure.text(1.25 * cell, upper - 0.3 * height, method.title + note, va="center", fontsize=8)
            if row.answer is None:
                figure.text(2.75 * cell, upper - 0.3 * height, "no result", va="center", fontsize=7, style="italic")
                continue
            for column, item in enumerate(row.answer.items):
                left = (2.75 + 0.62 * column) * cell
                box = (left, upper - 0.58 * height, 0.56 * cell, 0.56 * height)
                _picture(figure, train, int(np.searchsorted(picks, item.train_index)), box, tags.get(item.train_index))
                middle = left + 0.28 * cell
                label = names[item.label]
                figure.text(middle, upper - 0.6 * height, label, ha="center", va="top", fontsize=5.5)
        top -= 0.82 * methods * height
    return saved(figure, kind)


def _show(axes: Axes, examples: Examples, row: int, title: str) -> None:
    page_of(examples.modality).draw(examples, row, axes)
    axes.set_title(title, pad=2, fontsize=7)
    axes.axis("off")


def _title(query: QueryExample, names: list[str]) -> str:
    if query.index is None:
        return f"your {query.example.modality.one}"
    return f"{query.origin} {query.example.modality.one} {query.index}" + (
        "" if query.label is None else f"\ntrue: {names[query.label]}"
    )


def _picture(
    figure: Figure,
    examples: Examples,
    row: int,
    box: tuple[float, float, float, float],
    mark: tuple[str, str] | None = None,
) -> None:
    axes = figure.add_axes(box)
    page_of(examples.modality).draw(examples, row, axes)
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
