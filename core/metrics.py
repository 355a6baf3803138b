"""Measures of a ranking: information of a subset, recall, reciprocal rank, overlap, redundancy."""

from collections.abc import Collection, Sequence

import numpy as np
import scipy.linalg

from natscope.core.pool import Pool
from natscope.core.posterior import Conditioning, Posterior, blocks, mean_half_log_ratio

_EPSILON = 1e-7  # of features in single precision
_LESS_THAN_ALL = 1 - 1e-12  # of a query's variance, where rounding has it that one observation explains all


def information_gain(pool: Pool, queries: np.ndarray, sigma2: float, subset: Sequence[int] | np.ndarray) -> float:
    """Return `InfoGain(S) = 1/2 log(v_*(empty) / v_*(S))` in nats, the mean over queries.

    Args:
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        subset: rows of the pool, in any order.

    Raises:
        ValueError: if a row is not of the pool, the queries are not like its members, or sigma2 is not positive
            or too small for double precision.

    Examples:
        >>> pool, query = natscope.Pool(np.eye(3)), np.array([1.0, 1.0, 0.0])
        >>> round(natscope.information_gain(pool, query, 1.0, [0]), 3)  # 1/2 log(2 / 1.5)
        0.144
        >>> natscope.information_gain(pool, query, 1.0, [2])
        0.0
    """
    queries, subset = pool.checked(queries, sigma2), pool.rows(subset)
    prior, cross = pool.prior(queries), pool.cross(queries)[subset]
    block = pool.columns(subset)[subset] + sigma2 * np.eye(len(subset))
    fall = np.einsum("sq,sq->q", cross, _solved(block, cross))
    return mean_half_log_ratio(prior, prior - fall)


def information_loss(
    pool: Pool,
    queries: np.ndarray,
    sigma2: float,
    subset: Sequence[int] | np.ndarray,
    *,
    conditioning: Conditioning | None = None,
) -> float:
    """Return `InfoLoss(S) = 1/2 log(v_*(D without S) / v_*(D))` in nats, the mean over queries.

    Args:
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        subset: rows of the pool, in any order.
        conditioning: D; the pool itself by default.

    Raises:
        ValueError: if a row is not of the pool, the queries are not like its members, or sigma2 is not positive
            or too small for double precision.

    Examples:
        >>> pool, query = natscope.Pool(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])), np.array([1.0, 0.0])
        >>> loss = natscope.information_loss(pool, query, 1.0, [0])
        >>> bool(loss < natscope.information_loss(pool, query, 1.0, [0, 1]) / 2)  # its twin covers for it
        True
    """
    queries, subset = pool.checked(queries, sigma2), pool.rows(subset)
    posterior = (conditioning or pool).posterior(queries, sigma2)
    return mean_half_log_ratio(posterior.variance + _rise(posterior, subset), posterior.variance)


def joint_information_gain(pool: Pool, queries: np.ndarray, sigma2: float, subset: Sequence[int] | np.ndarray) -> float:
    """Return the information that a subset's observations hold about all queries together, in nats.

    It is `1/2 log det(Cov(f_*)) - 1/2 log det(Cov(f_* | S))` (Tailor et al., Equation 89), computed from the other
    side, `1/2 log det(K_S + sigma2 I) - 1/2 log det(Cov(f_S | f_*) + sigma2 I)`, which holds for queries that repeat
    each other too. What two queries share counts once, where the mean of `information_gain` counts it twice.

    Args:
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        subset: rows of the pool, in any order.

    Examples:
        >>> pool, query = natscope.Pool(np.eye(3)), np.array([1.0, 1.0, 0.0])
        >>> one = natscope.information_gain(pool, query, 1.0, [0])
        >>> from natscope.core.metrics import joint_information_gain
        >>> bool(abs(joint_information_gain(pool, np.stack([query, query]), 1.0, [0]) - one) < 1e-9)
        True
    """
    queries, subset = np.atleast_2d(queries), np.asarray(subset, dtype=np.int64)
    block, cross = pool.columns(subset)[subset], pool.cross(queries)[subset]
    values, vectors = np.linalg.eigh(pool.kernel(queries, queries))
    kept = values > len(values) * _EPSILON * values[-1]
    known = cross @ (vectors[:, kept] / np.sqrt(values[kept]))
    return _half_log_det(block, sigma2) - _half_log_det(block - known @ known.T, sigma2)


