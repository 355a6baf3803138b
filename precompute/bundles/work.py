"""The unfinished bundle: a folder and a journal of what is on disk, so that a killed build goes on where it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from natscope.core.bundle.format import MANIFEST, Manifest, sha256_of, write_atomically
from natscope.core.errors import BundleError, NatscopeError
from natscope.precompute.bundles.spec import versions

Progress = Callable[[str, int, int], None]
CHECKPOINT = "training.safetensors"
_JOURNAL, _SETTINGS = "journal.json", "settings.json"


class Work:
    """The folder OUT.partial and its journal of what is already on disk.

    A finished file is in it with its checksum: one that is no longer whole when work goes on is made again, as after a
    crash of the machine that kept the journal and not all of the file.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        *,
        folder: Path | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        """Go on with the folder at `path` if it was begun with these settings, else start it anew.

        Args:
            path: of the journal.
            settings: of what is made.
            folder: where the files are made; `path` when None.
            progress: called for each file that is looked at.

        Raises:
            BundleError: if something that natscope did not make is there.
        """
        self.path, self._folder = path, folder or path
        identity = {"settings": settings, "versions": versions()}
        if path.exists() and (known := _made_with(path)) != identity:
            if known is None and not (path.is_dir() and not any(path.iterdir())):
                raise BundleError(f"{path} is in the way and was not made by natscope; move it away.")
            shutil.rmtree(path)
        path.mkdir(exist_ok=True)
        write_atomically(path / _SETTINGS, json.dumps(identity).encode())
        self.done, self._files = _read(path / _JOURNAL)
        for place, name in enumerate(self._files):
            progress("Checking what is there", place, len(self._files))
            if not self._is_whole(name):
                del self.done[name]
        self._files = {name: found for name, found in self._files.items() if name in self.done}

    @property
    def published(self) -> bool:
        """Whether everything is written and only the rename is missing."""
        return (self.path / MANIFEST).is_file()

    def mark(self, name: str, count: int = 1, file: Path | None = None) -> None:
        """Record that so many rows of a file are on disk, or, where it is given, that the file is finished."""
        self.done[name] = count
        if file is not None:
            self._files[name] = file.relative_to(self._folder).as_posix(), sha256_of(file)
        write_atomically(self.path / _JOURNAL, json.dumps({"done": self.done, "files": self._files}).encode())

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a finished file."""
        return self._files[name][1]

    def publish(self, out: Path) -> None:
        """Return the finished folder its name, in one step."""
        for name in (_JOURNAL, CHECKPOINT, _SETTINGS):
            (self.path / name).unlink(missing_ok=True)
        for file in self.path.rglob("*.tmp"):  # of a process that was killed while it wrote
            file.unlink()
        self.path.rename(out)

    def _is_whole(self, name: str) -> bool:
        file, digest = self._files[name]
        try:
            return sha256_of(self._folder / file) == digest
        except (OSError, NatscopeError):
            return False


def _read(journal: Path) -> tuple[dict[str, int], dict[str, tuple[str, str]]]:
    """Return what is done and the finished files with their checksums; nothing where the journal cannot be read."""
    try:
        found = json.loads(journal.read_text(encoding="utf-8"))
        done = {str(name): int(count) for name, count in found["done"].items()}
        files = {str(name): (str(file), str(digest)) for name, (file, digest) in found["files"].items()}
        return (done, files) if files.keys() <= done.keys() else ({}, {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}


def _made_with(path: Path) -> dict[str, Any] | None:
    """Return the settings and versions that an unfinished bundle was begun with; None if natscope did not make it."""
    try:
        if (path / _SETTINGS).is_file():
            known = json.loads((path / _SETTINGS).read_text())
        else:  # stopped while publishing, when only the manifest tells
            manifest = Manifest.from_json((path / MANIFEST).read_text())
            known = {"settings": manifest.results["settings"], "versions": manifest.versions}
        return known if set(known) == {"settings", "versions"} else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
