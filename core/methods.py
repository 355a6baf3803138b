"""The attribution methods, each one object in a registry: what it is, what it needs, and one verb, `select`.

To add a method, write a function (candidates, query, settings) -> Selection and decorate it with `method(...)`. Pages
and commands draw themselves from these objects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from core import greedy
from core.greedy import Selection
from core.pool import Pool
from core.posterior import Conditioning
from core.search import InnerProductIndex


@dataclass(frozen=True)
class Candidates:
    """A pool, with everything that a method may need to know of its members.

    Args:
        pool: features under the target's logit.
        penultimate: (n, D) float32.
        conditioning: what InfoLoss and RelatIF condition on; the pool itself when None.
        index: inner-product index over the pool's features, when there is one.
    """

    pool: Pool
    penultimate: np.ndarray
    conditioning: Conditioning | None = None
    index: InnerProductIndex | None = None


@dataclass(frozen=True)
class Query:
    """One query: features (W,) of the target's logit and penultimate features (D,)."""

    features: np.ndarray
    penultimate: np.ndarray


@dataclass(frozen=True)
class Settings:
    """The settings of a selection: noise variance, budget M, the seed of random, and rows that may not be picked."""

    sigma2: float = 1.0
    budget: int = 10
    seed: int = 0
    exclude: tuple[int, ...] = ()


Select = Callable[[Candidates, Query, Settings], Selection]


@dataclass(frozen=True)
class Method:
    """One way to attribute a prediction to training images.

    Args:
        name: the name in commands and links.
        title: the name on pages.
        select: the verb.
        summary: one paragraph without jargon.
        formula: LaTeX, the rule of one pick or the score.
        advice: when to use it.
        information: "loss", "gain" or None: what `Selection.nats` counts.
        uses_sigma2: whether sigma2 changes the ranking.
        signed: whether the ranking itself runs from proponents to opponents.
        conditions: whether a conditioning set other than the pool makes a difference.
        score: what the score is, in words, with its unit.
    """

    name: str
    title: str
    select: Select
    summary: str
    formula: str
    advice: str
    information: str | None = None
    uses_sigma2: bool = False
    signed: bool = False
    conditions: bool = False
    score: str = "score"


METHODS: dict[str, Method] = {}


def method(name: str, title: str, **about: Any) -> Callable[[Select], Select]:
    """Register the decorated function as a method; its keywords are the fields of `Method`."""

    def register(select: Select) -> Select:
        METHODS[name] = Method(name=name, title=title, select=select, **about)
        return select

    return register


@method(
    "info_loss",
    "InfoLoss",
    summary="Asks what would be lost: it takes training images away, one at a time, and always takes the one "
    "without which the model would be least sure of this prediction. Images that repeat each other cover for one "
    "another, so a near-duplicate counts for little until its twins are gone.",
    formula=r"\arg\max_x \frac{(v_{x*}^{D\setminus A})^2}{\sigma^2 - v_x^{D\setminus A}},\qquad "
    r"\mathrm{InfoLoss}(S)=\tfrac12\log\frac{v_*(D\setminus S)}{v_*(D)}",
    advice="The first choice for finding what one prediction really depends on, or whom to remove to change it.",
    information="loss",
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
        conditioning=candidates.conditioning,
    )