def _half_log_det(covariance: np.ndarray, sigma2: float) -> float:
    return float(0.5 * np.log1p(np.maximum(np.linalg.eigvalsh(covariance), 0) / sigma2).sum())


def gain_of_each(pool: Pool, query: np.ndarray, sigma2: float) -> np.ndarray:
    """Return `InfoGain({x})` of every member x by itself, with the sign of its covariance with the query, (n,) in nats.

    Args:
        pool: the candidates.
        query: (K,).
        sigma2: noise variance.
    """
    prior, cross = pool.prior(query[None])[0], pool.cross(query[None])[:, 0]
    share = np.minimum(cross**2 / ((pool.diagonal + sigma2) * max(prior, np.finfo(float).tiny)), _LESS_THAN_ALL)
    return -0.5 * np.log1p(-share) * np.sign(cross)


def loss_of_each(
    pool: Pool,
    query: np.ndarray,
    sigma2: float,
    *,
    conditioning: Conditioning | None = None,
    exclude: Sequence[int] = (),
) -> np.ndarray:
    """Return `InfoLoss({x})` of every member x by itself, (n,) in nats, with the sign of its covariance given the rest.

    Args:
        pool: the candidates.
        query: (K,).
        sigma2: noise variance.
        conditioning: D; the pool itself by default.
        exclude: rows of the pool that are no part of D; they lose nothing.
    """
    posterior = (conditioning or pool).posterior(query[None], sigma2).without(exclude, sigma2)
    alpha, variance = posterior.alpha[:, 0], posterior.variance[0]
    precision = np.maximum(posterior.precision, 1 / (sigma2 + pool.diagonal))
    losses = 0.5 * np.log1p(alpha**2 / (precision * max(float(variance), np.finfo(float).tiny))) * np.sign(alpha)
    losses[list(exclude)] = 0
    return losses


def information_gain_curve(
    pool: Pool, queries: np.ndarray, sigma2: float, ranking: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return InfoGain of the first 1, 2, … examples of a ranking, (M,) in nats, the mean over queries.

    Args:
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        ranking: (M,) distinct rows of the pool.
    """
    queries, ranking = np.atleast_2d(queries), np.asarray(ranking, dtype=np.int64)
    prior, cross = pool.prior(queries), pool.cross(queries)[ranking]
    block = pool.columns(ranking)[ranking] + sigma2 * np.eye(len(ranking))
    return _mean_curve(prior, prior - _explained(block, cross))


def information_loss_curve(
    pool: Pool,
    queries: np.ndarray,
    sigma2: float,
    ranking: Sequence[int] | np.ndarray,
    *,
    conditioning: Conditioning | None = None,
) -> np.ndarray:
    """Return InfoLoss of the first 1, 2, … examples of a ranking, (M,) in nats, the mean over queries.

    Args:
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        ranking: (M,) distinct rows of the pool.
        conditioning: D; the pool itself by default.
    """
    ranking = np.asarray(ranking, dtype=np.int64)
    posterior = (conditioning or pool).posterior(np.atleast_2d(queries), sigma2)
    rise = _explained(posterior.precision_columns(ranking)[ranking], posterior.alpha[ranking])
    return _mean_curve(posterior.variance + rise, posterior.variance)


def total_information(
    conditioning: Conditioning, pool: Pool, queries: np.ndarray, sigma2: float, *, exclude: Sequence[int] = ()
) -> float:
    """Return `1/2 log(v_*(empty) / v_*(D without exclude))` in nats: all that the conditioning set tells.

    Args:
        conditioning: D; it contains the pool.
        pool: the candidates.
        queries: (K,) or (Q, K).
        sigma2: noise variance.
        exclude: rows of the pool that are removed from D.
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
    """Return InfoLoss(subset) / InfoLoss(reference), the reference being greedy InfoLoss's at the same M and sigma2."""
    of_subset, of_reference = (
        information_loss(pool, queries, sigma2, rows, conditioning=conditioning) for rows in (subset, reference)
    )
    return of_subset / of_reference if of_reference > 0 else float("nan")


def recall_at_k(ranking: Sequence[int] | np.ndarray, relevant: Collection[int], k: int) -> float:
    """Return the relevant items among the first k, as a share of the most that could be: min(k, |relevant|)."""
    if not relevant:
        raise ValueError("Recall needs at least one relevant item.")
    wanted = set(relevant)
    return sum(int(i) in wanted for i in ranking[:k]) / min(k, len(wanted))


def reciprocal_rank(ranking: Sequence[int] | np.ndarray, relevant: Collection[int], k: int = 100) -> float:
    """Return 1 / rank of the first relevant item among the first k, or 0; its mean over queries is MRR@k."""
    wanted = set(relevant)
    return next((1 / rank for rank, i in enumerate(ranking[:k], 1) if int(i) in wanted), 0.0)


def average_precision(ranking: Sequence[int] | np.ndarray, relevant: Collection[int] | np.ndarray) -> float:
    """Return the mean over the relevant items of the ranking's precision down to each; missing items count 0."""
    hits = np.isin(np.asarray(ranking), np.asarray(list(relevant)))
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / len(relevant))


