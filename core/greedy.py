"""Greedy subset selection by InfoLoss, InfoGain and InfoGain (approx).

All three are one recursion (`natscope.core.recursion`) on a matrix A over the candidates and their covariances c with a
query, in which picking i changes the query's variance by `c_i^2 / a_i`. With `A = K + sigma2 I` and `c = k_*`, picks
are *added* to an empty set and the variance falls: InfoGain. With `A = P = (K + sigma2 I)^-1` and `c = P k_*`, picks
are *removed* from D and the variance rises: InfoLoss. One pick costs a column of A and O(n m); for a few queries
nothing K x K or n x n is formed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from natscope.core.index.protocol import Index
from natscope.core.index.shortlist import Shortlist
from natscope.core.pool import Pool
from natscope.core.posterior import Columns, Conditioning, mean_half_log_ratio
from natscope.core.recursion import PREFETCH, ManyQueries, Quotas, Recursion, first_open_twin

FEW_QUERIES = 32  # up to which all covariances are moved at every pick
_ONE_BY_ONE = 100  # a column by itself costs as much as so many of a matrix product, at most


@dataclass(frozen=True)
class Selection:
    """The picks of one method, in the order they were made; M is below the budget when no row is left to pick.

    Args:
        indices: (M,) int64 rows of the pool.
        scores: (M,) float64, the criterion's value at the time of the pick.
        signs: (M,) int8, sign of the covariance with the query at the time of the pick: +1 proponent, -1 opponent.
        nats: (M,) float64 information of the first m + 1 picks (mean over queries), or None if a method has none.

    Examples:
        >>> selection = natscope.info_gain(np.eye(3), np.array([3.0, 2.0, 1.0]), sigma2=1.0, budget=2)
        >>> selection.indices
        array([0, 1])
        >>> selection.signs
        array([1, 1], dtype=int8)
    """

    indices: np.ndarray
    scores: np.ndarray
    signs: np.ndarray
    nats: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Make the arrays read-only."""
        for array in (self.indices, self.scores, self.signs, self.nats):
            if array is not None:
                array.setflags(write=False)


def info_gain(
    features: np.ndarray | Pool,
    queries: np.ndarray,
    sigma2: float,
    budget: int,
    *,
    exclude: Sequence[int] = (),
    quotas: Quotas | None = None,
) -> Selection:
    """Select greedily by InfoGain: argmax over x of ||v_x*||^2 / (sigma2 + v_x), given the picks so far.

    Args:
        features: (N, K) features of the pool, or a `Pool` that keeps its Gram between calls.
        queries: (K,) or (Q, K); with several, the mean information is reported.
        sigma2: observation noise variance, positive.
        budget: picks M, at least 1.
        exclude: rows that may not be picked.
        quotas: how many rows of each class, or other group, may be picked; any number when None.

    Returns:
        The picks; `nats` is `InfoGain(S) = 1/2 log(v_*(empty) / v_*(S))`.

    Raises:
        ValueError: for a budget, sigma2, quotas, shape or value that cannot be used.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> features, query = rng.normal(size=(100, 16)), rng.normal(size=16)
        >>> selection = natscope.info_gain(features, query, sigma2=1.0, budget=3)
        >>> selection.nats.round(2)  # cumulative
        array([0.28, 0.44, 0.6 ])
    """
    pool, queries, exclude = _checked(features, queries, sigma2, budget, exclude)
    return _gain(pool, queries, sigma2, budget, exclude, quotas, divide=True)


