"""Table 1 of the paper: how many of the images that taught a backdoor does each method find?"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from natscope.core.analysis.audit import FIRST, sigma2_of, suspicion
from natscope.core.backdoor import Backdoor, attack_success
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS
from natscope.core.metrics import average_precision, recall_at_k, reciprocal_rank
from natscope.core.progress import Progress
from natscope.core.text import listed
from natscope.precompute.bundles.opening import common_methods, lacks, open_attributor
from natscope.precompute.experiments.result import Result, over_bundles, result_of, tuned_by
from natscope.precompute.training.result_cache import ResultCache

RECALL_AT = 50
TUNED_ON = 20  # queries for the oracle's choice of sigma2; none of them is reported
CHOSEN_ON = (0, 1)  # seeds of the attack on which the audit's score was chosen among others


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
    """Ask every method, and the audit, which images taught the network to be fooled.

    A query is a test image that the network gets right, stamped with its class's patch and then classified as the
    attack's target. The pool is that target class; the truth is the poisoned images of the query's class. Every method
    is asked at the sigma2 that its bundle has for predictions, which no poisoned image chose, and also at the sigma2
    that an oracle would choose: the one with the highest recall on other poisoned queries.

    Args:
        bundles: poisoned ones that differ by their seeds.
        queries: how many per bundle.
        budget: the rank at which the search for the first poisoned image is given up (MRR@100 in the paper).
        seed: seed of the choice of test images.
        methods: names of those to rank with, as far as the bundles hold what they need.
        conditioning: "train" or "pool", what InfoLoss and RelatIF condition on.
        cache: where finished parts are kept.
        progress: called at every query.

    Returns:
        Settings, versions; for each method recall@50 and MRR, as mean and standard error over bundles, with sigma2, its
        ratio to the features' scale and the result from which it was taken (None for the default ratio), for each
        bundle; under "oracle" the same at the oracle's sigma2, None for methods without sigma2; for the audit its
        precision and recall.

    Raises:
        QueryError: if a bundle is not poisoned, the attack works on too few test images, or no method can be served.
    """
    opened = list(_opened(bundles))
    size: dict[str, Any] = {"queries": queries, "seed": seed, "conditioning": conditioning}
    names = common_methods(opened, methods, lacks)
    tuned = tuple(name for name in names if METHODS[name].uses_sigma2)
    tuning = [
        _part(
            cache, bundle, f"tuning {','.join(tuned)}", size, partial(_tune, bundle, tuned, **size, progress=progress)
        )
        for bundle in opened
    ]
    chosen = choose_position(tuning)

    asked = {name: _sigma2s(opened, name, chosen.get(name)) for name in names}
    measured = [
        _measured(
            cache,
            bundle,
            list(dict.fromkeys((name, values[place]) for name in names for values in asked[name])),
            **size,
            budget=budget,
            progress=progress,
        )
        for place, bundle in enumerate(opened)
    ]

    def measure(name: str, sigma2s: Sequence[float]) -> dict[str, Any]:
        found = [parts[name, sigma2] for parts, sigma2 in zip(measured, sigma2s, strict=True)]
        return {score: over_bundles([f[score] for f in found]) for score in ("recall", "mrr")}

    rows = [_row(opened, name, chosen.get(name), [part.get(name, []) for part in tuning], measure) for name in names]
    audits = [
        _part(cache, part, "audit", {"sigma2": sigma2_of(part.bundle)}, lambda a=part: audit(a, progress=progress))
        for part in opened
    ]
    attacks = [_part(cache, bundle, "attack", {}, lambda b=bundle: _attack(b)) for bundle in opened]
    return _result(opened, rows, audits, attacks, conditioning, queries=queries, budget=budget, seed=seed)


def draw_queries(attributor: Attributor, count: int, *, seed: int) -> list[tuple[int, int]]:
    """Draw test images on which the attack works and whose clean version the network gets right.

    Returns:
        For each its index and its class, which is the base class of the images to be found.

    Raises:
        QueryError: if there are too few.
    """
    labels, found = attributor.test_labels, fooled_queries(attributor)
    if len(found) < count:
        raise QueryError(f"The attack works on {len(found)} test examples only, and {count} are needed; ask for fewer.")
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn = order[np.isin(order, found)][:count]
    return [(int(i), int(labels[i])) for i in drawn]


def fooled_queries(attributor: Attributor) -> np.ndarray:
    """Return the test images that the network gets right, and classifies as the attack's target once stamped, int64."""
    right = np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1) == attributor.test_labels
    return np.flatnonzero(right & fooled(attributor))


