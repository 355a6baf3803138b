"""What individual methods need beyond the features of the target's logit: arrays and factors that a bundle may hold."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from natscope.core.bundle.format import FIX, Bundle
from natscope.core.cache import BoundedCache
from natscope.core.errors import BundleError
from natscope.core.features import SHARD, FeatureMap
from natscope.core.jacobians import convolves
from natscope.core.measurements import loss_weight
from natscope.core.methods import METHODS, Method
from natscope.core.methods.artifacts import FACTORS, LOSS_WEIGHTS, MARGINS, EkfacSpec, Size
from natscope.core.progress import Progress
from natscope.core.scratch import temporary_folder

if TYPE_CHECKING:  # the libraries behind these take a second to load, so they are loaded when they are needed
    from natscope.core.methods.ekfac import EkfacInfluence

Inputs = Callable[[slice | np.ndarray], Tensor]
_TOGETHER = 10  # queries for which the gradients of the training examples are computed once


class LoadedArtifacts:
    """Arrays over all N training examples, from the bundle, or recomputed for another sketch than the bundle's."""

    def __init__(self, bundle: Bundle, margins: FeatureMap, inputs: Inputs, *, fresh: bool) -> None:
        """Compute nothing yet.

        Args:
            bundle: an open bundle.
            margins: maps to features of the margin, in the network's own parameterisation.
            inputs: returns the network's inputs for a slice or for rows of the training examples.
            fresh: whether `margins` has another sketch than the bundle.
        """
        self._bundle, self._margins, self._inputs, self._fresh = bundle, margins, inputs, fresh
        self._labels = np.array(bundle.array("train_labels"))
        self._arrays: BoundedCache[dict[str, np.ndarray]] = BoundedCache(3)
        self._influence: BoundedCache[EkfacInfluence] = BoundedCache(1)
        self._scores: BoundedCache[np.ndarray] = BoundedCache(256)

    def array(self, name: str, progress: Progress) -> np.ndarray:
        """Return an array (N, ...) by the name under which a method needs it.

        Args:
            name: its name.
            progress: called while something long is computed once.
        """
        if name == LOSS_WEIGHTS:
            return self._arrays.get(name, lambda: {name: self._loss_weights()})[name]
        if not self._fresh:
            return self._bundle.array(name)
        if name == MARGINS:
            return self._arrays.get(name, lambda: {name: self._margin_features(progress)})[name]
        own = next(m for m in METHODS.values() if name in m.files)
        return self._arrays.get(own.name, lambda: self._computed(own, progress))[name]

    def influence(self, query: Tensor, target: int, rows: np.ndarray, progress: Progress) -> np.ndarray:
        """Return the EK-FAC influence of training examples on a query's margin, (len(rows),), and remember it.

        Args:
            query: (1, ...), as the network takes it.
            target: the class whose margin is measured.
            rows: numbers of training examples.
            progress: called every few hundred examples.
        """
        key = _influence_key(query, target, rows)
        return self._scores.get(key, lambda: self._influences(query, target, rows, progress)[0])

    def influence_ahead(
        self, queries: Sequence[Tensor], targets: np.ndarray, rows: np.ndarray, progress: Progress
    ) -> None:
        """Compute `influence` for Q queries (1, ...) to come, each under its target: gradients serve many."""
        keys = [_influence_key(query, int(y), rows) for query, y in zip(queries, targets, strict=True)]
        for start in range(0, len(keys), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            together = pad_sequence([query[0] for query in queries[part]], batch_first=True)
            found = self._influences(together, targets[part], rows, progress)
            for key, scores in zip(keys[part], found, strict=True):
                self._scores.keep(key, scores)

    def mean_influence(self, queries: Tensor, targets: np.ndarray, rows: np.ndarray, progress: Progress) -> np.ndarray:
        """Return the mean influence of training examples on the margins of queries (Q, ...), (len(rows),).

        Args:
            queries: as the network takes them.
            targets: (Q,) int64, the class whose margin is measured of each.
            rows: numbers of training examples.
            progress: called every few hundred examples.
        """
        if len(targets) == 1:
            return self.influence(queries, int(targets[0]), rows, progress)
        key = ("mean", *_influence_key(queries, hash(targets.tobytes()), rows))
        return self._scores.get(key, lambda: self._influences(queries, targets, rows, progress, mean=True)[0])

    def _influences(
        self, queries: Tensor, target: int | np.ndarray, rows: np.ndarray, progress: Progress, *, mean: bool = False
    ) -> np.ndarray:
        found = self._ekfac()
        parts, step = [], SHARD if convolves(self._margins.model) else len(rows)
        for start in range(0, len(rows), step):
            progress("EK-FAC: gradients of the training examples", start, len(rows))
            part = rows[start : start + step]
            parts.append(found.scores(queries, target, self._inputs(part), self._labels[part], mean=mean))
        return np.concatenate(parts, axis=1)

    def check(self) -> None:
        """Raise BundleError if the bundle holds factors that are not those of its network."""
        if any(name.startswith(f"{FACTORS}/") for name in self._bundle.manifest.files):
            self._ekfac()

    def _ekfac(self) -> "EkfacInfluence":
        from natscope.core.methods.ekfac import EkfacInfluence

        try:
            return self._influence.get(0, lambda: EkfacInfluence(self._margins.model, self._bundle.factors()))
        except ValueError as error:
            raise BundleError(
                f"The bundle {self._bundle.path} is damaged: its EK-FAC factors are not those of its network. "
                f"To fix it, {FIX}."
            ) from error

    def _loss_weights(self) -> np.ndarray:
        logits = torch.from_numpy(np.array(self._bundle.array("train_logits"), dtype=np.float64))
        return loss_weight(logits, torch.from_numpy(self._labels)).numpy()

    def _margin_features(self, progress: Progress) -> np.ndarray:
        parts = []
        for start in range(0, len(self._labels), SHARD):
            progress("Gradients of the training examples", start, len(self._labels))
            part = slice(start, start + SHARD)
            parts.append(self._margins.features(self._inputs(part), self._labels[part], measurement="margin"))
        return np.concatenate(parts)

    def _computed(self, method: Method, progress: Progress) -> dict[str, np.ndarray]:
        """Return the arrays of a method for another sketch than the bundle's."""
        rows = self.array(MARGINS, progress)
        with temporary_folder() as folder:
            source = _Source(
                self._margins.model, self._labels, Path(folder), progress, EkfacSpec(), self._inputs, lambda: rows
            )
            computed = method.artifacts.compute(source)
            return {name: array for name, array in computed.items() if isinstance(array, np.ndarray)}


@dataclass(frozen=True)
class _Source:
    model: nn.Module
    labels: np.ndarray
    folder: Path
    progress: Progress
    ekfac: EkfacSpec
    inputs: Inputs
    margins: Callable[[], np.ndarray]


def missing(bundle: Bundle, method: Method) -> str | None:
    """Return a sentence on what a bundle lacks for a method and how to add it; None if nothing is missing."""
    if all(map(bundle.has, method.files)):
        if method.files:
            return None
        recorded = bundle.manifest.files.get("penultimate")  # the file itself may be gone; in memory there is none
        count, width = (recorded and recorded.shape) or bundle.array("penultimate").shape
        sketch = bundle.sketch_spec
        return method.artifacts.obstacle(Size(count, sketch.dim, vectors=sketch.kind != "exact", penultimate=width))
    if bundle.stores_inputs:
        return (
            f"This bundle does not yet hold what {method.title} needs; natscope.build adds it, called again with "
            f'methods=["{method.name}"], and recomputes nothing else.'
        )
    return (
        f"This bundle does not yet hold what {method.title} needs; the command that built it adds it, run again with "
        f"`--methods {method.name}`, and recomputes nothing else."
    )


def _influence_key(query: Tensor, target: int, rows: np.ndarray) -> tuple[str, int, str]:
    content = (np.ascontiguousarray(query.numpy(force=True)), np.ascontiguousarray(rows))
    first, second = (hashlib.sha256(array.data).hexdigest() for array in content)
    return first, target, second
