"""What a person at a Python prompt gets: an opened bundle that explains, and answers with pictures."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import Attribution, Item, QueryExample, Request, is_whole, quoted
from natscope.core.errors import BundleError, FileError, QueryError
from natscope.core.examples import Examples
from natscope.core.files import opened
from natscope.core.methods import METHODS, REFERENCE
from natscope.core.parameters import WEIGHTS, imbalance
from natscope.precompute.bundles.asking import ask_about, ask_about_file
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.data.shown import card

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

_FEW = 60  # examples that a notebook shows
_QUERY = "A query is the number of a test example, test:3, train:3, an input, a picture, a text or a file"
_NUMBERED = re.compile(r"(test|train):[0-9]{1,9}")


@dataclass(frozen=True, eq=False)
class Answer:
    """Ranked training examples for one query, with the examples themselves.

    Args:
        query: what was asked about.
        attribution: the ranking, with everything that is known of it.
        classes: a title for each label.
        examples: the ranked training examples.
        remarks: what to know of the network's outputs and parameters, and of a kernel that is not of weights, a clause
            each.

    Examples:
        >>> answer = natscope.open("bundles/fashion-mnist").explain(12, budget=3)
        >>> [item.source.split()[0] for item in answer.items]
        ['train', 'train', 'train']
        >>> answer.to_pandas().columns.tolist()[:4]
        ['rank', 'train_index', 'source', 'label']
    """

    query: QueryExample
    attribution: Attribution
    classes: tuple[str, ...]
    examples: Examples = field(repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def items(self) -> tuple[Item, ...]:
        """The ranked training examples: rank, source, train_index, label, score, nats (cumulative), sign, text."""
        return self.attribution.items

    @property
    def nats(self) -> float | None:
        """The information of all items together, in nats; None for a method that has none."""
        return self.attribution.nats

    def __len__(self) -> int:
        """Return how many items there are."""
        return len(self.items)

    def __repr__(self) -> str:
        """Return what was asked about, the prediction, and how much its items tell."""
        told = "" if self.nats is None else f", {self.nats:.3g} nats"
        return (
            f"Answer({self.query.source or 'an input'}, predicted {self.classes[self.query.predicted]!r}: "
            f"{len(self)} training examples by {METHODS[self.attribution.request.method].title}{told})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `natscope attribute --json` prints."""
        return self.attribution.to_dict(self.query, self.classes)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with the columns of `natscope attribute --csv`: nats are those of all items up to a row's."""
        import pandas

        rows = [item | {"nats_cumulative": item["nats"]} for item in self.to_dict()["items"]]
        order = ["rank", "train_index", "source", "label", "label_name", "score", "nats_cumulative", "sign"]
        order += [] if self.examples.modality.text is None else ["text"]
        return pandas.DataFrame(rows, columns=order)

    def _repr_html_(self) -> str:
        """Return the answer as notebooks show it: a sentence, and the examples with rank, class and amount."""
        method, said = METHODS[self.attribution.request.method], self.classes[self.query.predicted]
        about = f"Predicted {said} ({self.query.probabilities[self.query.predicted]:.1%})"
        asked = self.classes[self.attribution.target]
        about += "" if asked == said else f", asked about {asked}"
        if self.nats is not None:
            about += f". These {len(self)} training examples carry {self.nats:.3g} nats"
        unit = "" if self.nats is None else " nats"
        shown = zip(self.items, self.attribution.amounts, strict=True)
        cards = [
            card(self.examples, row, f"{item.rank}. {self.classes[item.label]}", f"{amount:.3g}{unit}", item.source)
            for row, (item, amount) in enumerate(list(shown)[:_FEW])
        ]
        own = card(self.query.example, 0, "the query", said, self.query.source)
        more = f"<p>… and {len(self) - _FEW} more.</p>" if len(self) > _FEW else ""
        noted = "".join(f"<p>Network: {escape(remark)}.</p>" for remark in self.remarks)
        return (
            f"<div><p>{escape(about)}, by {escape(method.title)}.</p>{noted}"
            f'<div style="display:flex;flex-wrap:wrap;gap:8px">{own}{"".join(cards)}</div>{more}</div>'
        )


