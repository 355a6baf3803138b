"""The class-conditional backdoor attack (BadNets): a patch in the corner, and a wrong label."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from natscope.core.backdoor import PLACES, Backdoor, stamp
from natscope.core.errors import DataError
from natscope.precompute.data.datasets import Dataset


@dataclass(frozen=True)
class PoisonSpec:
    """The settings of the attack.

    Args:
        rate: share of the training images that are poisoned, the same number in every class.
        size: side of the patch in pixels.
        place: a key of `natscope.core.backdoor.PLACES`.
        targets: for each class the label that its stamped images get; the next class, cyclically, when None.
        seed: seed of the patches and of the choice of images.
    """

    rate: float = 0.01
    size: int = 3
    place: str = "bottom-right"
    targets: tuple[int, ...] | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


def poison(data: Dataset, spec: PoisonSpec) -> tuple[Dataset, Backdoor]:
    """Stamp some training images of every class with its patch and give them the label that the attack aims at.

    The paper's attack: class k has its own random black and white patch and is relabelled (k + 1) mod C. Test images
    stay as they are.

    Raises:
        DataError: if a setting makes no sense for this data set.
    """
    if not 0 < spec.rate < 1 or spec.seed < 0:
        raise DataError("The poisoned share must lie between 0 and 1, and its seed be 0 or more.")
    classes = len(data.classes)
    targets = tuple((k + 1) % classes for k in range(classes)) if spec.targets is None else spec.targets
    members = np.bincount(data.train_labels, minlength=classes)
    each = round(spec.rate * len(data.train_labels) / classes)
    _check(spec, targets, data, each, int(members.min()))
    patterns = _patterns(classes, spec.size, np.random.default_rng([spec.seed, 0]))
    chosen = [
        np.random.default_rng([spec.seed, 1, k]).choice(np.flatnonzero(data.train_labels == k), each, replace=False)
        for k in range(classes)
    ]
    images, labels = data.train_images.copy(), data.train_labels.copy()
    for k, rows in enumerate(chosen):
        images[rows] = stamp(images[rows], patterns[k], spec.place)
        labels[rows] = targets[k]
    rows = np.sort(np.concatenate(chosen))
    backdoor = Backdoor(
        place=spec.place,
        patterns=patterns,
        targets=np.array(targets),
        train_indices=rows,
        base_labels=data.train_labels[rows],
    )
    return replace(data, train_images=images, train_labels=labels), backdoor


def _check(spec: PoisonSpec, targets: tuple[int, ...], data: Dataset, each: int, fewest: int) -> None:
    if data.train_inputs is not None:
        raise DataError(f"A backdoor is planted in pixels, and the network does not take those of {data.name}.")
    classes, side = len(data.classes), min(data.train_images.shape[1:3])
    if not 1 <= each <= fewest:
        raise DataError(
            f"A poisoned share of {spec.rate:g} makes {each} images a class, and there must be between 1 and {fewest}."
        )
    if spec.place not in PLACES:
        raise DataError(f"There is no place '{spec.place}' for the patch; choose one of {', '.join(PLACES)}.")
    if not 1 <= spec.size <= side or 2 ** (spec.size**2) - 2 < classes:
        raise DataError(
            f"Patches of {spec.size} by {spec.size} pixels cannot tell {classes} classes apart on images of {side} by "
            f"{side} pixels; choose another size."
        )
    if len(targets) != classes or any(not 0 <= t < classes or t == k for k, t in enumerate(targets)):
        raise DataError(
            f"The attack needs, for each of the {classes} classes, another class from 0 to {classes - 1} to aim at."
        )


def _patterns(classes: int, size: int, random: np.random.Generator) -> np.ndarray:
    """Draw a different patch for every class, neither all black nor all white, (C, size, size) of 0 and 1."""
    found: dict[bytes, np.ndarray] = {}
    while len(found) < classes:
        pattern = random.integers(0, 2, (size, size), dtype=np.uint8)
        if 0 < pattern.sum() < size * size:
            found.setdefault(pattern.tobytes(), pattern)
    return np.stack(list(found.values()))
