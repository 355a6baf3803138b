"""A bar of links to the steps of a page, which marks the current one."""

from collections.abc import Mapping

from natscope.app.components import component


def steps(titles: Mapping[str, str], *, label: str, key: str) -> None:
    """Draw the bar.

    Args:
        titles: of the steps, in order, by the anchor of each one's heading.
        label: what the bar is, for screen readers.
        key: unique on the page.
    """
    data = {"label": label, "steps": [{"anchor": anchor, "title": title} for anchor, title in titles.items()]}
    component("steps", '<nav class="ns-steps"></nav>')(key=key, data=data)
