"""Training a bundle's network on a few of its training images alone, to measure what a coreset is worth."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from natscope.core.bundle.format import Bundle
from natscope.core.progress import Progress
from natscope.precompute.training.removal import identity_of
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import retrain, usual_recipe
from natscope.precompute.training.train import accuracy, logits_of
from natscope.precompute.training.workers import side_by_side


@dataclass(frozen=True, eq=False)
class Subset:
    """Training images to train on, and the test images that they were chosen for.

    Args:
        chosen: (M,) int64 training indices, in any order.
        asked: (Q,) int64 test indices, on which the accuracy is measured separately.
        measured: (T',) int64 test indices on which it is measured, except those in `asked`; all when None.
        seed: added to the seed of the recipe, for other initial weights and another order of images.
    """

    chosen: np.ndarray
    asked: np.ndarray
    measured: np.ndarray | None = None
    seed: int = 0

    def key(self, bundle: Bundle, identity: str) -> str:
        """A name of everything that the accuracy depends on, which the order of `chosen` does not change.

        Args:
            bundle: the bundle.
            identity: its `identity_of`, which reads the code of a user's network and so is asked for once.
        """
        digest = hashlib.sha256(str(sorted(self.chosen.tolist())).encode())
        digest.update(str(sorted(self.asked.tolist())).encode())
        recipe = usual_recipe(bundle)
        if "weights" in bundle.manifest.training:  # then the recipe is not part of the bundle's identity
            digest.update(str(recipe.to_dict()).encode())
        elif recipe.precision != "float32":
            digest.update(f" {recipe.precision}".encode())
        if self.measured is not None:
            digest.update(f" {sorted(self.measured.tolist())}".encode())
        if self.seed:
            digest.update(f" seed {self.seed}".encode())
        return f"{identity} subset {digest.hexdigest()[:24]}"


def train_on(
    bundle: Bundle, subset: Subset, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Train on a subset by `usual_recipe`: from the same initial weights, in the same order, for the same seed.

    Test images are evaluated in the precision of the training, too: bfloat16 takes a quarter of the time of float32.

    Args:
        bundle: the bundle with the network and data.
        subset: the images to train on.
        progress: called with epochs done and in all.

    Returns:
        See `accuracies`.

    Raises:
        BuildError: if no recipe is known.
    """
    everyone = np.arange(len(bundle.array("train_labels")))
    left_out = np.setdiff1d(everyone, subset.chosen)
    recipe = usual_recipe(bundle)
    model = retrain(bundle, left_out, progress, refill=True, recipe=replace(recipe, seed=recipe.seed + subset.seed))
    return ask(bundle, model, subset)


def ask(bundle: Bundle, model: nn.Module, subset: Subset) -> dict[str, Any]:
    """Return a network's `accuracies`, in the precision of the bundle's training."""
    tests = bundle.examples("test")
    rows = np.arange(len(tests)) if subset.measured is None else np.union1d(subset.asked, subset.measured)
    logits = np.zeros((len(tests), len(bundle.classes)), dtype=np.float32)
    precision = usual_recipe(bundle).precision
    logits[rows] = logits_of(model, tests[rows].inputs, precision=precision)
    return accuracies(bundle, logits, subset.asked, subset.measured)


def train_on_all(bundle: Bundle, subsets: Sequence[Subset], *, cache: ResultCache, progress: Progress) -> list[float]:
    """Train on subsets side by side, one process per core; those in the cache are not retrained.

    Args:
        bundle: the bundle with the network and data.
        subsets: equal ones are trained once.
        cache: where finished trainings are kept.
        progress: called after every training; it may raise to stop.

    Returns:
        The accuracy on the "others" of `accuracies`, of each subset.
    """
    identity = identity_of(bundle)
    keys = [subset.key(bundle, identity) for subset in subsets]
    things = dict(zip(keys, subsets, strict=True))
    workers, stage = torch.get_num_threads(), "Training on what was chosen"
    found = side_by_side(bundle, train_on, things, cache=cache, workers=workers, stage=stage, progress=progress)
    return [found[key]["others"] for key in keys]


def accuracies(
    bundle: Bundle, logits: np.ndarray, asked: np.ndarray, measured: np.ndarray | None = None
) -> dict[str, Any]:
    """Return the accuracy of logits (T, C) on test images that were not asked about, "others", and on those "asked".

    A share is None if there is no such image; `measured` is as in `Subset`.
    """
    labels, said = np.asarray(bundle.array("test_labels")), np.zeros(len(logits), dtype=bool)
    said[asked] = True
    others = ~said
    if measured is not None:
        others &= np.isin(np.arange(len(logits)), measured)
    parts = {"others": others, "asked": said}
    return {name: accuracy(logits[part], labels[part]) if part.any() else None for name, part in parts.items()}
