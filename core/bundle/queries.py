"""Queries: from a number, or what a user gives, to what the network says of it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import QueryExample
from natscope.core.errors import QueryError
from natscope.core.examples import Examples
from natscope.core.ood import LEAST, distances

if TYPE_CHECKING:
    from natscope.core.features import FeatureMap

NOT_FINITE = "The network's response to {} is not a finite number, so nothing can be attributed."


class Queries:
    """Makes the queries of one bundle."""

    def __init__(self, bundle: Bundle, features: "FeatureMap", penultimate: np.ndarray) -> None:
        """Read nothing yet.

        Args:
            bundle: an open bundle.
            features: its network.
            penultimate: (N, D) float32, of the training examples.
        """
        self._bundle, self._features, self._penultimate = bundle, features, penultimate

    def stored(self, origin: str, index: int) -> QueryExample:
        """Take a query from the "test" or the "train" examples.

        Raises:
            QueryError: if there is no such example.
        """
        examples, one = self._bundle.examples(origin), self._bundle.modality.one
        if not len(examples):
            many = self._bundle.modality.many
            raise QueryError(f"There are no {origin} {many} here; ask about an input, or about train:0.")
        if not 0 <= index < len(examples):
            raise QueryError(f"There is no {origin} {one} {index}; choose a number from 0 to {len(examples) - 1}.")
        label = int(self._bundle.array(f"{origin}_labels")[index])
        return self.seen(examples[np.array([index])], origin, index=index, label=label)

    def given(self, found: Any, label: int | None = None) -> QueryExample:
        """Take what a user gives, of the form of the data's examples, as the query: see `Examples.given`.

        Args:
            found: one example.
            label: its true class, if it is known.

        Raises:
            QueryError: if it cannot be one.
        """
        return self.seen(self._bundle.examples("train").given(found), "upload", label=label)

    def seen(
        self, example: Examples, origin: str, *, index: int | None = None, label: int | None = None
    ) -> QueryExample:
        """Return an example, alone, as the network sees it.

        Args:
            example: of the data's form.
            origin: "test", "train" or "upload".
            index: its number in that split.
            label: its true class, if it is known.

        Raises:
            QueryError: if the network's response to it is not finite.
        """
        outputs = self._features.outputs(example.inputs[:])
        logits = outputs.logits[0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise QueryError(NOT_FINITE.format(f"this {self._bundle.modality.one}"))
        return QueryExample(
            example=example,
            probabilities=softmax(logits),
            penultimate=outputs.penultimate[0],
            origin=origin,
            index=index,
            label=label,
            ood=self._ood(example, outputs.penultimate[0]) if origin == "upload" else 0.0,
            source="" if index is None else self._bundle.sources(origin)[index],
        )

    def _ood(self, example: Examples, penultimate: np.ndarray) -> float:
        found = distances(
            example,
            penultimate[None],
            train=self._bundle.examples("train"),
            train_penultimate=self._penultimate,
        )
        usual = np.maximum(self._bundle.manifest.results["usual_distances"], LEAST)
        return float((found[0] / usual).max())
