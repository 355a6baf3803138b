"""Matplotlib as it is delivered: it also reads a `matplotlibrc` in the working directory, which may be a stranger's.

Such a file can run TeX on its own text, be a pipe that is waited for, or no text at all, and makes figures depend on
where they were drawn.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _nothing_here() -> Iterator[None]:
    """Let Matplotlib, which reads its settings while it is imported, see none in the working directory."""
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

matplotlib.rcdefaults()

__all__ = ["Axes", "Figure", "Rectangle"]