def info_gain_approx(
    features: np.ndarray | Pool,
    queries: np.ndarray,
    sigma2: float,
    budget: int,
    *,
    exclude: Sequence[int] = (),
    quotas: Quotas | None = None,
    index: Index | None = None,
) -> Selection:
    """Select by InfoGain without its denominator: argmax over x of `||v_x*||^2 = (phi_x^T S_A^-1 phi_*)^2`.

    Args:
        features: (N, K), or a `Pool`.
        queries: (K,) or (Q, K).
        sigma2: observation noise variance, positive.
        budget: picks M, at least 1.
        exclude: rows that may not be picked.
        quotas: how many rows of each class, or other group, may be picked; any number when None.
        index: an inner-product index over the same rows; every pick is then two searches, with `r = S_A^-1 phi_*` and
            with -r, instead of a scan. One query, without quotas. A flat index gives the same picks as the scan; any
            other kind proposes candidates, which are scored exactly, and what it does not find is not picked.

    Returns:
        The picks; `nats` is the exact InfoGain(S) of what was picked.

    Raises:
        ValueError: for a budget, sigma2, quotas, shape or value that cannot be used.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> features, query = rng.normal(size=(100, 16)), rng.normal(size=16)
        >>> exact = natscope.info_gain(features, query, sigma2=1000.0, budget=3)
        >>> approximate = natscope.info_gain_approx(features, query, sigma2=1000.0, budget=3)
        >>> bool(approximate.nats[-1] > 0.99 * exact.nats[-1])  # at a large sigma2 they agree
        True
    """
    pool, queries, exclude = _checked(features, queries, sigma2, budget, exclude)
    if index is None:
        return _gain(pool, queries, sigma2, budget, exclude, quotas, divide=False)
    if len(queries) != 1:
        raise ValueError("An index serves one query at a time; leave index out for several.")
    if quotas is not None:
        raise ValueError("An index knows no quotas; leave index out with them.")
    return _gain_by_index(pool, queries[0], sigma2, budget, exclude, index)


def info_loss(
    features: np.ndarray | Pool,
    queries: np.ndarray,
    sigma2: float,
    budget: int,
    *,
    exclude: Sequence[int] = (),
    quotas: Quotas | None = None,
    conditioning: Conditioning | None = None,
) -> Selection:
    """Select greedily by InfoLoss: argmax over x of ||v_x*||^2 / (sigma2 - v_x), given D without the picks so far.

    Args:
        features: (N, K), or a `Pool` that keeps its eigendecomposition between calls.
        queries: (K,) or (Q, K).
        sigma2: observation noise variance, positive.
        budget: picks M, at least 1.
        exclude: rows removed from the conditioning set beforehand, and never picked (a query that is itself in D).
        quotas: how many rows of each class, or other group, may be picked; any number when None.
        conditioning: a larger set D that contains the pool, such as all training examples; the pool itself by default.

    Returns:
        The picks; `nats` is `InfoLoss(S) = 1/2 log(v_*(D without S) / v_*(D))`.

    Raises:
        ValueError: for a budget, sigma2, quotas, shape or value that cannot be used.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> features, query = rng.normal(size=(100, 16)), rng.normal(size=16)
        >>> lost = natscope.info_loss(features, query, sigma2=1.0, budget=3)
        >>> other = natscope.info_gain(features, query, sigma2=1.0, budget=3)
        >>> pool = natscope.Pool(features)
        >>> bool(lost.nats[-1] > natscope.information_loss(pool, query, 1.0, other.indices))
        True
    """
    pool, queries, exclude = _checked(features, queries, sigma2, budget, exclude)
    posterior = (conditioning or pool).posterior(queries, sigma2)
    # With no other examples x has precision 1 / (sigma2 + k_xx): rounding must not take it lower.
    floor = 1 / (sigma2 + pool.diagonal)
    precision, alpha = np.maximum(posterior.precision, floor), posterior.alpha
    run = _recursion(
        pool,
        precision,
        alpha,
        floor,
        posterior.precision_columns,
        whole=posterior.whole,
        budget=budget,
        exclude=exclude,
        quotas=quotas,
    )
    for index in exclude:
        run.pick(index)
    before = posterior.variance + run.change
    nats = []
    while run.open(budget + len(exclude)):
        run.pick(run.best(divide=True))
        nats.append(mean_half_log_ratio(posterior.variance + run.change, before))
    return _selection(run, nats, skip=len(exclude))


