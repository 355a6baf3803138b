"""Where sigma2 stops mattering, and where it is too small to compute with."""

import numpy as np

from natscope.core.greedy import Selection
from natscope.core.pool import LEAST_NOISE, Pool

HIGH_NOISE, IMPRECISE = "high-noise", "imprecise"


def regime(
    pool: Pool, query: np.ndarray, selection: Selection, sigma2: float, *, cosine: bool, exclude: tuple[int, ...] = ()
) -> str | None:
    """Return whether sigma2 is so large that a larger one changes no ranking, or so small that digits are lost.

    As sigma2 grows, InfoGain and InfoLoss of a set tend to |k_S*|^2 / (2 sigma2 k_**) (Tailor et al., Lemma 1), so that
    their rankings tend to that of the squared prior covariance k_x*^2; the posterior correlation tends to the prior
    one. Below 1e-11 of the Gram's trace, K + sigma2 I is inverted with fewer than five right digits in float64.

    Args:
        pool: the candidates.
        query: (W,) features.
        selection: what a method chose at this sigma2.
        sigma2: noise variance.
        cosine: whether the limit is the prior correlation instead of the squared covariance.
        exclude: rows that could not be chosen.

    Returns:
        "high-noise" where the picks are those of the limit, in its order; "imprecise"; or None.
    """
    if sigma2 < LEAST_NOISE * float(pool.diagonal.sum()):
        return IMPRECISE
    cross = pool.cross(query[None])[:, 0]
    length = np.sqrt(pool.diagonal)
    limit = np.divide(cross, length, out=np.zeros_like(cross), where=length > 0) if cosine else cross**2
    limit[list(exclude)] = -np.inf
    order = np.argsort(-limit, kind="stable")[: len(selection.indices)]
    return HIGH_NOISE if np.array_equal(order, selection.indices) else None
