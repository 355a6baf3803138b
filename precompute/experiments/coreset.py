"""Figures 5 and 6 of the paper: how good is a network trained on a few images chosen by each method?"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from natscope.core.analysis.coreset import (
    BALANCE,
    FREE,
    PER_CLASS,
    QUOTAS,
    VARIANTS,
    Coresets,
    draw,
    missing,
)
from natscope.core.analysis.curves import held_out
from natscope.core.bundle.attributor import Attributor
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, RANDOM
from natscope.core.progress import Progress
from natscope.precompute.bundles.opening import common_methods, open_attributor
from natscope.precompute.experiments.result import Result, over_bundles, result_of
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import usual_recipe
from natscope.precompute.training.subset import Subset, ask, train_on_all

SHARES = (0.002, 0.004, 0.01, 0.02, 0.04, 0.1)  # of the training images: 100 to 5,000 of CIFAR-10's, as in the paper
_TOLD = 10  # images from which a coreset's makeup means something
Way = tuple[str, str]  # a method and a variant


def run(
    bundles: Sequence[Path],
    *,
    queries: int,
    budget: int | None,
    seed: int,
    methods: Sequence[str],
    repeats: int = 1,
    cache: ResultCache,
    progress: Progress,
) -> Result:
    """Choose training images for many test images at once, train on these alone, and measure on other test images.

    `natscope tune` chooses sigma2 on none of these test images. Every method chooses in three variants: freely, with a
    quota for every class, and class by class, each for its own queries. It chooses once for the largest budget, and
    smaller coresets are the first images of this one; with quotas, which grow with the budget, it chooses for each.
    Networks start from the same initial weights and see the images in the same order, those of another repeat from
    others and in another.

    Args:
        bundles: bundles that differ by their seeds, or one.
        queries: how many test images to choose for, the same ones for all bundles.
        budget: size M of the largest coreset, a tenth of the training images when None; the grid takes smaller shares.
        seed: seed of the choice of test images, plus the repeat; plus the position among bundles and their repeats,
            that of the random method.
        methods: names of those that choose, as far as the bundles hold what they need.
        repeats: how often to choose and to train for each bundle, each time for other test images and by other seeds.
        cache: where finished choices and trainings are kept.
        progress: called at every choice and after every training.

    Returns:
        Settings, versions, the accuracy of the bundles' own networks and, for each method and variant, the accuracy at
        each budget, with standard errors over bundles and repeats.

    Raises:
        QueryError: if no test image is left to measure on, the bundles are of different data, or one lacks the margin's
            features.
        BuildError: if weights of another network than natscope's own were loaded, so that no recipe is known.
    """
    opened = [open_attributor(path, patient=True) for path in bundles]
    names = _common_methods(opened, methods, queries)
    grid = budgets(len(opened[0].train_labels), budget)
    ways: list[Way] = [(name, variant) for name in names for variant in VARIANTS]
    found: dict[Way, list[list[float]]] = {way: [] for way in ways}
    firsts: dict[Way, list[list[int]]] = {way: [] for way in ways}
    whole, wrong, told = [], [], (len(grid) - 1) // 2
    for position, (attributor, repeat) in enumerate(product(opened, range(repeats))):
        test_images = _not_held_out(attributor)
        asked = draw(test_images, queries, seed=seed + repeat)
        chosen = _chosen(attributor, asked, ways, grid=grid, seed=seed + position, cache=cache, progress=progress)
        subsets = [Subset(np.array(c, dtype=np.int64), asked, test_images, repeat) for way in ways for c in chosen[way]]
        right = train_on_all(attributor.bundle, subsets, cache=cache, progress=progress)
        for number, way in enumerate(ways):
            found[way].append(right[number * len(grid) : (number + 1) * len(grid)])
            firsts[way].append(chosen[way][told])
        wrong.append(np.asarray(attributor.bundle.array("train_logits")).argmax(axis=1) != attributor.train_labels)
        everyone = Subset(np.arange(len(attributor.train_labels)), asked, test_images)
        whole.append(ask(attributor.bundle, attributor.features.model, everyone)["others"])
    labels, mistaken = opened[0].train_labels, np.array(wrong)
    rows = [_row(way, opened, found[way]) | {"makeup": _makeup(labels, mistaken, firsts[way])} for way in ways]
    settings = {"queries": queries, "budget": grid[-1], "seed": seed} | ({"repeats": repeats} if repeats > 1 else {})
    return _result(opened, rows, grid, over_bundles(whole), **settings)


def budgets(count: int, largest: int | None = None) -> tuple[int, ...]:
    """Return the sizes of coresets of N = `count` training images up to the largest, rising."""
    largest = max(1, round(SHARES[-1] * count)) if largest is None else min(largest, count)
    return tuple(sorted({max(1, round(share * count)) for share in SHARES if share * count < largest} | {largest}))


def _common_methods(opened: Sequence[Attributor], methods: Sequence[str], queries: int) -> list[str]:
    """Return the methods that every bundle can serve."""
    for attributor in opened:
        usual_recipe(attributor.bundle)
        Coresets(attributor)
        if not np.array_equal(attributor.train_labels, opened[0].train_labels):
            raise QueryError("These bundles are of different training examples; average over bundles of the same ones.")
        count = len(_not_held_out(attributor))
        if queries >= count:
            raise QueryError(
                f"There are {count:,} test examples to report on, and some must be left to measure the accuracy on; "
                "ask for fewer queries."
            )
    return common_methods(opened, methods, missing)


def _not_held_out(attributor: Attributor) -> np.ndarray:
    """Return the test indices on which sigma2 was not chosen, (T',) int64."""
    tests = np.arange(len(attributor.test_labels))
    return tests[~held_out(tests)]


def _chosen(
    attributor: Attributor,
    asked: np.ndarray,
    ways: Sequence[Way],
    *,
    grid: Sequence[int],
    seed: int,
    cache: ResultCache,
    progress: Progress,
) -> dict[Way, list[list[int]]]:
    """Return the training indices of each way's coresets, one coreset for each size of the grid."""
    coresets = Coresets(attributor)
    query, chosen = coresets.ask(asked), {}

    def choose(name: str, variant: str, sigma2: float, budget: int) -> list[int]:
        found = coresets.select(
            name, query, sigma2=sigma2, budget=budget, variant=variant, seed=seed, progress=progress
        )
        return [int(index) for index in found]

    def kept(name: str, variant: str, budget: int) -> list[int]:
        sigma2 = attributor.bundle.sigma2(name, purpose="coreset")
        key = f"{attributor.bundle.identity} coreset {name} {variant} {sigma2:g} {budget} {seed} {asked.tolist()}"
        found: list[int] = cache.get(key, partial(choose, name, variant, sigma2, budget))
        return found

    for name, variant in ways:
        if variant == QUOTAS:
            chosen[name, variant] = [kept(name, variant, size) for size in grid]
        else:
            ranking = kept(name, variant, grid[-1])
            chosen[name, variant] = [ranking[:size] for size in grid]
    return chosen


def _row(way: Way, opened: Sequence[Attributor], found: list[list[float]]) -> dict[str, Any]:
    name, variant = way
    return {
        "method": name,
        "variant": variant,
        "sigma2": [a.bundle.sigma2(name, purpose="coreset") for a in opened] if METHODS[name].uses_sigma2 else None,
        "accuracy": [over_bundles(values) for values in zip(*found, strict=True)],
    }


def _result(
    opened: Sequence[Attributor],
    rows: list[dict[str, Any]],
    grid: Sequence[int],
    whole: dict[str, Any],
    **settings: int,
) -> Result:
    measured = len(_not_held_out(opened[0])) - settings["queries"]
    setting = {
        "recipe": usual_recipe(opened[0].bundle).to_dict(),
        "training": opened[0].bundle.manifest.training,
        "measurement": "margin, no NTK scaling",
        "variants": {
            FREE: "for all queries together, from all examples",
            QUOTAS: "the same, each class closed once it has its share of the budget",
            PER_CLASS: "each class for its own queries, given its own examples",
        },
        "measured_on": f"{measured:,} other test examples, every fifth one being left to the choice of sigma2",
        "training_images": len(opened[0].train_labels),
        "grid": list(grid),
    }
    return result_of(
        "coreset",
        opened,
        settings,
        methods=list(dict.fromkeys(row["method"] for row in rows)),
        setting=setting,
        values={"all_data": whole, "rows": rows},
        finding=finding(rows, grid, whole, setting),
    )


def whole_title(setting: Mapping[str, Any]) -> str:
    """Return what the network was trained on with which a result compares coresets, from the result's setting."""
    return "the weights that were loaded" if "weights" in setting.get("training", {}) else "all training examples"


def finding(
    rows: Sequence[dict[str, Any]], grid: Sequence[int], whole: dict[str, Any], setting: Mapping[str, Any]
) -> str:
    """Return sentences on the best choice and the best random one at the smallest and the largest budget."""
    parts = []
    for position in sorted({0, len(grid) - 1}):
        ranked = sorted(rows, key=lambda row: -row["accuracy"][position]["mean"])
        told_of = [ranked[0], *[row for row in ranked if row["method"] == RANDOM][:1]]
        shares = [f"{row['accuracy'][position]['mean']:.1%} with {_way(row)}" for row in told_of]
        said = ", ".join(dict.fromkeys(shares))  # once where random ones are the best
        parts.append(f"trained on {grid[position]:,} examples the network is right on {said}")
    told = "; ".join(parts)
    said = f"{told[0].upper()}{told[1:]}; with {whole_title(setting)}, on {whole['mean']:.1%}."
    return " ".join(part for part in (said, _above_random(rows), _why(rows)) if part)


def _way(row: dict[str, Any]) -> str:
    """Return which examples a row is about, such as "those that TRAK chooses class by class"."""
    who = "random ones" if row["method"] == RANDOM else f"those that {METHODS[row['method']].title} chooses"
    return f"{who} {BALANCE[row['variant']]}".rstrip()


def _above_random(rows: Sequence[dict[str, Any]]) -> str:
    """Return a sentence on which choices beat random ones of the same variant, and at how many budgets."""
    told = []
    for variant in sorted({row["variant"] for row in rows}, key=VARIANTS.index):
        kind = {row["method"]: row["accuracy"] for row in rows if row["variant"] == variant}
        if RANDOM not in kind or len(kind) < 2:
            return ""
        if any(accuracy["error"] is None for accuracies in kind.values() for accuracy in accuracies):
            return "Each coreset was trained on once, so differences of a few points say nothing."
        counts = {METHODS[name].title: _clearly_above(each, kind[RANDOM]) for name, each in kind.items()}
        better = [f"{name} at {n} of {len(kind[RANDOM])} budgets" for name, n in counts.items() if n]
        told.append(f"{BALANCE[variant] or 'chosen freely'}: {', '.join(better) or 'none'}")
    return f"More than two standard errors above random examples, {'; '.join(told)}."


def _clearly_above(accuracies: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> int:
    """Return at how many budgets accuracies exceed others by more than two standard errors of the difference."""
    pairs = zip(accuracies, others, strict=True)
    return sum(a["mean"] - b["mean"] > 2 * float(np.hypot(a["error"], b["error"])) for a, b in pairs)


def _makeup(labels: np.ndarray, wrong: np.ndarray, chosen: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the makeup of coresets of one size, one per bundle and repeat.

    Args:
        labels: (N,) of the training images.
        wrong: (B, N) bool, whether the network behind each coreset gets them wrong.
        chosen: training indices of each coreset.
    """
    rows = [np.array(picked, dtype=np.int64) for picked in chosen]
    return {
        "images": len(rows[0]),
        "wrong": over_bundles([float(wrong[position, picked].mean()) for position, picked in enumerate(rows)]),
        "largest_class": over_bundles([float(np.bincount(labels[picked]).max() / len(picked)) for picked in rows]),
    }


def _why(rows: Sequence[dict[str, Any]]) -> str:
    """Return a sentence on which free choices are mostly of one class, and which the network often gets wrong."""
    free = [row for row in rows if row["variant"] == FREE and row.get("makeup", {"images": 0})["images"] >= _TOLD]
    told = []
    for field, least, text in (
        ("largest_class", 0.5, "are of one class"),
        ("wrong", 0.25, "are examples that the whole network gets wrong"),
    ):
        found = {METHODS[row["method"]].title: row["makeup"][field]["mean"] for row in free}
        least = max(least, found.get(METHODS[RANDOM].title, 0) + 0.2)
        much = [f"{share:.0%} with {name}" for name, share in found.items() if share > least]
        if much:
            told.append(f"{' and '.join(much)} {text}")
    return f"Of the first {free[0]['makeup']['images']:,} chosen freely, {'; '.join(told)}." if told else ""
