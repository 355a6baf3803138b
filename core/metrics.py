"""Measures of a ranking: information of a subset, recall, reciprocal rank, overlap, redundancy."""

from collections.abc import Collection, Sequence

import numpy as np
import scipy.linalg

from core.pool import Pool
from core.posterior import Conditioning, Posterior, blocks, mean_half_log_ratio


def information_gain(pool: Pool, queries: np.ndarray, sigma2: float, subset: Sequence[int] | np.ndarray) -> float:
    """Give InfoGain(S) = 1/2 log(v_*(empty) / v_*(S)) in nats, the mean over queries.

    Args:
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        subset: rows of the pool, in any order.
    """
    queries, subset = np.atleast_2d(queries), np.asarray(subset, dtype=np.int64)
    prior, cross = pool.prior(queries), pool.cross(queries)[subset]
    block = pool.columns(subset)[subset] + sigma2 * np.eye(len(subset))
    fall = np.einsum("sq,sq->q", cross, scipy.linalg.solve(block, cross, assume_a="pos"))
    return mean_half_log_ratio(prior, prior - fall)


def information_loss(
    pool: Pool,
    queries: np.ndarray,
    sigma2: float,
    subset: Sequence[int] | np.ndarray,
    *,
    conditioning: Conditioning | None = None,
) -> float:
    """Give InfoLoss(S) = 1/2 log(v_*(D without S) / v_*(D)) in nats, the mean over queries.

    Args:
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        subset: rows of the pool, in any order.
        conditioning: D; the pool itself by default.
    """
    subset = np.asarray(subset, dtype=np.int64)
    posterior = (conditioning or pool).posterior(np.atleast_2d(queries), sigma2)
    return mean_half_log_ratio(posterior.variance + _rise(posterior, subset), posterior.variance)


def total_information(
    conditioning: Conditioning, pool: Pool, queries: np.ndarray, sigma2: float, *, exclude: Sequence[int] = ()
) -> float:
    """Give 1/2 log(v_*(empty) / v_*(D without exclude)) in nats: all that the conditioning set tells about the queries.

    Args:
        conditioning: D; it contains the pool.
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        exclude: rows of the pool that are taken out of D.
    """
    queries, rows = np.atleast_2d(queries), np.asarray(exclude, dtype=np.int64)
    posterior = conditioning.posterior(queries, sigma2)
    return mean_half_log_ratio(pool.prior(queries), posterior.variance + _rise(posterior, rows))


def relative_information(
    pool: Pool,
    queries: np.ndarray,
    sigma2: float,
    subset: Sequence[int] | np.ndarray,
    reference: Sequence[int] | np.ndarray,
    *,
    conditioning: Conditioning | None = None,
) -> float:
    """Give InfoLoss(subset) / InfoLoss(reference), the reference chosen by greedy InfoLoss at the same M and sigma2."""
    of_subset, of_reference = (
        information_loss(pool, queries, sigma2, rows, conditioning=conditioning) for rows in (subset, reference)
    )
    return of_subset / of_reference if of_reference > 0 else float("nan")


def recall_at_k(ranking: Sequence[int] | np.ndarray, relevant: Collection[int], k: int) -> float:
    """Give the relevant items among the first k, as a share of the most that could be: min(k, |relevant|)."""
    if not relevant:
        raise ValueError("Recall needs at least one relevant item.")
    wanted = set(relevant)
    return sum(int(i) in wanted for i in ranking[:k]) / min(k, len(wanted))


def reciprocal_rank(ranking: Sequence[int] | np.ndarray, relevant: Collection[int], k: int = 100) -> float:
    """Give 1 / rank of the first relevant item among the first k, or 0; its mean over queries is MRR@k."""
    wanted = set(relevant)
    return next((1 / rank for rank, i in enumerate(ranking[:k], 1) if int(i) in wanted), 0.0)


def jaccard(first: Collection[int], second: Collection[int]) -> float:
    """Give the overlap of two sets, |A and B| / |A or B|; 1 for two empty ones."""
    a, b = set(map(int, first)), set(map(int, second))
    return len(a & b) / len(a | b) if a | b else 1.0


def redundancy(pool: Pool, subset: Sequence[int] | np.ndarray) -> float:
    """Give the mean cosine of the features of all pairs within a selection: 1 when they all say the same thing.

    NaN for fewer than two picks, or when a pick's feature is zero.
    """
    subset = np.asarray(subset, dtype=np.int64)
    if len(subset) < 2:
        return float("nan")
    rows = pool.features[subset]
    length = np.sqrt(pool.diagonal[subset])
    if not length.all():
        return float("nan")
    count = len(subset)
    if pool.kernel.explicit:  # the sum of all cosines is the squared length of the sum of unit vectors
        parts = [(part / size[:, None]).sum(0) for part, size in zip(blocks(rows), blocks(length), strict=True)]
        total = np.sum(parts, axis=0)
        return float((total @ total - count) / (count * (count - 1)))
    cosines = pool.kernel(rows, rows) / np.outer(length, length)
    return float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def _rise(posterior: Posterior, subset: np.ndarray) -> np.ndarray:
    """By how much each query's variance rises when a subset is taken out of D: alpha_S^T (P_SS)^-1 alpha_S, (Q,)."""
    if not len(subset):
        return np.zeros_like(posterior.variance)
    alpha, block = posterior.alpha[subset], posterior.precision_columns(subset)[subset]
    return np.einsum("sq,sq->q", alpha, scipy.linalg.solve(block, alpha, assume_a="pos"))
