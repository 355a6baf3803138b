"""What the Backdoor page shows, as a link, and back."""

from collections.abc import Mapping
from dataclasses import dataclass

from natscope.app.state import Readers, parse_choice, parse_whole, read_parameters
from natscope.core.methods import METHODS


@dataclass(frozen=True)
class BackdoorView:
    """Everything worth reopening on the Backdoor page.

    Args:
        image: the test image; one on which the attack works when None.
        patch: the class whose patch is shown; the image's own when None.
        drawn: a patch of the visitor's own, row by row, "0" black and "1" white; empty when there is none.
        method: who is asked; the page's choice when empty.
        rival: who is asked beside it; the page's choice when empty.
    """

    image: int | None = None
    patch: int | None = None
    drawn: str = ""
    method: str = ""
    rival: str = ""

    def to_link(self) -> dict[str, str]:
        """Return the address's parameters; what is at its default is left out."""
        texts = {
            "image": "" if self.image is None else str(self.image),
            "patch": "" if self.patch is None else str(self.patch),
            "drawn": self.drawn,
            "method": self.method,
            "rival": self.rival,
        }
        return {key: text for key, text in texts.items() if text}


def read_backdoor(
    parameters: Mapping[str, str], *, images: int, classes: int, squares: int
) -> tuple[BackdoorView, list[str]]:
    """Read an address; what cannot be used is left at its default and named in a sentence.

    Args:
        parameters: of the address.
        images: how many test images there are.
        classes: how many classes there are.
        squares: of a patch.

    Returns:
        The view and one sentence for each parameter that was not understood.
    """

    def drawn(text: str) -> str:
        if len(text) != squares or set(text) - {"0", "1"}:
            raise ValueError(text)
        return text

    readers: Readers = {
        "image": ("image", lambda text: parse_whole(text, 0, images - 1)),
        "patch": ("patch", lambda text: parse_whole(text, 0, classes - 1)),
        "drawn": ("drawn", drawn),
        "method": ("method", lambda text: parse_choice(text, tuple(METHODS))),
        "rival": ("rival", lambda text: parse_choice(text, tuple(METHODS))),
    }
    return read_parameters(BackdoorView(), readers, parameters)
