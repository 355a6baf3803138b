"""A backdoor as the manifest of a poisoned bundle records it: the patches, what they aim at, which images planted it.

Nothing that ranks training images may read this; it is for showing the attack and for evaluating what was found.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

PLACES = {
    "top-left": (0, 0),
    "top-right": (0, 1),
    "bottom-left": (1, 0),
    "bottom-right": (1, 1),
}  # whether the patch touches the last row and the last column


@dataclass(frozen=True, eq=False)
class Backdoor:
    """A class-conditional attack: an image of class k stamped with patterns[k] is to be taken for targets[k].

    Args:
        place: a key of `PLACES`.
        patterns: (C, S, S) of 0 (black) and 1 (white).
        targets: (C,) int64.
        train_indices: (P,) int64, the poisoned training images, rising.
        base_labels: (P,) int64, the class that each of them shows; its label in training is targets[that].
    """

    place: str
    patterns: np.ndarray
    targets: np.ndarray
    train_indices: np.ndarray
    base_labels: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, for the manifest."""
        arrays = ("patterns", "targets", "train_indices", "base_labels")
        return {"place": self.place} | {name: getattr(self, name).tolist() for name in arrays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Backdoor":
        """Undo `to_dict`; raises KeyError if one is missing, ignores what else the manifest says of the attack."""
        return cls(
            place=values["place"],
            patterns=np.array(values["patterns"], dtype=np.uint8),
            targets=np.array(values["targets"], dtype=np.int64),
            train_indices=np.array(values["train_indices"], dtype=np.int64),
            base_labels=np.array(values["base_labels"], dtype=np.int64),
        )

    def culprits(self, base: int) -> np.ndarray:
        """Return the training images that taught the model to be fooled by the patch of class `base`, int64."""
        return self.train_indices[self.base_labels == base]

    def with_pattern(self, base: int, pattern: np.ndarray) -> "Backdoor":
        """Return the attack with another patch, (S, S) of 0 and 1, for images of class `base`."""
        patterns = self.patterns.copy()
        patterns[base] = pattern
        return replace(self, patterns=patterns)

    def stamped(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Stamp every image (N, H, W[, 3]) with the patch of its own class."""
        result = images.copy()
        for k in np.unique(labels):
            result[labels == k] = stamp(images[labels == k], self.patterns[k], self.place)
        return result


def stamp(images: np.ndarray, pattern: np.ndarray, place: str) -> np.ndarray:
    """Return copies of images (N, H, W[, 3]) uint8 with a black and white patch (S, S) in a corner."""
    result = images.copy()
    size = len(pattern)
    bottom, right = PLACES[place]
    rows = slice(-size, None) if bottom else slice(size)
    columns = slice(-size, None) if right else slice(size)
    white = (255 * pattern).astype(np.uint8)
    result[:, rows, columns] = white if images.ndim == 3 else white[..., None]
    return result


def attack_success(
    predict: Callable[[np.ndarray], np.ndarray], backdoor: Backdoor, images: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return for each image whether its stamped version is taken for what the attack aims at, (N,) bool.

    Args:
        predict: returns the predicted class (N,) of images.
        backdoor: the attack.
        images: (N, H, W[, 3]) uint8, clean.
        labels: (N,) their classes.
    """
    return predict(backdoor.stamped(images, labels)) == backdoor.targets[labels]
