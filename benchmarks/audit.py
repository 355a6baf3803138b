"""Where the audit of a poisoned training set fails: attacks from a few images a class to as many as the honest ones."""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.network import Say
from natscope.core.analysis.audit import suspicion
from natscope.core.metrics import average_precision
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.training.train import TrainingSpec

_EACH = (3, 7, 15, 50, 150, 500, 750)  # poisoned images a class, of 1,500
_SEED = 5  # another than the score was chosen on


def run(say: Say) -> None:
    say(
        "Attacks on the embedded data; planted first: planted images among as many first suspects as there are planted."
    )
    say(f"{'a class':>8} {'attack':>8} {'accuracy':>9} {'AP':>6} {'planted first':>14} {'chance':>7}")
    for each in _EACH:
        spec = BuildSpec(poison=PoisonSpec(rate=each / 1500, seed=_SEED), training=TrainingSpec(seed=_SEED), methods=())
        with tempfile.TemporaryDirectory() as folder:
            attributor = open_attributor(build(spec, Path(folder) / "bundle").path)
            scores = np.nan_to_num(suspicion(attributor), nan=-1.0)
            manifest = attributor.bundle.manifest
            planted = np.array(manifest.poison["train_indices"])  # type: ignore[index]
        order = np.argsort(-scores, kind="stable")
        first = np.isin(order[: len(planted)], planted).mean()
        say(
            f"{each:>8} {manifest.results['attack_success']:>8.1%} {manifest.results['test_accuracy']:>9.1%} "
            f"{average_precision(order, planted):>6.3f} {first:>14.1%} {len(planted) / len(scores):>7.1%}"
        )
