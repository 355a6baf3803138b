"""Files that ship with natscope."""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def path(*parts: str) -> Path:
    """Return the path of a shipped file or folder, for example `path("fashion_mnist", "LICENSE")`."""
    return _FOLDER.joinpath(*parts)
