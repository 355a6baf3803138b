"""Architectures by name, and their initial weights."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init

from core.errors import BuildError


@dataclass(frozen=True)
class ModelSpec:
    """A network without its weights.

    Args:
        architecture: a key of `ARCHITECTURES`.
        widths: units of each layer, from the input's pixels to the classes.
        bias: whether layers have biases.
    """

    architecture: str = "mlp"
    widths: tuple[int, ...] = (784, 512, 256, 10)
    bias: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-able values."""
        return asdict(self) | {"widths": list(self.widths)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Undo `to_dict`; raises TypeError if a key is unknown."""
        spec = cls(**values)
        return cls(spec.architecture, tuple(spec.widths), spec.bias)


def build_model(spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build a network with Kaiming-normal weights, N(0, 2 / fan_in), and zero biases, drawn from `seed` alone.

    Raises:
        BuildError: if the architecture is unknown or the widths make no network.
    """
    if spec.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise BuildError(f"There is no architecture {spec.architecture!r}; choose one of: {known}.")
    model = ARCHITECTURES[spec.architecture](spec)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def _mlp(spec: ModelSpec) -> nn.Module:
    widths = spec.widths
    if len(widths) < 2 or not all(type(width) is int and width > 0 for width in widths):
        raise BuildError(
            f"Widths must be two or more positive whole numbers, from pixels to classes, not {list(widths)}."
        )
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [skip_init(nn.Linear, fan_in, fan_out, bias=spec.bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


ARCHITECTURES: dict[str, Callable[[ModelSpec], nn.Module]] = {"mlp": _mlp}
