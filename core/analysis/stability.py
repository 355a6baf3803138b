"""How stable a ranking is under another sketch, or another network trained with another seed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Manifest
from natscope.core.bundle.request import Attribution, QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS
from natscope.core.metrics import jaccard
from natscope.core.progress import Progress


@dataclass(frozen=True)
class Stability:
    """How one ranking fared in repeats.

    Args:
        request: the method and its settings.
        original: the ranking that is examined; None if the method failed.
        stayed: (M,) in how many repeats each of its examples is among the first M.
        overlaps: (R,) Jaccard overlap of each repeat with the original.
        correlations: (R,) rank correlation of each repeat with the original.
        failure: one sentence where nothing could be compared, "" otherwise.
    """

    request: Request
    original: Attribution | None
    stayed: np.ndarray
    overlaps: np.ndarray
    correlations: np.ndarray
    failure: str = ""

    @property
    def repeats(self) -> int:
        """How often the ranking was repeated; 0 where the method does not depend on what was changed."""
        return len(self.overlaps)

    @property
    def always(self) -> int:
        """How many of the examples stayed in every repeat."""
        return int((self.stayed == self.repeats).sum()) if self.repeats else 0


def across_sketches(
    attributor: Attributor,
    query: QueryExample,
    requests: Sequence[Request],
    seeds: Sequence[int],
    progress: Progress,
) -> list[Stability]:
    """Repeat rankings with other seeds of the sketch; methods without a sketch are not repeated.

    Args:
        attributor: the opened bundle.
        query: the example.
        requests: one a method.
        seeds: the sketches' seeds, each different from the bundle's.
        progress: called at every step of every repeat; it may raise to stop.
    """
    wanted = [position for position, request in enumerate(requests) if METHODS[request.method].sketched]
    total = len(seeds) * len(wanted)
    originals = [_asked(attributor, query, request, _within(progress, "Now", 0, total)) for request in requests]
    again: dict[int, list[Attribution | str]] = {position: [] for position in wanted}
    for round_, seed in enumerate(seeds):
        other = attributor.resketched(seed)
        for step, position in enumerate(wanted):
            here = _within(progress, f"Sketch {round_ + 1}", round_ * len(wanted) + step, total)
            again[position].append(_asked(other, query, requests[position], here))
    progress("Done", total, total)
    return [
        _judged(request, original, again.get(position, []))
        for position, (request, original) in enumerate(zip(requests, originals, strict=True))
    ]


def across_networks(
    attributor: Attributor,
    query: QueryExample,
    requests: Sequence[Request],
    others: Sequence[Attributor],
    progress: Progress,
) -> list[Stability]:
    """Ask networks that were trained with other seeds; the target is what the first one predicts, unless one is asked.

    Args:
        attributor: the opened bundle whose rankings are examined.
        query: an example as this bundle's network sees it.
        requests: one a method.
        others: bundles for which `differ_by_seed` holds.
        progress: called at every step of every repeat; it may raise to stop.
    """
    found, total = [], len(requests) * len(others)
    for position, request in enumerate(requests):
        original = _asked(attributor, query, request, _within(progress, "Now", position * len(others), total))
        again: list[Attribution | str] = []
        for step, other in enumerate(others):
            here = _within(progress, f"Network {step + 2}", position * len(others) + step, total)
            seen = _seen(other, query)
            target = query.predicted if request.target is None else request.target
            again.append(_asked(other, seen, replace(request, target=target), here))
        found.append(_judged(request, original, again))
    progress("Done", total, total)
    return found


def _seen(other: Attributor, query: QueryExample) -> QueryExample:
    """Return a query as another network of the same data sees it."""
    if query.index is not None:
        return other.query(query.origin, query.index)
    return other.asked(query.example, query.label)


def kin(manifest: Manifest) -> tuple[str, int | None]:
    """Return a digest of a bundle's settings but for its title and the seed of training, and that seed."""
    settings = dict(manifest.results.get("settings") or {})
    training = dict(settings.get("training") or {})
    training.pop("seed", None)
    rest = json.dumps(settings | {"training": training, "name": ""}, sort_keys=True)
    return hashlib.sha256(rest.encode()).hexdigest(), manifest.training.get("seed")


def differ_by_seed(first: tuple[str, int | None], second: tuple[str, int | None]) -> bool:
    """Return whether two bundles, by their `kin`, differ in nothing but the seed of training and the title."""
    return first[0] == second[0] and first[1] is not None and first[1] != second[1]


def rank_correlation(first: Sequence[int], second: Sequence[int]) -> float:
    """Return Spearman's correlation of two top lists over the examples in either.

    An example that a list lacks counts as tied with the others that it lacks, one rank below its last. NaN for lists of
    one example or none.

    Args:
        first: distinct examples, best first.
        second: distinct examples, best first.
    """
    from scipy.stats import spearmanr  # 27 MB, and a moment to load, in every process of the app

    union = sorted({*first, *second})
    ranks = [
        [order.get(example, len(order)) for example in union]
        for order in ({example: position for position, example in enumerate(ranking)} for ranking in (first, second))
    ]
    if any(len(set(values)) < 2 for values in ranks):
        return float("nan")
    return float(spearmanr(*ranks).statistic)


def _within(progress: Progress, name: str, done: int, total: int) -> Callable[[str], None]:
    """Return a function that reports what one repeat is doing; it does not move the bar but may stop the work."""
    return lambda stage: progress(f"{name}: {stage}", done, total)


def _asked(
    attributor: Attributor, query: QueryExample, request: Request, tell: Callable[[str], None]
) -> Attribution | str:
    title = METHODS[request.method].title
    tell(title)
    try:
        return attributor.attribute(query, request, lambda stage, done, total: tell(f"{title}, {stage.lower()}"))
    except QueryError as error:
        return str(error)


def _judged(request: Request, original: Attribution | str, again: Sequence[Attribution | str]) -> Stability:
    none = np.zeros(0)
    if isinstance(original, str):
        return Stability(request, None, none, none, none, original)
    failed = next((answer for answer in again if isinstance(answer, str)), "")
    answers = [answer for answer in again if not isinstance(answer, str)]
    mine = [item.train_index for item in original.items]
    lists = [[item.train_index for item in answer.items] for answer in answers]
    stayed = np.array([sum(example in ranking for ranking in lists) for example in mine])
    overlaps = np.array([jaccard(mine, ranking) for ranking in lists])
    correlations = np.array([rank_correlation(mine, ranking) for ranking in lists])
    return Stability(request, original, stayed, overlaps, correlations, failed)
