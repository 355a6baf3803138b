"""Results of an experiment's parts, kept on disk so that one that was stopped goes on where it was."""

import glob
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.bundle import write_atomically


class Kept:
    """A JSON file of finished parts by name; parts of other settings or bundles are other names."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a file that cannot be read counts as none."""
        self.path = path
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self._parts: dict[str, Any] = found if isinstance(found, dict) else {}

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Give a part, computing and keeping it if it is not there yet.

        Args:
            name: everything that the part depends on.
            compute: gives it as JSON-able values.
        """
        if name not in self._parts:
            self._parts[name] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(self._parts).encode())
        return self._parts[name]

    def __contains__(self, name: str) -> bool:
        """Whether a part is finished."""
        return name in self._parts

    def __getitem__(self, name: str) -> Any:
        """Give a finished part; raises KeyError where it is not."""
        return self._parts[name]

    def parts(self) -> dict[str, Any]:
        """Give all finished parts by name, the oldest first."""
        return dict(self._parts)

    def beside(self, name: str) -> Path:
        """Give a file beside this one for a part's own work in progress; `discard` removes it too."""
        return self.path.with_suffix(f".{name}")

    def discard(self) -> None:
        """Remove the file and those beside it, once the experiment's result is written."""
        for file in (self.path, *self.path.parent.glob(f"{glob.escape(self.path.stem)}.*")):
            file.unlink(missing_ok=True)
