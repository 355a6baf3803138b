"""Several methods on the same query: their answers side by side, what they share, and all evaluated on one scale."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.request import Attribution, QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS
from natscope.core.metrics import information_gain_curve, information_loss_curve, jaccard, rank_biased_overlap
from natscope.core.progress import Progress

Overlap = Callable[[Sequence[int], Sequence[int]], float]
# Fields of a row that count nats, and their names: those of the methods that choose by them.
QUANTITIES = {str(m.information): m.title for m in METHODS.values() if m.information and m.approximates is None}
OVERLAPS: dict[str, Overlap] = {"jaccard": jaccard, "rbo": rank_biased_overlap}


@dataclass(frozen=True)
class Row:
    """What one method made of one query: an answer, or one sentence on why there is none.

    Args:
        request: the method and its settings.
        answer: its ranking, or None.
        failure: the sentence when there is no answer.
        loss: InfoLoss of the subset in nats, at the evaluation sigma2; None without an answer.
        gain: InfoGain of the subset in nats, at the evaluation sigma2; None without an answer.
    """

    request: Request
    answer: Attribution | None
    failure: str = ""
    loss: float | None = None
    gain: float | None = None

    @property
    def sigma2(self) -> float | None:
        """The noise variance of the answer, or else that asked for; None where the bundle's usual one was."""
        return self.answer.sigma2 if self.answer else self.request.sigma2

    @property
    def picks(self) -> tuple[int, ...]:
        """Training indices, best first; none without an answer."""
        return tuple(item.train_index for item in self.answer.items) if self.answer else ()

    @property
    def label_mix(self) -> dict[int, int]:
        """How many of the examples have each label, the most frequent first."""
        return dict(Counter(item.label for item in self.answer.items).most_common()) if self.answer else {}


def compare_one(
    attributor: Attributor, query: QueryExample, request: Request, *, evaluation_sigma2: float, progress: Progress
) -> Row:
    """Ask one method, and evaluate its subset by the information that it carries whatever the method optimised.

    Args:
        attributor: the opened bundle.
        query: the example.
        request: the method and its settings.
        evaluation_sigma2: sigma2 at which InfoLoss and InfoGain of the subset are counted, in the request's pool,
            which is also the conditioning set.
        progress: called while something long is computed once.

    Raises:
        QueryError: only for an evaluation sigma2 that is not a positive number; a method's own failure is in the row.
    """
    if not (np.isfinite(evaluation_sigma2) and evaluation_sigma2 > 0):
        raise QueryError(f"σ² is a variance and must be a positive number, not {evaluation_sigma2}.")
    try:
        answer = attributor.attribute(query, request, progress)
    except QueryError as error:
        return Row(request, None, str(error))
    loss, gain = evaluated(attributor, query, answer, evaluation_sigma2, progress)
    return Row(request, answer, "", loss, gain)


def evaluated(
    attributor: Attributor, query: QueryExample, answer: Attribution, sigma2: float, progress: Progress
) -> tuple[float, float]:
    """Return InfoLoss and InfoGain of an answer's examples in nats, given its pool."""
    losses, gains = information_of(attributor, query, answer, sigma2, progress)
    return float(losses[-1]), float(gains[-1])


def information_of(
    attributor: Attributor, query: QueryExample, answer: Attribution, sigma2: float, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Return InfoLoss and InfoGain of the first 1, 2, … examples of an answer, each (M,) in nats, given its pool.

    Args:
        attributor: the opened bundle.
        query: the example that was asked about.
        answer: what any method answered.
        sigma2: noise variance, whatever the method's own.
        progress: called while something long is computed once.
    """
    candidates, rows = attributor.candidates(answer.target, answer.request.pool, "pool", progress)
    features = attributor.query_features(query, answer.target)
    subset = np.searchsorted(rows, [item.train_index for item in answer.items])
    own = np.flatnonzero(rows == query.index) if query.origin == "train" else np.empty(0, dtype=np.int64)
    # What the model knows of a training example must not come from itself: its removal comes first and is not counted.
    ranking = np.concatenate([own, subset]).astype(np.int64)
    losses = information_loss_curve(candidates.pool, features, sigma2, ranking, conditioning=candidates.conditioning)
    before = losses[len(own) - 1] if len(own) else 0.0
    return losses[len(own) :] - before, information_gain_curve(candidates.pool, features, sigma2, subset)


def shared_images(rows: Sequence[Row]) -> dict[int, tuple[int, ...]]:
    """Return the training examples that two rows or more have, each with the rows' positions; the most shared first."""
    positions: dict[int, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        for index in row.picks:
            positions[index].append(position)
    several = {index: tuple(where) for index, where in positions.items() if len(where) > 1}
    return dict(sorted(several.items(), key=lambda item: (-len(item[1]), item[1], item[0])))


def overlaps(queries: Sequence[Sequence[Row]], measure: Overlap) -> np.ndarray:
    """Return the mean overlap of every two methods over the queries that both answered, (R, R); NaN for none.

    Args:
        queries: for each query the rows of the same R methods.
        measure: a value of `OVERLAPS`.
    """
    count = len(queries[0])
    result = np.full((count, count), np.nan)
    for a in range(count):
        for b in range(count):
            values = [measure(rows[a].picks, rows[b].picks) for rows in queries if rows[a].picks and rows[b].picks]
            if values:
                result[a, b] = float(np.mean(values))
    return result
