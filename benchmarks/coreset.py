"""Greedy selection for many queries: the recursion for many against the one for few, which moves all covariances."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks.network import Say
from natscope.core import greedy
from natscope.core.greedy import Selection
from natscope.core.pool import Pool

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
    old: int = 60


def run(say: Say, size: Size | None = None) -> None:
    """Print each rule's time to M, and what the old way would take: its first picks, and as much for each other one.

    Both by the processor, which other work on the machine does not change much, and with all that is prepared once;
    the new way's by the wall clock too.
    """
    size = size or Size()
    random = np.random.default_rng(0)
    spectrum = np.arange(1, size.dim + 1) ** -0.5
    features, queries = (
        (random.standard_normal((count, size.dim)) * spectrum).astype(np.float32)
        for count in (size.candidates, size.queries)
    )
    say(
        f"{size.queries} queries, {size.candidates:,} candidates, K = {size.dim}, M = {size.budget:,}, "
        f"σ² = {_SIGMA2:g}; the old way measured up to M = {size.old}"
    )
    say(f"{'':<20}{'wall clock':>12}{'processor':>12}{'old way':>12}{'ratio':>8}")
    for title, rule in _RULES.items():
        wall, new, found = _timed(rule, Pool(features), queries, size.budget)
        half, pool = size.old // 2, Pool(features)
        with _moving_all():
            _, prepared, _ = _timed(rule, pool, queries, 1)
            _, first, _ = _timed(rule, pool, queries, half)
            _, last, picked = _timed(rule, pool, queries, size.old)
        old = prepared + (last - first) / (size.old - half) * (size.budget - 1)
        same = "" if picked.indices.tolist() == found.indices[: size.old].tolist() else "  PICKS DIFFER"
        say(f"{title:<20}{wall:>10.1f} s{new:>10.1f} s{old:>10.1f} s{old / new:>6.1f} ×{same}")


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
