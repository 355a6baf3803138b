"""The information criteria, and the correlation that the same posterior gives."""

import numpy as np

from natscope.core import greedy
from natscope.core.greedy import Selection
from natscope.core.methods.base import Candidates, Method, Query, Settings, method, rank
from natscope.core.metrics import gain_of_each, loss_of_each, total_information


def _gain_of_each(candidates: Candidates, query: Query, settings: Settings) -> np.ndarray:
    return gain_of_each(candidates.pool, query.features, settings.sigma2)


def _loss_of_each(candidates: Candidates, query: Query, settings: Settings) -> np.ndarray:
    conditioning, exclude = candidates.conditioning, settings.exclude
    return loss_of_each(candidates.pool, query.features, settings.sigma2, conditioning=conditioning, exclude=exclude)


@method(
    "info_loss",
    "InfoLoss",
    colour="#1887ff",
    summary="Asks what would be lost: it removes training examples, one at a time, and always picks the one "
    "without which the model would be least sure of this prediction. Examples that repeat each other cover for one "
    "another, so a near-duplicate counts for little until its twins are gone.",
    formula=r"\arg\max_x \frac{(v_{x*}^{D\setminus A})^2}{\sigma^2 - v_x^{D\setminus A}},\qquad "
    r"\mathrm{InfoLoss}(S)=\tfrac12\log\frac{v_*(D\setminus S)}{v_*(D)}",
    advice="The first choice for finding what one prediction really depends on: what no other example could stand in "
    "for.",
    information="loss",
    each=_loss_of_each,
    uses_sigma2=True,
    conditions=True,
    score="(covariance)² ÷ remaining noise",
)
def _info_loss(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    return greedy.info_loss(
        candidates.pool,
        query.features,
        settings.sigma2,
        settings.budget,
        exclude=settings.exclude,
        quotas=settings.quotas,
        conditioning=candidates.conditioning,
    )


@method(
    "info_gain",
    "InfoGain",
    colour="#b73058",
    summary="Asks what is learnt: it starts with no training examples and adds, one at a time, the one that makes the "
    "model surest of this prediction. What earlier picks already taught counts no more, so the examples it shows "
    "differ from one another.",
    formula=r"\arg\max_x \frac{(v_{x*}^{A})^2}{\sigma^2 + v_x^{A}},\qquad "
    r"\mathrm{InfoGain}(S)=\tfrac12\log\frac{v_*(\emptyset)}{v_*(S)}",
    advice="For a small, varied set that explains the prediction by itself. At large σ² it agrees with InfoLoss.",
    information="gain",
    each=_gain_of_each,
    uses_sigma2=True,
    ratio=10.0,
    score="(covariance)² ÷ (σ² + variance)",
)
def _info_gain(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    return greedy.info_gain(
        candidates.pool,
        query.features,
        settings.sigma2,
        settings.budget,
        exclude=settings.exclude,
        quotas=settings.quotas,
    )


@method(
    "info_gain_approx",
    "InfoGain (approx)",
    colour="#f75850",
    dash="dash",
    summary="InfoGain with one shortcut: it does not ask how much an example's own uncertainty dilutes what it says. "
    "Each pick is then one search for the largest inner product, which an index can do over very many examples.",
    formula=r"\arg\max_x (\phi_x^\top r)^2,\qquad r=S_A^{-1}\phi_*",
    advice="For pools too large to scan, and at σ² of ten times the kernel’s scale and above, where it is close to "
    "InfoGain.",
    information="gain",
    each=_gain_of_each,
    uses_sigma2=True,
    ratio=10.0,
    score="(covariance)²",
    approximates="info_gain",
    searches=True,
    caveat="It pays only with an index that need not scan: for a few thousand examples the pool's Gram is faster than "
    "a flat index, and an IVF index (`natscope precompute --index ivf`) is ahead from about 8,000 on (`python -m "
    "benchmarks search`).",
)
def _info_gain_approx(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    return greedy.info_gain_approx(
        candidates.pool,
        query.features,
        settings.sigma2,
        settings.budget,
        exclude=settings.exclude,
        quotas=settings.quotas,
        index=candidates.index() if candidates.index and settings.quotas is None else None,
    )


@method(
    "relatif",
    "RelatIF",
    colour="#8048bf",
    dash="longdash",
    summary="Scores every example by itself: how strongly the model's opinion of that example and of this one move "
    "together, given all the training data. The score is a correlation, so unusual examples do not win by being loud. "
    "Examples at the top pull the prediction up; the sign tells those that would push it down.",
    formula=r"\frac{v_{x*}^{D}}{\sqrt{v_x^{D}\,v_*^{D}}}",
    advice="For a quick signed look. Examples are scored one by one, so near-duplicates all rank high.",
    uses_sigma2=True,
    signed=True,
    conditions=True,
    score="posterior correlation, −1 to 1",
)
def _relatif(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    # Barshan et al. 2020, section 3.2, with the posterior covariance instead of the inverse Hessian's form.
    conditioning = candidates.conditioning or candidates.pool
    posterior = conditioning.posterior(np.atleast_2d(query.features), settings.sigma2)
    posterior = posterior.without(settings.exclude, settings.sigma2)
    covariance = settings.sigma2 * posterior.alpha
    scale = np.sqrt(np.outer(np.maximum(posterior.pool_variance, 0), np.maximum(posterior.variance, 0)))
    scores = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0).mean(axis=1)
    return rank(scores, settings)


def total_of_all(method: Method, candidates: Candidates, features: np.ndarray, settings: Settings) -> float | None:
    """Return the information of the whole pool in nats; None for a method without nats, or where it takes too long."""
    if not method.information:
        return None
    # For a pool too large for its Gram it takes a minute, unless the method has conditioned on the pool itself.
    if not (candidates.pool.fits_gram or candidates.conditioning or method.conditions):
        return None
    everything = candidates.conditioning or candidates.pool
    return total_information(everything, candidates.pool, features, settings.sigma2, exclude=settings.exclude)
