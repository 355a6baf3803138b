"""The paper's experiments by name; each takes bundles and settings and gives a JSON-able result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from precompute.experiments import backdoor, relative_information


@dataclass(frozen=True)
class Experiment:
    """An experiment and its usual size.

    Args:
        run: called with bundles (paths), queries, budget, seed, kept and progress.
        queries: test images to average over.
        budget: the size of the largest subset.
    """

    run: Callable[..., dict[str, Any]]
    queries: int
    budget: int


EXPERIMENTS: dict[str, Experiment] = {
    "relative-information": Experiment(relative_information.run_on, queries=50, budget=100),
    "backdoor": Experiment(backdoor.run, queries=100, budget=100),
}
