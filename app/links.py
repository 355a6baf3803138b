"""What pages show, as links: each parameter of an address is declared once, with its name, bounds and default.

A page's view is a frozen dataclass whose fields are such parameters. `read` takes a view from an address and checks it;
`parameters` writes it back. Streamlit's own binding of widgets to the address (`bind="query-params"`) is not used: it
drops what its widget does not offer without a word, and a view also holds what no widget shows, such as a σ² between
two steps of the slider.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from natscope.app.modalities import page_of
from natscope.core.analysis.coreset import FREE, PER_CLASS, VARIANTS
from natscope.core.analysis.coreset import MOST_QUERIES as MOST_CORESET_QUERIES
from natscope.core.bundle.format import GRID
from natscope.core.bundle.request import CONDITIONINGS, LARGEST_SIGMA2, LEAST_SIGMA2, POOLS, QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.examples import MODALITIES
from natscope.core.methods import GAINS, METHODS, REFERENCE
from natscope.core.tokens import LONGEST_TEXT

if TYPE_CHECKING:  # only pages need Streamlit
    from natscope.app.bundles import Served

AnyView = TypeVar("AnyView")
Reader = Callable[[str, "Limits"], Any]
SIGMA2_EXPONENTS = tuple(step / 4 for step in range(-24, 21))  # of 10, times a bundle's scale: the slider's steps
LARGEST_BUDGET, LARGEST_COMPARED, MOST_COMPARED = 100, 20, 6
FEWEST_REMOVED, MOST_REMOVED = 10, 500
MOST_CURVES, LARGEST_CURVE = 50, 300
GROUPS = ("random", "class", "wrong", "marked")
MOST_MARKED = 100
FEATURES = ("penultimate", "kernel")  # what arranges the images of a map
PLANTED = "planted"
COLOURINGS = ("label", "predicted", "wrong", "share", "tag", PLANTED)  # of a map
LARGEST_SHARE = 0.1  # of the training images, in a coreset


@dataclass(frozen=True)
class Limits:
    """What a bundle allows in a link.

    Args:
        classes: how many there are.
        images: test images.
        train_images: training images.
        squares: side × side of a backdoor's patch.
        sigma2s: values of σ² that the tab Curves offers, rising.
    """

    classes: int = 1
    images: int = 1
    train_images: int = 1
    squares: int = 0
    sigma2s: tuple[float, ...] = tuple(10.0**exponent for exponent in GRID)

    @classmethod
    def of(cls, attributor: "Served", *, squares: int = 0) -> "Limits":
        """Return the limits of an opened bundle."""
        images, train = len(attributor.test_labels), len(attributor.train_labels)
        return cls(len(attributor.bundle.classes), images, train, squares, attributor.bundle.sigma2s())


@dataclass(frozen=True)
class Parameter:
    """A parameter of an address: its name, how it is read and written, and whether also at its default."""

    name: str
    read: Reader
    write: Callable[[Any], str]
    always: bool


def parameter(name: str, default: Any, read: Reader, *, write: Callable[[Any], str] = str, always: bool = False) -> Any:
    """Declare a field of a view.

    Args:
        name: in the address.
        default: the value if the address has none; a dictionary is copied for each view.
        read: returns a text's value, or raises ValueError.
        write: returns the text of a value.
        always: whether an address has it even at its default.
    """
    about = {"parameter": Parameter(name, read, write, always)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


# Readers of texts


def parse_query(text: str, limits: Limits | None = None) -> str:
    """Check the name of a query, "test:I", "image:DATA" or "file:SUM", say; raise ValueError if it is not valid."""
    kind, _, value = text.partition(":")
    if kind in ("test", "train") and value.isascii() and value.isdecimal() and len(value) < 10:
        return text
    if kind in ("file", *MODALITIES) and value:
        return text
    raise ValueError(text)


def parse_sigma2(text: str, limits: Limits | None = None) -> float:
    """Read a variance; raise ValueError if it is not valid."""
    value = float(text)
    if not LEAST_SIGMA2 <= value <= LARGEST_SIGMA2:
        raise ValueError(text)
    return value


def choice(*options: str) -> Reader:
    """Return a reader of one of the options."""

    def read(text: str, limits: Limits | None = None) -> str:
        if text not in options:
            raise ValueError(text)
        return text

    return read


def _flag(word: str) -> Reader:
    """Return a reader of a word that stands for yes."""
    return lambda text, limits: bool(choice(word)(text, limits))


def whole(low: int, high: int | Callable[[Limits], int]) -> Reader:
    """Return a reader of a whole number between two bounds, both allowed."""

    def read(text: str, limits: Limits) -> int:
        value = int(text)
        if not low <= value <= (high(limits) if callable(high) else high):
            raise ValueError(text)
        return value

    return read


def several(read: Reader, *, most: int | None = None) -> Reader:
    """Return a reader of distinct values separated by commas."""

    def read_all(text: str, limits: Limits) -> tuple[Any, ...]:
        values = tuple(dict.fromkeys(read(part, limits) for part in text.split(",")))
        if most is not None and len(values) > most:
            raise ValueError(text)
        return values

    return read_all


def largest_coreset(train_images: int) -> int:
    """Return the largest coreset that the page offers for N training images."""
    return max(1, int(LARGEST_SHARE * train_images))


def _sigma2(value: float | None) -> str:
    return f"{value:.6g}" if value else ""


def _joined(values: tuple[Any, ...]) -> str:
    return ",".join(map(str, values))


def _optional(value: object) -> str:
    return "" if value is None else str(value)


def _in_order(text: str, limits: Limits) -> tuple[str, ...]:
    names = several(_METHOD)(text, limits)
    return tuple(name for name in METHODS if name in names)


def _pairs(text: str, limits: Limits) -> dict[str, float]:
    pairs = (part.partition(":") for part in text.split(","))
    return {_METHOD(name, limits): parse_sigma2(value) for name, _, value in pairs}


def _decade(text: str, limits: Limits) -> float:
    value = parse_sigma2(text)
    return min(limits.sigma2s, key=lambda decade: abs(math.log(decade / value)))


def _decades(text: str, limits: Limits) -> tuple[float, ...]:
    return tuple(sorted(several(_decade)(text, limits)))


def _drawn(text: str, limits: Limits) -> str:
    if len(text) != limits.squares or set(text) - {"0", "1"}:
        raise ValueError(text)
    return text


def _variant(text: str, limits: Limits) -> str:
    return choice(*VARIANTS)({"balanced": PER_CLASS, "plain": FREE}.get(text, text), limits)  # as older links say


def _colouring(text: str, limits: Limits) -> str:
    return choice(*(name for name in COLOURINGS if name != PLANTED or limits.squares))(text, limits)


_METHOD = choice(*METHODS)
_LABEL = whole(0, lambda limits: limits.classes - 1)
_IMAGE = whole(0, lambda limits: limits.images - 1)


# The pages


@dataclass(frozen=True)
class AttributeView:
    """The tab Attribution: a query, the settings, and whether to use plain words; sigma2 is the usual one when 0.

    `word` is the number of a word of the query, if it is a text, by whose share its ranking is ordered.
    """

    shared: ClassVar[tuple[str, ...]] = ("q", "method", "sigma2", "target")  # parameters that other tabs have too
    query: str = parameter("q", "test:0", parse_query, always=True)
    method: str = parameter("method", REFERENCE, _METHOD)
    sigma2: float = parameter("sigma2", 0.0, parse_sigma2, write=_sigma2, always=True)
    budget: int = parameter("m", 10, whole(1, LARGEST_BUDGET), always=True)
    pool: str = parameter("pool", POOLS[0], choice(*POOLS))
    conditioning: str = parameter("given", CONDITIONINGS[0], choice(*CONDITIONINGS))
    target: int | None = parameter("target", None, _LABEL, write=_optional)
    word: int | None = parameter("word", None, whole(0, LONGEST_TEXT), write=_optional)
    plain: bool = parameter("words", False, _flag("plain"), write=lambda plain: "plain" if plain else "")

    def request(self) -> Request:
        """Return what is asked."""
        return Request(self.method, self.sigma2, self.budget, self.pool, self.conditioning, self.target)


@dataclass(frozen=True)
class ComparisonView:
    """The tab Compare: the current query, those pinned beside it, and the settings for all.

    `methods`, if empty, stands for all that the bundle can serve, in the registry's order. `sigma2` is that of the
    evaluation, and of every method without its own in `own`; the usual one when 0. `target` is one class for all
    queries; each one's predicted class when None.
    """

    shared: ClassVar[tuple[str, ...]] = ("q", "target")
    query: str = parameter("q", "test:0", parse_query, always=True)
    pins: tuple[str, ...] = parameter("pins", (), several(parse_query, most=MOST_COMPARED - 1), write=_joined)
    methods: tuple[str, ...] = parameter("methods", (), _in_order, write=_joined)
    sigma2: float = parameter("sigma2", 0.0, parse_sigma2, write=_sigma2, always=True)
    own: Mapping[str, float] = parameter(
        "own", {}, _pairs, write=lambda own: ",".join(f"{name}:{value:.6g}" for name, value in own.items())
    )
    budget: int = parameter("m", 10, whole(1, LARGEST_COMPARED), always=True)
    pool: str = parameter("pool", POOLS[0], choice(*POOLS))
    conditioning: str = parameter("given", CONDITIONINGS[0], choice(*CONDITIONINGS))
    target: int | None = parameter("target", None, _LABEL, write=_optional)

    def sigma2_of(self, method: str) -> float:
        """Return the sigma2 of a method: its own, or the common one."""
        return self.own.get(method, self.sigma2)

    def request(self, method: str) -> Request:
        """Return what is asked of a method."""
        sigma2 = self.sigma2_of(method) if METHODS[method].uses_sigma2 else self.sigma2
        return Request(method, sigma2, self.budget, self.pool, self.conditioning, self.target)


@dataclass(frozen=True)
class CounterfactualView:
    """The tab Remove & retrain: the query, whose ranking is removed, how much of it; the usual sigma2 when None."""

    shared: ClassVar[tuple[str, ...]] = ("q", "method", "sigma2")
    query: str = parameter("q", "test:0", parse_query, always=True)
    method: str = parameter("method", REFERENCE, _METHOD, always=True)
    sigma2: float | None = parameter("sigma2", None, parse_sigma2, write=_sigma2)
    budget: int = parameter("m", 100, whole(FEWEST_REMOVED, MOST_REMOVED), always=True)


@dataclass(frozen=True)
class CurvesView:
    """The tab Curves: of one test image or, if `many` or `query` is empty, the mean over `count`.

    The page chooses values of sigma2 where there are none.

    `method` is drawn at several `sigma2s`; the second panel shows it at the sigma2 `fixed`, with what approximates it
    and `others`.
    """

    shared: ClassVar[tuple[str, ...]] = ("q",)
    query: str = parameter("q", "", parse_query)
    count: int = parameter("n", 10, whole(1, MOST_CURVES))
    method: str = parameter("method", GAINS[0], choice(*GAINS))
    sigma2s: tuple[float, ...] = parameter("sigma2s", (), _decades, write=lambda values: ",".join(map(_sigma2, values)))
    fixed: float = parameter("sigma2", 0.0, _decade, write=_sigma2)
    others: tuple[str, ...] = parameter("others", (), several(_METHOD), write=_joined)
    largest: int = parameter("m", 100, whole(10, LARGEST_CURVE))
    many: bool = parameter("of", False, _flag("many"), write=lambda many: "many" if many else "")


@dataclass(frozen=True)
class MapView:
    """The tab Map: what arranges the training images, and what their colours say.

    `method`, `sigma2` (the usual one when None), `target` and `budget` are those of the colouring "share".
    """

    shared: ClassVar[tuple[str, ...]] = ("q", "method", "sigma2", "target")
    query: str = parameter("q", "test:0", parse_query, always=True)
    method: str = parameter("method", REFERENCE, _METHOD)
    sigma2: float | None = parameter("sigma2", None, parse_sigma2, write=_sigma2)
    target: int | None = parameter("target", None, _LABEL, write=_optional)
    budget: int = parameter("m", 10, whole(1, LARGEST_BUDGET))
    features: str = parameter("by", FEATURES[0], choice(*FEATURES))
    colour: str = parameter("colour", COLOURINGS[0], _colouring)

    def request(self) -> Request:
        """Return what is asked."""
        return Request(self.method, self.sigma2, self.budget, target=self.target)


@dataclass(frozen=True)
class BackdoorView:
    """The page Backdoor: a test image, whose patch it gets, and which methods are asked.

    None or empty leaves the choice to the page: an image on which the attack works, the image's own patch, the method,
    and the one beside it. `drawn` is the visitor's own patch, row by row, "0" black, "1" white; `seen`: steps revealed.
    """

    image: int | None = parameter("image", None, _IMAGE, write=_optional)
    patch: int | None = parameter("patch", None, _LABEL, write=_optional)
    drawn: str = parameter("drawn", "", _drawn)
    method: str = parameter("method", "", _METHOD)
    rival: str = parameter("rival", "", _METHOD)
    seen: tuple[str, ...] = parameter("seen", (), several(choice("search", "audit")), write=_joined)


@dataclass(frozen=True)
class CoresetView:
    """The page Coreset: which test images are asked about, and which method chooses how many training images.

    `label` is the class of the group "class", `count` how many images of a group are drawn, `marked` those of the
    group "marked"; sigma2 is the bundle's own for the method when None.
    """

    group: str = parameter("ask", GROUPS[0], choice(*GROUPS))
    label: int = parameter("class", 0, _LABEL)
    count: int = parameter("n", 100, whole(1, MOST_CORESET_QUERIES))
    marked: tuple[int, ...] = parameter("marked", (), several(_IMAGE, most=MOST_MARKED), write=_joined)
    method: str = parameter("method", GAINS[0], _METHOD)
    variant: str = parameter("choice", PER_CLASS, _variant)
    budget: int = parameter("m", 150, whole(1, lambda limits: largest_coreset(limits.train_images)))
    sigma2: float | None = parameter("sigma2", None, parse_sigma2, write=_sigma2)


_VIEWS = (AttributeView, ComparisonView, CounterfactualView, CurvesView, MapView, BackdoorView, CoresetView)
NAMES = frozenset(each.metadata["parameter"].name for view in _VIEWS for each in fields(view))  # of all parameters


# From an address and back


def read(view: AnyView, address: Mapping[str, str], limits: Limits) -> tuple[AnyView, list[str]]:
    """Read an address; what is not valid stays at its default and is named.

    Args:
        view: with the defaults.
        address: its parameters.
        limits: what the bundle allows.

    Returns:
        The view, and the name and the value of each parameter that was not understood.
    """
    wrong = []
    for name, about in _parameters(view):
        if about.name in address:
            text = address[about.name]
            try:
                view = replace(view, **{name: about.read(text, limits)})  # type: ignore[type-var]
            except ValueError:
                wrong.append(f"{about.name} “{text[:40]}”")
    return view, wrong


def parameters(view: Any) -> dict[str, str]:
    """Return the parameters from which `read` restores the view."""
    usual = type(view)()
    texts = {about: (about.write(getattr(view, n)), about.write(getattr(usual, n))) for n, about in _parameters(view)}
    return {about.name: own for about, (own, default) in texts.items() if own != default or (about.always and own)}


def _parameters(view: Any) -> list[tuple[str, Parameter]]:
    found: tuple[Field[Any], ...] = fields(view)
    return [(each.name, each.metadata["parameter"]) for each in found]


# Queries


def open_query(text: str, attributor: "Served") -> QueryExample:
    """Find the example that a view's query names.

    Raises:
        QueryError: if there is no such example, or the link's is damaged or of another kind than the bundle's.
    """
    kind, _, value = text.partition(":")
    if kind == "file":
        return attributor.kept_file(value)
    if kind not in MODALITIES:
        return attributor.query(kind, int(value))
    own = attributor.bundle.modality
    if kind != own.name:
        raise QueryError(f"The link asks about {MODALITIES[kind].a_one}, and this bundle's examples are {own.many}.")
    return attributor.given(page_of(own).unpack(value, attributor.bundle.examples("train")))


def exponent_of(sigma2: float) -> float:
    """Return log10 of sigma2, as a step of the slider where it is one: links keep six digits."""
    exponent = math.log10(sigma2)
    return round(4 * exponent) / 4 if abs(4 * exponent - round(4 * exponent)) < 4e-5 else exponent
