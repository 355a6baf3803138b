"""Training many networks at once, as a stack: an accelerator trains hundreds of small ones in the time of a few."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from natscope.core.bundle.format import Bundle
from natscope.core.device import device, device_of, full_precision
from natscope.core.errors import BuildError
from natscope.core.examples import Inputs
from natscope.precompute.training.retrain import recipe_of
from natscope.precompute.training.train import TrainingSpec, optimizer_of, rate

_MOST = 300  # networks in a stack
_ROOM = 2**32  # bytes for their weights, gradients, momenta and activations
_ARCHITECTURE = "mlp"  # Linear layers alone: nothing is drawn, and no statistics are kept, in a forward pass


def suits(bundle: Bundle) -> bool:
    """Return whether networks of a bundle are trained as a stack: small ones, on an accelerator."""
    if device().type == "cpu" or bundle.manifest.model["architecture"] != _ARCHITECTURE:
        return False
    recipe = recipe_of(bundle)
    return (recipe.precision, recipe.augment) == ("float32", False) and at_once(bundle) > 1


def at_once(bundle: Bundle) -> int:
    """Return how many networks of a bundle, an MLP's, one stack holds."""
    widths = bundle.manifest.model["widths"]
    return min(_MOST, _ROOM // (16 * sum(fan_in * fan_out for fan_in, fan_out in pairwise(widths))))


@full_precision()
def train_together(
    model: nn.Module,
    inputs: Tensor | Inputs,
    labels: Tensor,
    spec: TrainingSpec,
    left_out: Sequence[np.ndarray],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Train from the same initial weights, in the same order of images, without other images each time.

    Up to rounding, that is what `natscope.precompute.training.train.train` does for each, one after another.

    Args:
        model: a network of Linear layers with its initial weights, which stay as they are, on the device to train on.
        inputs: (N, ...); all of them are on the device at a time.
        labels: (N,) int64.
        spec: the recipe, without augmentation and in float32.
        left_out: for each of B networks the rows of images to train without.
        progress: called with epochs done and in all.

    Returns:
        The trained parameters by name, (B, ...) each.

    Raises:
        BuildError: if the weights become infinite or NaN.
    """
    where = device_of(model)
    given, targets = inputs[:].to(where), labels.to(where)
    kept = np.ones((len(left_out), len(labels)), dtype=bool)
    for row, out in zip(kept, left_out, strict=True):
        row[out] = False
    values = {name: p.detach().repeat(len(kept), *[1] * p.dim()) for name, p in model.named_parameters()}
    optimizer = optimizer_of(values.values(), spec)
    slopes, left = vmap(grad(partial(_loss, model)), in_dims=(0, None, None, 0)), torch.from_numpy(kept).to(where)
    for epoch in range(spec.epochs):
        progress(epoch, spec.epochs)
        order = np.random.default_rng([spec.seed, epoch]).permutation(len(labels))
        batches = torch.from_numpy(order).to(where).split(spec.batch_size)
        for step, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = rate(spec, epoch + step / len(batches))
            found = slopes(values, given[batch], targets[batch], left[:, batch])
            for name, value in values.items():
                value.grad = found[name]
            optimizer.step()
    progress(spec.epochs, spec.epochs)
    if not all(torch.isfinite(value).all() for value in values.values()):
        raise BuildError("The weights became infinite or NaN; train with a smaller learning rate.")
    return values


def _loss(model: nn.Module, own: dict[str, Tensor], inputs: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Return the mean loss over what a network keeps of a batch, kept (n,) bool; 0 if that is nothing."""
    losses = cross_entropy(functional_call(model, own, (inputs,)), labels, reduction="none")
    return (losses * kept).sum() / kept.sum().clamp(min=1)