def backdoor_of(bundle: Bundle) -> Backdoor:
    """Return the backdoor of a poisoned bundle.

    Raises:
        QueryError: if the bundle is not poisoned.
    """
    if (backdoor := bundle.manifest.backdoor) is None:
        raise QueryError(
            f"The bundle {bundle.path} is not poisoned; `natscope precompute --poison-rate 0.0333 --out "
            "FOLDER` builds one that is."
        )
    return backdoor


def fooled(attributor: Attributor) -> np.ndarray:
    """Return for each test image whether its stamped version is taken for what the attack aims at, (T,) bool."""
    bundle = attributor.bundle
    if bundle.has("test_fooled"):
        return np.array(bundle.array("test_fooled"))
    tests = bundle.examples("test")
    return attack_success(attributor.predict, backdoor_of(attributor.bundle), tests, attributor.test_labels)


def stamped_query(attributor: Attributor, backdoor: Backdoor, index: int) -> QueryExample:
    """Return a test example with its class's trigger, as a query."""
    clean = attributor.bundle.examples("test")[np.array([index])]
    return attributor.asked(backdoor.stamped(clean, attributor.test_labels[[index]]))


def choose_position(tuning: Sequence[dict[str, list[float]]]) -> dict[str, int]:
    """Return which value of the grid gives each method the highest mean recall over bundles; the smallest of equals."""
    return {name: int(np.argmax(np.round(np.mean([part[name] for part in tuning], axis=0), 9))) for name in tuning[0]}


def audit(attributor: Attributor, *, progress: Progress) -> dict[str, float]:
    """Measure the audit's ranking against the truth."""
    backdoor = backdoor_of(attributor.bundle)
    scores = np.nan_to_num(suspicion(attributor, progress=progress), nan=-1.0)
    ranking = np.argsort(-scores, kind="stable")
    poisoned = backdoor.train_indices
    hits = np.isin(ranking, poisoned)
    return {
        "seed": attributor.bundle.manifest.poison["seed"],  # type: ignore[index]
        "sigma2": sigma2_of(attributor.bundle),
        "poisoned": len(poisoned),
        "average_precision": average_precision(ranking, poisoned),
        "precision_at_100": float(hits[:100].mean()),
        "precision_at_poisoned": float(hits[: len(poisoned)].mean()),
        "recall_at_twice": float(hits[: 2 * len(poisoned)].sum() / len(poisoned)),
    }


def _opened(bundles: Sequence[Path]) -> Iterator[Attributor]:
    for path in bundles:
        attributor = open_attributor(path, patient=True)
        backdoor_of(attributor.bundle)
        yield attributor


def _row(
    opened: Sequence[Attributor],
    name: str,
    position: int | None,
    curves: Sequence[list[float]],
    measure: Callable[[str, Sequence[float]], dict[str, Any]],
) -> dict[str, Any]:
    """Return what a method finds at the bundles' sigma2 and at the oracle's, the grid's value at a position."""
    own, best = _sigma2s(opened, name, position)
    if position is None:
        without = dict.fromkeys(("sigma2", "ratio", "tuned", "oracle", "tuning"))
        return {"method": name} | without | measure(name, own)
    return {
        "method": name,
        "sigma2": own,
        "ratio": [_ratio(attributor, sigma2) for attributor, sigma2 in zip(opened, own, strict=True)],
        "tuned": [tuned_by(attributor.bundle.manifest, name) for attributor in opened],
        **measure(name, own),
        "oracle": {"sigma2": best, "ratio": _ratio(opened[0], best[0]), **measure(name, best)},
        "tuning": np.mean(curves, axis=0).tolist(),
    }


