"""Which sigma2, as a multiple of the kernel's scale, finds what small networks of three kinds lean on most."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from benchmarks.network import Say
from natscope.core.bundle.format import GRID
from natscope.core.methods import METHODS
from natscope.core.parameters import composition
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.experiments.tuning import tune
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.train import TrainingSpec

_NAMES = ("info_loss", "info_gain")
_EACH, _EPOCHS = 150, 12  # training images of a class, so that a network is trained in a second or two


def convolutions() -> nn.Module:
    """Return a network of convolutions with biases."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 10),
    )


def normalised() -> nn.Module:
    """Return the same with batch norms."""
    layers = list(convolutions())
    for position, channels in ((5, 64), (3, 32), (1, 16)):
        layers.insert(position, nn.BatchNorm2d(channels))
    return nn.Sequential(*layers)


MODELS = {
    "MLP": ModelSpec(),
    "convolutions": ModelSpec(f"{__name__}:convolutions", None),
    "convolutions and batch norms": ModelSpec(f"{__name__}:normalised", None),
}


def run(say: Say, folder: Path, *, queries: int = 10, budget: int = 50) -> None:
    """Print the margin lost without a method's first images at every ratio.

    Args:
        say: prints a line.
        folder: where bundles and finished trainings are kept, so that a run that was stopped resumes.
        queries: held-out test images.
        budget: how many images are removed.
    """
    curves: dict[str, list[np.ndarray]] = {name: [] for name in _NAMES}
    for title, model in MODELS.items():
        for ntk in (True, False):
            path = folder / f"{title.replace(' ', '-')}-{'ntk' if ntk else 'plain'}"
            spec = BuildSpec(
                per_class=_EACH,
                model=model,
                training=TrainingSpec(epochs=_EPOCHS),
                sketch=SketchSpec(dim=1024),
                ntk=ntk,
                methods=_NAMES,
            )
            manifest = build(spec, path).manifest
            kernel = manifest.results["kernel"]
            say(f"{title}, {'scaled' if ntk else 'not scaled'}: accuracy {manifest.results['test_accuracy']:.1%}, ")
            say(f"  mean k(x, x) {kernel['mean']:.3g}, {composition(kernel['shares'])}")
            found = tune(
                path,
                queries=queries,
                budget=budget,
                seed=0,
                methods=_NAMES,
                conditioning="pool",  # convolutions hold features of their images' own classes alone
                cache=ResultCache(folder / f"{path.name}.json"),
                progress=lambda stage, done, total: None,
            ).to_dict()
            for name in _NAMES:
                lost = np.array([point["mean"] for point in found["curves"][name]])
                error = np.array([point["error"] for point in found["curves"][name]])
                curves[name].append(lost / max(lost.max(), 1e-9))
                say(_row(f"  {METHODS[name].title}", lost) + f"   ± {error.mean():.2f}")
    say("\nMean over all, relative to each one's best, by ratio")
    say(_row("  σ² / scale", [10.0**exponent for exponent in GRID], "g"))
    for name, found_ in curves.items():
        say(_row(f"  {METHODS[name].title}", np.mean(found_, axis=0)))


def _row(title: str, values: Sequence[float] | np.ndarray, kind: str = ".2f") -> str:
    return f"{title:<14}" + "".join(f"{value:>8{kind}}" for value in values)
