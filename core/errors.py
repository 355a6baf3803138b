"""Errors that a user can mend: each message is one clear sentence, shown as it is on a page or on stderr."""

from pathlib import Path


class NatscopeError(Exception):
    """Base of every error whose message is meant for the user."""


class DataError(NatscopeError):
    """A data set is missing, damaged or cannot be fetched."""


class BundleError(NatscopeError):
    """A bundle is missing, damaged, older than this version, or being built."""


class QueryError(NatscopeError):
    """A query (upload, index, class) or a setting of the attribution cannot be used."""


class BuildError(NatscopeError):
    """A bundle cannot be built: settings that contradict each other, no space, weights that are not finite."""


class FileError(NatscopeError):
    """A file is missing, too large or no regular one; `fault` says which without naming it: "is a pipe …"."""

    def __init__(self, path: Path, fault: str) -> None:
        """Make the sentence of the file's path and its fault."""
        super().__init__(f"{path} {fault}.")
        self.path, self.fault = path, fault
