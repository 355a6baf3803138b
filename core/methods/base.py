"""What an attribution method is: its description, its needs and one verb, `select`; and the registry of them all."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from natscope.core.greedy import Selection
from natscope.core.index.protocol import Index
from natscope.core.methods.artifacts import DERIVED, Artifacts
from natscope.core.pool import Pool
from natscope.core.posterior import Conditioning
from natscope.core.recursion import Quotas


@dataclass(frozen=True)
class Candidates:
    """A pool, with everything that a method may need to know of its members.

    Args:
        pool: features under the target's logit.
        penultimate: (n, D) float32.
        conditioning: what InfoLoss and RelatIF condition on; the pool itself when None.
        index: returns the inner-product index over the pool's features, when there is one; opened when first asked.
        array: returns the members' rows of an array that a method `needs`, by its name.
        influence: returns the influence of each member on a target's margin by EK-FAC, (n,), for one input and
            target, or the mean over several.
    """

    pool: Pool
    penultimate: np.ndarray
    conditioning: Conditioning | None = None
    index: Callable[[], Index] | None = None
    array: Callable[[str], np.ndarray] | None = None
    influence: Callable[[Tensor, int | np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Query:
    """One query; or Q queries, each under its own target, and a method's score is then the mean over them.

    Args:
        features: (W,) or (Q, W) of the target's logit, under NTK scaling where the bundle has it; with several queries,
            of the measurement that the pool has.
        penultimate: (D,) or (Q, D).
        margin: returns features (W,) or (Q, W) of the target's margin, in the network's own parameterisation.
        input: (1, ...) or (Q, ...), what the network takes.
        target: the class, or (Q,) classes.
    """

    features: np.ndarray
    penultimate: np.ndarray
    margin: Callable[[], np.ndarray] | None = None
    input: Tensor | None = None
    target: int | np.ndarray = 0


@dataclass(frozen=True)
class Settings:
    """The settings of a selection: noise variance, budget M, the seed of random, and which rows may not be picked."""

    sigma2: float = 1.0
    budget: int = 10
    seed: int = 0
    exclude: tuple[int, ...] = ()
    quotas: Quotas | None = None


Select = Callable[[Candidates, Query, Settings], Selection]
Each = Callable[[Candidates, Query, Settings], np.ndarray]


@dataclass(frozen=True)
class Method:
    """One way to attribute a prediction to training examples.

    Args:
        name: the name in commands and links.
        title: the name on pages.
        select: the verb.
        summary: one paragraph without jargon.
        formula: LaTeX, the rule of one pick or the score.
        advice: when to use it.
        information: "loss", "gain" or None: what `Selection.nats` counts.
        each: returns the information (n,) in nats of each member by itself, with the sign of its covariance with one
            query, given all others where the method conditions; None for methods that score each by itself anyway.
        uses_sigma2: whether sigma2 changes the ranking.
        ratio: its usual sigma2, as a multiple of the features' scale, where nothing was tuned: 1 for methods that
            condition on data, 10 for those that start from nothing. It was best for InfoLoss and InfoGain on three
            kinds of small networks (`python -m benchmarks ratios`). Coresets take another, of `core/bundle/format.py`.
        signed: whether the ranking itself runs from proponents to opponents.
        conditions: whether a conditioning set other than the pool makes a difference.
        score: what the score is, in words, with its unit.
        needs: arrays that it shares with other methods, of `natscope.core.methods.artifacts`.
        artifacts: what it needs for itself; `natscope precompute --methods` adds both.
        at_random: whether it knows nothing of the query: the random baseline that others are compared with.
        sketched: whether the ranking depends on the sketch, and so on its seed.
        approximates: the method of which this one is a cheaper version.
        searches: whether it picks by the pool's index where there is one.
        ekfac: whether it ranks by EK-FAC influence, for which every candidate is differentiated again; many queries
            about one class then cost little more than one.
        colour: hex, in every chart; visible on white and on dark, and distinguishable by colour-blind people.
        dash: style of its line in charts: solid, dash, dot, dashdot, longdash or longdashdot.
        caveat: what to know before relying on it, in a sentence or two; empty when there is nothing.
    """

    name: str
    title: str
    select: Select
    summary: str
    formula: str
    advice: str
    information: str | None = None
    each: Each | None = None
    uses_sigma2: bool = False
    ratio: float = 1.0
    signed: bool = False
    conditions: bool = False
    score: str = "score"
    needs: tuple[str, ...] = ()
    artifacts: Artifacts = field(default_factory=Artifacts)
    at_random: bool = False
    sketched: bool = True
    approximates: str | None = None
    searches: bool = False
    ekfac: bool = False
    colour: str = "#808080"
    dash: str = "solid"
    caveat: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all that a bundle must hold for it, beyond what every bundle holds or implies."""
        return (*(name for name in self.needs if name not in DERIVED), *self.artifacts.names)


METHODS: dict[str, Method] = {}


def method(name: str, title: str, **about: Any) -> Callable[[Select], Select]:
    """Register the decorated function as a method; its keywords are the fields of `Method`."""

    def register(select: Select) -> Select:
        METHODS[name] = Method(name=name, title=title, select=select, **about)
        return select

    return register


def rank(scores: np.ndarray, settings: Settings, *, signed: bool = True) -> Selection:
    """Rank by falling score (n,), ties to the lowest row; full groups are skipped.

    Raises:
        ValueError: if a score is NaN, or the quotas are of other rows.
    """
    if np.isnan(scores).any():
        raise ValueError("The method gave scores that are not numbers for this query.")
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isin(order, settings.exclude)]
    if settings.quotas is not None:
        settings.quotas.check(len(scores))
        order = settings.quotas.within(order)
    order = order[: settings.budget]
    signs = np.sign(scores[order]) if signed else np.zeros(len(order))
    return Selection(order.astype(np.int64), scores[order].astype(np.float64), signs.astype(np.int8))
