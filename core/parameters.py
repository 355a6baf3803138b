"""What each parameter of a network is: its role, and over how many inputs a unit of its layer sums (its fan-in).

Both come from the module that owns the parameter, of whatever subclass, and never from the way in which its Jacobian is
computed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from natscope.core.text import few

WEIGHTS, BIASES, NORMALISATION, EMBEDDINGS = ROLES = ("weights", "biases", "normalisation", "embeddings")
LINEAR = "linear"  # in place of a pattern: all parameters of `Linear` layers
KAIMING_GAIN = 2.0**0.5
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # their weights are (in, out / groups, ...)
_NORMALISING = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_WEIGHTED = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase)
_MUCH = 0.5  # of a kernel, from what is not a weight
_LISTED = 5  # names in a message


@dataclass(frozen=True)
class Parameter:
    """A parameter that belongs to the kernel.

    Args:
        name: its name in the network.
        role: one of `ROLES`.
        fan_in: inputs that a unit sums over; 1 for whatever is not a weight.
    """

    name: str
    role: str
    fan_in: int = 1

    def scale(self, *, ntk: bool) -> float:
        """Return the factor of its Jacobian: sqrt(2 / fan_in) for weights in the NTK parameterisation, else 1.

        It is the NTK parameterisation of Kaiming-normal layers (Jacot et al. 2018); predictions are not changed.
        """
        return KAIMING_GAIN / self.fan_in**0.5 if ntk and self.role == WEIGHTS else 1.0


def kernel_parameters(model: nn.Module, layers: Sequence[str] = ()) -> dict[str, Parameter]:
    """Return the parameters that the kernel is made of, by name, in the order of `named_parameters`.

    Args:
        model: the network.
        layers: glob patterns of parameter names, such as "head.*" or "*.weight", or `LINEAR`; all parameters when there
            are none.

    Returns:
        Those that require gradients and that a pattern matches: the others are not the network's to move.

    Raises:
        ValueError: if no parameter is left, or a pattern matches none.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError("All parameters of the network are frozen (requires_grad is False), so it has no Jacobian.")
    linear = {
        f"{path}.{own}" if path else own
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for own, _ in module.named_parameters(recurse=False)
    }

    def matches(name: str, pattern: str) -> bool:
        return name in linear if pattern == LINEAR else fnmatchcase(name, pattern)

    for pattern in layers:
        if not any(matches(name, pattern) for name in names):
            there = few(names, _LISTED)
            raise ValueError(f"No parameter that requires gradients is called '{pattern}'; there are {there}.")
    known = {parameter.name: parameter for parameter in _described(model)}
    return {name: known[name] for name in names if not layers or any(matches(name, p) for p in layers)}


def weights_alone(model: nn.Module, layers: Sequence[str] = ()) -> bool:
    """Return whether a kernel is of weights alone: attribution is then better in the NTK parameterisation.

    Biases and affine parameters of normalisation have no fan-in, so that scaling the weights down leaves a kernel of
    little else.
    """
    return all(parameter.role == WEIGHTS for parameter in kernel_parameters(model, layers).values())


def composition(shares: Mapping[str, float]) -> str:
    """Return what a kernel is made of in words, such as "weights 98%, biases 2%", the largest first."""
    order = sorted(shares, key=lambda role: -shares[role])
    return ", ".join(f"{role} {shares[role]:.1%}" for role in order)


def imbalance(shares: Mapping[str, float], whole: Mapping[str, float] | None = None) -> str | None:
    """Return a sentence if a kernel says little about what most of a network learnt; None otherwise.

    Args:
        shares: share of each role of the kernel's mean ||J||^2.
        whole: the same of all parameters, where the kernel is of some of them.
    """
    others = {role: share for role, share in shares.items() if role != WEIGHTS}
    outside = {role: share for role, share in (whole or {}).items() if role not in shares}
    if sum(others.values()) > _MUCH:
        most = max(others, key=lambda role: others[role])
        return (
            f"{sum(others.values()):.0%} of the kernel is not of weights, most of it of {most}: attributions then say "
            "little about what most of the network learnt. Another --ntk (ntk= in Python), or --layers (layers=) with "
            "the parameters that matter, may be better."
        )
    if sum(outside.values()) > _MUCH:
        most = max(outside, key=lambda role: outside[role])
        usual = ", which the paper leaves out too" if most == EMBEDDINGS else ""
        return (
            f"{sum(outside.values()):.0%} of ‖J‖² of all parameters lies outside the kernel, most of it in {most}"
            f'{usual}: attributions say nothing of what these learnt; --layers "*" (layers= in Python) takes them in.'
        )
    return None


def _described(model: nn.Module) -> Iterator[Parameter]:
    for path, module in model.named_modules():
        for own, value in module.named_parameters(recurse=False):
            yield Parameter(f"{path}.{own}" if path else own, *_role(module, own, value))


def _role(module: nn.Module, name: str, value: Tensor) -> tuple[str, int]:
    if isinstance(module, _NORMALISING):
        return NORMALISATION, 1
    if name == "bias" or name.startswith("bias_") or name.endswith("_bias") or "_bias_" in name:
        return BIASES, 1
    if isinstance(module, _TRANSPOSED):
        return WEIGHTS, module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, _WEIGHTED):
        return WEIGHTS, value[0].numel()
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or (value.dim() > 1 and len(value) == 1):
        return EMBEDDINGS, 1  # a table, or one row that is added to every input, as tokens and positions are
    # What is left belongs to a layer of somebody's own: a matrix is a weight, a vector scales or shifts channels.
    return (WEIGHTS, value[0].numel()) if sum(size > 1 for size in value.shape) > 1 else (NORMALISATION, 1)
