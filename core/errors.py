"""Errors that a user can fix: each message is one clear sentence, shown as it is on a page or on stderr."""

import errno
from pathlib import Path

# How torch, C++ libraries and the loader of shared libraries say that memory ran out.
_NO_MEMORY = (
    "not enough memory",
    "out of memory",  # of an accelerator
    "bad_alloc",
    "bad allocation",
    "cannot allocate memory",
    "can't allocate memory",
    "failed to map segment",
    "can't start new thread",
    "error return without exception set",  # CPython, where an import ran out of it
)


class NatscopeError(Exception):
    """Base of every error whose message is meant for the user.

    Examples:
        >>> try:
        ...     natscope.open_attributor(Path("nowhere"))
        ... except natscope.NatscopeError as error:
        ...     print(error)
        There is no bundle at nowhere; `natscope precompute --out nowhere` makes one.
    """


class DataError(NatscopeError):
    """A data set is missing, damaged or cannot be fetched."""


class BundleError(NatscopeError):
    """A bundle is missing, damaged, older than this version, or being built."""


class UntrustedError(BundleError):
    """A bundle's network is code that the user has not trusted; nothing need be wrong with the bundle itself."""


class QueryError(NatscopeError):
    """A query (upload, index, class) or a setting of the attribution cannot be used."""


class SearchError(NatscopeError):
    """A server that searches for a bundle is not named, away, without its vectors or unable to do what is asked."""


class BuildError(NatscopeError):
    """A bundle cannot be built: settings that contradict each other, no space, weights that are not finite."""


class FileError(NatscopeError):
    """A file is missing, too large or not a regular file; `fault` says which without naming it: "is a pipe …"."""

    def __init__(self, path: Path, fault: str) -> None:
        """Build the sentence from the file's path and its fault."""
        super().__init__(f"{path} {fault}.")
        self.path, self.fault = path, fault

    def __reduce__(self) -> tuple[type["FileError"], tuple[Path, str]]:
        """Return what recreates it in another process."""
        return type(self), (self.path, self.fault)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, in the words of whichever library raised it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    known = isinstance(error, OSError | RuntimeError | ImportError | SystemError)
    return known and any(sign in str(error).lower() for sign in _NO_MEMORY)


def explained(error: BaseException) -> str | None:
    """Return one sentence on what the computer refused: memory, a file, a process; None for any other error."""
    if out_of_memory(error):
        return "There is not enough memory for this; free some, or ask for less: fewer examples, or a smaller --dim."
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        refused = f"{error.filename} cannot be used" if error.filename else "The system refuses this"
        return f"{refused}: {reason}."
    return None
