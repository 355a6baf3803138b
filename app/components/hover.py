"""Pictures of the points of a chart that the pointer is on: Plotly's own labels hold text alone."""

import base64

import numpy as np

from natscope.app.components import component
from natscope.app.figures.thumbnails import Sheet


def pictures(sheets: list[tuple[Sheet, np.ndarray]], *, chart: str, key: str) -> None:
    """Show the picture of the point under the pointer, beside it.

    Args:
        sheets: small pictures, and (n,) the number of the point of each.
        chart: the key of the chart, whose points have their number as `customdata`.
        key: unique on the page.
    """
    component("hover", "<span></span>")(
        key=key,
        data={
            "chart": chart,
            "sheets": [
                {
                    "src": "data:image/jpeg;base64," + base64.b64encode(found.jpeg).decode(),
                    "first": int(numbers[0]) if _running(numbers) else None,
                    "numbers": None if _running(numbers) else numbers.tolist(),
                    "count": found.count,
                    "across": found.across,
                    "side": found.side,
                }
                for found, numbers in sheets
                if found.count
            ],
        },
    )


def _running(numbers: np.ndarray) -> bool:
    """Return whether numbers follow one another, so that the first says them all."""
    return bool((np.diff(numbers) == 1).all())
