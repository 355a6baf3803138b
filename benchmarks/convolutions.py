"""The Jacobian pass of a ResNet-9 against an epoch of training, and its sketch against the exact kernel."""

import resource

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from benchmarks.network import Say, seconds
from natscope.core.features import FeatureMap
from natscope.core.images import ImageInputs
from natscope.core.jacobians import jacobian_blocks
from natscope.core.sketches import SketchSpec
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.train import TrainingSpec, train

_COUNT = 2048  # images of noise: what they show changes no time
_JUDGED = 128  # images whose exact kernel is formed


def run(say: Say) -> None:
    """Print examples a second, ratios, memory and errors."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (_COUNT, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, _COUNT)
    inputs = ImageInputs(images, (0.5,) * 3, (0.25,) * 3)
    model = build_model(ModelSpec("resnet9", (3, 10)), seed=0)
    plain, _ = seconds(lambda: _epoch(model, inputs, labels, "float32"))
    fast, _ = seconds(lambda: _epoch(model, inputs, labels, "bfloat16"))
    features = FeatureMap(model, SketchSpec(), ntk=True)
    features.features(inputs[:64], labels[:64])
    before = _peak()
    ours, found = seconds(lambda: features.features(inputs, labels))
    grown = _peak() - before
    each, _ = seconds(lambda: _one_by_one(model, inputs[:32], torch.from_numpy(labels[:32])))
    say(f"ResNet-9, {_COUNT:,} images of 32 × 32 pixels, K = {found.shape[1]}")
    say(f"{'':<52}{'images/s':>9}{'÷ epoch':>9}")
    for title, took, count in (
        ("one epoch of plain training, float32", plain, _COUNT),
        ("one epoch of plain training, bfloat16", fast, _COUNT),
        ("Jacobians and their sketch", ours, _COUNT),
        ("Jacobians alone by torch.func's vmap(grad)", each, 32),
    ):
        say(f"{title:<52}{count / took:>9.0f}{took / count / (plain / _COUNT):>9.2f}")
    mebi = 2**20
    say(f"memory of the pass beyond the peak of training: {grown / mebi:.0f} MiB, its result {found.nbytes / mebi:.0f}")
    _errors(say, features, inputs[:_JUDGED], labels[:_JUDGED], found[:_JUDGED])


def _epoch(model: torch.nn.Module, inputs: ImageInputs, labels: np.ndarray, precision: str) -> None:
    recipe = TrainingSpec(epochs=1, batch_size=512, learning_rate=1e-3, decay_epochs=0, precision=precision)
    train(model, inputs, torch.from_numpy(labels), recipe)


def _one_by_one(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def logit(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional_call(model, values, (x[None],))[0].gather(0, y[None])[0]

    vmap(grad(logit), in_dims=(None, 0, 0))(parameters, inputs, labels)


def _errors(say: Say, features: FeatureMap, inputs: torch.Tensor, labels: np.ndarray, found: np.ndarray) -> None:
    blocks = jacobian_blocks(features.model, inputs, torch.from_numpy(labels), ntk=True)
    exact = sum((flat := block.form().flatten(1)) @ flat.T for block in blocks).double().numpy()  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        rough = features.features(inputs, labels)
    say(f"relative Frobenius error of the Gram of {len(labels)} images against the exact kernel")
    for title, rows in (("float32", found), ("network under bfloat16 autocast", rough)):
        gram = rows.astype(np.float64) @ rows.T.astype(np.float64)
        say(f"{title:<52}{np.linalg.norm(gram - exact) / np.linalg.norm(exact):>9.4f}")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
