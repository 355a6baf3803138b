"""The modalities that natscope knows: its own, and those of modules that an installed package names.

Such a module is named among the entry points `natscope.modalities` and calls `natscope.core.examples.register`. How
pages and notebooks show its examples is said by entry points `natscope.pages` and `natscope.looks` of the same name.
"""

from importlib.metadata import entry_points

from natscope.core import images, texts
from natscope.core.examples import MODALITIES

for _entry in entry_points(group="natscope.modalities"):
    _entry.load()

__all__ = ["MODALITIES", "images", "texts"]
