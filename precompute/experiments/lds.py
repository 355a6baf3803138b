"""The linear datamodelling score (LDS): do the scores of a set of training images predict what training on it gives?"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch

from natscope.core.analysis.additive import additive_scores
from natscope.core.analysis.curves import held_out
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle
from natscope.core.errors import QueryError
from natscope.core.measurements import margin
from natscope.core.methods import METHODS
from natscope.core.pool import Pool
from natscope.core.progress import Progress
from natscope.precompute.bundles.opening import common_methods, lacks, open_only
from natscope.precompute.experiments.result import Result, mean_and_error, result_of
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.removal import identity_of
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import recipe_of, retrain
from natscope.precompute.training.train import logits_of
from natscope.precompute.training.workers import side_by_side

SEEDS = 10  # trainings on each half
TARGETS = ("margin", "loss", "variance")
SURE = 0.05  # p-value below which a test image's correlation is counted as one
_DIGITS = 6
_MEANT = 0.05  # a mean LDS below which no score is said to predict anything


@dataclass(frozen=True, eq=False)
class Half:
    """Training images to train on alone, several times, and the test images that are asked afterwards.

    Args:
        rows: (n,) int64 training indices, rising.
        tests: (Q,) int64 test indices.
        seeds: of the initial weights and the order of images.
    """

    rows: np.ndarray
    tests: np.ndarray
    seeds: tuple[int, ...]

    def key(self, identity: str) -> str:
        """A name of all that its answers depend on, given the bundle's `identity_of`."""
        text = f"{self.rows.tolist()} {self.tests.tolist()} {self.seeds}"
        return f"{identity} half {hashlib.sha256(text.encode()).hexdigest()[:24]}"


def run_on(bundles: Sequence[Path], **settings: Any) -> Result:
    """Open the one bundle that this experiment is about and `run` it.

    Raises:
        QueryError: if there are several bundles.
    """
    return run(open_only(bundles), **settings)


def run(
    attributor: Attributor,
    *,
    queries: int,
    budget: int,
    seed: int,
    methods: Sequence[str],
    cache: ResultCache,
    progress: Progress,
) -> Result:
    """Train on random halves and correlate what the networks say with the sums of each method's scores.

    The protocol is dattri's (Deng et al. 2024) after Park et al. 2023: over the halves, the Spearman correlation of the
    summed scores of the images in a half with what networks trained on it say of a test image; its mean over test
    images. Targets are oriented so that more is surer: the margin, minus the loss, and minus the variance of the margin
    over seeds. For information methods the sum is also taken without signs, and the information of the half as a set is
    another row: `InfoGain(half)`, which orders halves as `-InfoLoss(the others)` does.

    Args:
        attributor: the opened bundle.
        queries: how many test images, right or wrong, none of which `natscope tune` chooses sigma2 on.
        budget: how many halves.
        seed: seed of the choice of test images and of the halves.
        methods: names of those that score, as far as the bundle holds what they need.
        cache: where finished trainings are kept.
        progress: called at every test image and after every half.

    Returns:
        Settings, versions and a row for each kind of score: for each target the mean LDS with its standard error over
        test images, given these halves, and the share of them whose correlation has p < .05; and how well half of the
        seeds predict the other half, with the most that a score could then reach.

    Raises:
        QueryError: if there are too few test images or halves.
        BuildError: if the bundle's weights were loaded, so that nobody knows how they were trained.
    """
    bundle = attributor.bundle
    recipe_of(bundle)
    if budget < 3:
        raise QueryError(f"A correlation needs three halves or more, not {budget}.")
    tests = _tests(attributor, queries, seed)
    halves = draw_halves(len(attributor.train_labels), budget, seed=seed)
    values = retrained(bundle, halves, tests, cache=cache, progress=progress)
    targets = _targets(values)
    rows = []
    for name in common_methods([attributor], methods, lacks):
        if METHODS[name].approximates in methods:
            continue  # one image by itself has the same information
        sigma2 = bundle.sigma2(name, purpose="coreset")
        scores = additive_scores(attributor, name, tests, sigma2=sigma2, progress=progress)
        about = {"method": name, "sigma2": sigma2 if METHODS[name].uses_sigma2 else None}
        rows.append(about | {"sum": "signed"} | _row(summed(scores, halves), targets))
        if METHODS[name].information:
            rows.append(about | {"sum": "unsigned"} | _row(summed(np.abs(scores), halves), targets))
        if METHODS[name].information == "gain" and METHODS[name].approximates is None:
            whole = information_of(attributor, halves, tests, sigma2=sigma2, progress=progress)
            rows.append(about | {"sum": "of the set"} | _row(whole, targets))
    return _result(attributor, rows, _ceilings(values), queries=queries, budget=budget, seed=seed)


