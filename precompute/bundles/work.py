"""The unfinished bundle: a folder and a journal of what is on disk, so that a killed build resumes where it was."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from threadpoolctl import threadpool_limits

from natscope.core.bundle.file_checks import whole_header
from natscope.core.bundle.format import MANIFEST, Manifest, sha256_of, write_atomically
from natscope.core.bundle.manifest import LARGEST, FileRecord, file_of
from natscope.core.bundle.schema import SchemaError
from natscope.core.errors import BuildError, BundleError, NatscopeError, out_of_memory
from natscope.core.examples import MODALITIES
from natscope.core.files import from_json, irregular, opened, read_regular
from natscope.core.progress import Progress, silent
from natscope.precompute.bundles.compare import differences, that_matter
from natscope.precompute.bundles.spec import versions

CHECKPOINT, SHARDS = "training.safetensors", "shards"
_JOURNAL, _SETTINGS = "journal.json", "settings.json"
_UNREADABLE = (NatscopeError, ValueError, TypeError, KeyError, AttributeError)
_MISFITS = (ValueError, TypeError, LookupError, RuntimeError, safetensors.SafetensorError)
_THREADS = re.compile(r"[1-9][0-9]{0,3}")
_CLASSES = 10**6  # more than any bundle has


class Work:
    """The folder OUT.partial and its journal of what is already on disk.

    A finished file is in it with its checksum: if the file is no longer intact when work resumes, it is written again,
    as after a crash of the machine that kept the journal and not all of the file. A stranger may have made both
    folders: neither is written into while it holds a link, a pipe or a device, through which something else would be
    written, and a file that is not the one of its name counts as unfinished.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        *,
        folder: Path | None = None,
        progress: Progress = silent,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Resume in the folder at `path` if it was begun with these settings, else start again.

        Args:
            path: the journal's folder.
            settings: what the files are made with.
            folder: where the files are made; `path` when None.
            progress: called for each file that is checked.
            tell: called with a sentence if work that was begun is lost.

        Raises:
            BundleError: if something that natscope did not make is there, or what is not a regular file in one of them.
        """
        self.path, self._folder = path, folder or path
        identity = {"settings": settings, "versions": versions()}
        if os.path.lexists(path):
            known, empty = _made_with(path), path.is_dir() and not any(path.iterdir())
            if path.is_symlink():
                raise BundleError(f"{path} is a link and in the way; move it away.")
            if known is None and not empty:
                raise BundleError(f"{path} is in the way and holds no unfinished build that can be read; move it away.")
            if known is None or not _same(known, identity):
                if known is not None and {file.name for file in path.iterdir()} - {_SETTINGS}:
                    tell(f"The unfinished build {path} is begun again: {_difference(known, identity)}.")
                shutil.rmtree(path)
        path.mkdir(exist_ok=True)
        self.resumed = any(file.name != _SETTINGS for file in path.iterdir())
        for target in (self._folder, path):
            for error in irregular(target, alone=target == path):  # others write into files of this one
                raise BundleError(
                    f"Nothing is written into {target}, because {error.path} {error.fault}; remove it first."
                )
        write_atomically(path / _SETTINGS, json.dumps(identity).encode())
        self.done, self._files = _read(path / _JOURNAL)
        for count, name in enumerate(self._files):
            progress("Checking what is there", count, len(self._files))
            if not self._is_whole(name):
                del self.done[name]
        self._files = {name: found for name, found in self._files.items() if name in self.done}

    @property
    def published(self) -> bool:
        """Whether everything is written and only the rename is missing."""
        return (self.path / MANIFEST).is_file()

    def begin(self, name: str) -> None:
        """Record that nothing of a file is on disk."""
        self.done[name] = set()
        self._files.pop(name, None)
        self._write()

    def mark(self, name: str, start: int = 0, file: Path | None = None) -> None:
        """Record that the shard of a file that begins with row `start` is on disk, or that `file` is finished."""
        self.done.setdefault(name, set()).add(start)
        if file is not None:
            self._files[name] = file.relative_to(self._folder).as_posix(), sha256_of(file)
        self._write()

    def finished(self, name: str) -> bool:
        """Return whether a file is complete."""
        return name in self._files

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a finished file."""
        return self._files[name][1]

    def check(self, files: Iterable[FileRecord]) -> None:
        """Raise BuildError unless files are as recorded, before a manifest that others rely on names them."""
        for record in files:
            if sha256_of(self._folder / record.file, links=False) != record.sha256:
                raise self._damaged()

    @contextlib.contextmanager
    def resuming(self) -> Iterator[None]:
        """Turn errors about files that do not fit into one BuildError; those of a fresh build pass through."""
        try:
            yield
        except (*_MISFITS, BundleError) as error:
            unrecordable = isinstance(error.__cause__, SchemaError)  # arrays whose shapes do not fit the rest
            if not self.resumed or out_of_memory(error) or (isinstance(error, BundleError) and not unrecordable):
                raise
            raise self._damaged() from error

    def publish(self, out: Path) -> None:
        """Rename the finished folder, in one step."""
        for name in (_JOURNAL, CHECKPOINT, _SETTINGS):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / SHARDS, ignore_errors=True)
        for file in self.path.rglob("*.tmp"):  # left by a process that was killed while writing
            file.unlink()
        self.path.rename(out)

    def _write(self) -> None:
        done = {name: sorted(starts) for name, starts in self.done.items()}
        write_atomically(self.path / _JOURNAL, json.dumps({"done": done, "files": self._files}).encode())

    def _damaged(self) -> BuildError:
        return BuildError(
            f"The unfinished bundle {self.path} is damaged; delete that folder and run the command again."
        )

    def _is_whole(self, name: str) -> bool:
        file, digest = self._files[name]
        if all(file != file_of(name, _CLASSES, modality) for modality in MODALITIES.values()):
            return False
        try:
            if file.endswith(".npy"):
                with opened(self._folder / file) as handle:
                    whole_header(handle)
            return sha256_of(self._folder / file, links=False) == digest
        except (NatscopeError, ValueError):
            return False


