"""Files that somebody else may have put there: only regular ones are opened, and never more is read than the limit."""

import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from natscope.core.errors import FileError, out_of_memory

_BLOCK = 2**22  # bytes hashed at once
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
REFUSED = "cannot be read "  # followed by the reason: the system's fault, not the file's content
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def opened(path: Path, *, links: bool = False) -> Iterator[BinaryIO]:
    """Open a regular file for reading, and never block on anything else.

    Args:
        path: the file.
        links: follow a link; safe if the user named the file, not if a stranger did.

    Raises:
        FileError: if it is missing, is not a regular file, or cannot be opened; errors raised while open pass through.
    """
    with reading(path):
        descriptor = _descriptor(path, links)
    with os.fdopen(descriptor, "rb") as file:
        yield file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError about a file into a FileError that says so, except a lack of memory."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileError(path, "is missing") from error
    except OSError as error:
        if out_of_memory(error):
            raise
        raise FileError(path, refused(error)) from error


def refused(error: OSError) -> str:
    """Return the fault of a file that the system refuses to read, whatever its content."""
    return f"{REFUSED}({error.strerror or type(error).__name__})"


def _descriptor(path: Path, links: bool) -> int:
    try:
        # Checked before opening, which can start a device, and again afterwards, since it may have been swapped.
        _check_regular(path, path.stat() if links else path.lstat())
        descriptor = os.open(path, _FLAGS | (0 if links else getattr(os, "O_NOFOLLOW", 0)))
    except ValueError as error:  # a null character in the name
        raise FileError(path, "has no name that a file can have") from error
    try:
        _check_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, limit: int, *, links: bool = False) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Args:
        path: the file.
        limit: in bytes; a larger file is refused before it is read.
        links: follow a link, see `opened`.

    Raises:
        FileError: as `opened` does, and if the file is larger or cannot be read.
    """
    with opened(path, links=links) as file:
        return read_open(path, file, limit)


def read_open(path: Path, file: BinaryIO, limit: int) -> bytes:
    """Return the content of an open file, by the same rules as `read_regular`.

    Args:
        path: the file's path, for messages.
        file: as `opened` yields it.
        limit: in bytes.

    Raises:
        FileError: if it is larger, or cannot be read.
    """
    with reading(path):
        if os.fstat(file.fileno()).st_size > limit:
            raise _too_large(path, limit)
        content = file.read(limit + 1)  # None if reading would wait, as in some files of /proc
    if content is None:
        raise FileError(path, "cannot be read")
    if len(content) > limit:
        raise _too_large(path, limit)
    return content


def from_json(text: str | bytes, **hooks: Any) -> Any:
    """Return what a JSON text holds, every string of which can be written as UTF-8.

    Args:
        text: the text.
        hooks: of `json.loads`; what they raise passes through.

    Raises:
        ValueError: if it is not JSON, is nested too deeply, or holds half of a surrogate pair, which JSON can escape.
    """
    try:
        value = json.loads(text, **hooks)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("The text is nested too deeply.") from error
    return value


def machine_memory() -> float:
    """Return the bytes of this machine's memory; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def size(number: float) -> str:
    """Return a number of bytes in the unit that fits it: "8.2 TB", "1.2 GB", "340 MB", "12 kB" or "7 bytes"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * factor:
            found = number / factor
            return f"{found:,.0f} {unit}" if found >= 9.95 else f"{found:.1f}".removesuffix(".0") + f" {unit}"
    return f"{number:,.0f} byte{'' if number == 1 else 's'}"


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _not_regular(path, found)


def _not_regular(path: Path, found: os.stat_result) -> FileError:
    return FileError(path, f"is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')} and not a regular file")


def _too_large(path: Path, limit: int) -> FileError:
    return FileError(path, f"is larger than {size(limit)}, the most that is read of such a file")


def irregular(folder: Path, *, alone: bool = False) -> Iterator[FileError]:
    """Yield an error for everything in a folder, at any depth, that is neither a regular file nor a folder.

    Args:
        folder: no link in it is followed.
        alone: also name files with a second hard link elsewhere, since writing here would write there.
    """
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        try:
            with reading(folder), os.scandir(folder) as found:
                kinds = sorted((entry.path, entry.stat(follow_symlinks=False)) for entry in found)
        except FileError as error:
            yield error
            continue
        for path, kind in kinds:
            if stat.S_ISDIR(kind.st_mode):
                waiting.append(Path(path))
            elif not stat.S_ISREG(kind.st_mode):
                yield _not_regular(Path(path), kind)
            elif alone and kind.st_nlink > 1:
                yield FileError(Path(path), "is a file with a second name elsewhere")


def sha256_of(path: Path, *, links: bool = True) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal.

    Args:
        path: the file.
        links: follow a link, see `opened`.

    Raises:
        FileError: as `opened` does, and if it cannot be read.
    """
    digest = hashlib.sha256()
    with opened(path, links=links) as file, reading(path):
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; whatever had its name is removed, so that nothing is written through a link.

    Raises:
        OSError: if a folder has its name, or the system refuses.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a unique temporary name, flush it to disk and rename it: it is complete or absent."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a unique temporary name; what is written there is flushed to disk and renamed, or removed on an error."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
