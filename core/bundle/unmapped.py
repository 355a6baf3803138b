"""A bundle for a process that must outlive the bundle's files: it reads them, and never maps one."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

from natscope.core.bundle.file_checks import checked, unmapped
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.manifest import FileRecord
from natscope.core.errors import FileError


class UnmappedBundle(Bundle):
    """An open bundle without memory maps: the system kills a process whose mapped file is cut short."""

    def _mapped(self, name: str) -> Any:
        """Return arrays with a row an example as `FileRows`, checked at each access; a copy of any other array."""
        record, (split, _, own) = self._checked_record(name), name.partition("_")
        count = (self.manifest.files[f"{split}_labels"].shape or (0,))[0] if own in self.modality.arrays else -1
        return unmapped(partial(self._open, record), record, whole=(record.shape or (0,))[0] != count)

    @contextmanager
    def _open(self, record: FileRecord) -> Iterator[BinaryIO]:
        try:
            with checked(self.path, record, len(self.classes)) as file:
                yield file
        except FileError as error:
            raise self._damaged(record, error.fault) from error
        except ValueError as error:
            raise self._damaged(record, "is not an array of the recorded shape and type") from error