def lds(predicted: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Spearman correlation over sets, and its p-value, of each test image, (2 x) (Q,).

    Args:
        predicted: (R, Q) summed scores of each set.
        values: (R, Q) what networks trained on it say.
    """
    from scipy.stats import ConstantInputWarning, spearmanr  # 27 MB, and a moment to load, in every process of the app

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # then it is NaN
        found = [spearmanr(predicted[:, q], values[:, q]) for q in range(values.shape[1])]
    return np.array([f.statistic for f in found]), np.array([f.pvalue for f in found])


def draw_halves(count: int, number: int, *, seed: int) -> list[np.ndarray]:
    """Draw random halves of `count` training images, each (count // 2,) int64, rising."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(count)[: count // 2]) for _ in range(number)]


def summed(scores: np.ndarray, halves: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of each test image's scores (Q, N) over the images of each half, (R, Q)."""
    return np.stack([scores[:, rows].sum(axis=1) for rows in halves])


def retrained(
    bundle: Bundle, halves: Sequence[np.ndarray], tests: np.ndarray, *, cache: ResultCache, progress: Progress
) -> np.ndarray:
    """Train on each half with several seeds.

    Returns:
        (R, SEEDS, 2, Q): the margin and the loss of each test image's label.
    """
    identity = identity_of(bundle)
    things = [Half(rows, tests, tuple(range(SEEDS))) for rows in halves]
    named = {thing.key(identity): thing for thing in things}
    workers, stage = torch.get_num_threads(), "Training on halves"
    found = side_by_side(bundle, _said, named, cache=cache, workers=workers, stage=stage, progress=progress)
    return np.array([found[thing.key(identity)] for thing in things])


def _said(bundle: Bundle, half: Half) -> list[list[list[float]]]:
    recipe, count = recipe_of(bundle), len(bundle.array("train_labels"))
    others = np.setdiff1d(np.arange(count), half.rows)
    return [_asked(bundle, half, replace(recipe, seed=seed), others) for seed in half.seeds]


def _asked(bundle: Bundle, half: Half, recipe: Any, others: np.ndarray) -> list[list[float]]:
    model, tests = retrain(bundle, others, recipe=recipe, refill=True), bundle.examples("test")[half.tests]
    logits = torch.from_numpy(logits_of(model, tests.inputs)).double()
    labels = torch.from_numpy(np.array(bundle.array("test_labels")[half.tests], dtype=np.int64))
    found = margin(logits, labels), torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return [[float(f"{value:.{_DIGITS}g}") for value in values.tolist()] for values in found]


def information_of(
    attributor: Attributor, halves: Sequence[np.ndarray], tests: np.ndarray, *, sigma2: float, progress: Progress
) -> np.ndarray:
    """Return InfoGain of each half as a set, for each test image, (R, Q) in nats, under the margins of both."""
    every = np.arange(len(attributor.train_labels))
    pool, queries = attributor.margin_candidates(every, progress).pool, attributor.margin_query(tests).features
    prior, cross, found = pool.prior(queries), pool.cross(queries), []
    for number, rows in enumerate(halves):
        progress("Information of halves", number, len(halves))
        found.append(_information(pool, rows, prior, cross[rows], sigma2))
    return np.stack(found)


def _information(pool: Pool, rows: np.ndarray, prior: np.ndarray, cross: np.ndarray, sigma2: float) -> np.ndarray:
    block = pool.columns(rows)[rows] + sigma2 * np.eye(len(rows))
    turned = scipy.linalg.solve_triangular(scipy.linalg.cholesky(block, lower=True), cross, lower=True)
    tiny = np.finfo(float).tiny
    return -0.5 * np.log(np.maximum(prior - (turned**2).sum(axis=0), tiny) / np.maximum(prior, tiny))


def _tests(attributor: Attributor, count: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(attributor.test_labels))
    found = order[~held_out(order)]
    if count > len(found):
        raise QueryError(f"There are {len(found):,} test examples to ask about, fewer than {count:,}; ask for fewer.")
    return found[:count]


def _targets(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is predicted from what networks say (R, S, 2, Q): each (R, Q), more being surer."""
    margins, losses = values[:, :, 0], values[:, :, 1]
    return dict(zip(TARGETS, (margins.mean(axis=1), -losses.mean(axis=1), -margins.var(axis=1, ddof=1)), strict=True))


def _row(predicted: np.ndarray, targets: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: _measured(*lds(predicted, values)) for name, values in targets.items()}


def _measured(correlations: np.ndarray, p_values: np.ndarray) -> dict[str, Any]:
    """Return mean LDS; a test image of which nothing varies has no correlation, and counts as 0."""
    return mean_and_error(np.nan_to_num(correlations)) | {"sure": float((p_values < SURE).mean())}


def _ceilings(values: np.ndarray) -> dict[str, Any]:
    """Return how well every other seed predicts the others, and the "most" that a perfect score could then reach.

    A correlation r of halves makes one of 2 r / (1 + r) of all seeds with as many others (Spearman 1910, Brown 1910),
    and its root that with what the seeds have in common. For ranks, and for variances, that is rough.
    """
    first, second = _targets(values[:, ::2]), _targets(values[:, 1::2])
    found = {name: _measured(*lds(first[name], second[name])) for name in TARGETS}
    return {name: row | {"most": most(row["mean"])} for name, row in found.items()}


def most(agreement: float) -> float:
    """Return the largest correlation with a mean over seeds whose halves correlate by `agreement`."""
    return float((2 * max(agreement, 0.0) / (1 + max(agreement, 0.0))) ** 0.5)


def _result(attributor: Attributor, rows: list[dict[str, Any]], ceilings: dict[str, Any], **settings: int) -> Result:
    manifest = attributor.bundle.manifest
    return result_of(
        "lds",
        [attributor],
        settings,
        methods=list(dict.fromkeys(row["method"] for row in rows)),
        setting={
            "network": f"{ModelSpec.from_dict(manifest.model).title}, "
            f"test accuracy {manifest.results['test_accuracy']:.1%}",
            "recipe": manifest.training,
            "measurement": "margin, no NTK scaling",
            "halves": settings["budget"],
            "seeds": SEEDS,
        },
        values={"rows": rows, "ceilings": ceilings},
        finding=finding(rows, ceilings),
    )


def finding(rows: Sequence[dict[str, Any]], ceilings: dict[str, Any]) -> str:
    """Return a sentence on which scores predict best, target by target."""
    known = [name for name in TARGETS if measurable(ceilings[name])]
    most = {name: f" of at most {ceilings[name]['most']:.2f}" for name in known}
    parts = [f"{_best(rows, name)}{most.get(name, '')} for the {name}" for name in TARGETS]
    unknown = [f"the {name}" for name in TARGETS if name not in known]
    return f"The best LDS: {'; '.join(parts)}." + (
        f" For {' and '.join(unknown)} the seeds do not agree enough to tell the most that a score could reach; more "
        "halves would."
        if unknown
        else ""
    )


def measurable(ceiling: dict[str, Any]) -> bool:
    """Return whether seeds agree by more than the standard error of their agreement, so that "most" means something."""
    return ceiling["error"] is not None and ceiling["mean"] > ceiling["error"]


def _best(rows: Sequence[dict[str, Any]], name: str) -> str:
    row = max(rows, key=lambda row: row[name]["mean"])
    if row[name]["mean"] < _MEANT:
        return "none"
    return f"{title(row)} {row[name]['mean']:.2f}"


def title(row: dict[str, Any]) -> str:
    """Return the name of a row: the method's, and how its scores are summed where that is not usual."""
    return METHODS[row["method"]].title + ("" if row["sum"] == "signed" else f" ({row['sum']})")
