"""Figure 3 of the paper: how often does a prediction flip when a method's images are removed before training?"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from natscope.core.analysis.curves import sample_queries
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.request import QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS
from natscope.core.progress import Progress
from natscope.precompute.bundles.opening import common_methods, lacks, open_attributor
from natscope.precompute.experiments.result import Result, mean_and_error, result_of
from natscope.precompute.training.removal import Schedule, answer, run_schedules
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import recipe_of

SHARES = (1 / 6, 1 / 2, 1)  # of the largest budget: 50, 150 and 300 images, as the paper plots from 50 to 300
SIGNIFICANT = 0.05
INFORMATION = tuple(name for name, method in METHODS.items() if method.information)


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
    """Remove the first M images of each method's ranking and retrain, for M up to the first flip.

    A query is a test image that the network gets right, not one on which `natscope tune` chooses sigma2; the pool
    is its class; the network is trained from the same initial weights, in the same order of the remaining images.

    Args:
        bundles: bundles that differ by their seeds.
        queries: how many per bundle.
        budget: the largest M, less if a class is too small; the grid has a sixth and a half of it, too.
        seed: seed of the choice of test images.
        methods: names of those to rank with, as far as the bundles hold what they need.
        conditioning: "train" or "pool", what InfoLoss and RelatIF condition on.
        cache: where finished trainings are kept.
        progress: called at every ranking and after every query.

    Returns:
        Settings, versions and, for each method and M, the share of predictions that flipped at or before M and the
        change of the margin at the first M, with standard errors over queries; and every answer.

    Raises:
        QueryError: if there are too few queries.
        BuildError: if a bundle's weights were loaded, so that nobody knows how they were trained.
    """
    opened = [open_attributor(path, patient=True) for path in bundles]
    for attributor in opened:
        recipe_of(attributor.bundle)
    names = common_methods(opened, methods, lacks)
    budget = min(budget, *(most_removed(attributor) for attributor in opened))
    grid = tuple(sorted({math.ceil(round(budget * share, 6)) for share in SHARES}))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for position, attributor in enumerate(opened):
        images = sample_queries(attributor, queries, seed=seed, part="reported")
        before = [answer(attributor.features.model, image.example, image.predicted) for image in images]
        settings = [(name, attributor.bundle.sigma2(name)) for name in names]
        rankings = rank(
            attributor, images, settings, budget=budget, conditioning=conditioning, cache=cache, progress=progress
        )
        # Query by query, so that a stopped run has the same queries for every method.
        asked = [(name, image) for image in range(len(images)) for name in names]
        ranked = dict(zip(names, rankings, strict=True))
        schedules = [Schedule(images[i].index or 0, images[i].predicted, ranked[name][i], grid) for name, i in asked]
        workers = torch.get_num_threads()
        outcomes = run_schedules(attributor.bundle, schedules, cache=cache, workers=workers, progress=progress)
        for (name, image), answers in zip(asked, outcomes, strict=True):
            runs[name].append(
                {
                    "bundle": position,
                    "query": images[image].index,
                    "class": images[image].predicted,
                    "margin": before[image].margin,
                    "after": [{"removed": m} | asdict(a) for m, a in zip(grid, answers, strict=False)],
                }
            )
    rows = [_row(name, opened, runs[name], grid) for name in names]
    return _result(opened, rows, grid, conditioning, queries=queries, budget=budget, seed=seed)


def most_removed(attributor: Attributor) -> int:
    """Return how many images can be removed from any class so that at least one is left.

    Raises:
        QueryError: if a class has only one.
    """
    counts = np.bincount(attributor.train_labels)
    most = int(counts[counts > 0].min()) - 1
    if not most:
        raise QueryError("A class has a single training example, so none can be removed from each; add examples.")
    return most


def rank(
    attributor: Attributor,
    images: Sequence[QueryExample],
    settings: Sequence[tuple[str, float]],
    *,
    budget: int,
    conditioning: str,
    cache: ResultCache,
    progress: Progress,
) -> list[list[tuple[int, ...]]]:
    """Return a ranking of the pool for each setting and each image.

    Args:
        attributor: the opened bundle.
        images: the queries.
        settings: names of methods, each with a sigma2.
        budget: how many training images to rank.
        conditioning: what InfoLoss and RelatIF condition on.
        cache: where finished rankings are kept.
        progress: called at every ranking.
    """
    predicted = np.array([image.predicted for image in images])
    rankings: list[list[tuple[int, ...]]] = [[()] * len(images) for _ in settings]
    done, total = 0, len(settings) * len(images)
    # Class by class: what is prepared for one is reused by all its queries and settings.
    for target in np.unique(predicted).tolist():
        positions = np.flatnonzero(predicted == target).tolist()
        asked = [images[position] for position in positions]

        def ranked(request: Request, done: int, asked: Sequence[QueryExample] = asked) -> list[list[int]]:
            progress(f"Asking {METHODS[request.method].title}", done, total)
            attributor.ahead(METHODS[request.method], asked, asked[0].predicted, progress)
            seeded = [(image, replace(request, seed=image.index or 0)) for image in asked]
            answers = [attributor.attribute(image, own, whole=False) for image, own in seeded]
            return [[item.train_index for item in answer.items] for answer in answers]

        for row, (name, sigma2) in enumerate(settings):
            request = Request(name, sigma2, budget, conditioning=conditioning)
            key = f"{attributor.bundle.identity} ranking {request} {[image.index for image in asked]}"
            for position, ranking in zip(positions, cache.get(key, partial(ranked, request, done)), strict=True):
                rankings[row][position] = tuple(ranking)
            done += len(asked)
    return rankings


def flips(runs: Sequence[dict[str, Any]], grid: Sequence[int]) -> np.ndarray:
    """Return for each query and each M of the grid whether the prediction flipped at or before it, (Q, M) bool."""
    found = np.zeros((len(runs), len(grid)), dtype=bool)
    for position, run_ in enumerate(runs):
        steps = [step for step, after in enumerate(run_["after"]) if after["predicted"] != run_["class"]]
        if steps:
            found[position, steps[0] :] = True
    return found


def _row(name: str, opened: Sequence[Attributor], runs: list[dict[str, Any]], grid: Sequence[int]) -> dict[str, Any]:
    flipped = flips(runs, grid)
    drops = np.array([run_["margin"] - run_["after"][0]["margin"] for run_ in runs])
    method = METHODS[name]
    return {
        "method": name,
        "sigma2": [attributor.bundle.sigma2(name) for attributor in opened] if method.uses_sigma2 else None,
        "flips": [mean_and_error(column) for column in flipped.T],
        "margin_drop": mean_and_error(drops),
        "queries": runs,
    }


def _result(
    opened: Sequence[Attributor], rows: list[dict[str, Any]], grid: Sequence[int], conditioning: str, **settings: int
) -> Result:
    tests = paired_tests(rows, grid)
    return result_of(
        "brittleness",
        opened,
        settings,
        methods=[row["method"] for row in rows],
        conditioning=conditioning,
        setting={
            "recipe": opened[0].bundle.manifest.training,
            "test_accuracy": [b.bundle.manifest.results["test_accuracy"] for b in opened],
            "pool": "same-class",
            "grid": list(grid),
        },
        values={"rows": rows, "tests": tests},
        finding=f"{finding(rows, grid)} {significance(tests)}".strip(),
    )


def finding(rows: Sequence[dict[str, Any]], grid: Sequence[int]) -> str:
    """Return a sentence on whether the paper's claims hold here: at how many budgets, and which baseline flips most."""
    means = {row["method"]: np.array([value["mean"] for value in row["flips"]]) for row in rows}
    ours = [name for name in INFORMATION if name in means]
    baselines = [name for name in means if name not in INFORMATION]
    last = grid[-1]
    order = sorted(means, key=lambda name: -means[name].mean())
    told = ", ".join(f"{METHODS[name].title} {means[name][-1]:.0%}" for name in order)
    first = f"Flipped after removing {last} examples: {told}."
    if not ours or not baselines:
        return first
    above = np.min([means[name] for name in ours], axis=0) > np.max([means[name] for name in baselines], axis=0)
    best = max(baselines, key=lambda name: means[name].mean())
    said = "all information methods beat all baselines"
    held = f"At {'every budget' if above.all() else f'{above.sum()} of {len(grid)} budgets'} {said}"
    held = held if above.any() else f"At no budget do {said}"
    return f"{first} {held}; the best baseline, over all budgets, is {METHODS[best].title}."


