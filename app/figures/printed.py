"""Tables in files, drawn by Matplotlib for print: three rules, no vertical lines."""

import textwrap
from functools import cache
from typing import Any

from natscope.app import escape
from natscope.app.figures.style import Axes, TextPath, blended_transform_factory
from natscope.app.figures.tables import Table

_SIZE = 8.0  # points
_ROW, _EDGE, _GAP = 0.19, 0.08, 0.22  # inches: a line of text, the margin, and the least between columns
_DROP = 0.05  # inches from a line's bottom up to its letters
_WRAPPED, _LONGEST = 20, 60  # characters of a line of a column's title, and of a cell
_THICK, _THIN = 1.0, 0.5  # points


def width(table: Table) -> float:
    """Return the table's width in inches."""
    return sum(_widths(table)) + _GAP * (len(table.columns) - 1) + 2 * _EDGE


def height(table: Table) -> float:
    """Return the table's height in inches."""
    return _ROW * (_lines(table) + len(table.rows) + bool(table.last)) + 3.5 * _EDGE


def draw(axes: Axes, table: Table, across: float) -> None:
    """Draw the table.

    Args:
        axes: of the table's height; what stands to the left of other axes makes no difference.
        table: the table.
        across: the file's width in inches, over which the columns are spread.
    """
    axes.axis("off")
    axes.set_ylim(height(table), 0)
    at = blended_transform_factory(axes.figure.dpi_scale_trans, axes.transData)
    widths, gaps = _widths(table), len(table.columns) - 1
    gap = (across - 2 * _EDGE - sum(widths)) / gaps if gaps else 0.0
    titles, rows = _titles(table), [*table.rows, *([table.last] if table.last else [])]
    top = 1.5 * _EDGE + _ROW * _lines(table)  # below the columns' titles
    left = _EDGE

    def under(line: int) -> float:
        return top + _EDGE / 2 + _ROW * line + (_EDGE / 2 if line > len(table.rows) else 0.0)

    for column, wide in enumerate(widths):
        number = _is_number(table, column)
        place, side = (left + wide, "right") if number else (left, "left")
        style: dict[str, Any] = {"transform": at, "ha": side, "va": "baseline", "fontsize": _SIZE, "in_layout": False}
        for line, title in enumerate(reversed(titles[column].split("\n"))):
            axes.text(place, top - _EDGE / 2 - _ROW * line, title, **style)
        for line, row in enumerate(rows, 1):
            slant = "italic" if table.last and line == len(rows) else "normal"
            axes.text(place, under(line) - _DROP, _text(row[column]), style=slant, **style)
        left += wide + gap
    between = [under(len(table.rows)) + _EDGE / 4] if table.last else []
    rules = {_THICK: [_EDGE, under(len(rows)) + _EDGE / 2], _THIN: [top + _EDGE / 4, *between]}
    for thickness, places in rules.items():
        for place in places:
            ends = [_EDGE, across - _EDGE]
            axes.plot(ends, [place] * 2, "k", transform=at, linewidth=thickness, clip_on=False, in_layout=False)


def _titles(table: Table) -> list[str]:
    return ["\n".join(textwrap.wrap(_text(title), _WRAPPED)) for title in table.columns]


def _lines(table: Table) -> int:
    return max(title.count("\n") + 1 for title in _titles(table))


def _widths(table: Table) -> list[float]:
    columns = zip(_titles(table), *table.rows, *([table.last] if table.last else []), strict=True)
    return [
        max(_inches(line) for line in [*title.split("\n"), *(_text(cell) for cell in cells)])
        for title, *cells in columns
    ]


def _is_number(table: Table, column: int) -> bool:
    return column > 0 and any(row[column][:1].isdigit() for row in table.rows)


def _text(cell: str) -> str:
    return escape.mathtext(cell, _LONGEST)


@cache
def _inches(text: str) -> float:
    """Return the width of a line of text."""
    return float(TextPath((0, 0), text, size=_SIZE).get_extents().x1) / 72 if text.strip() else 0.0