@method(
    "info_gain",
    "InfoGain",
    summary="Asks what is learnt: it starts with no training images and adds, one at a time, the one that makes the "
    "model surest of this prediction. What earlier picks already taught counts no more, so the images it shows "
    "differ from one another.",
    formula=r"\arg\max_x \frac{(v_{x*}^{A})^2}{\sigma^2 + v_x^{A}},\qquad "
    r"\mathrm{InfoGain}(S)=\tfrac12\log\frac{v_*(\emptyset)}{v_*(S)}",
    advice="For a small, varied set that explains the prediction by itself. At large σ² it agrees with InfoLoss.",
    information="gain",
    uses_sigma2=True,
    score="(covariance)² ÷ (σ² + variance)",
)
def _info_gain(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    return greedy.info_gain(candidates.pool, query.features, settings.sigma2, settings.budget, exclude=settings.exclude)


@method(
    "info_gain_approx",
    "InfoGain (approx)",
    summary="InfoGain with one shortcut: it does not ask how much an image's own uncertainty dilutes what it says. "
    "Each pick is then one search for the largest inner product, which an index can do over very many images.",
    formula=r"\arg\max_x (\phi_x^\top r)^2,\qquad r=S_A^{-1}\phi_*",
    advice="For pools too large to scan, and at σ² of about 10³ and above, where it is close to InfoGain.",
    information="gain",
    uses_sigma2=True,
    score="(covariance)²",
)
def _info_gain_approx(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    return greedy.info_gain_approx(
        candidates.pool,
        query.features,
        settings.sigma2,
        settings.budget,
        exclude=settings.exclude,
        index=candidates.index,
    )


@method(
    "relatif",
    "RelatIF",
    summary="Scores every image by itself: how strongly the model's opinion of that image and of this one move "
    "together, given all the training data. The score is a correlation, so unusual images do not win by being loud. "
    "Images at the top pull the prediction up; the sign tells those that would push it down.",
    formula=r"\frac{v_{x*}^{D}}{\sqrt{v_x^{D}\,v_*^{D}}}",
    advice="For a quick signed look. Images are scored one by one, so near-duplicates all rank high.",
    uses_sigma2=True,
    signed=True,
    conditions=True,
    score="posterior correlation, −1 to 1",
)
def _relatif(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    # Barshan et al. 2020, section 3.2, with the posterior covariance in the place of the inverse Hessian's form.
    conditioning = candidates.conditioning or candidates.pool
    posterior = conditioning.posterior(np.atleast_2d(query.features), settings.sigma2)
    covariance, variance, pool_variance = (
        settings.sigma2 * posterior.alpha[:, 0],
        posterior.variance[0],
        posterior.pool_variance,
    )
    for row in settings.exclude:
        column = settings.sigma2**2 * -posterior.precision_columns([row])[:, 0]  # Cov(f_x, f_row | D), x other than row
        noise = settings.sigma2**2 * posterior.precision[row]  # sigma2 - Var(f_row | D)
        variance = variance + covariance[row] ** 2 / noise
        pool_variance = pool_variance + column**2 / noise
        covariance = covariance + column * covariance[row] / noise
    scale = np.sqrt(np.maximum(pool_variance, 0) * max(variance, 0))
    return rank(np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0), settings)


@method(
    "repsim",
    "RepSim",
    summary="Looks for training images that the network itself sees as similar: the angle between what its last "
    "hidden layer makes of the two images. It knows nothing of how the model was trained.",
    formula=r"\cos\big(h(x), h(x_*)\big)",
    advice="A strong, cheap baseline for finding look-alikes; it cannot say how much an image matters.",
    signed=True,
    score="cosine similarity, −1 to 1",
)
def _repsim(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    members, own = candidates.penultimate.astype(np.float64), query.penultimate.astype(np.float64)
    length = np.linalg.norm(members, axis=1) * np.linalg.norm(own)
    products = members @ own
    return rank(np.divide(products, length, out=np.zeros_like(products), where=length > 0), settings)


@method(
    "random",
    "Random",
    summary="Images of the pool drawn by chance, always the same ones for one seed. Whatever a real method shows "
    "should look better than this.",
    formula=r"x \sim \mathrm{Uniform}(\text{pool})",
    advice="As the yardstick of every comparison.",
    score="draw",
)
def _random(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    draws = np.random.default_rng(settings.seed).random(len(candidates.pool))
    return rank(draws, settings, signed=False)


def rank(scores: np.ndarray, settings: Settings, *, signed: bool = True) -> Selection:
    """Rank by falling score (n,), ties to the lowest row.

    Raises:
        ValueError: if a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("The method gave scores that are not numbers for this query.")
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isin(order, settings.exclude)][: settings.budget]
    signs = np.sign(scores[order]) if signed else np.zeros(len(order))
    return Selection(order.astype(np.int64), scores[order].astype(np.float64), signs.astype(np.int8))
