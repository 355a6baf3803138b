"""What the page Coreset shows, as a link, and back."""

from collections.abc import Mapping
from dataclasses import dataclass

from natscope.app.state import Readers, parse_choice, parse_sigma2, parse_whole, read_parameters
from natscope.core.analysis.coreset import MOST_QUERIES
from natscope.core.methods import METHODS

GROUPS = ("random", "class", "wrong", "marked")
MOST_MARKED = 100
LARGEST_SHARE = 0.1  # of the training images
DEFAULT = next(name for name, method in METHODS.items() if method.information == "gain")


@dataclass(frozen=True)
class CoresetView:
    """Everything worth reopening on the page.

    Args:
        group: which test images are asked about, of `GROUPS`.
        label: the class of the group "class".
        count: how many of a group are drawn.
        marked: test images of the group "marked", in the order of marking.
        method: who chooses.
        balanced: whether every class gives as many.
        budget: how many training images, M.
        sigma2: noise variance; the bundle's for the method when None.
    """

    group: str = GROUPS[0]
    label: int = 0
    count: int = 100
    marked: tuple[int, ...] = ()
    method: str = DEFAULT
    balanced: bool = True
    budget: int = 150
    sigma2: float | None = None

    def to_link(self) -> dict[str, str]:
        """Return the address's parameters; what is at its default is left out."""
        usual, own = CoresetView()._texts(), self._texts()
        return {key: text for key, text in own.items() if text != usual[key]}

    def _texts(self) -> dict[str, str]:
        return {
            "ask": self.group,
            "class": str(self.label),
            "n": str(self.count),
            "marked": ",".join(map(str, self.marked)),
            "method": self.method,
            "choice": "balanced" if self.balanced else "plain",
            "m": str(self.budget),
            "sigma2": "" if self.sigma2 is None else f"{self.sigma2:.6g}",
        }


def read_coreset(
    parameters: Mapping[str, str], *, images: int, classes: int, train_images: int
) -> tuple[CoresetView, list[str]]:
    """Read an address; what cannot be used is left at its default and named in a sentence.

    Args:
        parameters: of the address.
        images: how many test images there are.
        classes: how many classes there are.
        train_images: how many training images there are.

    Returns:
        The view and one sentence for each parameter that was not understood.
    """

    def marked(text: str) -> tuple[int, ...]:
        found = tuple(dict.fromkeys(parse_whole(part, 0, images - 1) for part in text.split(",")))
        if len(found) > MOST_MARKED:
            raise ValueError(text)
        return found

    readers: Readers = {
        "ask": ("group", lambda text: parse_choice(text, GROUPS)),
        "class": ("label", lambda text: parse_whole(text, 0, classes - 1)),
        "n": ("count", lambda text: parse_whole(text, 1, MOST_QUERIES)),
        "marked": ("marked", marked),
        "method": ("method", lambda text: parse_choice(text, tuple(METHODS))),
        "choice": ("balanced", lambda text: parse_choice(text, ("balanced", "plain")) == "balanced"),
        "m": ("budget", lambda text: parse_whole(text, 1, largest_budget(train_images))),
        "sigma2": ("sigma2", parse_sigma2),
    }
    usual = CoresetView()
    view = CoresetView(budget=min(usual.budget, largest_budget(train_images)))
    return read_parameters(view, readers, parameters)


def largest_budget(train_images: int) -> int:
    """Return the largest M that the page offers for N training images."""
    return max(1, int(LARGEST_SHARE * train_images))
