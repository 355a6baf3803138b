"""The audit: which training examples are leaned on suspiciously, found without knowing what a backdoor looks like.

A clean class is held up by many examples together. A planted one is held up by the few that carry the trigger: leave
any of them out, and its prediction leans on the others of the group almost alone. So an example is the more suspect,
the more concentrated the support of the predictions that lean on it is.
"""

import numpy as np
import scipy.linalg

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle
from natscope.core.progress import Progress, silent

RATIO = 100.0  # of sigma2 to the scale of the features, as chosen on the embedded data
FIRST = 20  # examples; a prediction's concentration is the share of its nats that its first so many carry


def sigma2_of(bundle: Bundle) -> float:
    """Return the audit's noise variance for a bundle."""
    return RATIO * bundle.scale()


def suspicion(
    attributor: Attributor,
    *,
    sigma2: float | None = None,
    first: int = FIRST,
    progress: Progress = silent,
) -> np.ndarray:
    """Score every training example by how suspiciously the predictions about the others of its label lean on it.

    Args:
        attributor: the opened bundle.
        sigma2: noise variance; `sigma2_of` the bundle by default.
        first: how many examples a concentrated support may have.
        progress: called once a class.

    Returns:
        (N,) float64 from 0 to 1, NaN in classes with too few examples to tell.
    """
    sigma2 = sigma2_of(attributor.bundle) if sigma2 is None else sigma2
    labels = attributor.train_labels
    scores = np.full(len(labels), np.nan)
    for label, title in enumerate(attributor.bundle.classes):
        progress(f"Looking at {title}", label, len(attributor.bundle.classes))
        rows = np.flatnonzero(labels == label)
        if len(rows) > 2 * first:
            pool = attributor.candidates(label, "same-class", "none", progress)[0].pool
            scores[rows] = class_suspicion(pool.gram, sigma2=sigma2, first=first)
    progress("Done", len(attributor.bundle.classes), len(attributor.bundle.classes))
    return scores


def class_suspicion(gram: np.ndarray, *, sigma2: float, first: int = FIRST) -> np.ndarray:
    """Score the examples of one class.

    Args:
        gram: (n, n) inner products of the class's features.
        sigma2: noise variance.
        first: how many examples a concentrated support may have.

    Returns:
        (n,): the mean concentration of the others' support, weighted by how much each of them leans on the example.
    """
    leaning = support(gram, sigma2=sigma2)
    top = np.partition(leaning, -first, axis=0)[-first:]
    concentration = top.sum(axis=0)
    weight = leaning.sum(axis=1)
    return np.divide(leaning @ concentration, weight, out=np.zeros_like(weight), where=weight > 0)


def support(gram: np.ndarray, *, sigma2: float) -> np.ndarray:
    """Return how much each example's prediction leans on every other one, when it is left out of the training data.

    With P = (K + sigma2 I)^-1, leaving j out of a Gaussian process leaves the variance 1 / P_jj - sigma2 at j, and the
    entries P_ii - P_ij^2 / P_jj (block inverse). Taking i out as well loses 1/2 log(1 + a_ij^2 / (P_ii|j v_j)) nats,
    a_ij = P_ij / P_jj: InfoLoss of the single example i.

    Args:
        gram: (n, n) inner products of features.
        sigma2: noise variance.

    Returns:
        (n, n): column j has the shares of the examples i in all that is lost one example at a time; they sum to 1, or
        are 0 where nothing is.
    """
    count = len(gram)
    factor = scipy.linalg.cholesky(np.asarray(gram, dtype=np.float64) + sigma2 * np.eye(count), lower=True)
    precision = scipy.linalg.cho_solve((factor, True), np.eye(count))
    own = np.diag(precision)
    variance = np.maximum(1 / own - sigma2, np.finfo(float).tiny)
    remaining = own[:, None] - precision**2 / own[None, :]
    np.fill_diagonal(remaining, np.inf)  # nobody leans on the example that is left out
    lost = 0.5 * np.log1p((precision / own[None, :]) ** 2 / (remaining * variance[None, :]))
    total = lost.sum(axis=0, keepdims=True)
    return np.divide(lost, total, out=np.zeros_like(lost), where=total > 0)
