"""Relative information against the size of the subset: how much of what InfoLoss finds another ranking finds too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.request import QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.methods import REFERENCE
from natscope.core.metrics import information_loss_curve
from natscope.core.progress import Progress

_HELD_OUT = 5  # every fifth test example is for choosing settings, and never reported where one was chosen


@dataclass(frozen=True)
class Line:
    """What to draw: a method at one sigma2."""

    method: str
    sigma2: float


@dataclass(frozen=True)
class Curve:
    """Relative information of the first 1 … M examples of a method's rankings.

    Args:
        line: the method and sigma2.
        values: (Q, M), one row a query: InfoLoss of the first m over InfoLoss of greedy InfoLoss's first m.
        undefined: queries left out because no subset carries information about them.
    """

    line: Line
    values: np.ndarray
    undefined: int = 0

    @property
    def mean(self) -> np.ndarray:
        """The mean over queries, (M,)."""
        return self.values.mean(0)

    @property
    def error(self) -> np.ndarray:
        """The standard error of the mean, (M,); 0 for one query."""
        count = len(self.values)
        return self.values.std(0, ddof=1) / count**0.5 if count > 1 else np.zeros(self.values.shape[1])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, shares between 0 and 1."""
        return {
            "method": self.line.method,
            "sigma2": self.line.sigma2,
            "queries": len(self.values),
            "undefined": self.undefined,
            "mean": self.mean.tolist(),
            "standard_error": self.error.tolist(),
        }


def relative_curves(
    attributor: Attributor,
    queries: Sequence[QueryExample],
    lines: Sequence[Line],
    *,
    largest: int,
    conditioning: str = "pool",
    progress: Progress,
) -> list[Curve]:
    """Compute the curves of figure 2 of the paper, for the class that the model predicts and its same-class pool.

    Args:
        attributor: the opened bundle.
        queries: one or more; all curves are means over them.
        lines: what to draw.
        largest: M, the size of the largest subset; no more than the smallest pool is used.
        conditioning: "pool" or "train", the D of which information is measured.
        progress: called at every step, with a stage's name, steps done and in all; it may raise to stop.

    Raises:
        QueryError: if a method cannot be used, or no query has any information.
    """
    found: dict[Line, list[np.ndarray]] = {line: [] for line in lines}
    undefined = dict.fromkeys(lines, 0)
    steps, done = len(queries) * len(lines), 0
    for query in queries:
        references: dict[float, np.ndarray] = {}
        for line in lines:
            progress("Ranking and judging", done, steps)
            done += 1
            if line.sigma2 not in references:
                reference = Line(REFERENCE, line.sigma2)
                references[line.sigma2] = _losses(attributor, query, reference, largest, conditioning, progress)
            reference_losses = references[line.sigma2]
            if reference_losses[0] <= 0:
                undefined[line] += 1
                continue
            losses = _losses(attributor, query, line, largest, conditioning, progress)
            found[line].append(losses / reference_losses)
    progress("Ranking and judging", steps, steps)
    if not all(found.values()):
        raise QueryError("No example carries information about these queries, so there is nothing to compare.")
    shortest = min(len(values) for rows in found.values() for values in rows)
    return [Curve(line, np.stack([row[:shortest] for row in rows]), undefined[line]) for line, rows in found.items()]


def _losses(
    attributor: Attributor, query: QueryExample, line: Line, largest: int, conditioning: str, progress: Progress
) -> np.ndarray:
    """Return InfoLoss of the first 1 … M examples of a method's ranking, (M,) in nats."""
    request = Request(line.method, line.sigma2, largest, conditioning=conditioning)
    answer = attributor.attribute(query, request, lambda *_: None)
    candidates, rows = attributor.candidates(answer.target, request.pool, conditioning, progress)
    ranking = np.searchsorted(rows, [item.train_index for item in answer.items])
    features = attributor.query_features(query, answer.target)
    own = np.flatnonzero(rows == query.index) if query.origin == "train" else np.empty(0, dtype=np.int64)
    losses = information_loss_curve(
        candidates.pool,
        features,
        line.sigma2,
        np.concatenate([own, ranking]).astype(np.int64),
        conditioning=candidates.conditioning,
    )
    return losses[len(own) :] - (losses[len(own) - 1] if len(own) else 0.0)


def held_out(indices: np.ndarray) -> np.ndarray:
    """Return which test indices (N,) are held out: every fifth, on which settings are chosen and nothing reported."""
    return indices % _HELD_OUT == 0


def sample_queries(attributor: Attributor, count: int, *, seed: int = 0, part: str = "all") -> list[QueryExample]:
    """Draw test examples that the network gets right, without repetition.

    All examples are put into an order that depends on the seed alone, and the first that qualify are taken: a larger
    draw contains a smaller one, and a network that differs in a few answers, as on another machine, is asked about the
    same examples but for a few.

    Args:
        attributor: the opened bundle.
        count: how many.
        seed: seed of the draw.
        part: "held out" for every fifth test example, on which settings are chosen; "reported" for the others; or
            "all".

    Raises:
        QueryError: if it gets fewer right.
    """
    logits, labels = attributor.bundle.array("test_logits"), attributor.test_labels
    order = np.random.default_rng(seed).permutation(len(labels))
    right = order[(np.asarray(logits).argmax(1) == labels)[order]]
    if part != "all":
        right = right[held_out(right) == (part == "held out")]
    if count > len(right):
        of = {"held out": "held-out test examples", "reported": "test examples that are not held out"}
        raise QueryError(f"The model gets {len(right)} {of.get(part, 'test examples')} right, fewer than {count}.")
    return [attributor.query("test", int(index)) for index in right[:count]]