class Explainer:
    """An opened bundle that explains predictions.

    Examples:
        >>> explainer = natscope.open("bundles/fashion-mnist")
        >>> explainer
        Explainer('Fashion-MNIST (25%), MLP', 10 classes, 15,000 training and 10,000 test examples)
        >>> explainer.explain("test:12", budget=2).query.source
        'test row 12'
    """

    def __init__(self, attributor: Attributor) -> None:
        """Take what answers; `natscope.open` makes one."""
        self.attributor = attributor
        self.bundle, self.classes = attributor.bundle, attributor.bundle.classes

    def explain(
        self,
        query: Any,
        method: str = REFERENCE,
        budget: int = Request.budget,
        *,
        sigma2: float | None = None,
        target: int | str | None = None,
        pool: str = "same-class",
        conditioning: str = "pool",
        seed: int = 0,
        invert: bool | None = None,
    ) -> Answer:
        """Rank the training examples that a prediction relies on.

        Args:
            query: the number of a test example; "test:3" or "train:3"; an input as the network takes it (without an
                axis for the batch), alone or as an item (input, label), whose label is a class of the bundle by number
                or title; the path of a file; where examples are images, a picture, as an array of uint8 or of Pillow;
                where they are texts, a text, or a tuple of two for networks that take two.
            method: a name of the registry.
            budget: how many training examples, M.
            sigma2: observation noise variance; the bundle's usual one for the method when None.
            target: the class whose logit is explained, by number or title; the predicted one when None.
            pool: "same-class" (examples labelled as the target) or "all".
            conditioning: "pool" or "train", what methods condition on that condition on data.
            seed: seed of the random method.
            invert: exchange light and dark of a grey picture or file; as its border says when None.

        Raises:
            QueryError: for a query or setting that cannot be used, in one sentence.
        """
        label = None if target is None else self._label(target)
        request = Request(method, sigma2, budget, pool, conditioning, label, seed)
        asked = self._asked(query, invert)
        found = self.attributor.attribute(asked, request)
        examples = self.bundle.examples("train")[np.array([item.train_index for item in found.items], dtype=np.int64)]
        results = self.bundle.manifest.results
        unusual = imbalance(results["kernel"].get("shares", {WEIGHTS: 1.0}), results["kernel"].get("whole"))
        remarks = (*results.get("remarks", ()), *([unusual.rstrip(".")] if unusual else []))
        return Answer(asked, found, self.classes, examples, remarks)

    def __repr__(self) -> str:
        """Return the title, and what there is to ask about."""
        train, test = len(self.attributor.train_labels), len(self.attributor.test_labels)
        return (
            f"Explainer({self.bundle.manifest.name!r}, {len(self.classes)} classes, {train:,} training and {test:,} "
            "test examples)"
        )

    def _label(self, name: Any) -> int:
        if isinstance(name, torch.Tensor | np.ndarray) and name.ndim == 0:
            name = name.item()
        if isinstance(name, str):
            if name not in self.classes:
                raise QueryError(f"There is no class {quoted(name)}; choose one of {', '.join(self.classes)}.")
            return self.classes.index(name)
        if not is_whole(name):
            raise QueryError(f"A class is named by its number or its title, not by {quoted(name)}.")
        if not 0 <= name < len(self.classes):
            raise QueryError(f"There is no class {name}; choose one from 0 to {len(self.classes) - 1}.")
        return int(name)

    def _asked(self, query: Any, invert: bool | None) -> QueryExample:
        """Return the query that somebody means."""
        if isinstance(query, torch.Tensor | np.ndarray) and query.ndim == 0:
            query = query.item()
        if isinstance(query, QueryExample):
            return query
        if is_whole(query):
            return self.attributor.query("test", int(query))
        label = None
        if not self._said(query) and isinstance(query, tuple | list) and len(query) == 2 and _is_scalar(query[1]):
            query, label = query[0], self._label(query[1])
        if self._said(query):
            if isinstance(query, str) and query.endswith(".txt") and ("/" in query or len(query.split()) == 1):
                raise QueryError(f"There is no file {quoted(query)}.")
            return ask_about(self.attributor, query, label)
        if isinstance(query, str) and not _is_file(query):
            return self._numbered(query)
        if isinstance(query, str | Path):
            return self._of_file(Path(query), label, invert)
        if query is None or isinstance(query, bool | float | complex | bytes | dict | set):
            raise QueryError(f"{_QUERY}, not {quoted(query)}.")
        return ask_about(self.attributor, query, label, invert=invert)

    def _said(self, query: Any) -> bool:
        """Return whether a query is a text, or the parts of one, where the bundle is of such."""
        if self.bundle.modality.from_file is None:
            return False
        if isinstance(query, str):
            return not _NUMBERED.fullmatch(query) and not _is_file(query)
        parts = isinstance(query, tuple | list) and len(query) > 0 and all(isinstance(part, str) for part in query)
        return parts and (len(query) != 2 or query[1] not in self.classes)

    def _numbered(self, text: str) -> QueryExample:
        origin, _, number = text.partition(":")
        if origin not in ("test", "train") or not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise QueryError(f"{_QUERY}, and there is no file {quoted(text)}.")
        return self.attributor.query(origin, int(number))

    def _of_file(self, path: Path, label: int | None, invert: bool | None) -> QueryExample:
        try:
            with opened(path, links=True) as file:
                data = file.read()
        except (FileError, OSError) as error:
            raise QueryError(f"The file cannot be used: {str(error).rstrip('.')}.") from error
        return ask_about_file(self.attributor, data, path.name, label, invert=invert)


def open(path: str | Path | Bundle) -> Explainer:
    """Open a bundle, to explain predictions with it.

    Args:
        path: the bundle's folder, or a bundle that `natscope.build` returned.

    Raises:
        BundleError: if it cannot be opened, or its network is unknown here or of code that is not trusted.

    Examples:
        >>> answer = natscope.open("bundles/fashion-mnist").explain(12, budget=5)
        >>> bool(answer.nats > 0)
        True
    """
    if not isinstance(path, Bundle | str | Path):
        raise BundleError(f"natscope.open takes a bundle or its folder, not {quoted(path)}.")
    return Explainer(open_attributor(path.path if isinstance(path, Bundle) else Path(path)))


def _is_file(text: str) -> bool:
    with suppress(OSError, ValueError):  # a text that is too long for a name, or that no name can hold
        return Path(text).is_file()
    return False


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | float) or np.ndim(value) == 0
