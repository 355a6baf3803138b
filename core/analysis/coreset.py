"""Coresets: a few training examples that stand for all of them, chosen for many test examples at once by any method.

Queries and candidates are measured by TRAK's margin under their own labels, without NTK scaling (Tailor et al.,
figures 5 and 6). The information criteria select greedily for all queries together; other methods rank by the mean of
their scores over the queries. Figure 6 gives every class a quota in this joint selection; choosing each class for its
own queries is natscope's own variant.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.capabilities import Capabilities
from natscope.core.cache import BoundedCache
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, Candidates, Query, Settings
from natscope.core.methods.artifacts import MARGINS
from natscope.core.metrics import information_gain_curve, joint_information_gain
from natscope.core.pool import Pool, pools_kept
from natscope.core.progress import Progress, silent
from natscope.core.recursion import Quotas

FEATURES = MARGINS
MOST_QUERIES = 500
FREE, QUOTAS, PER_CLASS = VARIANTS = ("free", "quotas", "per-class")
# What a variant does about classes, in words.
BALANCE = {FREE: "", QUOTAS: "with class quotas", PER_CLASS: "class by class"}
_BROUGHT_BY = next(name for name, method in METHODS.items() if FEATURES in method.needs)


def missing(attributor: Capabilities, method: str) -> str | None:
    """Return a sentence on what the bundle lacks to choose a coreset by a method; None if nothing is missing."""
    brings = attributor.missing(METHODS[_BROUGHT_BY])
    return brings or attributor.missing(METHODS[method])


def usable(attributor: Capabilities) -> tuple[str, ...]:
    """Return the methods by which a coreset can be chosen here."""
    return tuple(name for name in METHODS if missing(attributor, name) is None)


class Coresets:
    """The training examples of a bundle as candidates, together and class by class; thread-safe, for all visitors."""

    def __init__(self, attributor: Attributor) -> None:
        """Compute nothing yet.

        Raises:
            QueryError: if the bundle does not hold the margin's features.
        """
        if lacking := attributor.missing(METHODS[_BROUGHT_BY]):
            raise QueryError(lacking)
        self.attributor, self.labels = attributor, attributor.train_labels
        self._own: BoundedCache[Candidates] = BoundedCache(pools_kept(self.labels))
        self._all: BoundedCache[Candidates] = BoundedCache(1)

    def ask(self, test_indices: Sequence[int] | np.ndarray) -> Query:
        """Take test examples as queries, each under its own label.

        Raises:
            QueryError: for an empty or too long list, or for numbers that are not test examples.
        """
        rows, count = np.asarray(test_indices, dtype=np.int64), len(self.attributor.test_labels)
        if not len(rows):
            raise QueryError("Choose at least one test example to ask about.")
        if len(rows) > MOST_QUERIES:
            raise QueryError(f"A coreset is chosen for {MOST_QUERIES} test examples at most, not {len(rows):,}.")
        if rows.min() < 0 or rows.max() >= count:
            raise QueryError(f"Test examples have numbers from 0 to {count - 1:,}.")
        return self.attributor.margin_query(rows)

    def select(
        self,
        method: str,
        query: Query,
        *,
        sigma2: float,
        budget: int,
        variant: str,
        seed: int = 0,
        progress: Progress = silent,
    ) -> np.ndarray:
        """Choose training examples; except with quotas, the first m of them are what a budget of m gives.

        Args:
            method: a name of the registry.
            query: from `ask`.
            sigma2: observation noise variance.
            budget: how many examples, M; all of them if there are fewer.
            variant: "free", among all examples at once; "quotas", the same, but a class is closed once it has its share
                of the budget; or "per-class", where every class contributes as many, in turn: those of its examples
                that tell most about its own queries, or about all queries if none is of the class.
            seed: seed of the random method.
            progress: called while something long is computed.

        Returns:
            (M,) int64 training indices, the best first.

        Raises:
            QueryError: for a setting that cannot be used, or a method that the bundle cannot serve.
        """
        if lacking := missing(self.attributor, method):
            raise QueryError(lacking)
        if variant not in VARIANTS:
            raise QueryError(f"A coreset is chosen {', '.join(VARIANTS[:-1])} or {VARIANTS[-1]}, not {variant!r}.")
        title, labels = METHODS[method].title, self.labels
        sizes = np.bincount(labels, minlength=len(self.attributor.bundle.classes))
        if variant != PER_CLASS:
            progress(f"{title}: ranking all training examples for all queries", 0, 1)
            quotas = Quotas(labels, shares(budget, sizes)) if variant == QUOTAS else None
            settings = Settings(sigma2, budget, seed, quotas=quotas)
            return self._picks(method, self._everyone(progress), query, settings)
        chosen, positions = [], []
        for label, share in enumerate(shares(budget, sizes)):
            progress(f"{title}: class by class", label, len(sizes))
            if share:
                rows = np.flatnonzero(labels == label)
                settings, own = Settings(sigma2, int(share), seed * len(sizes) + label), _about(query, label)
                chosen.append(rows[self._picks(method, self._class(label, rows, progress), own, settings)])
                positions.append(np.arange(len(chosen[-1])))
        turn = np.argsort(np.concatenate(positions), kind="stable")
        return np.concatenate(chosen)[turn]

    def information(self, ranking: np.ndarray, query: Query, sigma2: float) -> np.ndarray:
        """Return InfoGain of the first 1, 2, … examples of a ranking, (M,) in nats, the mean over the queries.

        Args:
            ranking: (M,) training indices.
            query: from `ask`.
            sigma2: noise variance.
        """
        return information_gain_curve(self._pool(ranking), query.features, sigma2, np.arange(len(ranking)))

    def joint(self, ranking: np.ndarray, query: Query, sigma2: float) -> float:
        """Return what all examples of a ranking (M,) hold about all queries together, in nats."""
        return joint_information_gain(self._pool(ranking), query.features, sigma2, np.arange(len(ranking)))

    def _pool(self, ranking: np.ndarray) -> Pool:
        return Pool(np.asarray(self.attributor.bundle.array(FEATURES)[ranking]), kernel=self.attributor.kernel)

    def _picks(self, method: str, candidates: Candidates, query: Query, settings: Settings) -> np.ndarray:
        try:
            return METHODS[method].select(candidates, query, settings).indices
        except ValueError as error:
            raise QueryError(str(error)) from error

    def _everyone(self, progress: Progress) -> Candidates:
        every = np.arange(len(self.labels))
        return self._all.get(0, lambda: self.attributor.margin_candidates(every, progress))

    def _class(self, label: int, rows: np.ndarray, progress: Progress) -> Candidates:
        return self._own.get(label, lambda: self.attributor.margin_candidates(rows, progress))


def title_of(row: Mapping[str, Any]) -> str:
    """Return the title of a row of an experiment's result: its method, and the variant unless it is "free"."""
    return ", ".join(part for part in (METHODS[row["method"]].title, BALANCE[row["variant"]]) if part)


def shares(budget: int, sizes: np.ndarray) -> np.ndarray:
    """Return how many examples each class gets, (C,) int64, in turn, given a budget and the sizes (C,) of classes."""
    given, left = np.zeros(len(sizes), dtype=np.int64), min(budget, int(sizes.sum()))
    while left:
        still = np.flatnonzero(given < sizes)[:left]
        given[still] += 1
        left -= len(still)
    return given


def _about(query: Query, label: int) -> Query:
    """Return the queries of one class; all queries if the class has none."""
    own = np.flatnonzero(np.asarray(query.target) == label)
    if not len(own) or query.input is None:
        return query
    features, targets = query.features[own], np.asarray(query.target)[own]
    return Query(features, query.penultimate[own], margin=lambda: features, input=query.input[own], target=targets)


def draw(rows: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Return a random choice of `count` rows, sorted, the same for the same seed; all rows if there are no more."""
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
