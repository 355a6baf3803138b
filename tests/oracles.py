"""Independent oracles: every variance by a dense solve in 50 digits, straight from the definitions; for small problems.

Everything is in weight space: S = I + sum over the rows of phi phi^T / sigma2 is the posterior precision, and
v_xy = phi_x^T S^-1 phi_y the posterior covariance.
"""

import warnings
from collections.abc import Callable, Sequence

import mpmath
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

mpmath.mp.dps = 50


def inverse_precision(given: np.ndarray, sigma2: float) -> mpmath.matrix:
    """S^-1, (K, K), for the rows given (g, K)."""
    phi = mpmath.matrix(given.tolist()) if len(given) else mpmath.zeros(1, given.shape[1])
    return mpmath.inverse(mpmath.eye(given.shape[1]) + phi.T * phi / mpmath.mpf(sigma2))


def covariance(left: np.ndarray, right: np.ndarray, inverse: mpmath.matrix) -> mpmath.mpf:
    """Posterior covariance of two feature vectors (K,)."""
    return (mpmath.matrix(left.tolist()).T * inverse * mpmath.matrix(right.tolist()))[0]


def variance(query: np.ndarray, given: np.ndarray, sigma2: float) -> mpmath.mpf:
    return covariance(query, query, inverse_precision(given, sigma2))


def information(queries: np.ndarray, above: np.ndarray, below: np.ndarray, sigma2: float) -> float:
    """Mean over queries (Q, K) of 1/2 log(v_*(above) / v_*(below)), in nats; 0 where a query has no variance at all."""
    more, less = inverse_precision(above, sigma2), inverse_precision(below, sigma2)
    ratios = [covariance(query, query, more) / covariance(query, query, less) for query in queries if query.any()]
    return float(sum(mpmath.log(ratio) / 2 for ratio in ratios) / len(queries))


def info_gain_scores(features: np.ndarray, queries: np.ndarray, sigma2: float, picks: Sequence[int]) -> list:
    """The InfoGain score of every row, given the picks so far."""
    inverse = inverse_precision(features[list(picks)], sigma2)
    return [_squares(x, queries, inverse) / (mpmath.mpf(sigma2) + covariance(x, x, inverse)) for x in features]


def info_gain_approx_scores(features: np.ndarray, queries: np.ndarray, sigma2: float, picks: Sequence[int]) -> list:
    """The same without the denominator."""
    inverse = inverse_precision(features[list(picks)], sigma2)
    return [_squares(x, queries, inverse) for x in features]


def info_loss_scores(
    features: np.ndarray, queries: np.ndarray, sigma2: float, picks: Sequence[int], *, others: np.ndarray | None = None
) -> list:
    """The InfoLoss score of every row, given D without the picks; `others` are members of D outside the pool."""
    given = np.delete(features, list(picks), axis=0)
    inverse = inverse_precision(given if others is None else np.concatenate([given, others]), sigma2)
    scores = []
    for row, x in enumerate(features):
        noise = mpmath.mpf(sigma2) - covariance(x, x, inverse)
        scores.append(mpmath.mpf(0) if row in picks else _squares(x, queries, inverse) / noise)
    return scores


def jacobians(
    model: nn.Module, inputs: Tensor, targets: Tensor, measure: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """The gradient of the measurement by each parameter, (B, *shape), example by example with torch.func."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def scalar(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return measure(functional_call(model, values, (x[None],)), y[None])[0]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        rows = [jacrev(scalar)(parameters, x, y) for x, y in zip(inputs, targets, strict=True)]
    return {name: torch.stack([row[name] for row in rows]) for name in parameters}


def backpropagated(
    model: nn.Module, inputs: Tensor, targets: Tensor, measure: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """The same, (B, *shape), by one plain backward pass an example."""
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        rows.append(torch.autograd.grad(measure(model(x[None]), y[None])[0], list(model.parameters())))
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, map(torch.stack, zip(*rows, strict=True)), strict=True))


def _squares(x: np.ndarray, queries: np.ndarray, inverse: mpmath.matrix) -> mpmath.mpf:
    return sum((covariance(x, query, inverse) ** 2 for query in queries), start=mpmath.mpf(0))
