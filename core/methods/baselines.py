"""The baselines that people use: each scores every example by itself."""

from importlib.metadata import version
from typing import TypeVar

import numpy as np

from natscope.core.greedy import Selection
from natscope.core.methods.artifacts import (
    FACTOR_FILES,
    LOSS_WEIGHTS,
    MARGINS,
    Artifacts,
    Computed,
    Size,
    Source,
    emptied,
)
from natscope.core.methods.base import Candidates, Query, Settings, method, rank

Part = TypeVar("Part")
_NO_LINEAR = (
    "RepSim compares what enters the last torch.nn.Linear layer of a network, and this one has none; let it end in one."
)


@method(
    "repsim",
    "RepSim",
    colour="#c78010",
    dash="dash",
    summary="Looks for training examples that the network itself sees as similar: the angle between what its last "
    "hidden layer makes of the two examples. It knows nothing of how the model was trained.",
    formula=r"\cos\big(h(x), h(x_*)\big)",
    advice="A strong, cheap baseline for finding look-alikes; it cannot say how much an example matters.",
    signed=True,
    score="cosine similarity, −1 to 1",
    artifacts=Artifacts(obstacle=lambda size: _NO_LINEAR if size.penultimate == 0 else None),
    sketched=False,
)
def _repsim(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    members, own = candidates.penultimate.astype(np.float64), np.atleast_2d(query.penultimate).astype(np.float64)
    length = np.outer(np.linalg.norm(members, axis=1), np.linalg.norm(own, axis=1))
    products = members @ own.T
    return rank(np.divide(products, length, out=np.zeros_like(products), where=length > 0).mean(axis=1), settings)


@method(
    "graddot",
    "GradDot",
    colour="#309f50",
    dash="dashdot",
    summary="Asks whether a training step on an example would have moved the answer: the gradient of that example's "
    "loss, at the end of training, times the gradient of the answer. Examples that the model has already learnt "
    "perfectly have no gradient left and score near zero.",
    formula=r"-\nabla_\theta L(x)^\top\,\nabla_\theta f(x_*),\qquad f=z_y-\log\sum_{k\neq y}e^{z_k}",
    advice="TracIn at the last checkpoint: the simplest gradient method. Loud examples, which the model finds hard, "
    "tend to come first for every query.",
    signed=True,
    score="gradient product",
    needs=(MARGINS, LOSS_WEIGHTS),
    artifacts=Artifacts(settings=lambda source: {"measurement": "margin", "ntk": False}),
)
def _graddot(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    # Pruthi et al. 2020, equation 5, one checkpoint. The loss is -log p_y, whose gradient is -(1 - p_y) grad f.
    margins = np.atleast_2d(_given(query.margin)())
    products = candidates.pool.kernel(_rows(candidates, MARGINS), margins).mean(axis=1)
    return rank(_rows(candidates, LOSS_WEIGHTS) * products, settings)


def _trak_artifacts(source: Source) -> Computed:
    from natscope.core.methods.trak import trak_features

    folder = emptied(source.folder / "traker")  # a TRAKer cannot resume within a pass
    features, weights = trak_features(
        source.model, source.inputs, source.labels, source.margins(), folder=folder, progress=source.progress
    )
    features *= 2.0 ** -np.round(np.log2(np.abs(features).max()))  # for float16; scores have no unit
    return {"trak_features": features, "trak_out_to_loss": weights}


def _trak_obstacle(size: Size) -> str | None:
    if not size.vectors:
        return "TRAK needs feature vectors, and the exact kernel has none; choose another --sketch."
    least = min(size.count, size.count if size.parameters is None else size.parameters + 1)
    if least <= size.dim:
        kind = "training examples" if least == size.count else "parameters of the network"
        return f"TRAK needs more {kind} than dimensions of the sketch: choose a --dim below {least:,}."
    return None


@method(
    "trak",
    "TRAK",
    colour="#706818",
    dash="longdash",
    summary="Like the gradient product, but first takes out what all training examples have in common, so that an "
    "example counts for what is particular to it. One network is used here, where its authors average over many.",
    formula=r"(1-p_x)\;\phi_x^\top(\Phi^\top\Phi)^{-1}\phi_*",
    advice="The usual choice for estimating what leaving examples out would do, when there is time to train many "
    "networks; from one network its scores are noisy.",
    signed=True,
    score="TRAK score, no unit",
    needs=(MARGINS,),
    artifacts=Artifacts(
        features=("trak_features",),
        numbers=("trak_out_to_loss",),
        compute=_trak_artifacts,
        settings=lambda _: {"checkpoints": 1, "ridge": 0.0, "traker": version("traker")},
        obstacle=_trak_obstacle,
        bytes=lambda size: (2 + 4 + 4) * size.count * size.dim,  # and two arrays of traker's own
        memory=lambda size: 8 * size.count * size.dim + 16 * size.dim**2,
        products=lambda size: float(size.count * size.dim**2),
    ),
    caveat="Computed by the library traker from one network and without averaging over networks, which its authors "
    "recommend. Scores carry an arbitrary common factor: only their order and sign mean something.",
)
def _trak(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    from natscope.core.methods import trak

    features, weights = (_rows(candidates, name) for name in ("trak_features", "trak_out_to_loss"))
    return rank(trak.scores(features, weights, _given(query.margin)()), settings)


def _factors(source: Source) -> Computed:
    from natscope.core.methods.ekfac import factor_contents

    return factor_contents(source)


@method(
    "kronfluence",
    "Kronfluence",
    colour="#b7208f",
    dash="longdashdot",
    summary="Influence functions: estimates how the answer would change if an example weighed a little more in "
    "training, with an approximation of the curvature of the loss, layer by layer.",
    formula=r"\nabla_\theta f(x_*)^\top\,(\hat H+\lambda I)^{-1}\,\nabla_\theta(-L)(x),\qquad \hat H\text{: EK-FAC}",
    advice="The strongest classical baseline for one network. It takes a second or two a query with a small MLP, "
    "a minute or more with a convolutional network, and sees only Linear and Conv2d layers.",
    signed=True,
    score="influence on the margin, per unit of weight",
    artifacts=Artifacts(
        files=FACTOR_FILES,
        compute=_factors,
        settings=lambda source: source.ekfac.to_dict() | {"kronfluence": version("kronfluence")},
        bytes=lambda size: 2**26,
        usual=False,
        timed=False,
    ),
    sketched=False,
    ekfac=True,
    caveat="Computed by the library kronfluence; its factors are fitted on a part of the training examples, with "
    "convolutions on 10,000 pairs of an example and a class, and 2,000 for the eigenvalues.",
)
def _kronfluence(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    return rank(_given(candidates.influence)(_given(query.input), query.target), settings)


@method(
    "random",
    "Random",
    colour="#8f87c7",
    dash="dot",
    summary="Examples of the pool drawn by chance, always the same ones for one seed. Whatever a real method shows "
    "should look better than this.",
    formula=r"x \sim \mathrm{Uniform}(\text{pool})",
    advice="As the yardstick of every comparison.",
    score="draw",
    sketched=False,
    at_random=True,
)
def _random(candidates: Candidates, query: Query, settings: Settings) -> Selection:
    draws = np.random.default_rng(settings.seed).random(len(candidates.pool))
    return rank(draws, settings, signed=False)


def _rows(candidates: Candidates, name: str) -> np.ndarray:
    return _given(candidates.array)(name)


def _given(part: Part | None) -> Part:
    if part is None:
        raise ValueError("This method needs more of the bundle than it was given.")
    return part
