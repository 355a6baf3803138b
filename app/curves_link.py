"""What the page Information curves shows, as a link, and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from natscope.app.state import Readers, parse_choice, parse_query, parse_sigma2, parse_whole, read_parameters
from natscope.core.methods import METHODS

MOST_QUERIES, LARGEST = 50, 300
GAINS = tuple(name for name, m in METHODS.items() if m.information == "gain" and m.approximates is None)
DECADES = tuple(10.0**exponent for exponent in range(-6, 6))


@dataclass(frozen=True)
class CurvesView:
    """Everything worth reopening on the page.

    Args:
        query: one image, "test:I", or "" for a mean over many.
        count: how many test images the mean is over.
        method: the one drawn at several sigma2.
        sigma2s: these.
        fixed: sigma2 of the second panel.
        others: methods that the second panel shows besides the method and what approximates it.
        largest: M.
    """

    query: str = ""
    count: int = 10
    method: str = GAINS[0]
    sigma2s: tuple[float, ...] = DECADES[6:]
    fixed: float = 1e3
    others: tuple[str, ...] = ()
    largest: int = 100

    def to_link(self) -> dict[str, str]:
        """Return the address's parameters; what is at its default is left out."""
        usual, own = CurvesView()._texts(), self._texts()
        return {key: text for key, text in own.items() if text != usual[key]}

    def _texts(self) -> dict[str, str]:
        return {
            "q": self.query,
            "n": str(self.count),
            "method": self.method,
            "sigma2s": ",".join(f"{value:.6g}" for value in self.sigma2s),
            "sigma2": f"{self.fixed:.6g}",
            "others": ",".join(self.others),
            "m": str(self.largest),
        }


def read_curves(parameters: Mapping[str, str]) -> tuple[CurvesView, list[str]]:
    """Read an address; what cannot be used is left at its default and named in a sentence."""
    readers: Readers = {
        "q": ("query", _test_query),
        "n": ("count", lambda text: parse_whole(text, 1, MOST_QUERIES)),
        "method": ("method", lambda text: parse_choice(text, GAINS)),
        "sigma2s": ("sigma2s", lambda text: tuple(sorted({_decade(part) for part in text.split(",")}))),
        "sigma2": ("fixed", _decade),
        "others": ("others", lambda text: tuple(parse_choice(part, tuple(METHODS)) for part in text.split(","))),
        "m": ("largest", lambda text: parse_whole(text, 10, LARGEST)),
    }
    return read_parameters(CurvesView(), readers, parameters)


def _test_query(text: str) -> Any:
    if not text.startswith("test:"):
        raise ValueError(text)
    return parse_query(text)


def _decade(text: str) -> float:
    value = parse_sigma2(text)
    return min(DECADES, key=lambda decade: abs(math.log(decade / value)))
