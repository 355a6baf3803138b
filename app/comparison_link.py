"""What the Compare page shows, as a link, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from natscope.app.state import Readers, parse_choice, parse_query, parse_sigma2, parse_whole, read_parameters
from natscope.core.bundle.request import CONDITIONINGS, POOLS, Request
from natscope.core.methods import METHODS

LARGEST_BUDGET = 20
MOST_QUERIES = 6


@dataclass(frozen=True)
class ComparisonView:
    """Everything worth reopening on the Compare page.

    Args:
        query: the current one, "test:I", "train:I" or "image:DATA".
        pins: other queries that stay.
        methods: names, in the registry's order; all that the bundle can do when empty.
        sigma2: of every method that has none of its own, and of the judge.
        own: sigma2 of single methods.
        budget: M.
        pool: of `POOLS`.
        conditioning: of `CONDITIONINGS`.
        target: the class for all queries; what the model predicts when None.
    """

    query: str = "test:0"
    pins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    sigma2: float = 1.0
    own: Mapping[str, float] = field(default_factory=dict)
    budget: int = 10
    pool: str = "same-class"
    conditioning: str = "pool"
    target: int | None = None

    def sigma2_of(self, method: str) -> float:
        """Return the sigma2 of a method: its own, or the common one."""
        return self.own.get(method, self.sigma2)

    def request(self, method: str) -> Request:
        """Return what is asked of a method."""
        sigma2 = self.sigma2_of(method) if METHODS[method].uses_sigma2 else self.sigma2
        return Request(method, sigma2, self.budget, self.pool, self.conditioning, self.target)

    def to_link(self) -> dict[str, str]:
        """Return the address's parameters; what is at its default is left out."""
        texts = {
            "q": self.query,
            "pins": ",".join(self.pins),
            "methods": ",".join(self.methods),
            "sigma2": f"{self.sigma2:.6g}",
            "own": ",".join(f"{name}:{value:.6g}" for name, value in self.own.items()),
            "m": str(self.budget),
            "pool": "" if self.pool == POOLS[0] else self.pool,
            "given": "" if self.conditioning == CONDITIONINGS[0] else self.conditioning,
            "target": "" if self.target is None else str(self.target),
        }
        return {key: text for key, text in texts.items() if text}


def compare_link(query: str, bundle: str | None = None) -> str:
    """Return the address, relative to the app, that compares all methods on a query; of a bundle where it is named."""
    return "compare?" + urlencode({"q": query} | ({} if bundle is None else {"bundle": bundle}))


def read_comparison(parameters: Mapping[str, str], classes: int) -> tuple[ComparisonView, list[str]]:
    """Read an address; what cannot be used is left at its default and named in a sentence.

    Args:
        parameters: of the address.
        classes: how many classes there are.

    Returns:
        The view and one sentence for each parameter that was not understood.
    """
    readers: Readers = {
        "q": ("query", parse_query),
        "pins": ("pins", _pins),
        "methods": ("methods", _methods),
        "sigma2": ("sigma2", parse_sigma2),
        "own": ("own", _own),
        "m": ("budget", lambda text: parse_whole(text, 1, LARGEST_BUDGET)),
        "pool": ("pool", lambda text: parse_choice(text, POOLS)),
        "given": ("conditioning", lambda text: parse_choice(text, CONDITIONINGS)),
        "target": ("target", lambda text: parse_whole(text, 0, classes - 1)),
    }
    return read_parameters(ComparisonView(), readers, parameters)


def _pins(text: str) -> tuple[str, ...]:
    pins = tuple(parse_query(part) for part in text.split(","))
    if len(pins) >= MOST_QUERIES:
        raise ValueError(text)
    return pins


def _methods(text: str) -> tuple[str, ...]:
    names = text.split(",")
    for name in names:
        parse_choice(name, tuple(METHODS))
    return tuple(name for name in METHODS if name in names)


def _own(text: str) -> dict[str, float]:
    pairs = (part.partition(":") for part in text.split(","))
    return {parse_choice(name, tuple(METHODS)): parse_sigma2(value) for name, _, value in pairs}