def jaccard(first: Collection[int], second: Collection[int]) -> float:
    """Return the overlap of two sets, |A and B| / |A or B|; 1 for two empty ones."""
    a, b = set(map(int, first)), set(map(int, second))
    return len(a & b) / len(a | b) if a | b else 1.0


def rank_biased_overlap(first: Sequence[int], second: Sequence[int], *, persistence: float = 0.9) -> float:
    """Return the extrapolated rank-biased overlap of two rankings without ties (Webber et al. 2010, equation 32).

    Like `jaccard`, but agreement at the top counts more: 1 for the same order, 0 for nothing in common.

    Args:
        first: distinct items, best first.
        second: distinct items, best first, as many as `first`.
        persistence: p, how far down one is expected to read: the first 1 / (1 - p) ranks carry most weight.

    Raises:
        ValueError: if the rankings differ in length or are empty, or p is not in (0, 1).
    """
    depth = len(first)
    if depth != len(second) or not depth:
        raise ValueError(f"Rank-biased overlap needs two rankings of one length, not {depth} and {len(second)}.")
    if not 0 < persistence < 1:
        raise ValueError(f"The persistence p must lie between 0 and 1, not {persistence}.")
    shared = [len(set(first[:d]) & set(second[:d])) for d in range(1, depth + 1)]
    weighted = sum(persistence**d * x / d for d, x in enumerate(shared, 1))
    return (1 - persistence) / persistence * weighted + persistence**depth * shared[-1] / depth


def redundancy(pool: Pool, subset: Sequence[int] | np.ndarray) -> float:
    """Return the mean cosine of the features of all pairs within a selection: 1 when they all say the same thing.

    NaN for fewer than two picks, or when a pick's feature is zero.
    """
    subset = np.asarray(subset, dtype=np.int64)
    if len(subset) < 2:
        return float("nan")
    rows = pool.features[subset]
    length = np.sqrt(pool.variances(subset))
    if not length.all():
        return float("nan")
    count = len(subset)
    if pool.kernel.explicit:  # the sum of all cosines is the squared length of the sum of unit vectors
        parts = [(part / size[:, None]).sum(0) for part, size in zip(blocks(rows), blocks(length), strict=True)]
        total = np.sum(parts, axis=0)
        return float((total @ total - count) / (count * (count - 1)))
    cosines = pool.kernel(rows, rows) / np.outer(length, length)
    return float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def _explained(block: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Return c_S^T B_SS^-1 c_S for the first 1, 2, … rows S, (M, Q): one Cholesky factor serves all prefixes."""
    factor = scipy.linalg.cholesky(block, lower=True)
    return np.cumsum(scipy.linalg.solve_triangular(factor, cross, lower=True) ** 2, axis=0)


def _mean_curve(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Apply `mean_half_log_ratio` at every length of the subset: variances (M, Q), or (Q,) if they are constant."""
    return np.array([mean_half_log_ratio(a, b) for a, b in zip(*np.broadcast_arrays(above, below), strict=True)])


def _rise(posterior: Posterior, subset: np.ndarray) -> np.ndarray:
    """Return how much each query's variance rises without a subset of D: alpha_S^T (P_SS)^-1 alpha_S, (Q,)."""
    if not len(subset):
        return np.zeros_like(posterior.variance)
    alpha, block = posterior.alpha[subset], posterior.precision_columns(subset)[subset]
    return np.einsum("sq,sq->q", alpha, _solved(block, alpha))


def _solved(block: np.ndarray, cross: np.ndarray) -> np.ndarray:
    try:
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(block), cross)
    except np.linalg.LinAlgError as error:
        raise ValueError("sigma2 is too small: these rows cannot be told apart in double precision.") from error
