"""Matplotlib as it is delivered: it also reads a `matplotlibrc` in the working directory, which may be a stranger's.

Such a file can run TeX on its own text, and makes figures depend on where they were drawn.
"""

import matplotlib
from matplotlib.figure import Figure

matplotlib.rcdefaults()

__all__ = ["Figure"]
