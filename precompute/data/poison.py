"""The class-conditional backdoor attack (BadNets): a patch in the corner, and a wrong label."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from natscope.core.backdoor import Backdoor
from natscope.core.errors import DataError
from natscope.core.examples import Examples
from natscope.core.features import FeatureMap
from natscope.precompute.data.datasets import Dataset
from natscope.precompute.data.on_disk import changed, replaced


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
    patterns = data.train.triggers(classes, spec.size, np.random.default_rng([spec.seed, 0]))
    chosen = [
        np.random.default_rng([spec.seed, 1, k]).choice(np.flatnonzero(data.train_labels == k), each, replace=False)
        for k in range(classes)
    ]
    rows = np.sort(np.concatenate(chosen))
    labels, bases = data.train_labels.copy(), data.train_labels[rows]
    labels[rows] = np.array(targets)[bases]
    backdoor = Backdoor(
        place=spec.place, patterns=patterns, targets=np.array(targets), train_indices=rows, base_labels=bases
    )
    train = replaced(data.train, rows, backdoor.stamped(data.train[rows], bases))
    return replace(data, train=train, train_labels=labels), backdoor


def fooled(features: FeatureMap, backdoor: Backdoor, examples: Examples, labels: np.ndarray) -> np.ndarray:
    """Return for each example whether its stamped version is taken for what the attack aims at, (N,) bool.

    Args:
        features: of the network.
        backdoor: the attack.
        examples: clean ones; the stamped versions of large images lie in a file.
        labels: (N,) their classes.

    Raises:
        DataError: if there is no room for that file.
    """
    stamped = changed(examples, lambda some, rows: backdoor.stamped(some, labels[rows]))
    return features.outputs(stamped.inputs).logits.argmax(axis=1) == backdoor.targets[labels]


def _check(spec: PoisonSpec, targets: tuple[int, ...], data: Dataset, each: int, fewest: int) -> None:
    classes, modality = len(data.classes), data.modality
    if not 1 <= each <= fewest:
        raise DataError(
            f"A poisoned share of {spec.rate:g} makes {each} {modality.many} a class, and there must be between 1 and "
            f"{fewest}."
        )
    if spec.place not in modality.places:
        places = ", ".join(modality.places)
        raise DataError(f"There is no place '{spec.place}' for the patch; choose one of {places}.")
    if len(targets) != classes or any(not 0 <= t < classes or t == k for k, t in enumerate(targets)):
        raise DataError(
            f"The attack needs, for each of the {classes} classes, another class from 0 to {classes - 1} to aim at."
        )
