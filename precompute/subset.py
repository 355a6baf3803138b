"""Training a bundle's network on a few of its training images alone: what a coreset is worth."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.bundle import Bundle
from precompute.removal import identity_of
from precompute.retrain import retrain
from precompute.training import accuracy, logits_of


@dataclass(frozen=True, eq=False)
class Subset:
    """Training images to train on, and test images that had a say in choosing them.

    Args:
        chosen: (M,) int64 training indices, in any order.
        asked: (Q,) int64 test indices, on which the accuracy is measured apart.
        measured: (T',) int64 test indices on which it is measured besides, those of `asked` left out; all when None.
    """

    chosen: np.ndarray
    asked: np.ndarray
    measured: np.ndarray | None = None

    def key(self, bundle: Bundle) -> str:
        """A name of everything that the accuracy depends on; not of the order in which images were chosen."""
        digest = hashlib.sha256(str(sorted(self.chosen.tolist())).encode())
        digest.update(str(sorted(self.asked.tolist())).encode())
        if self.measured is not None:
            digest.update(f" {sorted(self.measured.tolist())}".encode())
        return f"{identity_of(bundle)} subset {digest.hexdigest()[:24]}"


def train_on(
    bundle: Bundle, subset: Subset, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Train on a subset from the same initial weights, by the same recipe, in the same order of the images.

    Args:
        bundle: whose network and data.
        subset: what to train on.
        progress: called with epochs done and in all.

    Returns:
        As `accuracies`.

    Raises:
        BuildError: if no recipe is known.
    """
    everyone = np.arange(len(bundle.array("train_labels")))
    model = retrain(bundle, np.setdiff1d(everyone, subset.chosen), progress)
    dataset, images = bundle.manifest.dataset, np.asarray(bundle.array("test_images"))
    logits = logits_of(model, images, mean=dataset["mean"], std=dataset["std"])
    return accuracies(bundle, logits, subset.asked, subset.measured)


def accuracies(
    bundle: Bundle, logits: np.ndarray, asked: np.ndarray, measured: np.ndarray | None = None
) -> dict[str, Any]:
    """Give the accuracy of logits (T, C) on the test images that had no say, "others", and on those "asked".

    A share of None says that there is no such image; `measured` is as in `Subset`.
    """
    labels, said = np.asarray(bundle.array("test_labels")), np.zeros(len(logits), dtype=bool)
    said[asked] = True
    others = ~said
    if measured is not None:
        others &= np.isin(np.arange(len(logits)), measured)
    parts = {"others": others, "asked": said}
    return {name: accuracy(logits[part], labels[part]) if part.any() else None for name, part in parts.items()}
