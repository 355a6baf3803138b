"""What travels between pages, commands and the attributor: the query, what is asked of it, and the answer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from natscope.core.bundle.bounds import LARGEST_SIGMA2, LEAST_SIGMA2
from natscope.core.errors import QueryError
from natscope.core.examples import Examples
from natscope.core.methods import METHODS, REFERENCE
from natscope.core.text import beginning, short

POOLS = ("same-class", "all")
CONDITIONINGS = ("pool", "train")
QUOTED = 1000  # characters of a text in an answer
LARGEST_SEED = 2**63 - 1  # that torch takes


@dataclass(frozen=True)
class QueryExample:
    """An example whose prediction is to be attributed, as the network sees it.

    Args:
        example: the example, alone.
        probabilities: (C,) softmax of the logits.
        penultimate: (D,) float32.
        origin: "test", "train" or "upload".
        index: its number in that split; None for an upload.
        label: its true class; None for an upload.
        ood: distance to the nearest training example over the distance that 99.5% of test examples stay within, in what
            the network takes or in penultimate features, whichever is larger: above 1 it is out of distribution.
        source: its file within the data set, or its row there; empty for an upload.
    """

    example: Examples = field(repr=False)
    probabilities: np.ndarray
    penultimate: np.ndarray = field(repr=False)
    origin: str
    index: int | None
    label: int | None
    ood: float
    source: str = ""

    @property
    def predicted(self) -> int:
        """The class with the largest logit."""
        return int(self.probabilities.argmax())


@dataclass(frozen=True)
class Request:
    """What is asked of a query: one method and its settings.

    Args:
        method: a name of the registry.
        sigma2: observation noise variance; the bundle's usual one for the method when None.
        budget: how many training examples, M.
        pool: "same-class" (examples labelled as the target) or "all".
        conditioning: "pool" or "train", what InfoLoss and RelatIF condition on.
        target: the class whose logit is attributed; the predicted one when None.
        seed: seed of the random method.

    Examples:
        >>> natscope.Request("info_gain", sigma2=100.0, budget=5).pool
        'same-class'
    """

    method: str = REFERENCE
    sigma2: float | None = None
    budget: int = 10
    pool: str = "same-class"
    conditioning: str = "pool"
    target: int | None = None
    seed: int = 0


def target_of(request: Request, query: QueryExample, classes: int) -> int:
    """Return the class whose logit is attributed, once every setting but sigma2 is known to be valid.

    Raises:
        QueryError: if one is not.
    """
    for name, value, choices in (
        ("method", request.method, tuple(METHODS)),
        ("pool", request.pool, POOLS),
        ("conditioning set", request.conditioning, CONDITIONINGS),
    ):
        if not isinstance(value, str) or value not in choices:
            raise QueryError(f"There is no {name} {quoted(value)}; choose one of {', '.join(choices)}.")
    if not (is_whole(request.budget) and request.budget >= 1):
        raise QueryError(f"M must be a whole number, at least 1, not {quoted(request.budget)}.")
    if not (is_whole(request.seed) and 0 <= request.seed <= LARGEST_SEED):
        raise QueryError(f"The seed must be a whole number, 0 or more and below 2^63, not {quoted(request.seed)}.")
    target = query.predicted if request.target is None else request.target
    if not (is_whole(target) and 0 <= target < classes):
        raise QueryError(f"There is no class {quoted(target)}; choose one from 0 to {classes - 1}.")
    return int(target)


def noise_of(request: Request, usual: Callable[[str], float]) -> float:
    """Return the noise variance that is asked for; `usual` returns that of a method.

    Raises:
        QueryError: if it is no variance that float64 can work with.
    """
    sigma2 = usual(request.method) if request.sigma2 is None else request.sigma2
    number = isinstance(sigma2, float | np.floating) or is_whole(sigma2)
    if not (number and 0 < sigma2 < np.inf):
        raise QueryError(f"σ² is a variance and must be a positive number, not {quoted(sigma2)}.")
    if not LEAST_SIGMA2 <= sigma2 <= LARGEST_SIGMA2:
        raise QueryError(f"σ² must lie between {LEAST_SIGMA2:g} and {LARGEST_SIGMA2:g}, not at {quoted(sigma2)}.")
    return float(sigma2)


def quotation(examples: Examples, row: int) -> str:
    """Return a text as answers quote it, its first `QUOTED` characters; "" where examples are no texts."""
    text = examples.modality.text
    return "" if text is None else beginning(text(examples, row), QUOTED)


def is_whole(value: object) -> bool:
    """Return whether something is a whole number, of Python or NumPy; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def quoted(value: object) -> str:
    """Return what somebody gave as a sentence shows it: a number as it is, the beginning of a long text."""
    return short(str(value) if isinstance(value, int | float | np.number) else repr(value))


