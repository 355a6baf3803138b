"""The choice of sigma2: on images that no experiment reports, by what removing a ranking's first images does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.attribution import Attributor, Progress
from core.bundle import MANIFEST, Manifest, write_atomically
from core.curves import sample_queries
from core.errors import QueryError
from core.methods import METHODS
from precompute.attributor import open_attributor
from precompute.experiments.brittleness import rank, share_and_error
from precompute.experiments.provenance import provenance
from precompute.kept import Kept
from precompute.removal import Ladder, answer, climb_all
from precompute.retrain import recipe_of

SIGMA2S = tuple(10.0**exponent for exponent in range(-6, 6))  # the paper's grid
QUERIES, BUDGET = 10, 50


def tune(
    path: Path, *, queries: int, budget: int, seed: int, methods: Sequence[str], kept: Kept, progress: Progress
) -> dict[str, Any]:
    """Choose each method's sigma2: the one at which removing its first images costs held-out queries most margin.

    Args:
        path: of the bundle.
        queries: how many test images, all held out: experiments report others.
        budget: how many images are removed.
        seed: of the drawing of test images.
        methods: that use sigma2.
        kept: where finished trainings are; rankings that remove the same images share one.
        progress: called at every ranking and after every training.

    Returns:
        Settings, versions, the chosen sigma2 of each method (the smallest of the best), and the score at every sigma2:
        the margin lost, in log odds, its mean and standard error over queries.

    Raises:
        QueryError: if a method does not use sigma2, or there are too few queries.
        BuildError: if the bundle's weights were loaded, so that nobody knows how they were trained.
    """
    for name in methods:
        if not METHODS[name].uses_sigma2:
            raise QueryError(f"{METHODS[name].title} does not use σ², so there is nothing to choose.")
    attributor = open_attributor(path)
    recipe_of(attributor.bundle)
    images = sample_queries(attributor, queries, seed=seed, part="held out")
    before = np.array(
        [answer(attributor.bundle, attributor.features.model, i.image, i.predicted).margin for i in images]
    )
    asked: list[tuple[str, float]] = [(name, sigma2) for name in methods for sigma2 in SIGMA2S]
    ladders = []
    for name, sigma2 in asked:
        rankings = rank(attributor, images, {name: sigma2}, budget=budget, kept=kept, progress=progress)[name]
        ladders += [
            Ladder(image.index or 0, image.predicted, ranking, (budget,), stop=False)
            for image, ranking in zip(images, rankings, strict=True)
        ]
    workers = torch.get_num_threads()
    climbed = climb_all(attributor.bundle, ladders, kept=kept, workers=workers, progress=progress)
    after = np.array([answers[0].margin for answers in climbed]).reshape(len(asked), len(images))
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for (name, sigma2), margins in zip(asked, after, strict=True):
        curves[name].append({"sigma2": sigma2} | share_and_error(before - margins))
    return _result(attributor, curves, queries=queries, budget=budget, seed=seed)


def best(curve: Sequence[dict[str, Any]]) -> float:
    """Give the sigma2 with the highest score, the smallest of several."""
    return float(curve[int(np.argmax([point["mean"] for point in curve]))]["sigma2"])


def record(path: Path, result: dict[str, Any]) -> None:
    """Write what was chosen into a bundle's manifest, in one step: from then on it is the default for this bundle."""
    file = path / MANIFEST
    manifest = Manifest.from_json(file.read_text(encoding="utf-8"))
    known = (manifest.tuned or {}).get("sigma2", {})
    tuned = {"sigma2": known | result["sigma2"], "score": result["score"], "date": result["date"]}
    write_atomically(file, replace(manifest, tuned=tuned).to_json().encode())


def _result(attributor: Attributor, curves: dict[str, list[dict[str, Any]]], **settings: int) -> dict[str, Any]:
    chosen = {name: best(curve) for name, curve in curves.items()}
    told = ", ".join(f"{METHODS[name].title} {sigma2:g}" for name, sigma2 in chosen.items())
    made = provenance("tune", [attributor], settings, methods=list(curves))
    made["setting"] |= {"pool": "same-class"}
    return made | {
        "score": f"margin lost without the first {settings['budget']}, mean of {settings['queries']} test images",
        "sigma2": chosen,
        "curves": curves,
        "finding": f"Removing the first {settings['budget']} images costs most margin at σ² = {told}.",
    }
