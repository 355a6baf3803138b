"""Tangent features: the sketched Jacobian of a measurement at examples, for training data and queries alike."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from natscope.core.blocks import Block, Outer, squared_norm
from natscope.core.device import device_of
from natscope.core.examples import Inputs, batches
from natscope.core.jacobians import exclusive, forward_with_penultimate, jacobian_blocks, linear_alone
from natscope.core.kernels import FactorKernel, Kernel, LinearKernel
from natscope.core.parameters import ROLES, kernel_parameters
from natscope.core.peak import bytes_each
from natscope.core.sketches import Sketch, SketchSpec, make_sketch

SHARD = 1000  # examples that are computed, or written to a bundle, at a time
_LARGEST_SHARD = 2**26  # bytes
_BATCH = 64  # for networks of other layers than `Linear`: some 10 MB an example for a ResNet-9
_MOST = 2**30  # bytes that the Jacobians of a batch may take beyond those of one example
_ON_ACCELERATOR = 4  # times as many of both
_FEW = 4  # examples that need no measuring


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives: logits (B, C) and penultimate features (B, D), both float32."""

    logits: np.ndarray
    penultimate: np.ndarray


class FeatureMap:
    """A trained network and a sketch: maps examples and classes to features; the same numbers on every call.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 3))
        >>> tangent = natscope.FeatureMap(model, natscope.SketchSpec(dim=256), ntk=False)
        >>> tangent.features(torch.randn(8, 20), np.zeros(8)).shape  # of the logit of class 0
        (8, 256)
    """

    def __init__(
        self,
        model: nn.Module,
        spec: SketchSpec,
        *,
        ntk: bool,
        layers: Sequence[str] = (),
        batch_size: int = SHARD,
        measured: bool = False,
    ) -> None:
        """Put the model in eval mode and fix the sketch.

        Args:
            model: the trained network, on the device where features are to be computed.
            spec: the sketch.
            ntk: whether weight blocks are scaled as in the NTK parameterisation.
            layers: glob patterns of the names of parameters that the kernel is made of; all when there are none.
            batch_size: examples whose Jacobian is in memory at a time, at most; fewer where they would take more than a
                gigabyte, or four on an accelerator, which is measured on two of the first inputs.
            measured: take so many without measuring, as where it was measured in another process.

        Raises:
            ValueError: if the sketch cannot be made.
        """
        model.eval()
        self.model = model
        self.sketch: Sketch = make_sketch(spec)
        self.ntk, self.layers = ntk, tuple(layers)
        self._device = device_of(model)
        self._times, self._measured = 1 if self._device.type == "cpu" else _ON_ACCELERATOR, measured
        free = measured or linear_alone(model)
        self.batch_size = batch_size if free else min(batch_size, _BATCH * self._times)

    def features(
        self, inputs: Tensor | Inputs, targets: Tensor | np.ndarray, *, measurement: str = "logit"
    ) -> np.ndarray:
        """Return (N, W) float32 features of the measurement at `targets` (N,) for inputs (N, ...).

        Raises:
            ValueError: if there are no inputs, or not one target for each.
        """
        # A bundle's labels are read-only, which tensors cannot be: torch warns unless it gets a copy.
        targets = targets.long() if isinstance(targets, Tensor) else torch.from_numpy(np.array(targets, dtype=np.int64))
        if len(targets) != len(inputs):
            raise ValueError(f"There are {len(inputs):,} inputs and {len(targets):,} targets; each input needs one.")
        self._fit(inputs, targets)
        found: np.ndarray | None = None
        for part in batches(inputs, self.batch_size):
            with exclusive(self.model):  # so that only one batch's Jacobians are in memory, whoever asks
                rows = self._sketched(inputs[part], targets[part], measurement).cpu().numpy()
            found = np.empty((len(inputs), rows.shape[1]), rows.dtype) if found is None else found
            found[part] = rows
        if found is None:
            raise ValueError("There are no inputs, so there are no features.")
        return found

    def _sketched(self, inputs: Tensor, targets: Tensor, measurement: str = "logit") -> Tensor:
        return self.sketch(self._blocks(inputs.to(self._device), targets.to(self._device), measurement))

    def _fit(self, inputs: Tensor | Inputs, targets: Tensor) -> None:
        """Take fewer examples at a time if their Jacobians need too much memory; it is measured once."""
        if self._measured or len(inputs) <= _FEW:
            return
        largest = next(batches(inputs, 2))
        some, classes = inputs[largest], targets[largest]
        with exclusive(self.model):
            self._sketched(some[:1], classes[:1])  # what is kept from the first time on does not count
            each = bytes_each(lambda count: self._sketched(some[:count], classes[:count]), 1, 2)
        self.batch_size = max(1, min(self.batch_size, int(_MOST * self._times / max(each, 1))))
        self._measured = True

    def outputs(self, inputs: Tensor | Inputs) -> Outputs:
        """Return logits and penultimate features for inputs (N, ...)."""
        parts = list(batches(inputs, self.batch_size))
        pairs = [forward_with_penultimate(self.model, inputs[part].to(self._device)) for part in parts]
        logits, penultimate = (np.concatenate([t.cpu().numpy() for t in found]) for found in zip(*pairs, strict=True))
        order = np.argsort(np.concatenate([np.arange(len(inputs))[part] for part in parts]))
        return Outputs(logits[order], penultimate[order])

    def shares(self, inputs: Tensor | Inputs, targets: np.ndarray) -> dict[str, float]:
        """Return how much of the kernel each role of parameters holds, of the mean of ||J||^2 over inputs (N, ...).

        Args:
            inputs: (N, ...).
            targets: (N,) int64, the class whose logit is measured.

        Returns:
            A share for each of `natscope.core.parameters.ROLES` that the kernel has; they add up to 1.
        """
        roles = {name: parameter.role for name, parameter in kernel_parameters(self.model, self.layers).items()}
        total: dict[str, float] = defaultdict(float)
        classes = torch.from_numpy(np.array(targets))
        self._fit(inputs, classes)
        for part in batches(inputs, min(_BATCH, self.batch_size)):
            batch = inputs[part].to(self._device)
            with exclusive(self.model):
                for block in self._blocks(batch, classes[part].to(self._device), "logit"):
                    total[roles[block.name]] += squared_norm(block)
        whole = sum(total.values())
        return {role: total[role] / whole if whole else 0.0 for role in ROLES if role in total}

    def _blocks(self, inputs: Tensor, targets: Tensor, measurement: str = "logit") -> list[Block]:
        return jacobian_blocks(self.model, inputs, targets, measurement=measurement, ntk=self.ntk, layers=self.layers)

    def layout(self, example: Tensor) -> tuple[tuple[int, int], ...] | None:
        """Return the (fan_out, fan_in) of every layer if all parameters are weights of `Linear` layers, else None.

        Args:
            example: (1, ...), any input.
        """
        blocks = self._blocks(example.to(self._device), torch.zeros(1, dtype=torch.int64, device=self._device))
        return tuple(b.shape for b in blocks) if all(isinstance(b, Outer) for b in blocks) else None


def composition_of(features: FeatureMap, inputs: Tensor | Inputs, targets: np.ndarray) -> dict[str, dict[str, float]]:
    """Return `FeatureMap.shares` of the kernel and, as "whole", of all parameters where the kernel is of some."""
    shares = features.shares(inputs, targets)
    every = FeatureMap(features.model, features.sketch.spec, ntk=features.ntk)
    return {"shares": shares} | ({"whole": every.shares(inputs, targets)} if features.layers else {})


def kernel_of(spec: SketchSpec, layout: tuple[tuple[int, int], ...] | None) -> Kernel:
    """Return the kernel that multiplies a sketch's features; the exact one needs the layers' layout."""
    if spec.kind != "exact":
        return LinearKernel()
    if layout is None:
        raise ValueError("The exact kernel needs a network of Linear weights alone.")
    return FactorKernel(layout)


def shards(shape: Sequence[int], dtype: np.dtype) -> Iterator[slice]:
    """Yield the rows of an array that are computed, and written to a bundle, at a time."""
    step = max(1, min(SHARD, _LARGEST_SHARD // max(1, dtype.itemsize * math.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
