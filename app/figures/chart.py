"""What a chart shows, independent of what draws it: `on_page` with Plotly, `in_files` with Matplotlib.

Colours are hex or a role of `natscope.app.theme.Palette`. Names may come from outside: they are escaped where they are
drawn. A point's label is a template with the fields {name}, {x}, {y}, {note} and {spread}: " ± error", or nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from natscope.app.theme import ACCENT
from natscope.core.methods import METHODS

# For each dash, the lengths drawn and left out in turn, in line widths.
DASHES = {
    "solid": (),
    "dash": (4, 1.8),
    "dot": (1, 1.6),
    "dashdot": (4, 1.6, 1, 1.6),
    "longdash": (7, 2),
    "longdashdot": (7, 1.6, 1, 1.6),
}

MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "x", "star", "cross", "hexagon")


@dataclass(frozen=True)
class Axis:
    """An axis; its title is a noun phrase with the unit in brackets."""

    title: str = ""
    range: tuple[float, float] | None = None  # fits the data when None
    zero: bool = False  # included
    log: bool = False
    whole: bool = False  # whole numbers only
    ticks: Sequence[float] = ()  # anywhere when empty


@dataclass(frozen=True)
class Reference:
    """A dotted line across the chart at a value of one axis, with a label beside it."""

    value: float
    label: str
    axis: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class Series:
    """A line through n points, or the point alone where n is 1."""

    name: str  # in the legend; left out when empty
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()  # standard errors of y
    band: bool = False  # show errors as a band
    area: bool = False  # a histogram: steps, filled to zero
    colour: str = ACCENT
    dash: str = "solid"  # a key of DASHES
    alone: bool = False  # markers without a line
    marker: str = ""  # one of MARKERS
    large: Sequence[int] = ()  # positions of larger points
    hover: str = ""
    notes: Sequence[str] = ()  # for hover

    def labels(self, escaped: Callable[[str], str]) -> list[str]:
        """Return the label of each point."""
        return _labels(self.hover, [escaped(self.name)] * len(self.x), self.x, self.y, self.error, self.notes)


@dataclass(frozen=True)
class Lines:
    """A chart of lines."""

    series: Sequence[Series]
    x: Axis
    y: Axis
    references: Sequence[Reference] = ()
    title: str = ""  # over the panel, in a file
    height: int = 330  # on a page, in pixels


@dataclass(frozen=True)
class Bars:
    """A chart of n horizontal bars, the first on top."""

    names: Sequence[str]
    values: Sequence[float]
    x: Axis
    colours: Sequence[str]
    error: Sequence[float] = ()  # standard errors
    hover: str = "{name}: {x:g}"
    text: str = ""  # at the ends of bars: a template like hover
    marks: Sequence[float | None] = ()  # a hollow diamond on each bar's line, or None
    references: Sequence[Reference] = ()
    title: str = ""

    def labels(self, template: str, escaped: Callable[[str], str]) -> list[str]:
        """Return the label of each bar."""
        return _labels(template, [escaped(name) for name in self.names], self.values, self.values, self.error)


@dataclass(frozen=True)
class Heatmap:
    """A square of shares (n, n), 0 to 1, with their numbers; NaN stays empty."""

    names: Sequence[str]
    values: Sequence[Sequence[float]]
    title: str = ""


Chart = Lines | Bars | Heatmap


@dataclass(frozen=True, eq=False)
class Points:
    """Points of one kind on a map."""

    name: str  # in the legend, and on the map where `named`
    numbers: np.ndarray  # (n,) int64, by which what is selected is known
    x: np.ndarray  # (n,)
    y: np.ndarray  # (n,)
    notes: Sequence[str] = ()  # for hover, below the number; "\n" begins another line
    colour: str = ACCENT
    symbol: str = "circle"  # circle, diamond, square, x or star
    size: float | Sequence[float] = 4.5  # pixels
    opacity: float = 0.8
    named: bool = False


@dataclass(frozen=True)
class PointMap:
    """A map of points, thousands of them; the axes have no meaning. It is drawn on pages alone."""

    kinds: Sequence[Points]  # the last on top
    about: str  # for screen readers
    noun: str = "Point"  # before a number
    height: int = 620  # pixels


def line_of(method: str, x: Sequence[float], y: Sequence[float], **about: Any) -> Series:
    """Return a method's line, under its title, in its colour and dash; `about` are other fields of a series."""
    found = METHODS[method]
    return Series(**{"name": found.title, "x": x, "y": y, "colour": found.colour, "dash": found.dash} | about)


def marked_line(method: str, x: Sequence[float], y: Sequence[float], **about: Any) -> Series:
    """Return a method's line with a marker at each point, the same one in every chart."""
    marker = MARKERS[list(METHODS).index(method) % len(MARKERS)]
    return line_of(method, x, y, **{"marker": marker} | about)


def measured(values: Sequence[dict[str, Any]], scale: float = 1) -> dict[str, list[float]]:
    """Return means and standard errors of a result as fields `y` and `error` of a series."""
    return {"y": [scale * v["mean"] for v in values], "error": [scale * (v["error"] or 0) for v in values]}


def _labels(
    template: str,
    names: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    error: Sequence[float],
    notes: Sequence[str] = (),
) -> list[str]:
    spreads = [f" ± {value:.2g}" if value else "" for value in error or [0.0] * len(x)]
    points = zip(names, x, y, spreads, notes or [""] * len(x), strict=True)
    return [template.format(name=name, x=a, y=b, spread=s, note=note) for name, a, b, s, note in points]
