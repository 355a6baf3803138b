"""Results of an experiment's parts, kept on disk so that a stopped one can resume."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from natscope.core.bundle.format import write_atomically
from natscope.core.errors import NatscopeError, QueryError
from natscope.core.files import read_regular

_LARGEST = 10**9  # bytes


class ResultCache:
    """A JSON file of finished parts by name, each with its checksum; other settings or bundles give other names."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a file that cannot be read counts as empty, and a part that was edited as missing."""
        self.path = path
        content = _content(path)
        self._artifacts, self._foreign = _whole(content), not _are_parts(content)
        self._beside: set[Path] = set()

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a part, computing and keeping it if it is not there yet.

        Args:
            name: everything that the part depends on.
            compute: returns it as JSON-able values.
        """
        if name not in self._artifacts:
            self._keep(name, compute())
        return self._artifacts[name]

    def _keep(self, name: str, part: Any) -> None:
        """Write a part, along with those that other processes have written meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.beside("lock")):
            self._artifacts = _whole(_content(self.path)) | self._artifacts | {name: part}
            kept = {name: [_checksum(name, value), value] for name, value in self._artifacts.items()}
            write_atomically(self.path, json.dumps(kept).encode())

    def __contains__(self, name: str) -> bool:
        """Return whether a part is finished."""
        return name in self._artifacts

    def __getitem__(self, name: str) -> Any:
        """Return a finished part; raises KeyError if it is not there."""
        return self._artifacts[name]

    def parts(self) -> dict[str, Any]:
        """Return all finished parts by name, the oldest first."""
        return dict(self._artifacts)

    def beside(self, name: str) -> Path:
        """Return a file beside this one for a part's own work in progress; `discard` removes it too."""
        file = self.path.with_suffix(f".{name}")
        self._beside.add(file)
        return file

    def discard(self) -> None:
        """Remove the file and those that were asked for `beside` it, once the experiment's result is written."""
        for file in (self.path, self.beside("lock"), *self._beside):
            if file.is_file():
                file.unlink()

    def check_own(self) -> None:
        """Raise QueryError if the file holds something else, which the first part would overwrite."""
        if self._foreign:
            raise QueryError(
                f"{self.path} is in the way: finished parts are kept under this name, and it holds something else. "
                "Move it, or choose another --out."
            )


def _content(path: Path) -> Any:
    """Return what a file holds: nothing if it is missing or empty, None if it cannot be read."""
    if not os.path.lexists(path):
        return {}
    try:
        return json.loads(read_regular(path, _LARGEST, links=True) or b"{}")
    except (NatscopeError, ValueError, RecursionError):
        return None


def _is_part(kept: Any) -> bool:
    return isinstance(kept, list) and len(kept) == 2


def _are_parts(content: Any) -> bool:
    return isinstance(content, dict) and all(map(_is_part, content.values()))


def _whole(content: Any) -> dict[str, Any]:
    """Return the parts whose checksums are right."""
    pairs = content.items() if isinstance(content, dict) else ()
    kept = ((name, part) for name, part in pairs if _is_part(part))
    return {name: value for name, (checksum, value) in kept if checksum == _checksum(name, value)}


def _checksum(name: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([name, value]).encode()).hexdigest()[:16]
