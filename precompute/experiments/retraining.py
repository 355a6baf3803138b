"""A backdoor's proof at full size: retrain a network without what a method found, and try the patch again."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.request import Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS
from natscope.core.progress import Progress
from natscope.precompute.bundles.opening import open_only
from natscope.precompute.experiments.backdoor import backdoor_of, fooled_queries, stamped_query
from natscope.precompute.experiments.result import Result, result_of
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import attacked, retrain, usual_recipe
from natscope.precompute.training.train import TrainingSpec


def run(
    bundles: Sequence[Path],
    *,
    queries: int,
    budget: int,
    seed: int,
    methods: Sequence[str],
    conditioning: str = "train",
    cache: ResultCache,
    progress: Progress,
) -> Result:
    """Retrain once per method, without the first images of its rankings for some fooled test images of each class.

    Args:
        bundles: one poisoned bundle.
        queries: fooled test images per class.
        budget: how many images of each ranking are removed.
        seed: seed of the choice of test images and of the random method.
        methods: names of those to rank with.
        conditioning: "train" or "pool", what InfoLoss and RelatIF condition on.
        cache: where finished trainings are kept; a training that was stopped resumes from its last epoch.
        progress: called at every ranking and every epoch.

    Returns:
        Settings, versions and a row for the network as it is and one for each method: how many images were removed, how
        many of them were poisoned, the attack's success per class and on average, the accuracy on clean test images.

    Raises:
        QueryError: if there are several bundles, one is not poisoned, or a class has too few fooled test images.
    """
    attributor = open_only(bundles)
    drawn = _of_each_class(attributor, queries, seed)
    recipe = usual_recipe(attributor.bundle)
    name = f"{attributor.bundle.identity} {queries=} {budget=} {seed=} {conditioning=} {recipe}"
    rows = [cache.get(f"{name} as it is", lambda: _row(attributor, attributor.features.model, []))]
    for method in methods:
        ask = partial(_found, attributor, method, drawn, budget, seed, conditioning, progress)
        found, file = cache.get(f"{name} {method} found", ask), cache.beside(method)
        again = partial(_without, attributor, method, found, recipe, file, progress)
        rows.append(cache.get(f"{name} {method}", again))
        file.unlink(missing_ok=True)
    return _result(attributor, rows, recipe, conditioning, queries=queries, budget=budget, seed=seed)


def _of_each_class(attributor: Attributor, queries: int, seed: int) -> list[tuple[int, int]]:
    """Return test images on which the attack works, equally many per class: the index and class of each."""
    every = fooled_queries(attributor)
    rng, drawn = np.random.default_rng(seed), []
    for label, title in enumerate(attributor.bundle.classes):
        found = every[attributor.test_labels[every] == label]
        if len(found) < queries:
            raise QueryError(f"The attack works on {len(found)} test examples of class {title} only; ask for fewer.")
        drawn += [(int(index), label) for index in rng.choice(found, queries, replace=False)]
    return drawn


def _found(
    attributor: Attributor,
    method: str,
    drawn: list[tuple[int, int]],
    budget: int,
    seed: int,
    conditioning: str,
    progress: Progress,
) -> list[int]:
    """Return the training images that a method names for any of the queries, rising."""
    backdoor, found = backdoor_of(attributor.bundle), set()
    for done, (index, base) in enumerate(drawn):
        progress(f"Asking {METHODS[method].title}", done, len(drawn))
        sigma2 = attributor.bundle.sigma2(method, purpose="backdoor")
        target = int(backdoor.targets[base])
        request = Request(method, sigma2, budget, conditioning=conditioning, target=target, seed=(seed + done) % 2**63)
        ranking = attributor.attribute(stamped_query(attributor, backdoor, index), request)
        found |= {item.train_index for item in ranking.items}
    return sorted(found)


def _without(
    attributor: Attributor, method: str, found: list[int], recipe: TrainingSpec, checkpoint: Path, progress: Progress
) -> dict[str, Any]:
    def tell(done: int, total: int) -> None:
        progress(f"Training without those of {METHODS[method].title}", done, total)

    model = retrain(attributor.bundle, np.array(found), tell, recipe=recipe, checkpoint=checkpoint)
    return _row(attributor, model, found) | {"method": method}


def _row(attributor: Attributor, model: nn.Module, removed: list[int]) -> dict[str, Any]:
    backdoor, labels = backdoor_of(attributor.bundle), attributor.test_labels
    fooled, accuracy = attacked(attributor.bundle, model, backdoor)
    return {
        "method": None,
        "removed": len(removed),
        "poisoned_removed": int(np.isin(removed, backdoor.train_indices).sum()),
        "attack_success": float(fooled.mean()),
        "class_success": [float(fooled[labels == label].mean()) for label in range(len(attributor.bundle.classes))],
        "test_accuracy": accuracy,
    }


def _result(
    attributor: Attributor, rows: list[dict[str, Any]], recipe: TrainingSpec, conditioning: str, **settings: int
) -> Result:
    poison = backdoor_of(attributor.bundle)
    methods = [row["method"] for row in rows[1:]]
    sigma2s = {m: attributor.bundle.sigma2(m, purpose="backdoor") for m in methods if METHODS[m].uses_sigma2}
    return result_of(
        "retraining",
        [attributor],
        settings,
        methods=methods,
        conditioning=conditioning,
        setting={
            "weights_loaded": "weights" in attributor.bundle.manifest.training,
            "recipe": recipe.to_dict(),
            "sigma2": sigma2s,
            "pool": "same-class",
            "poisoned": len(poison.train_indices),
            "classes": list(attributor.bundle.classes),
        },
        values={"rows": rows},
        finding=finding(rows, len(poison.train_indices)),
    )


def finding(rows: Sequence[dict[str, Any]], poisoned: int) -> str:
    """Return a sentence on what became of the attack."""
    before = rows[0]
    parts = [
        f"without the {row['removed']} examples that {METHODS[row['method']].title} names, "
        f"{row['poisoned_removed']} of them among the {poisoned} poisoned, on {row['attack_success']:.1%} "
        f"(test accuracy {row['test_accuracy']:.1%})"
        for row in rows[1:]
    ]
    return (
        f"The trigger works on {before['attack_success']:.1%} of test examples (test accuracy "
        f"{before['test_accuracy']:.1%}); after retraining " + "; ".join(parts) + "."
    )
