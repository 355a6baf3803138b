"""Queries: from a number, a picture or an input to what the network says of it."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import softmax

from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import QueryImage
from natscope.core.errors import QueryError
from natscope.core.images import to_input
from natscope.core.ood import LEAST, distances
from natscope.core.thumbnails import thumbnails

if TYPE_CHECKING:
    from natscope.core.features import FeatureMap

NOT_FINITE = "The network's response to {} is not a finite number, so nothing can be attributed."
_LARGEST = 1e15  # of an input's numbers, as in a bundle


class Queries:
    """Makes the queries of one bundle, and the inputs that they stand for."""

    def __init__(self, bundle: Bundle, features: "FeatureMap", penultimate: np.ndarray) -> None:
        """Read nothing yet.

        Args:
            bundle: an open bundle.
            features: its network.
            penultimate: (N, D) float32, of the training images.
        """
        self._bundle, self._features, self._penultimate = bundle, features, penultimate

    def stored(self, origin: str, index: int) -> QueryImage:
        """Take a query from the "test" or the "train" images.

        Raises:
            QueryError: if there is no such image.
        """
        images = self._bundle.array(f"{origin}_images")
        if not len(images):
            raise QueryError(f"There are no {origin} images here; ask about an input, or about train:0.")
        if not 0 <= index < len(images):
            raise QueryError(f"There is no {origin} image {index}; choose a number from 0 to {len(images) - 1}.")
        label = int(self._bundle.array(f"{origin}_labels")[index])
        inputs = self._bundle.inputs(origin)[index : index + 1]
        return self._seen(np.array(images[index]), inputs, origin, index=index, label=label)

    def picture(self, image: np.ndarray) -> QueryImage:
        """Take an image of the data set's form, uint8 (H, W) or (H, W, 3), as the query.

        Raises:
            QueryError: if the network takes other inputs than images.
        """
        if self._bundle.stores_inputs:
            raise QueryError(no_pictures(self._bundle))
        return self._seen(image, self._scaled(image), "upload")

    def given(self, values: np.ndarray, label: int | None = None) -> QueryImage:
        """Take an input of the network's own form, float32 (...), as the query.

        Args:
            values: one input, without an axis for the batch.
            label: its true class, if it is known.

        Raises:
            QueryError: if it has another shape than the data's inputs, or numbers that are not finite or too large.
        """
        shape = self._bundle.inputs("train").shape[1:]
        if values.shape != shape:
            raise QueryError(f"This bundle's network takes inputs of shape {shape}, not {values.shape}.")
        if not bool((np.abs(values) <= _LARGEST).all()):
            raise QueryError("The input holds numbers that are not finite, or too large for float32.")
        about = self._bundle.manifest.dataset
        values = np.array(values, dtype=np.float32, order="C")
        shown = thumbnails(values[None], mean=about["mean"], std=about["std"])[0]
        return self._seen(shown, torch.from_numpy(values)[None], "upload", label=label, values=values)

    def inputs(self, query: QueryImage) -> torch.Tensor:
        """Return what the network takes for a query, (1, ...) float32."""
        if query.index is not None:
            return self._bundle.inputs(query.origin)[query.index : query.index + 1]
        return self._scaled(query.image) if query.input is None else torch.from_numpy(np.array(query.input))[None]

    def _scaled(self, image: np.ndarray) -> torch.Tensor:
        about = self._bundle.manifest.dataset
        return to_input(image[None], mean=about["mean"], std=about["std"])

    def _seen(
        self,
        image: np.ndarray,
        inputs: torch.Tensor,
        origin: str,
        *,
        index: int | None = None,
        label: int | None = None,
        values: np.ndarray | None = None,
    ) -> QueryImage:
        outputs = self._features.outputs(inputs)
        logits = outputs.logits[0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise QueryError(NOT_FINITE.format("this image"))
        return QueryImage(
            image=image,
            probabilities=softmax(logits),
            penultimate=outputs.penultimate[0],
            origin=origin,
            index=index,
            label=label,
            ood=self._ood(image, outputs.penultimate[0]) if origin == "upload" else 0.0,
            source="" if index is None else self._bundle.sources(origin)[index],
            input=values,
        )

    def _ood(self, image: np.ndarray, penultimate: np.ndarray) -> float:
        found = distances(
            image[None],
            penultimate[None],
            train_images=self._bundle.array("train_images"),
            train_penultimate=self._penultimate,
        )
        usual = np.maximum(self._bundle.manifest.results["usual_distances"], LEAST)
        return float((found[0] / usual).max())


def no_pictures(bundle: Bundle) -> str:
    """Return why a picture cannot be a query of a bundle whose network takes other inputs, in one sentence."""
    if {"load", "transform"} & bundle.manifest.dataset.keys():
        return "This bundle's network takes inputs that its own code makes of a file; give the file, not its pixels."
    return (
        "This bundle's network takes inputs that natscope cannot make from a picture; build it with `transform=`, the "
        "function that made them, to ask about new ones."
    )
