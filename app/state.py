"""What a page shows, as a link: read from the address once, checked, and written back whenever it changes."""

import base64
import binascii
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from natscope.core.bundle.request import CONDITIONINGS, POOLS, QueryImage
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS

if TYPE_CHECKING:  # pages alone need Streamlit
    from natscope.app.session import Served

AnyView = TypeVar("AnyView")
Readers = dict[str, tuple[str, Callable[[str], Any]]]
LARGEST_BUDGET = 100
SIGMA2_EXPONENTS = tuple(step / 4 for step in range(-24, 21))  # of 10: the slider's steps
_ALWAYS = ("q", "sigma2", "m")  # parameters that every link has


@dataclass(frozen=True)
class View:
    """Everything worth reopening on the Attribute page; `query` is "test:I", "train:I" or "image:DATA"."""

    query: str = "test:0"
    method: str = "info_loss"
    sigma2: float = 1.0
    budget: int = 10
    pool: str = "same-class"
    conditioning: str = "pool"
    target: int | None = None
    plain: bool = False

    def to_link(self) -> dict[str, str]:
        """Return the address's parameters: the query and numbers always, others where they are not at their default."""
        usual = View()._texts()
        return {key: text for key, text in self._texts().items() if key in _ALWAYS or text != usual[key]}

    def _texts(self) -> dict[str, str]:
        return {
            "q": self.query,
            "method": self.method,
            "sigma2": f"{self.sigma2:.6g}",
            "m": str(self.budget),
            "pool": self.pool,
            "given": self.conditioning,
            "target": "" if self.target is None else str(self.target),
            "words": "plain" if self.plain else "",
        }


def read_link(parameters: Mapping[str, str], classes: int) -> tuple[View, list[str]]:
    """Read an address; what cannot be used is left at its default and named in a sentence.

    Args:
        parameters: of the address.
        classes: how many classes there are.

    Returns:
        The view and one sentence for each parameter that was not understood.
    """
    readers: Readers = {
        "q": ("query", parse_query),
        "method": ("method", lambda text: parse_choice(text, tuple(METHODS))),
        "sigma2": ("sigma2", parse_sigma2),
        "m": ("budget", lambda text: parse_whole(text, 1, LARGEST_BUDGET)),
        "pool": ("pool", lambda text: parse_choice(text, POOLS)),
        "given": ("conditioning", lambda text: parse_choice(text, CONDITIONINGS)),
        "target": ("target", lambda text: parse_whole(text, 0, classes - 1)),
        "words": ("plain", lambda text: bool(parse_choice(text, ("plain",)))),
    }
    return read_parameters(View(), readers, parameters)


def read_parameters(view: AnyView, readers: Readers, parameters: Mapping[str, str]) -> tuple[AnyView, list[str]]:
    """Set the fields of a view (a frozen dataclass) from an address; name in a sentence what cannot be read.

    Args:
        view: with the defaults.
        readers: for each parameter the view's field and a function that reads its text or raises ValueError.
        parameters: of the address.
    """
    complaints = []
    for key, (field, read) in readers.items():
        if key in parameters:
            try:
                view = replace(view, **{field: read(parameters[key])})  # type: ignore[type-var]
            except ValueError:
                shown = parameters[key][:40]
                complaints.append(f"The link's {key} “{shown}” is not one that natscope knows; the default is shown.")
    return view, complaints


def exponent_of(sigma2: float) -> float:
    """Return log10 of sigma2, as a step of the slider where it is one: links keep six digits."""
    exponent = math.log10(sigma2)
    return next((step for step in SIGMA2_EXPONENTS if abs(step - exponent) < 1e-5), exponent)


def pack_image(image: np.ndarray) -> str:
    """Write a small image into a query, so that a link can reopen an upload."""
    return "image:" + base64.urlsafe_b64encode(zlib.compress(image.tobytes(), 9)).decode().rstrip("=")


def open_query(text: str, attributor: "Served") -> QueryImage:
    """Find the image that a view's query names.

    Raises:
        QueryError: if there is no such image, or the link's image is damaged.
    """
    kind, _, value = text.partition(":")
    if kind != "image":
        return attributor.query(kind, int(value))
    shape = attributor.bundle.array("train_images").shape[1:]
    try:
        packed = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(packed, math.prod(shape) + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise QueryError("The image in this link is damaged; upload it again.") from error
    if len(raw) != math.prod(shape):
        raise QueryError("The image in this link has another size than this bundle's images; upload it again.")
    return attributor.upload(np.frombuffer(raw, np.uint8).reshape(shape))


def parse_query(text: str) -> str:
    """Check the name of a query; ValueError if it is none."""
    kind, _, value = text.partition(":")
    if kind in ("test", "train") and value.isascii() and value.isdecimal() and len(value) < 10:
        return text
    if kind == "image" and value:
        return text
    raise ValueError(text)


def parse_choice(text: str, choices: tuple[str, ...]) -> str:
    """Check that a text is one of the choices; ValueError if not."""
    if text not in choices:
        raise ValueError(text)
    return text


def parse_whole(text: str, low: int, high: int) -> int:
    """Read a whole number between two bounds, both allowed; ValueError if it is none."""
    value = int(text)
    if not low <= value <= high:
        raise ValueError(text)
    return value


def parse_sigma2(text: str) -> float:
    """Read a variance within the slider's range; ValueError if it is none."""
    value = float(text)
    if not 10 ** SIGMA2_EXPONENTS[0] <= value <= 10 ** SIGMA2_EXPONENTS[-1]:
        raise ValueError(text)
    return value