def paired_tests(rows: Sequence[dict[str, Any]], grid: Sequence[int]) -> list[dict[str, Any]]:
    """Test each information method against the best baseline, query by query, at every number of images removed.

    The baseline is the best of the same queries. Queries of several bundles count as independent.

    Returns:
        For each method and each M: the baseline, the difference of the shares of flipped queries, its 95% confidence
        interval given how many queries differ (Clopper and Pearson's), the p of McNemar's exact test, and that of Holm
        over all tests.
    """
    flipped = {row["method"]: flips(row["queries"], grid) for row in rows}
    ours = [name for name in INFORMATION if name in flipped]
    baselines = [name for name in flipped if name not in INFORMATION]
    if not ours or not baselines:
        return []
    best = max(baselines, key=lambda name: flipped[name].mean())
    tests = [
        {
            "method": name,
            "baseline": best,
            "removed": removed,
            **_mcnemar(flipped[name][:, step], flipped[best][:, step]),
        }
        for name in ours
        for step, removed in enumerate(grid)
    ]
    least = 0.0
    for rank_, test in enumerate(sorted(tests, key=lambda test: test["p"])):
        least = test["p_holm"] = max(least, min(1.0, (len(tests) - rank_) * test["p"]))
    return tests


def _mcnemar(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    from scipy.stats import binomtest  # 27 MB, and a moment to load, in every process of the app

    more, fewer = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    found = {"difference": (more - fewer) / len(ours), "low": 0.0, "high": 0.0, "p": 1.0}
    if differ := more + fewer:
        tested = binomtest(more, differ)
        low, high = tested.proportion_ci()
        scale = differ / len(ours)
        found |= {"low": (2 * low - 1) * scale, "high": (2 * high - 1) * scale, "p": float(tested.pvalue)}
    return found


def significance(tests: Sequence[dict[str, Any]]) -> str:
    """Return a sentence on which information methods differ significantly from the best baseline, either way."""
    if not tests:
        return ""
    baseline = METHODS[tests[0]["baseline"]].title
    found = [
        f"{METHODS[test['method']].title} at {test['removed']} ({test['difference']:+.0%}, "
        f"{test['low']:+.0%} to {test['high']:+.0%})"
        for test in tests
        if test["p_holm"] < SIGNIFICANT
    ]
    if found:
        return (
            f"Information methods that differ from {baseline} (McNemar’s test, Holm’s correction): {', '.join(found)}."
        )
    least = min(test["p_holm"] for test in tests)
    p = f"p {'=' if least >= 1 else '≥'} {math.floor(100 * least) / 100:.2f}"
    return f"No information method differs significantly from {baseline} (McNemar’s test, {p} with Holm’s correction)."
