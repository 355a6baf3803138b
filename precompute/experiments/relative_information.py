"""Figure 2 of the paper: how much of greedy InfoLoss's information InfoGain and its approximation recover."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from natscope.core.analysis.curves import Curve, Line, relative_curves, sample_queries
from natscope.core.bundle.attributor import Attributor
from natscope.core.methods import GAINS, METHODS
from natscope.core.progress import Progress
from natscope.precompute.bundles.opening import open_only
from natscope.precompute.experiments.result import Result, result_of
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.result_cache import ResultCache

SIGMA2S = (1.0, 10.0, 1e2, 1e3, 1e4, 1e5)
FIXED = 1e3


def run_on(bundles: Sequence[Path], *, cache: ResultCache, **settings: Any) -> Result:
    """Open the one bundle that this experiment is about and `run` it; it takes a minute, so nothing is cached.

    Raises:
        QueryError: if there are several bundles.
    """
    return run(open_only(bundles), **settings)


def run(
    attributor: Attributor, *, queries: int, budget: int, seed: int, conditioning: str = "train", progress: Progress
) -> Result:
    """Measure relative information against M, the mean over queries.

    Args:
        attributor: the opened bundle; the paper's has two classes and a network of three layers.
        queries: how many test images to use, all of them predicted right.
        budget: the size of the largest subset.
        seed: seed of the choice of test images.
        conditioning: "train" or "pool", the D of which information is measured.
        progress: called at every ranking.

    Returns:
        Settings, versions, and both panels' curves.

    Raises:
        QueryError: if there are too few such images, or nothing to compare.
    """
    manifest = attributor.bundle.manifest
    cheaper = [name for name, method in METHODS.items() if method.approximates == GAINS[0]]
    upper = [Line(GAINS[0], sigma2) for sigma2 in SIGMA2S]
    lower = [Line(name, FIXED) for name in (GAINS[0], *cheaper)]
    lines = list(dict.fromkeys([*upper, *lower]))
    images = sample_queries(attributor, queries, seed=seed)
    curves = relative_curves(attributor, images, lines, largest=budget, conditioning=conditioning, progress=progress)
    by_line = {curve.line: curve for curve in curves}
    classes = ", ".join(attributor.bundle.classes)
    features = np.stack([attributor.query_features(query, query.predicted) for query in images])
    panels = [
        {
            "title": f"{METHODS[GAINS[0]].title} at several σ²",
            "by": "sigma2",
            "curves": [by_line[line].to_dict() for line in upper],
        },
        {"title": "At σ² = 10³", "by": "method", "curves": [by_line[line].to_dict() for line in lower]},
    ]
    return result_of(
        "relative-information",
        [attributor],
        {"queries": queries, "budget": budget, "seed": seed},
        conditioning=conditioning,
        setting={
            "data": f"{manifest.dataset['name']}, {classes}, {len(attributor.train_labels):,} training examples",
            "network": f"{ModelSpec.from_dict(manifest.model).title}, "
            f"test accuracy {manifest.results['test_accuracy']:.1%}",
            "queries": len(images),
            "query_indices": [query.index for query in images],
            "largest": len(curves[0].mean),
            "pool": "same-class",
            "mean_prior_variance": float(attributor.kernel.diagonal(features).mean()),
        },
        values={"panels": panels},
        finding=finding([by_line[line] for line in upper], [by_line[line] for line in lower]),
    )


def finding(upper: Sequence[Curve], lower: Sequence[Curve]) -> str:
    """Return a sentence on whether the paper's two claims hold: least share above 10^4, and the gap at 10^3."""
    large = [curve for curve in upper if curve.line.sigma2 >= 1e4]
    least = min(float(curve.mean.min()) for curve in large)
    gap = float(np.abs(lower[0].mean - lower[1].mean).max())
    small = upper[0]
    title = METHODS[GAINS[0]].title
    return (
        f"At σ² of 10⁴ and above, subsets of {title} carry at least {least:.1%} at every M. At σ² = 10³ the "
        f"approximation stays within {100 * gap:.1f} points of {title}, which carries {lower[0].mean.min():.1%} or "
        f"more. At σ² = {small.line.sigma2:g} it is {small.mean[-1]:.0%} with {len(small.mean)} examples."
    )
