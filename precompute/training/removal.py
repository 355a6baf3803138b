"""Counterfactuals: what a network says of an image after it is retrained without some of its training images."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from natscope.core.bundle.format import Bundle
from natscope.core.examples import Examples, digest_of
from natscope.core.measurements import margin
from natscope.core.progress import Progress
from natscope.precompute.training.models import ModelSpec, network_of
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import data_of, recipe_of, retrain
from natscope.precompute.training.together import at_once, suits, train_together
from natscope.precompute.training.train import logits_of
from natscope.precompute.training.trusted import find
from natscope.precompute.training.workers import side_by_side

_STAGE = "Training without what was found"
# By which results in a cache were found, of inputs of one length and of others.
_RULES = ("what is left out is missing from its batch", "and each batch goes through in parts of like length")


@dataclass(frozen=True)
class Answer:
    """What a network says of one image.

    Args:
        predicted: the class of the largest logit.
        probability: probability of the class that is asked about, 0 to 1.
        margin: margin of that class, z_c - logsumexp(z over the others), its log odds; negative once another wins.
    """

    predicted: int
    probability: float
    margin: float


@dataclass(frozen=True)
class Schedule:
    """Removals for one image, each more than the one before.

    Args:
        index: number of the test image.
        target: the class that is asked about: what the network says before anything is removed.
        ranking: training indices, the first to be removed first.
        grid: how many of them are removed, rising.
        stop: whether to end once the prediction changes (Tailor et al., figure 3: a flip at M counts for all larger M).
    """

    index: int
    target: int
    ranking: tuple[int, ...]
    grid: tuple[int, ...]
    stop: bool = True

    @property
    def key(self) -> str:
        """A name of everything that its answers depend on: the set removed at each step, not its order."""
        digest = hashlib.sha256(f"{self.index} {self.target} {self.stop}".encode())
        for count in self.grid:
            digest.update(f" {sorted(self.ranking[:count])}".encode())
        return digest.hexdigest()[:24]


def identity_of(bundle: Bundle) -> str:
    """Return a name of all on which a training depends, or what is measured and said of its result: also of the code.

    Raises:
        BuildError: if the module of the network is not found.
        BundleError: if it is not trusted.
    """
    manifest = bundle.manifest
    own = [f"{split}_{name}" for split in ("train", "test") for name in (*manifest.shapes(split), "labels")]
    names = ("weights", *own, *manifest.modality.files)
    files = [manifest.files[name].sha256 for name in names]
    network = ModelSpec.from_dict(manifest.model)
    code = find(network.architecture, bundle).digest if ":" in network.architecture else None
    rules = _RULES[: 1 if bundle.inputs("train").lengths is None else 2]
    text = json.dumps([files, manifest.training, manifest.dataset, manifest.model, code, *rules], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def name_of(example: Examples, target: int, rows: Sequence[int]) -> str:
    """Return a name of what is asked about an example after some training examples are removed, in any order."""
    return hashlib.sha256(f"{digest_of(example)} {target} {sorted(rows)}".encode()).hexdigest()[:24]


def as_many_others(pool: Sequence[int] | np.ndarray, found: Sequence[int] | np.ndarray) -> np.ndarray:
    """Draw as many training images of a pool as were found in it, none of which was found, always the same ones.

    Args:
        pool: (n,) training indices.
        found: at most half of them.
    """
    others = np.setdiff1d(pool, found)
    return np.random.default_rng(0).choice(others, len(found), replace=False)


def answer(model: nn.Module, example: Examples, target: int) -> Answer:
    """Ask a network about an example, alone, and a class."""
    logits = torch.from_numpy(logits_of(model, example.inputs)).double()
    return Answer(
        predicted=int(logits.argmax()),
        probability=float(torch.softmax(logits, dim=1)[0, target]),
        margin=float(margin(logits, torch.tensor([target]))[0]),
    )


def without(
    bundle: Bundle, example: Examples, target: int, rows: Sequence[int], progress: Callable[[int, int], None]
) -> Answer:
    """Retrain without some training examples and ask about an example and a class.

    Args:
        bundle: the bundle with the network and data.
        example: the example, alone.
        target: the class.
        rows: training indices.
        progress: called with epochs done and in all.

    Raises:
        BuildError: if the bundle's weights were loaded, so that nobody knows how they were trained.
    """
    return answer(retrain(bundle, np.array(rows, dtype=np.int64), progress), example, target)


def run_schedule(bundle: Bundle, schedule: Schedule, cache: ResultCache) -> list[Answer]:
    """Train once per step of a schedule, up to the first flip if it stops there.

    Args:
        bundle: the bundle with the network and data.
        schedule: what is removed, and what is asked.
        cache: where its finished steps are kept.

    Returns:
        The answers, fewer than `schedule.grid` has steps once the prediction has flipped.
    """
    example, answers = bundle.examples("test")[np.array([schedule.index])], []
    for count in schedule.grid:
        step = partial(_step, bundle, example, schedule.target, schedule.ranking[:count])
        answers.append(Answer(**cache.get(str(count), step)))
        if schedule.stop and answers[-1].predicted != schedule.target:
            break
    return answers


def _step(bundle: Bundle, example: Examples, target: int, rows: Sequence[int]) -> dict[str, Any]:
    return asdict(without(bundle, example, target, rows, lambda done, total: None))


def run_schedules(
    bundle: Bundle, schedules: Sequence[Schedule], *, cache: ResultCache, workers: int, progress: Progress
) -> list[list[Answer]]:
    """Run schedules side by side, one single-threaded process per worker; those in the cache are not run again.

    On an accelerator, small networks are trained as a stack instead: then progress is called after each epoch of one,
    and a run that is stopped loses the steps of schedules that have not ended.

    Args:
        bundle: the bundle with the network and data.
        schedules: equal ones are run once.
        cache: where finished schedules are kept; the steps of unfinished ones are in files beside it.
        workers: how many processes.
        progress: called after every schedule; it may raise to stop.
    """
    identity = identity_of(bundle)
    names = [f"{identity} removal {schedule.key}" for schedule in schedules]
    if suits(bundle):
        _as_stacks(bundle, dict(zip(names, schedules, strict=True)), cache, progress)
        return [[Answer(**values) for values in cache[name]] for name in names]
    steps = [cache.beside(name.replace(" ", "-")) for name in names]
    things = dict(zip(names, zip(schedules, steps, strict=True), strict=True))
    found = side_by_side(bundle, _outcomes, things, cache=cache, workers=workers, stage=_STAGE, progress=progress)
    for path in steps:
        path.unlink(missing_ok=True)
    return [[Answer(**values) for values in found[name]] for name in names]


def _as_stacks(bundle: Bundle, schedules: Mapping[str, Schedule], cache: ResultCache, progress: Progress) -> None:
    """Take as many schedules as a stack holds through their steps, without those that have ended; then others."""
    recipe, (inputs, labels) = recipe_of(bundle), data_of(bundle)
    tests = bundle.examples("test")
    while waiting := [name for name in schedules if name not in cache]:
        found: dict[str, list[Answer]] = {name: [] for name in waiting[: at_once(bundle)]}
        while going := [name for name in found if name not in cache]:
            done = sum(name in cache for name in schedules)
            counts = [schedules[name].grid[len(found[name])] for name in going]
            left_out = [
                np.array(schedules[name].ranking[:count], dtype=np.int64)
                for name, count in zip(going, counts, strict=True)
            ]
            model = network_of(bundle, seed=recipe.seed)
            tell = partial(_tell, progress, done, len(schedules))
            values = train_together(model, inputs, labels, recipe, left_out, tell)
            for row, name in enumerate(going):
                model.load_state_dict({key: value[row] for key, value in values.items()})
                schedule = schedules[name]
                found[name].append(answer(model, tests[np.array([schedule.index])], schedule.target))
                flipped = schedule.stop and found[name][-1].predicted != schedule.target
                if flipped or len(found[name]) == len(schedule.grid):
                    cache.get(name, partial(list, map(asdict, found[name])))
    progress(_STAGE, len(schedules), len(schedules))


def _tell(progress: Progress, done: int, total: int, epoch: int, epochs: int) -> None:
    progress(_STAGE, done, total)


def _outcomes(bundle: Bundle, thing: tuple[Schedule, Path]) -> list[dict[str, Any]]:
    schedule, steps = thing
    return [asdict(found) for found in run_schedule(bundle, schedule, ResultCache(steps))]
