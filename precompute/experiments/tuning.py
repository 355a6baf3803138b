"""The choice of sigma2 on test images that no experiment reports: by retraining without images or on them, or not."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from natscope import assets
from natscope.core.analysis.coreset import FREE, PER_CLASS, Coresets, missing
from natscope.core.analysis.curves import held_out, sample_queries
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle, write_manifest
from natscope.core.bundle.manifest import PURPOSES, Manifest
from natscope.core.bundle.request import LARGEST_SIGMA2, LEAST_SIGMA2, Request
from natscope.core.errors import BuildError, BundleError, QueryError
from natscope.core.files import from_json, read_regular
from natscope.core.methods import METHODS, Query
from natscope.core.progress import Progress
from natscope.core.text import plain
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments.brittleness import most_removed, rank
from natscope.precompute.experiments.coreset import budgets
from natscope.precompute.experiments.result import TUNED, Result, mean_and_error, result_of
from natscope.precompute.training.removal import Schedule, answer, run_schedules
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import recipe_of, usual_recipe
from natscope.precompute.training.subset import Subset, train_on_all
from natscope.precompute.training.train import TrainingSpec

_LARGEST = 10**8  # bytes of a result
REPEATS = 3  # sets of test images that a coreset is chosen for
SCORES = {  # each with the usual number of queries, and of images
    "margin": (10, 50),
    "influence": (25, 50),
    "coreset": (200, 150),
}
_PURPOSES = {"margin": "prediction"}  # the purpose of a score's result, if it is not the score's name
_PREDICTS = next(method for method in METHODS.values() if method.ekfac)


def tune(
    path: Path,
    *,
    queries: int,
    budget: int,
    seed: int,
    methods: Sequence[str],
    conditioning: str = "train",
    cache: ResultCache,
    progress: Progress,
) -> Result:
    """Choose each method's sigma2: the one at which removing its first images costs held-out queries most margin.

    Args:
        path: the bundle's folder.
        queries: how many test images, all held out, so that experiments report others.
        budget: how many images are removed, less if a class is too small.
        seed: seed of the choice of test images.
        methods: names of methods that use sigma2.
        conditioning: "train" or "pool", what InfoLoss and RelatIF condition on.
        cache: where finished trainings are kept; rankings that remove the same images share one.
        progress: called at every ranking and after every training.

    Returns:
        Settings, versions, the chosen sigma2 of each method (of equals the nearest to 1), and the score at every
        sigma2: the margin lost, in log odds, its mean and standard error over queries.

    Raises:
        QueryError: if a method does not use sigma2, or there are too few queries.
        BuildError: if the bundle's weights were loaded, so that nobody knows how they were trained.
    """
    attributor = _opened(path, methods)
    budget = min(budget, most_removed(attributor))
    images = sample_queries(attributor, queries, seed=seed, part="held out")
    before = np.array([answer(attributor.features.model, i.example, i.predicted).margin for i in images])
    asked = [(name, sigma2) for sigma2 in attributor.bundle.sigma2s() for name in methods]
    found = rank(attributor, images, asked, budget=budget, conditioning=conditioning, cache=cache, progress=progress)
    schedules = [
        Schedule(image.index or 0, image.predicted, ranking, (budget,), stop=False)
        for rankings in found
        for image, ranking in zip(images, rankings, strict=True)
    ]
    workers = torch.get_num_threads()
    outcomes = run_schedules(attributor.bundle, schedules, cache=cache, workers=workers, progress=progress)
    after = np.array([answers[0].margin for answers in outcomes]).reshape(len(asked), len(images))
    return _result(
        attributor,
        _curves(asked, before - after),
        score=f"margin lost without the first {budget}, mean of {queries} test examples",
        axis="Margin lost (log odds)",
        finding=f"the margin lost without the first {budget} examples",
        by="margin",
        conditioning=conditioning,
        queries=queries,
        budget=budget,
        seed=seed,
    )


def tune_by_influence(
    path: Path,
    *,
    queries: int,
    budget: int,
    seed: int,
    methods: Sequence[str],
    conditioning: str = "train",
    cache: ResultCache,
    progress: Progress,
) -> Result:
    """Choose each method's sigma2 without retraining: by the influence of its first images on the margin.

    Use it for weights that were trained elsewhere. Of the scores that need no retraining, summed EK-FAC influence best
    predicts the change of the margin, up to a factor: see the linear datamodelling scores among the results.

    Args:
        path: the bundle's folder.
        queries: how many test images, all held out, so that experiments report others.
        budget: how many images are summed over, less if a class is too small.
        seed: seed of the choice of test images.
        methods: names of methods that use sigma2.
        conditioning: "train" or "pool", what InfoLoss and RelatIF condition on.
        cache: where finished rankings are kept.
        progress: called at every ranking and while gradients are computed.

    Returns:
        As `tune`, the score being influence, per unit of weight of a training image.

    Raises:
        QueryError: if a method does not use sigma2, there are too few queries, or the bundle lacks the EK-FAC factors.
    """
    attributor = _opened(path, methods, recipe=None)
    if lacking := attributor.missing(_PREDICTS):
        raise QueryError(lacking)
    budget = min(budget, most_removed(attributor))
    images = sample_queries(attributor, queries, seed=seed, part="held out")
    asked = [(name, sigma2) for sigma2 in attributor.bundle.sigma2s() for name in methods]
    found = rank(attributor, images, asked, budget=budget, conditioning=conditioning, cache=cache, progress=progress)
    lost = np.zeros((len(asked), len(images)))
    whole = Request(_PREDICTS.name, budget=len(attributor.train_labels))
    for target in np.unique([image.predicted for image in images]).tolist():
        positions = [position for position, image in enumerate(images) if image.predicted == target]
        attributor.ahead(_PREDICTS, [images[position] for position in positions], target, progress)
        for position in positions:
            influence = {i.train_index: i.score for i in attributor.attribute(images[position], whole).items}
            for row, rankings in enumerate(found):
                lost[row, position] = sum(influence[index] for index in rankings[position])
    return _result(
        attributor,
        _curves(asked, lost),
        score=f"EK-FAC influence of the first {budget} on the margin, summed, mean of {queries} test examples",
        axis="Influence on the margin, summed",
        finding=f"the influence of the first {budget} examples on the margin",
        by="influence",
        conditioning=conditioning,
        queries=queries,
        budget=budget,
        seed=seed,
    )


def tune_coresets(
    path: Path, *, queries: int, budget: int, seed: int, methods: Sequence[str], cache: ResultCache, progress: Progress
) -> Result:
    """Choose each method's sigma2: the one at which networks trained on its coresets alone are right most often.

    The coresets are those of the experiment, chosen freely and class by class, of its budgets up to `budget`. They are
    chosen for three sets of held-out test images in turn, and measured on the other held-out ones.

    Args:
        path: the bundle's folder.
        queries: how many test images in a set.
        budget: size of the largest coreset.
        seed: seed of the choice of test images.
        methods: names of methods that use sigma2.
        cache: where finished choices and trainings are kept.
        progress: called at every choice and after every training.

    Returns:
        As `tune`, the score being the share of test images that a network gets right, the mean over budgets and over
        both kinds of coresets; its mean and standard error over the three sets.

    Raises:
        QueryError: if a method does not use sigma2, there are too few test images, or the bundle lacks the margin's
            features.
        BuildError: if the bundle's weights were loaded, so that nobody knows how they were trained.
    """
    attributor = _opened(path, methods, recipe=usual_recipe)
    for name in methods:
        if lacking := missing(attributor, name):
            raise QueryError(lacking)
    tests = np.arange(len(attributor.test_labels))
    held = tests[held_out(tests)]
    if queries * REPEATS > len(held):
        raise QueryError(
            f"{len(held):,} test examples are held out, too few for {REPEATS} sets of {queries}; ask for fewer queries."
        )
    sets = np.random.default_rng(seed).permutation(held)[: queries * REPEATS].reshape(REPEATS, queries)
    coresets, grid = Coresets(attributor), budgets(len(attributor.train_labels), budget)
    sigma2s = attributor.bundle.sigma2s("coreset")
    ways = [(name, sigma2, variant) for name in methods for sigma2 in sigma2s for variant in (FREE, PER_CLASS)]
    subsets: list[Subset] = []
    for number, asked in enumerate(np.sort(sets, axis=1)):
        query = coresets.ask(asked)
        for position, (name, sigma2, variant) in enumerate(ways):
            progress("Choosing coresets", number * len(ways) + position, REPEATS * len(ways))
            choose = partial(_coreset, coresets, name, query, sigma2=sigma2, budget=grid[-1], variant=variant)
            key = f"{attributor.bundle.identity} coreset {name} {variant} {sigma2:g} {grid[-1]} {asked.tolist()}"
            ranking = np.array(cache.get(key, choose), dtype=np.int64)
            subsets += [Subset(ranking[:size], asked, held) for size in grid]
    right = train_on_all(attributor.bundle, subsets, cache=cache, progress=progress)
    scores = np.array(right).reshape(REPEATS, len(methods), len(sigma2s), -1).mean(axis=-1)
    curves: dict[str, list[dict[str, Any]]] = {
        name: [
            {"sigma2": sigma2, **mean_and_error(scores[:, row, position])} for position, sigma2 in enumerate(sigma2s)
        ]
        for row, name in enumerate(methods)
    }
    sizes = ", ".join(f"{size:,}" for size in grid)
    return _result(
        attributor,
        curves,
        score=f"accuracy of networks trained on {sizes} examples alone, mean of {REPEATS} sets of {queries} test "
        "examples",
        axis="Accuracy on held-out examples",
        finding=f"the accuracy of networks trained on {sizes} examples alone",
        by="coreset",
        conditioning="train",
        queries=queries,
        budget=budget,
        seed=seed,
    )


def best(curve: Sequence[dict[str, Any]]) -> float:
    """Return the sigma2 with the highest score; of equals the one nearest to 1, where solves are exact."""
    highest = max(point["mean"] for point in curve)
    return float(min((p["sigma2"] for p in curve if p["mean"] == highest), key=lambda s: abs(math.log10(s))))


def _alike(curve: Sequence[dict[str, Any]]) -> str:
    """Return which values of sigma2 score within a standard error of the best; nothing if no other does."""
    top = max(curve, key=lambda point: point["mean"])
    alike = [point["sigma2"] for point in curve if point["mean"] >= top["mean"] - (top["error"] or 0)]
    return f" ({min(alike):g} to {max(alike):g} within its error)" if len(alike) > 1 else ""


def read(file: Path) -> dict[str, Any]:
    """Read a finished result.

    Raises:
        QueryError: if it is not valid.
        FileError: if it cannot be read.
    """
    try:
        result = from_json(read_regular(file, _LARGEST, links=True))
        if result["experiment"] == "backdoor":  # its oracle chooses sigma2 on queries that it does not report
            result |= _of_backdoor(result)
        result["for"] = _PURPOSES.get(result.get("for", "margin"), result.get("for"))
        chosen, words = result["sigma2"], (result["score"], result["date"])
        if (
            result["experiment"] in ("tune", "backdoor")
            and result["for"] in PURPOSES
            and all(isinstance(word, str) and word and plain(word) for word in words)
            and chosen
            and all(name in METHODS and METHODS[name].uses_sigma2 for name in chosen)
            and all(type(sigma2) in (int, float) and 0 < sigma2 < math.inf for sigma2 in chosen.values())
            and (result["experiment"] == "backdoor" or all(_tried(result, *each) for each in chosen.items()))
            and ("kernel" not in (result.get("setting") or {}) or _scale_of(result) is not None)
        ):
            return result | {"sigma2": {name: float(sigma2) for name, sigma2 in chosen.items()}}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        pass
    raise QueryError(f"{file} is not a result of `natscope tune`, or of `natscope evaluate backdoor`.")


def _tried(result: dict[str, Any], name: str, sigma2: float) -> bool:
    """Return whether a result has a score at the value that it chose for a method."""
    return any(point["sigma2"] == sigma2 and math.isfinite(point["mean"]) for point in result["curves"][name])


def _of_backdoor(result: dict[str, Any]) -> dict[str, Any]:
    setting = result["setting"]
    oracles = {row["method"]: row["oracle"] for row in result["rows"]}
    return {
        "for": "backdoor",
        "score": f"recall@{setting['recall_at']} of planted examples, mean of {setting['tuned_on']} fooled test "
        "examples",
        "sigma2": {name: oracle["sigma2"][0] for name, oracle in oracles.items() if oracle},  # the first bundle's
    }


def record(path: Path, result: dict[str, Any], file: str, *, opened: Manifest | None = None) -> bool:
    """Write what was chosen into a bundle's manifest, in one step: from then on they are this bundle's defaults.

    They are rescaled to the bundle's features, where the result records the scale of its own.

    Args:
        path: the bundle's folder.
        result: from `read`, or one of the functions above as JSON has it.
        file: name of the JSON file that holds it, recorded for each method unless the result ships with natscope.
        opened: the manifest of the bundle for which the values were chosen; of any when None.

    Returns:
        Whether the result records that scale.

    Raises:
        BundleError: if the bundle cannot be opened, or is another one.
        QueryError: if the values are for a backdoor, and the bundle has none, or if they cannot be rescaled, or the
            name of the file cannot be printed.
    """
    if not plain(file):
        raise QueryError("The name of this file of results holds characters that cannot be printed; rename it.")
    bundle, purpose = Bundle(path), result["for"]
    manifest = bundle.manifest
    if opened is not None and not manifest.extends(opened):
        raise BundleError(
            f"The bundle {path} was replaced while σ² was chosen for it, so the values are not written into it; they "
            f"are in {file}."
        )
    if purpose == "backdoor" and manifest.poison is None:
        raise QueryError(f"These values are for bundles with a backdoor, and {path} has none.")
    tuned = dict(manifest.tuned or {})
    known = tuned if purpose == "prediction" else tuned.get(purpose, {})
    scale = _scale_of(result)
    factor = bundle.scale(purpose) / (scale or bundle.scale(purpose))
    own = {name: sigma2 * factor for name, sigma2 in result["sigma2"].items()}
    if not all(LEAST_SIGMA2 <= sigma2 <= LARGEST_SIGMA2 for sigma2 in own.values()):
        raise QueryError(f"Rescaled to the features of {path}, the values of {file} are out of bounds.")
    chosen = {"sigma2": known.get("sigma2", {}) | own, "score": result["score"], "date": result["date"]}
    others = {name: other for name, other in known.get("files", {}).items() if name not in result["sigma2"]}
    if not _ships(result, file):
        others |= dict.fromkeys(result["sigma2"], file)
    if others:
        chosen["files"] = others
    if purpose == "prediction":
        tuned = chosen | {other: tuned[other] for other in PURPOSES if other in tuned}
    else:
        tuned[purpose] = chosen
    write_manifest(path, replace(manifest, tuned=tuned))
    return scale is not None


def _scale_of(result: dict[str, Any]) -> float | None:
    """Return the scale of the features that a result was measured on; None if it does not say."""
    found: Any = result.get("setting")
    for key in ("kernel", "scales", result["for"]):
        found = found.get(key) if isinstance(found, dict) else None
    return found if type(found) in (int, float) and 0 < found < LARGEST_SIGMA2 else None


def _ships(result: dict[str, Any], file: str) -> bool:
    """Return whether it is one of the shipped results behind the demo's values, not a namesake."""
    return (
        file in TUNED.values()
        and assets.path("results", file).exists()
        and (read(assets.path("results", file)) == result)
    )


