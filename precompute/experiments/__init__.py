"""The paper's experiments by name; each takes bundles and settings and returns a JSON-able result."""

from collections.abc import Callable
from dataclasses import dataclass

from natscope.core.methods import METHODS, RANDOM, REFERENCE
from natscope.precompute.experiments import backdoor, brittleness, coreset, lds, relative_information, retraining
from natscope.precompute.experiments.result import Result


@dataclass(frozen=True)
class Experiment:
    """An experiment and its usual size.

    Args:
        run: called with bundles (paths), queries, budget, seed, cache, progress, and methods if there is a choice.
        queries: test images to average over.
        budget: the size of the largest subset, or the number of halves; None if it follows from the training images.
        methods: the usual ones, where there is a choice.
        conditions: whether it takes `conditioning`, the set D of which information is measured.
        repeats: whether it takes `repeats`, how often to answer for each bundle, with other seeds.
    """

    run: Callable[..., Result]
    queries: int
    budget: int | None
    methods: tuple[str, ...] | None = None
    conditions: bool = True
    repeats: bool = False


EXPERIMENTS: dict[str, Experiment] = {
    "relative-information": Experiment(relative_information.run_on, queries=50, budget=100),
    "backdoor": Experiment(backdoor.run, queries=100, budget=100, methods=tuple(METHODS)),
    "brittleness": Experiment(brittleness.run, queries=40, budget=300, methods=tuple(METHODS)),
    "coreset": Experiment(
        coreset.run, queries=500, budget=None, methods=tuple(METHODS), conditions=False, repeats=True
    ),
    "lds": Experiment(lds.run_on, queries=500, budget=100, methods=tuple(METHODS), conditions=False),
    "retraining": Experiment(retraining.run, queries=1, budget=50, methods=(REFERENCE, RANDOM)),
}
