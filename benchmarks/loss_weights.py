"""What TRAK and GradDot find of a backdoor's images, by how much these images' loss counts."""

from pathlib import Path

import numpy as np

from benchmarks.network import Say
from natscope.core.images import to_input
from natscope.core.methods.artifacts import MARGINS
from natscope.core.metrics import recall_at_k
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments.backdoor import RECALL_AT, backdoor_of, draw_queries, stamped_query

_FACTORS = (3.0, 1.0, 0.3, 0.1, 0.03)
_FEATURES = {"graddot": MARGINS, "trak": "trak_features"}


def run(say: Say, *, bundle: Path | None = None, queries: int = 100) -> None:
    """Print recall@50 with the planted images' weights 1 - p multiplied by factors, and with no weights at all.

    Both methods multiply a product of margin gradients by 1 - p of the training image, so an image that the network has
    fitted completely gets a score of 0 whatever its gradient says.

    Args:
        say: prints a line.
        bundle: a poisoned bundle that holds TRAK.
        queries: test images on which the attack works, those of `natscope evaluate backdoor`.
    """
    if bundle is None:
        say("Nothing to measure: name a poisoned bundle with --bundle, or run `natscope demo` first.")
        return
    attributor = open_attributor(bundle)
    opened, labels, backdoor = attributor.bundle, attributor.train_labels, backdoor_of(attributor.bundle)
    planted = np.isin(np.arange(len(labels)), backdoor.train_indices)
    weights = np.asarray(opened.array("trak_out_to_loss"), dtype=np.float64)
    medians = [f"{np.median(weights[rows]):.1e}" for rows in (planted, ~planted)]
    say(f"1 - p at the median: {medians[0]} of the {planted.sum()} planted images, {medians[1]} of the others")
    ways = {f"× {factor:g}": np.where(planted, factor * weights, weights) for factor in _FACTORS}
    ways["no weights"] = np.ones_like(weights)
    found: dict[tuple[str, str], list[float]] = {}
    for index, base in draw_queries(attributor, queries, seed=0):
        target = int(backdoor.targets[base])
        pool, culprits = np.flatnonzero(labels == target), set(backdoor.culprits(base).tolist())
        images, about = stamped_query(attributor, backdoor, index).example.images, opened.manifest.dataset
        inputs = to_input(images, mean=about["mean"], std=about["std"])
        margin = attributor.features.features(inputs, np.array([target]), measurement="margin")[0]
        for method, name in _FEATURES.items():
            products = np.asarray(opened.array(name)[pool]) @ margin
            for way, own in ways.items():
                ranking = pool[np.argsort(-own[pool] * products, kind="stable")]
                found.setdefault((method, way), []).append(recall_at_k(ranking.tolist(), culprits, RECALL_AT))
    say(f"recall@{RECALL_AT} of {queries} queries, planted images' 1 - p multiplied by a factor:")
    say(f"{'':<12}" + "".join(f"{way:>12}" for way in ways))
    for method in _FEATURES:
        say(f"{method:<12}" + "".join(f"{np.mean(found[method, way]):>12.3f}" for way in ways))
