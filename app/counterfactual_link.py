"""What the page Counterfactual shows, as a link, and back."""

from collections.abc import Mapping
from dataclasses import dataclass

from natscope.app.state import Readers, parse_choice, parse_query, parse_sigma2, parse_whole, read_parameters
from natscope.core.analysis.curves import REFERENCE
from natscope.core.methods import METHODS

FEWEST, MOST = 10, 500


@dataclass(frozen=True)
class CounterfactualView:
    """Everything worth reopening on the page.

    Args:
        query: "test:I", "train:I" or "image:DATA".
        method: whose ranking is removed.
        sigma2: its noise variance; the bundle's usual one when None.
        budget: how many images are removed.
    """

    query: str = "test:0"
    method: str = REFERENCE
    sigma2: float | None = None
    budget: int = 100

    def to_link(self) -> dict[str, str]:
        """Return the address's parameters; sigma2 where it was chosen."""
        link = {"q": self.query, "method": self.method, "m": str(self.budget)}
        return link | ({} if self.sigma2 is None else {"sigma2": f"{self.sigma2:.6g}"})


def read_counterfactual(parameters: Mapping[str, str]) -> tuple[CounterfactualView, list[str]]:
    """Read an address; what cannot be used is left at its default and named in a sentence."""
    readers: Readers = {
        "q": ("query", parse_query),
        "method": ("method", lambda text: parse_choice(text, tuple(METHODS))),
        "sigma2": ("sigma2", parse_sigma2),
        "m": ("budget", lambda text: parse_whole(text, FEWEST, MOST)),
    }
    return read_parameters(CounterfactualView(), readers, parameters)
