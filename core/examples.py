"""What a data set is made of, whatever that is: examples of one modality, such as images or texts.

A modality says how its examples are stored, checked, turned into a network's inputs, compared and taken from a user;
its page (`natscope.app.modalities`) shows them. Each is one file, and nothing else asks which one it is.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import msgspec
import numpy as np
from torch import Tensor

from natscope.core.reading import Reading
from natscope.core.rows import Rows

Which = slice | np.ndarray


class Inputs(Protocol):
    """What a network takes, row by row: memory is that of a batch, whatever N."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...); where rows differ in length, that of the longest."""

    @property
    def lengths(self) -> np.ndarray | None:
        """The length of each row, (N,) int64, if rows of a batch are padded to the longest; else None."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | np.ndarray | Tensor, /) -> Tensor: ...


class Examples(Protocol):
    """The examples of one split, as they are stored; choosing rows of them reads none."""

    @property
    def modality(self) -> "Modality":
        """Their kind."""

    @property
    def inputs(self) -> Inputs:
        """What the network takes for them."""

    @property
    def form(self) -> tuple[int, ...]:
        """What all examples of a data set have in common and a network is made for, such as an image's size."""

    @property
    def nbytes(self) -> int:
        """Bytes that a bundle stores for them."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Which, /) -> Self:
        """Return some of them, in the requested order."""

    def arrays(self) -> dict[str, Rows]:
        """Return what a bundle stores of them, by the modality's names."""

    def files(self) -> dict[str, bytes]:
        """Return what a bundle stores once for all of its splits, by the modality's names."""

    def about(self) -> dict[str, Any]:
        """Return what a manifest says of them: the fields of the modality's `about`."""

    def reading(self, index: int) -> Reading | None:
        """Return what a network reads of one, where words tell it; else None."""

    def distances(self, train: Self) -> np.ndarray:
        """Return how far each lies from its nearest training example, (n,), in what the network takes."""

    def present(self) -> np.ndarray:
        """Return which of them were read, (N,) bool: of a sample, only some are."""

    def described(self) -> str:
        """Return their form in words, such as "28 × 28 pixels, grey"."""

    def scaling(self) -> str:
        """Return how a network's inputs are made of them, in words; empty where there is nothing to choose."""

    def triggers(self, count: int, size: int, random: np.random.Generator) -> Sequence[Any]:
        """Draw different triggers for a backdoor, in JSON-able form or as arrays.

        Raises:
            DataError: if there are not as many of this size, or they do not fit.
        """

    def marked(self, triggers: Sequence[Any], which: np.ndarray, place: str) -> Self:
        """Return copies, each with the trigger of number `which` (N,) in a place of the modality's."""

    def replaced(self, rows: np.ndarray, others: Self) -> Self:
        """Return copies, of which those at `rows` (n,) are others."""

    def given(self, found: Any) -> Self:
        """Return an example of the same form, made of what a user gives.

        Raises:
            QueryError: if it cannot be one.
        """


@dataclass(frozen=True)
class Modality:
    """One kind of example.

    Args:
        name: in manifests and commands.
        one: what an example is called, such as "image".
        many: what several are called.
        about: what a manifest says of the data, as a struct that checks types and bounds.
        arrays: for each array of a split the types that it may have.
        needed: names of the arrays that every split has.
        stored: name of the array that holds what a network takes where natscope cannot make it of the others; none if
            there is no such.
        layers: of which parameters a kernel is, where the user names none: see `parameters.kernel_parameters`.
        networks: for each of natscope's own networks that takes such examples, by its name, what gives its first widths
            by `form`.
        files: for each file that a bundle has once, by logical name, its name in the folder.
        form: returns `Examples.form` by the manifest's `about` and the shapes of the training arrays; raises ValueError
            with what is wrong with them.
        fits: returns whether an array's shape fits: by its name, shape, the number of examples, the shapes of the
            training arrays.
        read: returns a split's examples: by a function that returns its arrays by name (None for one that the bundle
            does not have), one that returns the content of a file by name, and `about`; raises ValueError with what is
            wrong with them, in words that follow "the bundle".
        from_file: makes what `Examples.given` takes of a file's content and name, and raises QueryError; None where it
            needs more: see `natscope.precompute.bundles.asking`.
        places: where a backdoor's trigger may stand in an example, as users name it.
        suits: returns whether a manifest's triggers are some: by their list, their size, and `form`.
        text: returns an example as one text, in which a search looks and which answers quote, by the examples and a
            row; None where examples are no texts.
        misfits: yields what is wrong with examples that were read, in words that follow "the bundle": what takes too
            long to be found out whenever a bundle is opened.
    """

    name: str
    one: str
    many: str
    about: type[msgspec.Struct]
    arrays: Mapping[str, tuple[str, ...]]
    needed: tuple[str, ...]
    form: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], tuple[int, ...]]
    fits: Callable[[str, tuple[int, ...], int, Mapping[str, tuple[int, ...]]], bool]
    read: Callable[[Callable[[str], Any], Callable[[str], bytes], Mapping[str, Any]], Any]
    networks: Mapping[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = field(default_factory=dict)
    stored: str | None = None
    layers: tuple[str, ...] = ()
    from_file: Callable[[bytes, str], Any] | None = None
    places: tuple[str, ...] = ()
    suits: Callable[[Sequence[Any], int, tuple[int, ...]], bool] = lambda patterns, size, form: False
    files: Mapping[str, str] = field(default_factory=dict)
    text: Callable[[Any, int], str] | None = None
    misfits: Callable[[Any], Iterator[str]] = lambda examples: iter(())

    @property
    def a_one(self) -> str:
        """What an example is called, with its article: "an image"."""
        return f"{'an' if self.one[0] in 'aeiou' else 'a'} {self.one}"


USUAL = "image"  # the modality of manifests that name none
MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> Modality:
    """Add a modality to those that natscope knows."""
    MODALITIES[modality.name] = modality
    return modality


def batches(inputs: Tensor | Inputs, size: int) -> Iterator[Which]:
    """Yield which rows go through a network together, at most `size`: those of like length, where lengths differ."""
    lengths = getattr(inputs, "lengths", None)
    order = None if lengths is None else np.argsort(-lengths, kind="stable")  # the longest first: they need most memory
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        yield part if order is None else order[part]


def digest_of(examples: Examples) -> str:
    """Return a checksum of what is stored of some examples."""
    digest = hashlib.sha256()
    for name, array in sorted(examples.arrays().items()):
        digest.update(f"{name} {array.shape}".encode() + np.ascontiguousarray(array[:]).tobytes())
    return digest.hexdigest()


def modality_of(dataset: Mapping[str, Any]) -> Modality:
    """Return the modality that a manifest's `dataset` names."""
    return MODALITIES[dataset.get("modality", USUAL)]
