"""Which methods a bundle can serve: what its files and the kind of its network say, without the network itself."""

from natscope.core.bundle.artifacts import missing
from natscope.core.bundle.format import Bundle
from natscope.core.methods import METHODS, Method


class Capabilities:
    """Which methods a bundle can serve; `linear` says whether all parameters of its network are of `Linear` layers."""

    linear: bool

    def __init__(self, bundle: Bundle) -> None:
        """Take an open bundle."""
        self.bundle = bundle

    def missing(self, method: Method) -> str | None:
        """Return a sentence on what the bundle lacks for a method and how to add it; None if nothing is missing."""
        return missing(self.bundle, method)

    def usable(self, *, fast: bool = False) -> tuple[str, ...]:
        """Return the methods for which the bundle holds all that they need, in the registry's order.

        Args:
            fast: leave out those that take a minute or more a query on this network.
        """
        names = (name for name, method in METHODS.items() if self.missing(method) is None)
        return tuple(name for name in names if not (fast and self.slow(METHODS[name])))

    def slow(self, method: Method) -> bool:
        """Return whether a method takes a minute or more a query: it differentiates every candidate again."""
        return method.ekfac and not self.linear