@contextlib.contextmanager
def as_begun(path: Path, settings: dict[str, Any], threads: int | None = None) -> Iterator[None]:
    """Compute with as many threads as an unfinished bundle was begun with, or as usual, in all libraries.

    The bits of a matrix product depend on how many there are, and a manifest names one number. Work that does not go
    on, because settings or other versions differ, has no say, and a stranger's folder may not ask for more threads than
    there are processors.

    Args:
        path: the journal's folder.
        settings: what the files are made with, as `Work` takes them.
        threads: how many are usual; as many as this process has when None.
    """
    known, before = _made_with(path), torch.get_num_threads()
    usual = threads or before
    found = known["versions"].get("threads") if known and isinstance(known["versions"], dict) else None
    torch.set_num_threads(usual)
    if known and isinstance(found, str) and _THREADS.fullmatch(found) and int(found) <= (os.cpu_count() or 1):
        goes_on = _same(known, {"settings": settings, "versions": versions() | {"threads": found}})
        torch.set_num_threads(int(found) if goes_on else usual)
    try:
        with threadpool_limits(torch.get_num_threads(), "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _same(known: dict[str, Any], identity: dict[str, Any]) -> bool:
    """Return whether work that was begun goes on under these settings and versions."""
    settings = [each["settings"] for each in (known, identity)]
    alike = all(isinstance(each, dict) for each in settings) and that_matter(settings[0]) == that_matter(settings[1])
    return alike and known["versions"] == identity["versions"]


def _difference(known: dict[str, Any], identity: dict[str, Any]) -> str:
    """Return the first of what keeps work that was begun from going on."""
    for part in ("versions", "settings"):
        if isinstance(known[part], dict):
            found = differences(that_matter(known[part]), that_matter(identity[part]))
            if (first := next(found, None)) is not None:
                return first
    return "what it was begun with cannot be read"


def _read(journal: Path) -> tuple[dict[str, set[int]], dict[str, tuple[str, str]]]:
    """Return the shards that are done, by their first rows, and the finished files with their checksums.

    There are none of both if the journal cannot be read, or is one of an earlier version.
    """
    try:
        found = from_json(read_regular(journal, LARGEST))
        done = {name: set(starts) for name, starts in found["done"].items() if _are_rows(starts)}
        files = {name: (str(file), str(digest)) for name, (file, digest) in found["files"].items()}
    except _UNREADABLE:
        return {}, {}
    return (done, files) if files.keys() <= done.keys() else ({}, {})


def _are_rows(starts: Any) -> bool:
    return isinstance(starts, list) and all(type(start) is int and start >= 0 for start in starts)


def _made_with(path: Path) -> dict[str, Any] | None:
    """Return the settings and versions that an unfinished bundle was begun with; None if natscope did not make it."""
    try:
        if os.path.lexists(path / _SETTINGS):
            known = from_json(read_regular(path / _SETTINGS, LARGEST))
        else:  # stopped while publishing: only the manifest says
            manifest = Manifest.from_json(read_regular(path / MANIFEST, LARGEST))
            known = {"settings": manifest.results["settings"], "versions": manifest.versions}
        return known if isinstance(known, dict) and set(known) == {"settings", "versions"} else None
    except _UNREADABLE:
        return None