@dataclass(frozen=True)
class Item:
    """A ranked training example; `nats` is cumulative, None if a method has none; `variance` is its prior variance.

    `text` is the example's own, or its first `QUOTED` characters; empty where examples are no texts.
    """

    rank: int
    train_index: int
    label: int
    score: float
    nats: float | None
    sign: int
    variance: float
    source: str = ""
    text: str = ""


@dataclass(frozen=True)
class Attribution:
    """The answer: ranked training examples, and how much they carry of all the information in the conditioning set.

    `sigma2` is the noise variance that was used, `total_nats` is `1/2 log(v_*(empty) / v_*(D))`: None if the method has
    no information, it would take minutes, or was not asked for. `seconds` is what the ranking took, beyond the query's
    own Jacobian, which all methods share. `index` is the kind of index that was searched, if any.
    `regime` is "high-noise" if a larger sigma2 changes nothing, "imprecise" if it is too small for float64, else None,
    as it is if it was not asked for.

    Examples:
        >>> attributor = natscope.open_attributor(Path("bundles/fashion-mnist"))
        >>> answer = attributor.attribute(attributor.query("test", 12), natscope.Request(budget=3))
        >>> [item.rank for item in answer.items]
        [1, 2, 3]
        >>> bool(0 < answer.nats < answer.total_nats)
        True
    """

    request: Request
    sigma2: float
    target: int
    pool_size: int
    items: tuple[Item, ...]
    total_nats: float | None
    redundancy: float
    seconds: float
    index: str | None = None
    regime: str | None = None

    @property
    def rank_labels(self) -> tuple[str, ...]:
        """The rank of each item as text; equal scores next to each other share a rank, marked "2="."""
        scores = [item.score for item in self.items]
        firsts = [position for position, score in enumerate(scores) if not position or score != scores[position - 1]]
        ends = [*firsts[1:], len(scores)]
        return tuple(
            f"{first + 1}{'=' if end - first > 1 else ''}"
            for first, end in zip(firsts, ends, strict=True)
            for _ in range(first, end)
        )

    @property
    def nats(self) -> float | None:
        """The information of all items together."""
        return self.items[-1].nats if self.items else None

    @property
    def amounts(self) -> list[float]:
        """What each item adds: nats, or its score if the method has no nats."""
        if self.nats is None:
            return [item.score for item in self.items]
        return np.diff([item.nats for item in self.items], prepend=0.0).tolist()

    def to_dict(self, query: QueryExample, classes: tuple[str, ...]) -> dict[str, Any]:
        """Return the JSON object of `natscope attribute` (information in nats, time in seconds)."""
        return {
            "query": {
                "origin": query.origin,
                "index": query.index,
                "source": query.source,
                "label": query.label,
                "label_name": None if query.label is None else classes[query.label],
                "predicted": query.predicted,
                "predicted_name": classes[query.predicted],
                "probability": float(query.probabilities[query.predicted]),
                "unlike_training": query.ood > 1,
                **({"text": text} if (text := quotation(query.example, 0)) else {}),
                **({} if (reading := query.example.reading(0)) is None else {"reading": reading.to_dict()}),
            },
            "target": self.target,
            "target_name": classes[self.target],
            "method": self.request.method,
            "sigma2": self.sigma2,
            "pool": self.request.pool,
            "pool_size": self.pool_size,
            "conditioning": self.request.conditioning,
            "index": self.index,
            "seconds": self.seconds,
            "total_nats": self.total_nats,
            "redundancy": None if np.isnan(self.redundancy) else self.redundancy,
            "items": [
                {
                    "rank": i.rank,
                    "train_index": i.train_index,
                    "source": i.source,
                    "label": i.label,
                    "label_name": classes[i.label],
                    "score": i.score,
                    "nats": i.nats,
                    "sign": i.sign,
                    **({"text": i.text} if i.text else {}),
                }
                for i in self.items
            ],
        }
