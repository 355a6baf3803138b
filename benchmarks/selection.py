"""Greedy selection against updates of the K x K posterior, a new sigma2 against the first, and index against scan."""

import numpy as np

from benchmarks.network import Say, seconds, trained
from natscope.core import greedy
from natscope.core.features import FeatureMap
from natscope.core.images import to_input
from natscope.core.index.search import InnerProductIndex
from natscope.core.pool import Pool
from natscope.core.sketches import SketchSpec

_POOL, _BUDGET, _SIGMA2 = 5000, 50, 1.0
_STEPS = 3  # steps of the slow ways that are timed; every step costs the same


def run(say: Say) -> None:
    """Print seconds and ratios of selections on real features, float32, K = 4096."""
    here = trained()
    features = FeatureMap(here.model, SketchSpec(), ntk=True)
    everyone = features.features(here.inputs, np.zeros(len(here.inputs), dtype=np.int64))
    test = here.data.test.images[np.flatnonzero(here.data.test_labels == 0)[:1]]
    query = features.features(to_input(test, mean=here.data.train.mean, std=here.data.train.std), np.array([0]))[0]
    _against_weight_space(say, everyone[:_POOL], query)
    _sigma2(say, everyone, query)
    _index(say, everyone, query)


def _against_weight_space(say: Say, features: np.ndarray, query: np.ndarray) -> None:
    pool = Pool(features)
    prepared, _ = seconds(lambda: pool.gram)
    ours, picked = seconds(lambda: greedy.info_gain(pool, query, _SIGMA2, _BUDGET), repeats=3)
    say(
        f"InfoGain, pool {len(pool)}, K = {features.shape[1]}, M = {_BUDGET}, σ² = {_SIGMA2} (Gram once: "
        f"{prepared:.1f} s)"
    )
    say(f"{'natscope, Gram ready':<58}{ours:>9.3f} s")
    for title, way in (
        ("K×K updates, every score from S⁻¹ (as the rule is written)", _from_the_precision),
        ("K×K updates, scores kept and updated (a strong version)", _with_kept_scores),
    ):
        step, first = seconds(lambda way=way: way(features, query, _STEPS))
        same = "" if first == picked.indices[:_STEPS].tolist() else "  (picks differ)"
        slow = step / _STEPS * _BUDGET
        say(f"{title:<58}{slow:>9.1f} s{slow / ours:>8.0f} ×{same}")


def _from_the_precision(features: np.ndarray, query: np.ndarray, budget: int) -> list[int]:
    """InfoGain one step at a time: every v_x and v_x* from S^-1, then a rank-one update of S^-1; float32."""
    inverse, picks = np.eye(features.shape[1], dtype=np.float32), []
    for _ in range(budget):
        moved = features @ inverse
        scores = (moved @ query) ** 2 / (_SIGMA2 + np.einsum("nk,nk->n", moved, features))
        scores[picks] = -1
        picks.append(int(scores.argmax()))
        direction = inverse @ features[picks[-1]]
        inverse -= np.outer(direction, direction) / (_SIGMA2 + direction @ features[picks[-1]])
    return picks


def _with_kept_scores(features: np.ndarray, query: np.ndarray, budget: int) -> list[int]:
    """The same with v_x and v_x* kept and moved by the same rank-one update; float32."""
    inverse, picks = np.eye(features.shape[1], dtype=np.float32), []
    variance, covariance = np.einsum("nk,nk->n", features, features), features @ query
    for _ in range(budget):
        scores = covariance**2 / (_SIGMA2 + variance)
        scores[picks] = -1
        picks.append(int(scores.argmax()))
        direction = inverse @ features[picks[-1]]
        noise = _SIGMA2 + direction @ features[picks[-1]]
        inverse -= np.outer(direction, direction) / noise
        column = features @ direction
        covariance -= column * covariance[picks[-1]] / noise
        variance -= column**2 / noise
    return picks


def _sigma2(say: Say, everyone: np.ndarray, query: np.ndarray) -> None:
    say(f"\nInfoLoss, M = {_BUDGET}: the first σ² of a pool, and every other")
    for size in (1500, _POOL):
        pool = Pool(everyone[:size])
        first, _ = seconds(lambda p=pool: greedy.info_loss(p, query, 1.0, _BUDGET))
        again, _ = seconds(lambda p=pool: greedy.info_loss(p, query, 0.1, _BUDGET))
        say(f"pool {size:>6}: first {first:>7.2f} s, another σ² {again:>7.2f} s{first / again:>8.0f} × faster")


def _index(say: Say, everyone: np.ndarray, query: np.ndarray) -> None:
    say(f"\nInfoGain (approx), M = {_BUDGET}: a flat index against the scan (no Gram available; Gram available)")
    for size in (1500, 5000, len(everyone)):
        features = everyone[:size]
        index, pool = InnerProductIndex.flat(features), Pool(features)
        searched, by_index = seconds(
            lambda i=index, p=pool: greedy.info_gain_approx(p, query, _SIGMA2, _BUDGET, index=i)
        )
        fresh = Pool(features)
        scanned, by_scan = seconds(lambda p=fresh: greedy.info_gain_approx(p, query, _SIGMA2, _BUDGET))
        ready = ""
        if pool.fits_gram:
            _ = pool.gram
            kept, _ = seconds(lambda p=pool: greedy.info_gain_approx(p, query, _SIGMA2, _BUDGET), repeats=3)
            ready = f"{kept:>8.3f} s"
        same = "same picks" if by_index.indices.tolist() == by_scan.indices.tolist() else "PICKS DIFFER"
        say(f"pool {size:>6}: index {searched:>7.3f} s, scan {scanned:>7.3f} s{ready}  {same}")
