"""Who else relies on a training example: the first picks of many test examples of one predicted class."""

from dataclasses import dataclass, replace

import numpy as np

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.request import Request
from natscope.core.progress import Progress


@dataclass(frozen=True, eq=False)
class Reliance:
    """The picks of some test examples.

    Args:
        tests: (Q,) their numbers.
        picks: (Q, M) training indices, the first first; -1 where there are fewer.
    """

    tests: np.ndarray
    picks: np.ndarray

    def of(self, index: int) -> np.ndarray:
        """Return the numbers (n,) of the test examples that have a training example among their picks."""
        return self.tests[(self.picks == index).any(axis=1)]


def reliance(attributor: Attributor, label: int, request: Request, count: int, progress: Progress) -> Reliance:
    """Ask a method about test examples that are predicted as one class.

    Args:
        attributor: the opened bundle.
        label: the class.
        request: the method, and how many picks of each.
        count: how many test examples at most: the first of one order of them all.
        progress: called at each.

    Raises:
        QueryError: for a setting that cannot be used here.
    """
    predicted = np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1)
    order = np.random.default_rng(0).permutation(len(predicted))
    tests = order[predicted[order] == label][:count]
    picks = np.full((len(tests), request.budget), -1)
    for row, test in enumerate(tests.tolist()):
        progress("Asking other test examples", row, len(tests))
        found = attributor.attribute(attributor.query("test", test), replace(request, target=label), whole=False)
        picks[row, : len(found.items)] = [item.train_index for item in found.items]
    return Reliance(tests, picks)