def _sigma2s(opened: Sequence[Attributor], name: str, position: int | None) -> tuple[list[float], list[float]]:
    """Return each bundle's own sigma2 and the oracle's, the grid's value at a position; 1 where there is none."""
    if position is None:
        return [1.0] * len(opened), [1.0] * len(opened)
    own = [attributor.bundle.sigma2(name) for attributor in opened]
    best = [attributor.bundle.sigma2s()[position] for attributor in opened]
    return own, [mine if math.isclose(mine, other) else other for mine, other in zip(own, best, strict=True)]


def _ratio(attributor: Attributor, sigma2: float) -> float:
    """Return how many times the features' scale sigma2 is, without the rounding of their product."""
    return float(f"{sigma2 / attributor.bundle.scale():.9g}")


def _part(cache: ResultCache, attributor: Attributor, name: str, size: dict[str, Any], compute: Any) -> Any:
    return cache.get(_key(attributor, name, size), compute)


def _key(attributor: Attributor, name: str, size: dict[str, Any]) -> str:
    settings = " ".join(f"{key}={value}" for key, value in size.items())
    return f"{attributor.bundle.identity} {name} {settings}"


def _tune(
    attributor: Attributor, names: Sequence[str], *, queries: int, seed: int, conditioning: str, progress: Progress
) -> dict[str, list[float]]:
    """Return each method's mean recall at every sigma2, over queries that are not reported."""
    drawn = draw_queries(attributor, queries + TUNED_ON, seed=seed)[queries:]
    sigma2s = attributor.bundle.sigma2s()
    recalls = {name: np.zeros((len(sigma2s), len(drawn))) for name in names}
    asked = [(stamped_query(attributor, backdoor_of(attributor.bundle), index), base) for index, base in drawn]
    bases, done = np.array([base for _, base in asked]), 0
    # Class by class and then sigma2 by sigma2: what is prepared for one is reused by all methods and queries.
    for base in np.unique(bases):
        for step, sigma2 in enumerate(sigma2s):
            for position in np.flatnonzero(bases == base):
                for name in names:
                    progress("Choosing σ²", done, len(names) * len(sigma2s) * len(asked))
                    request = Request(name, sigma2, RECALL_AT, conditioning=conditioning)
                    found = _found(attributor, asked[position][0], int(base), request)
                    recalls[name][step, position] = found[0]
                    done += 1
    return {name: [float(mean) for mean in found.mean(axis=1)] for name, found in recalls.items()}


def _measured(
    cache: ResultCache,
    attributor: Attributor,
    methods: Sequence[tuple[str, float]],
    *,
    queries: int,
    budget: int,
    seed: int,
    conditioning: str,
    progress: Progress,
) -> dict[tuple[str, float], dict[str, float]]:
    """Return what each method finds at a sigma2.

    Class by class, and then method by method: what is prepared for a class, such as the features of all training
    examples under it, is reused by all methods and queries.
    """
    size = {"queries": queries, "seed": seed, "conditioning": conditioning}
    keys = {m: _key(attributor, m[0], size | {"sigma2": m[1], "budget": budget}) for m in methods}
    if missing := [method for method in methods if keys[method] not in cache]:
        backdoor, drawn = backdoor_of(attributor.bundle), draw_queries(attributor, queries + TUNED_ON, seed=seed)
        bases = np.array([base for _, base in drawn[:queries]])
        found = {method: list[tuple[float, float]]() for method in missing}
        for base in np.unique(bases).tolist():
            places = np.flatnonzero(bases == base).tolist()
            asked = {place: stamped_query(attributor, backdoor, drawn[place][0]) for place in places}
            for method in missing:
                about = partial(_measure, attributor, *method, base=base, asked=asked)
                compute = partial(about, budget=budget, conditioning=conditioning, progress=progress)
                found[method] += cache.get(f"{keys[method]} class={base}", compute)
        for method in missing:
            scores = np.mean(found[method], axis=0).tolist()
            cache.get(keys[method], partial(dict[str, float], zip(("recall", "mrr"), scores, strict=True)))
    return {method: cache[keys[method]] for method in methods}