def _coreset(coresets: Coresets, name: str, query: Query, **settings: Any) -> list[int]:
    return [int(index) for index in coresets.select(name, query, **settings)]


def _opened(
    path: Path, methods: Sequence[str], *, recipe: Callable[[Bundle], TrainingSpec] | None = recipe_of
) -> Attributor:
    for name in methods:
        if not METHODS[name].uses_sigma2:
            raise QueryError(f"{METHODS[name].title} does not use σ², so there is nothing to choose.")
    attributor = open_attributor(path, patient=True)
    if recipe is not None:
        try:
            recipe(attributor.bundle)
        except BuildError as error:
            raise BuildError(f"{error} For predictions `--score influence` needs no retraining.") from error
    return attributor


def _curves(asked: Sequence[tuple[str, float]], scores: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """Return each method's score at every sigma2, from those of all settings and queries (len(asked), Q)."""
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in asked}
    for (name, sigma2), row in zip(asked, scores, strict=True):
        curves[name].append({"sigma2": sigma2} | mean_and_error(row))
    return curves


def _result(
    attributor: Attributor,
    curves: dict[str, list[dict[str, Any]]],
    *,
    score: str,
    axis: str,
    finding: str,
    by: str,
    conditioning: str,
    **settings: int,
) -> Result:
    purpose = "coreset" if by == "coreset" else "prediction"
    chosen = {name: best(curve) for name, curve in curves.items()}
    values = ", ".join(f"{METHODS[name].title} {sigma2:g}{_alike(curves[name])}" for name, sigma2 in chosen.items())
    return result_of(
        "tune",
        [attributor],
        settings,
        methods=list(curves),
        conditioning=conditioning,
        options="" if by == "margin" else f" --score {by}",
        values={"for": purpose, "score": score, "axis": axis, "sigma2": chosen, "curves": curves},
        finding=f"Best σ² by {finding}: {values}.",
    )
