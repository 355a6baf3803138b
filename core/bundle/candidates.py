"""Which training examples a query may be attributed to, as each method needs them; opened once, shared by queries."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from natscope.core.bundle.artifacts import LoadedArtifacts
from natscope.core.bundle.collection import on_server, open_index
from natscope.core.bundle.format import Bundle
from natscope.core.cache import BoundedCache
from natscope.core.errors import QueryError
from natscope.core.features import FeatureMap, kernel_of
from natscope.core.index.protocol import Index
from natscope.core.methods import Candidates
from natscope.core.pool import Pool, is_product, pools_kept
from natscope.core.posterior import (
    Conditioning,
    FeaturePrecision,
    FloatType,
    blocks,
    feature_gram,
)
from natscope.core.progress import Progress, silent
from natscope.core.rows import RowView

_PATIENCE, _SURE = 60.0, 2.0  # seconds that somebody waits at most, and of computing that tell how many it will be
# Of all bundles together: with features of 15,000 examples by 4,096 numbers, one entry of each takes half a gigabyte.
_ALL: BoundedCache[Candidates] = BoundedCache(1)
_CONDITIONINGS: BoundedCache[Conditioning] = BoundedCache(1)


class CandidateSets:
    """The pools of a bundle, with bounded caches; thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        features: FeatureMap,
        artifacts: LoadedArtifacts,
        inputs: Callable[[slice | np.ndarray], Tensor],
        *,
        fresh: bool,
        patient: bool,
    ) -> None:
        """Open only what every pool needs.

        Args:
            bundle: an open bundle.
            features: the map to features of the logit.
            artifacts: what individual methods need.
            inputs: returns the network's inputs for a slice or for rows of the training examples.
            fresh: whether `features` has another sketch than the bundle, so that features are computed again.
            patient: whether to compute for minutes what nobody waits for, instead of refusing.
        """
        self._bundle, self._features, self._artifacts = bundle, features, artifacts
        self._inputs, self._fresh, self._patient = inputs, fresh, patient
        self.kernel = kernel_of(features.sketch.spec, bundle.manifest.layout)
        self.penultimate = np.array(bundle.array("penultimate"), dtype=np.float32)
        self._labels = np.array(bundle.array("train_labels"))
        self._own: BoundedCache[Candidates] = BoundedCache(pools_kept(self._labels))  # 0.3 to 0.5 GB each

    def check(self) -> None:
        """Raise BundleError if the bundle holds a Gram that does not follow from its features."""
        for label in np.unique(self._labels):
            self._own_pool(int(label), np.flatnonzero(self._labels == label))
        for label in range(len(self._bundle.classes)):
            if self._bundle.has(f"train_gram_{label}"):
                self._train_gram(label)

    def of(self, target: int, pool: str, conditioning: str, progress: Progress) -> tuple[Candidates, np.ndarray]:
        """Return the candidates of a target class and the training index of each, (n,) int64.

        Args:
            target: the class whose logit is attributed.
            pool: "same-class" or "all".
            conditioning: "pool", "train", or "none" for methods that condition on nothing.
            progress: called while something long is computed once.
        """
        if pool == "all":
            rows = np.arange(len(self._labels))
            found = self._everyone(target, progress)
        else:
            rows = np.flatnonzero(self._labels == target)
            if not len(rows):
                name = self._bundle.classes[target]
                raise QueryError(f"No training example is labelled {name}; choose the pool 'all'.")
            found = self._own.get(target, lambda: self._own_candidates(target, rows))
        found = replace(
            found,
            array=lambda name: _rows_of(self._artifacts.array(name, progress), rows),
            influence=lambda example, label: self._artifacts.influence(example, int(label), rows, progress),
        )
        if conditioning == "train" or (conditioning == "pool" and pool == "all" and not found.pool.fits_gram):
            return self._conditioned(found, target, pool, progress), rows
        return found, rows

    def margins(self, rows: np.ndarray, progress: Progress) -> Candidates:
        """Return training examples as candidates under their own labels' margins, without NTK scaling.

        Args:
            rows: (n,) their numbers, rising.
            progress: called while something long is computed.
        """
        stored = self._artifacts.array("margin_features", progress)
        features = stored if len(rows) == len(stored) else RowView(stored, rows)
        return Candidates(
            Pool(features, kernel=self.kernel),
            self.penultimate[rows],
            array=lambda name: _rows_of(self._artifacts.array(name, progress), rows),
            influence=lambda examples, labels: self._artifacts.mean_influence(
                examples, np.asarray(labels), rows, progress
            ),
        )

    def _own_candidates(self, target: int, rows: np.ndarray) -> Candidates:
        if self._fresh:
            features = self._features.features(self._inputs(rows), np.full(len(rows), target))
            return Candidates(Pool(features, kernel=self.kernel), self.penultimate[rows])
        found: Callable[[], Index] | None = None
        if self._bundle.has(name := f"index_{target}"):
            found = functools.cache(functools.partial(self._bundle.index, name))
        elif target in on_server(self._bundle):
            found = functools.cache(functools.partial(open_index, self._bundle, target))
        return Candidates(self._own_pool(target, rows), self.penultimate[rows], index=found)

    def _own_pool(self, target: int, rows: np.ndarray) -> Pool:
        gram = self._bundle.array(name) if self._bundle.has(name := f"gram_{target}") else None
        pool = Pool(RowView(self._bundle.array("features"), rows), kernel=self.kernel, gram=gram)
        if not pool.gram_follows():
            raise self._bundle.unlike_features(name)
        return pool

    def _everyone(self, target: int, progress: Progress) -> Candidates:
        def opened() -> Candidates:
            return Candidates(Pool(self._all_features(target, progress), kernel=self.kernel), self.penultimate)

        return _ALL.get((self, target), opened)

    def _conditioned(self, candidates: Candidates, target: int, pool: str, progress: Progress) -> Candidates:
        if not self.kernel.explicit:
            raise QueryError("Conditioning on all training examples needs feature vectors; the exact kernel has none.")

        def compute() -> Conditioning:
            members = np.asarray(candidates.pool.features[:])
            found = FeaturePrecision(functools.partial(self._gram_of_all, target, silent), members)
            found.keep(self._gram_of_all(target, progress, np.float32))
            return found

        conditioning = _CONDITIONINGS.get((self, target, pool), compute)
        return replace(candidates, conditioning=conditioning, index=None)

    def _gram_of_all(self, target: int, progress: Progress, dtype: FloatType = np.float64) -> np.ndarray:
        if self._bundle.has(f"train_gram_{target}") and not self._fresh:
            return self._train_gram(target)
        features = self._everyone(target, progress).pool.features
        progress("Gathering what all training examples tell", 1, 2)
        return feature_gram(blocks(features), dtype)

    def _train_gram(self, target: int) -> np.ndarray:
        name, features = f"train_gram_{target}", self._bundle.array(f"features_all_{target}")
        gram = np.asarray(self._bundle.array(name))
        if not is_product(gram, lambda v: sum((b.T @ (b @ v) for b in blocks(features)), np.zeros(len(gram)))):
            raise self._bundle.unlike_features(name)
        return gram

    def _all_features(self, target: int, progress: Progress) -> np.ndarray:
        name = f"features_all_{target}"
        if self._bundle.has(name) and not self._fresh:
            return self._bundle.array(name)
        count, began, parts = len(self._labels), time.monotonic(), list[np.ndarray]()
        while (start := sum(map(len, parts))) < count:
            progress(f"Reading every training example for the class {self._bundle.classes[target]}", start, count)
            part = self._inputs(slice(start, start + self._features.batch_size))
            parts.append(self._features.features(part, np.full(len(part), target)))
            taken, share = time.monotonic() - began, (start + len(part)) / count
            if not self._patient and start and share < 1 and taken / share > _PATIENCE and taken > _SURE:
                minutes = math.ceil(taken / share / 60)
                raise QueryError(
                    f"The Jacobians of all {count:,} training examples under this class would take about {minutes} min "
                    "here, and this bundle holds each under its own label alone; one built with --outputs all, or "
                    'outputs="all" in Python, holds them.'
                )
        return np.concatenate(parts)


def _rows_of(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return rows of an array; the array itself, which may be a large memory map, when they are all of them."""
    return array if len(rows) == len(array) else np.asarray(array[rows])
