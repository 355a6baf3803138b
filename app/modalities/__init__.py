"""How pages show examples of each modality, and take new ones; nothing else in the app asks which one it is."""

from importlib.metadata import entry_points

from natscope.app.modalities import images, texts
from natscope.app.modalities.page import Page
from natscope.core.examples import Examples, Modality

__all__ = ["STYLE", "Page", "packed", "page_of"]

_PAGES: dict[str, Page] = {"image": images.PAGE, "text": texts.PAGE} | {
    entry.name: entry.load() for entry in entry_points(group="natscope.pages")
}
STYLE = "".join(page.style for page in _PAGES.values())


def page_of(modality: Modality) -> Page:
    """Return the page of a modality."""
    return _PAGES[modality.name]


def packed(example: Examples) -> str:
    """Return an example, alone, as the text of a query, so that a link can reopen it.

    Raises:
        QueryError: if it is too long for a link.
    """
    return f"{example.modality.name}:{page_of(example.modality).pack(example)}"
