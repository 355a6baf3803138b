"""The words of the pages: what was found, in a sentence, and the terms explained, for experts and for everyone."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from natscope.app import escape
from natscope.core.bundle.request import Attribution
from natscope.core.index.spec import KINDS
from natscope.core.methods import METHODS, Method


@dataclass(frozen=True)
class Labels:
    """Names and explanations of the controls."""

    sigma2: str
    sigma2_help: str
    budget: str
    budget_help: str
    pool: str
    pool_help: str
    pools: dict[str, str]
    conditioning: str
    conditioning_help: str
    conditionings: dict[str, str]


EXPERT = Labels(
    sigma2="σ²",
    sigma2_help="Observation noise variance of the Gaussian surrogate. Small: each image counts as exact, "
    "near-duplicates are redundant. Large: every image tells little, and all criteria tend to the squared "
    "correlation.",
    budget="M",
    budget_help="How many training images to select.",
    pool="Pool",
    pool_help="Which training images are candidates: those labelled with the target class, or all of them. For all, "
    "every image's Jacobian under the target's logit is needed; it is computed once (a few seconds) and kept.",
    pools={"same-class": "same class", "all": "all classes"},
    conditioning="Conditioned on",
    conditioning_help="What the model is taken to know before images are taken away: the pool of the target class, "
    "or all training data under the target's logit. The first look at a class under all training data takes about "
    "half a minute.",
    conditionings={"pool": "pool", "train": "all training data"},
)
PLAIN = Labels(
    sigma2="How noisy a single image is",
    sigma2_help="To the left, one image can settle a question and look-alikes add nothing. To the right, it takes "
    "many images to settle anything, and look-alikes add up.",
    budget="How many images",
    budget_help="The length of the list.",
    pool="Look among",
    pool_help="Images with the same label as the answer, or all training images.",
    pools={"same-class": "this label", "all": "all images"},
    conditioning="What the model already knows",
    conditioning_help="Whether images with other labels also count as knowledge about this answer.",
    conditionings={"pool": "this label", "train": "all images"},
)

NAT = (
    "A nat measures information, like a bit (1 nat = 1.44 bits). n nats make the model's uncertainty about its "
    "answer eⁿ times as narrow: 0.7 nats halve it."
)


_DATA = {
    "fashion-mnist-quarter": "Fashion-MNIST (25 %)",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "folder:cifar10": "CIFAR-10 (JPEG)",
}


def titles(methods: Iterable[Method]) -> str:
    """Name methods in a sentence: "A", "A and B", "A, B and C"."""
    *first, last = (method.title for method in methods)
    return f"{', '.join(first)} and {last}" if first else last


def informative() -> str:
    """Name the methods that count nats."""
    return titles(method for method in METHODS.values() if method.information)


def finding(result: Attribution, method: Method, target: str, *, plain: bool) -> str:
    """Return a sentence or two on what was found (Markdown)."""
    count = len(result.items)
    images = "This image" if count == 1 else f"These {count} images"
    everything = method.conditions and result.request.conditioning == "train"
    whole = "all training images" if everything else f"the {result.pool_size:,} candidates"
    if result.nats is None:
        kind = "is ranked" if count == 1 else "are ranked"
        return (
            f"{images} {kind} first by {method.title}, which has no unit of information: it orders images and does "
            "not weigh them."
        )
    if result.total_nats is not None and result.total_nats < 1e-12:
        return "The candidates tell the model nothing about this answer: there is no information to share out."
    share = (
        ""
        if not result.total_nats
        else f", {_share(result.nats / result.total_nats)} of what {whole} tell about “{escape.markdown(target)}” here"
    )
    factor = math.exp(min(result.nats, 50))
    verb = "carries" if count == 1 else "carry"
    if method.information == "loss":
        tail = f"Without {'it' if count == 1 else 'them'}, the model's uncertainty would be {factor:.3g} times as wide."
    else:
        alone = "It alone makes" if count == 1 else "They alone make"
        tail = f"{alone} the model's uncertainty {factor:.3g} times as narrow."
    amount = f"**{nats(result.nats)}**"
    if plain:
        return f"{images} {verb} {amount} of information{share}. {tail}"
    return f"{images} {verb} {amount}{share}. {tail}"


def searched(kind: str) -> str:
    """Return a sentence on which index found the images."""
    if kind == "flat":
        return "Searched with a flat index (exact)."
    return f"Searched with an {KINDS[kind]} index: fast in large pools, but it may miss an image."


def regime_hint(kind: str, *, plain: bool) -> str:
    """Return a sentence on what it means that sigma2 is where it no longer matters, or where digits are lost."""
    if kind == "imprecise":
        return (
            "This value is so small that the arithmetic loses most of its digits: move it to the right for an order "
            "that means something."
        )
    if plain:
        return "This value is so large that moving it further to the right changes nothing in the order."
    return (
        "σ² is in the high-noise regime here: the order is already that of the squared covariance with the query (the "
        "paper’s Lemma 1), and a larger σ² changes nothing in it."
    )


def data_of(setting: Mapping[str, str]) -> str:
    """Name a result's data in words (Markdown); `setting` holds it as a bundle calls it."""
    name, comma, rest = setting["data"].partition(",")
    return escape.markdown(f"{_DATA.get(name, name.removeprefix('folder:'))}{comma}{rest}")


def setting_of(setting: Mapping[str, Any]) -> str:
    """Name a result's data and network in words (Markdown), with the length of its training where that is told."""
    network = "ResNet-9" if setting["network"].startswith("resnet9") else setting["network"].replace("mlp ", "MLP ")
    epochs = f", {setting['recipe']['epochs']} epochs" if setting.get("recipe") else ""
    return f"{data_of(setting)}; {escape.markdown(network)}{epochs}"


def nats(value: float) -> str:
    """Write an amount of information with its unit, three significant digits."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e} nats"
    return f"{value:.3g} nats"


def sigma2_text(value: float) -> str:
    """Write σ² as a short number."""
    if 1e-3 <= value < 1e4:
        return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")


def _share(share: float) -> str:
    if share < 0.01:
        return f"{100 * share:.2g} %"
    return f"{100 * min(share, 1):.0f} %"
