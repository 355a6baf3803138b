"""A backdoor as the manifest of a poisoned bundle records it: triggers, what they aim at, which examples planted it.

Nothing that ranks training examples may read this; it is for showing the attack and for evaluating what was found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from natscope.core.examples import Examples

Marked = TypeVar("Marked", bound=Examples)


@dataclass(frozen=True, eq=False)
class Backdoor:
    """A class-conditional attack: an example of class k that carries patterns[k] is to be taken for targets[k].

    Args:
        place: one of the modality's `places`.
        patterns: a trigger for each class, such as a patch of 0 (black) and 1 (white), (S, S).
        targets: (C,) int64.
        train_indices: (P,) int64, the poisoned training examples, rising.
        base_labels: (P,) int64, the class that each of them is of; its label in training is targets[that].
    """

    place: str
    patterns: Sequence[Any]
    targets: np.ndarray
    train_indices: np.ndarray
    base_labels: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, for the manifest."""
        arrays = ("targets", "train_indices", "base_labels")
        patterns = [pattern.tolist() if isinstance(pattern, np.ndarray) else pattern for pattern in self.patterns]
        return {"place": self.place, "patterns": patterns} | {name: getattr(self, name).tolist() for name in arrays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Backdoor":
        """Undo `to_dict`; raises KeyError if one is missing, ignores what else the manifest says of the attack."""
        return cls(
            place=values["place"],
            patterns=[np.array(p, dtype=np.uint8) if isinstance(p, list) else p for p in values["patterns"]],
            targets=np.array(values["targets"], dtype=np.int64),
            train_indices=np.array(values["train_indices"], dtype=np.int64),
            base_labels=np.array(values["base_labels"], dtype=np.int64),
        )

    def culprits(self, base: int) -> np.ndarray:
        """Return the training examples that taught the model to be fooled by the trigger of class `base`, int64."""
        return self.train_indices[self.base_labels == base]

    def with_pattern(self, base: int, pattern: Any) -> "Backdoor":
        """Return the attack with another trigger for examples of class `base`."""
        patterns = list(self.patterns)
        patterns[base] = pattern
        return replace(self, patterns=patterns)

    def stamped(self, examples: Marked, labels: np.ndarray) -> Marked:
        """Return copies of examples, each with the trigger of its own class."""
        return examples.marked(self.patterns, labels, self.place)


def attack_success(
    predict: Callable[[Marked], np.ndarray], backdoor: Backdoor, examples: Marked, labels: np.ndarray
) -> np.ndarray:
    """Return for each example whether its stamped version is taken for what the attack aims at, (N,) bool.

    Args:
        predict: returns the predicted class (N,) of examples.
        backdoor: the attack.
        examples: clean ones.
        labels: (N,) their classes.
    """
    return predict(backdoor.stamped(examples, labels)) == backdoor.targets[labels]
