"""Lets the keyboard reach components in a dialog."""

from natscope.app.components import component


def dialog_stops(key: str) -> None:
    """Make each component of the dialog in which this is drawn a stop of the Tab key.

    Args:
        key: unique on the page.
    """
    component("dialog_stops", "<span></span>")(key=key)
