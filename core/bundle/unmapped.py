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
        """Return images and inputs as `FileRows`, checked at each access, and a copy of any other array."""
        record = self._checked_record(name)
        return unmapped(partial(self._open, record), record, whole=not name.endswith(("_images", "_inputs")))

    @contextmanager
    def _open(self, record: FileRecord) -> Iterator[BinaryIO]:
        try:
            with checked(self.path, record, len(self.classes)) as file:
                yield file
        except FileError as error:
            raise self._damaged(record, error.fault) from error
        except ValueError as error:
            raise self._damaged(record, "is not an array of the recorded shape and type") from error