def _measure(
    attributor: Attributor,
    name: str,
    sigma2: float,
    *,
    base: int,
    asked: Mapping[int, QueryExample],
    budget: int,
    conditioning: str,
    progress: Progress,
) -> list[tuple[float, float]]:
    """Return what a method finds for the queries of one class, each by its seed."""
    target = int(backdoor_of(attributor.bundle).targets[base])
    attributor.ahead(METHODS[name], list(asked.values()), target, progress)
    found: list[tuple[float, float]] = []
    for seed, query in asked.items():
        progress(f"Asking {METHODS[name].title}", len(found), len(asked))
        request = Request(name, sigma2, budget, conditioning=conditioning, seed=seed)
        found.append(_found(attributor, query, base, request))
    return found


def _found(attributor: Attributor, query: QueryExample, base: int, request: Request) -> tuple[float, float]:
    """Return recall@50 and the reciprocal rank of the first poisoned image."""
    backdoor = backdoor_of(attributor.bundle)
    longer = replace(request, target=int(backdoor.targets[base]), budget=max(request.budget, RECALL_AT))
    ranking = [item.train_index for item in attributor.attribute(query, longer, whole=False).items]
    truth = set(backdoor.culprits(base).tolist())
    return recall_at_k(ranking, truth, RECALL_AT), reciprocal_rank(ranking, truth, request.budget)


def _attack(attributor: Attributor) -> dict[str, float]:
    backdoor, results = backdoor_of(attributor.bundle), attributor.bundle.manifest.results
    pools = np.bincount(attributor.train_labels)[backdoor.targets]
    truths = np.array([len(backdoor.culprits(base)) for base in range(len(backdoor.targets))])
    return {
        "attack_success": results["attack_success"],
        "test_accuracy": results["test_accuracy"],
        "base_rate": float((truths / pools).mean()),
        "poisoned": len(backdoor.train_indices),
    }


def _result(
    opened: Sequence[Attributor],
    rows: list[dict[str, Any]],
    audits: Any,
    attacks: Any,
    conditioning: str,
    **settings: int,
) -> Result:
    return result_of(
        "backdoor",
        opened,
        settings,
        methods=[row["method"] for row in rows],
        conditioning=conditioning,
        setting={
            "recall_at": RECALL_AT,
            "tuned_on": TUNED_ON,
            "sigma2s": list(opened[0].bundle.sigma2s()),
            "ratios": [_ratio(opened[0], sigma2) for sigma2 in opened[0].bundle.sigma2s()],
            "pool": "same-class",
        },
        values={
            "attack": {
                key: over_bundles([a[key] for a in attacks])
                for key in ("attack_success", "test_accuracy", "base_rate", "poisoned")
            },
            "rows": rows,
            "audit": {"first": FIRST, "chosen_on": list(CHOSEN_ON), "runs": audits},
        },
        finding=finding(rows, audits, float(np.mean([a["base_rate"] for a in attacks]))),
    )


def finding(rows: Sequence[dict[str, Any]], audits: Sequence[dict[str, Any]], chance: float) -> str:
    """Return sentences on which methods find most, within standard errors, on the oracle, and on the audit."""
    best = max(rows, key=lambda row: row["recall"]["mean"])["recall"]
    first = [
        METHODS[row["method"]].title
        for row in rows
        if best["mean"] - row["recall"]["mean"] <= (best["error"] or 0.0) + (row["recall"]["error"] or 0.0)
    ]
    who = f"{listed(first)} {'find' if len(first) > 1 else 'finds'}"
    reached = [
        f"{row['oracle']['recall']['mean']:.1%} with {METHODS[row['method']].title}" for row in rows if row["oracle"]
    ]
    unseen = [a["average_precision"] for a in audits if a["seed"] not in CHOSEN_ON]
    return (
        ("With σ² chosen without using poisoned images, " if reached else "")
        + f"{who} most: {best['mean']:.1%} of the poisoned examples among the first {RECALL_AT}; chance would find "
        f"{chance:.1%}."
        + (f" An oracle that chose σ² on poisoned queries would reach {listed(reached)}." if reached else "")
        + (f" The audit's average precision on unseen seeds is {np.mean(unseen):.2f}." if unseen else "")
    )