def _gain(
    pool: Pool,
    queries: np.ndarray,
    sigma2: float,
    budget: int,
    exclude: Sequence[int],
    quotas: Quotas | None,
    *,
    divide: bool,
) -> Selection:
    prior = pool.prior(queries)
    floor = np.full(len(pool), sigma2)
    noisy, cross, prefetch = pool.diagonal + sigma2, pool.cross(queries), 1 if pool.has_gram else PREFETCH
    run = _recursion(
        pool,
        noisy,
        cross,
        floor,
        pool.columns,
        whole=pool.whole,
        budget=budget,
        exclude=exclude,
        quotas=quotas,
        prefetch=prefetch,
    )
    nats = []
    while run.open(budget):
        run.pick(run.best(divide=divide))
        nats.append(mean_half_log_ratio(prior, prior - run.change))
    return _selection(run, nats)


def _recursion(
    pool: Pool,
    diagonal: np.ndarray,
    cross: np.ndarray,
    floor: np.ndarray,
    columns: Columns,
    *,
    whole: Callable[[], np.ndarray | None],
    budget: int,
    exclude: Sequence[int],
    quotas: Quotas | None,
    prefetch: int = PREFETCH,
) -> Recursion:
    """Return the recursion that suits the number of queries; `whole` returns all columns at once, if it can."""
    kind = Recursion if cross.shape[1] <= FEW_QUERIES else ManyQueries
    if kind is ManyQueries and _ONE_BY_ONE * (budget + len(exclude)) >= len(pool) and (matrix := whole()) is not None:
        columns, prefetch = (lambda rows: matrix[rows].T), 1
    return kind(pool, diagonal, cross, floor, columns, budget=budget, exclude=exclude, quotas=quotas, prefetch=prefetch)


def _selection(run: Recursion, nats: list[float], *, skip: int = 0) -> Selection:
    return Selection(
        np.array(run.picks[skip:], dtype=np.int64),
        np.array(run.scores),
        np.array(run.signs[skip:], dtype=np.int8),
        np.array(nats),
    )


def _gain_by_index(
    pool: Pool, query: np.ndarray, sigma2: float, budget: int, exclude: Sequence[int], index: Index
) -> Selection:
    next_best = _exact_search(pool, index, exclude) if index.exact else Shortlist(index, pool.features, exclude).best
    query = query.astype(np.float64)
    prior = variance = float(query @ query)
    residual = query.copy()  # r = S_A^-1 phi_*
    directions: list[tuple[np.ndarray, float]] = []  # S_A^-1 phi_i and sigma2 + v_i of each pick, given those before it
    picks: list[int] = []
    scores, signs, nats = [], [], []
    for _ in range(min(budget, len(pool) - len(exclude))):
        best, phi, covariance = next_best(residual)
        direction = phi - sum((d * (d @ phi) / noise for d, noise in directions), start=np.zeros_like(phi))
        noise = max(float(phi @ direction), 0.0) + sigma2
        residual -= direction * covariance / noise
        variance -= covariance**2 / noise
        directions.append((direction, noise))
        picks.append(best)
        scores.append(covariance**2)
        signs.append(int(np.sign(covariance)))
        nats.append(mean_half_log_ratio(np.array([prior]), np.array([variance])))
    return Selection(np.array(picks, dtype=np.int64), np.array(scores), np.array(signs, dtype=np.int8), np.array(nats))


def _exact_search(
    pool: Pool, index: Index, exclude: Sequence[int]
) -> Callable[[np.ndarray], tuple[int, np.ndarray, float]]:
    """Return a search by a flat index, which closes the row it returns, with features and product."""
    closed = np.zeros(len(pool), dtype=bool)
    closed[list(exclude)] = True

    def next_best(residual: np.ndarray) -> tuple[int, np.ndarray, float]:
        found, covariance = index.largest_square(residual, pool.features, excluded=np.flatnonzero(closed))
        best = first_open_twin(pool, found, closed)
        closed[best] = True
        return best, pool.features[best].astype(np.float64), covariance

    return next_best


def _checked(
    features: np.ndarray | Pool, queries: np.ndarray, sigma2: float, budget: int, exclude: Sequence[int]
) -> tuple[Pool, np.ndarray, list[int]]:
    pool = features if isinstance(features, Pool) else Pool(np.asarray(features))
    if not isinstance(budget, (int, np.integer)) or budget < 1:
        raise ValueError(f"The budget M must be a whole number of at least 1, not {budget!r}.")
    return pool, pool.checked(queries, sigma2), pool.rows(exclude).tolist()
