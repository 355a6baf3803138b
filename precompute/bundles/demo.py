"""The bundles of the demo, by folder name: one clean network, one with a backdoor, and one of texts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from natscope import assets
from natscope.core.bundle.format import Bundle
from natscope.core.examples import USUAL
from natscope.core.methods import METHODS
from natscope.core.progress import Progress
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.experiments.result import TUNED, TUNED_TEXTS, choices
from natscope.precompute.experiments.tuning import read, record
from natscope.precompute.paths import DEMO
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import RECIPES

FIRST, POISONED, TEXTS = DEMO
# 50 images a class, as many as 1% of the paper's CIFAR-10. With 1% here, 15 a class, the attack works on 62 to 66%
# of test images, with 50 on 89 to 94%; the test accuracy is within 0.3 points of the honest network's either way.
RATE = 0.0333
EMBEDDED = {
    FIRST: BuildSpec(),
    POISONED: BuildSpec(
        name="Fashion-MNIST (25%) with a backdoor, MLP",
        poison=PoisonSpec(rate=RATE),
        command=f"natscope precompute --poison-rate {RATE} --name 'Fashion-MNIST (25%) with a backdoor, MLP'",
    ),
    TEXTS: BuildSpec(
        name="Which of Jane Austen’s novels?",
        dataset="austen",
        model=ModelSpec("attention", None),
        training=RECIPES["attention"],
        sketch=SketchSpec(dim=1024),
        command="natscope precompute --dataset austen --dim 1024 --name 'Which of Jane Austen’s novels?'",
    ),
}
SLOW = tuple(name for name, m in METHODS.items() if m.files and not m.artifacts.usual)


def build_embedded(
    name: str,
    out: Path,
    progress: Progress,
    *,
    methods: tuple[str, ...] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Build a bundle of the demo, or add methods to it, with the sigma2 that `natscope tune` chose.

    Args:
        name: the bundle's name.
        out: its folder.
        progress: as for `natscope.precompute.bundles.build.build`.
        methods: names to add; the usual ones when None.
        tell: likewise.

    Raises:
        BuildError, BundleError, DataError: as `natscope.precompute.bundles.build.build`.
    """
    bundle = build(replace(EMBEDDED[name], methods=methods) if methods else EMBEDDED[name], out, progress, tell=tell)
    files = [assets.path("results", result) for result in untuned(bundle)]
    for file in files:
        record(out, read(file), file.name)
    return Bundle(out) if files else bundle


def untuned(bundle: Bundle) -> list[str]:
    """Return the shipped results whose sigma2 a bundle of the demo has not taken yet."""
    tuned = TUNED if bundle.modality.name == USUAL else TUNED_TEXTS
    wanted = {p: name for p, name in tuned.items() if p != "backdoor" or bundle.manifest.poison is not None}
    missing = [name for purpose, name in wanted.items() if purpose not in choices(bundle.manifest)]
    return [name for name in missing if assets.path("results", name).exists()]
