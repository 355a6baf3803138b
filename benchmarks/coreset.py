"""Greedy selection for many queries: the recursion for many against the one for few, which moves all covariances."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks.network import Say
from core import greedy
from core.greedy import Selection
from core.pool import Pool

_RULES = {"InfoGain": greedy.info_gain, "InfoGain (approx)": greedy.info_gain_approx, "InfoLoss": greedy.info_loss}
_SIGMA2 = 1.0
_SEVERAL = 10**9  # as many queries as count as few when the old way is timed


@dataclass(frozen=True)
class Size:
    """How large the problem is: n candidates, Q queries, K features, M picks, and M of the old way."""

    candidates: int = 15_000
    queries: int = 500
    dim: int = 4096
    budget: int = 1500
    old: int = 30


def run(say: Say, size: Size | None = None) -> None:
    """Print seconds of each rule, by the wall clock and of the processor, and of a pick in the new and the old way.

    A pick's time is the processor's: for the new way all of it over M, preparations included; for the old way that of
    the later two thirds of its picks, so without preparations.
    """
    size = size or Size()
    random = np.random.default_rng(0)
    spectrum = np.arange(1, size.dim + 1) ** -0.5  # decays like those of trained networks
    features, queries = (
        (random.standard_normal((count, size.dim)) * spectrum).astype(np.float32)
        for count in (size.candidates, size.queries)
    )
    say(
        f"{size.queries} queries, {size.candidates:,} candidates, K = {size.dim}, M = {size.budget:,}, "
        f"σ² = {_SIGMA2:g}; the old way up to M = {size.old}"
    )
    say(f"{'':<20}{'seconds':>9}{'processor':>11}{'a pick':>10}{'old, a pick':>13}{'ratio':>8}")
    for title, rule in _RULES.items():
        pool = Pool(features)
        wall, busy, found = _timed(rule, pool, queries, size.budget)
        with _moving_all():
            _, slow_first, _ = _timed(rule, pool, queries, max(1, size.old // 3))
            _, slow_last, old = _timed(rule, pool, queries, size.old)
        fast = busy / size.budget
        slow = (slow_last - slow_first) / (size.old - max(1, size.old // 3))
        same = "" if old.indices.tolist() == found.indices[: size.old].tolist() else "  PICKS DIFFER"
        say(f"{title:<20}{wall:>8.1f} s{busy:>9.1f} s{fast:>8.3f} s{slow:>11.3f} s{slow / fast:>6.1f} ×{same}")


def _timed(
    rule: Callable[..., Selection], pool: Pool, queries: np.ndarray, budget: int
) -> tuple[float, float, Selection]:
    started, busy = time.perf_counter(), time.process_time()
    found = rule(pool, queries, _SIGMA2, budget)
    return time.perf_counter() - started, time.process_time() - busy, found


@contextmanager
def _moving_all() -> Iterator[None]:
    few, greedy.FEW_QUERIES = greedy.FEW_QUERIES, _SEVERAL
    try:
        yield
    finally:
        greedy.FEW_QUERIES = few
