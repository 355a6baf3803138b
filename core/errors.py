"""Errors that a user can mend: each message is one clear sentence, shown as it is on a page or on stderr."""


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
