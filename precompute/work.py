"""The unfinished bundle: a folder and a journal of what is on disk, so that a killed build goes on where it was."""

import json
import shutil
from pathlib import Path
from typing import Any

from core.bundle import MANIFEST, Manifest, write_atomically
from core.errors import BundleError
from precompute.spec import versions

CHECKPOINT = "training.safetensors"
_JOURNAL, _SETTINGS = "journal.json", "settings.json"


class Work:
    """The folder OUT.partial and its journal of what is already on disk."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Go on with the folder at `path` if it was begun with these settings, else start it anew.

        Raises:
            BundleError: if something that natscope did not make is there.
        """
        self.path = path
        identity = {"settings": settings, "versions": versions()}
        if path.exists() and (known := _made_with(path)) != identity:
            if known is None and not (path.is_dir() and not any(path.iterdir())):
                raise BundleError(f"{path} is in the way and was not made by natscope; move it away.")
            shutil.rmtree(path)
        path.mkdir(exist_ok=True)
        write_atomically(path / _SETTINGS, json.dumps(identity).encode())
        journal = path / _JOURNAL
        self.done: dict[str, int] = json.loads(journal.read_text()) if journal.is_file() else {}

    @property
    def published(self) -> bool:
        """Whether everything is written and only the rename is missing."""
        return (self.path / MANIFEST).is_file()

    def mark(self, name: str, count: int = 1) -> None:
        """Record that a file, or that many rows of it, is on disk."""
        self.done[name] = count
        write_atomically(self.path / _JOURNAL, json.dumps(self.done).encode())

    def publish(self, out: Path) -> None:
        """Give the finished folder its name, in one step."""
        for name in (_JOURNAL, CHECKPOINT, _SETTINGS):
            (self.path / name).unlink(missing_ok=True)
        for file in self.path.rglob("*.tmp"):  # of a process that was killed while it wrote
            file.unlink()
        self.path.rename(out)


def _made_with(path: Path) -> dict[str, Any] | None:
    """Give the settings and versions that an unfinished bundle was begun with; None if natscope did not make it."""
    try:
        if (path / _SETTINGS).is_file():
            known = json.loads((path / _SETTINGS).read_text())
        else:  # stopped while publishing, when only the manifest tells
            manifest = Manifest.from_json((path / MANIFEST).read_text())
            known = {"settings": manifest.results["settings"], "versions": manifest.versions}
        return known if set(known) == {"settings", "versions"} else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
