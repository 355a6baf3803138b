"""The layers that are differentiated by hand: how a weight's and a bias's gradient follow from input and delta.

A rule takes the layer, its input a and the gradient delta of the measurement by its output, both with the examples
along the first axis, and returns the gradient of one parameter, (B, rows, columns), as `torch.func` would give it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Gradient = Callable[[Any, Tensor, Tensor], Tensor]
_Convolution = nn.Conv1d | nn.Conv2d
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d


@dataclass(frozen=True)
class Rule:
    """How the parameters of one type of layer are differentiated.

    Args:
        weight: the gradient of its `weight`; None for a table, of which the rows that are read are kept, `looked_up`.
        bias: the gradient of its `bias`; None if it never has one.
        axes: returns how many axes an input has at least, that of the examples included.
        factors: returns (delta, activation, patches), of which the weight's gradient is the sum over positions of
            delta (B, rows, L) times patches(activation) (B, columns, L); None where it is cheaper written out.
        everywhere: whether every place along further axes, after that of the examples, is treated alone.
    """

    weight: Gradient | None
    bias: Gradient | None
    axes: Callable[[Any], int]
    factors: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]] | None = None
    everywhere: bool = False


def follows(layer: nn.Module) -> bool:
    """Return whether a layer is differentiated by hand: it is of an exact type, and its gradient is the plain one."""
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return False
    return type(layer) in RULES and "forward" not in vars(layer)


def position_axis(layer: nn.Module, given: Tensor, length: int) -> int | None:
    """Return the axis of a layer's input that runs over a sequence of this length, at each place of which it is alone.

    None if there is no such axis, or several could be it.
    """
    rule = RULES[type(layer)]
    between = range(1, given.dim() - rule.axes(layer) + 1)
    found = [axis for axis in between if given.shape[axis] == length]
    return found[0] if rule.everywhere and len(found) == 1 else None


def positions(values: Tensor) -> Tensor:
    """Reshape a `Linear` layer's input or output at each position, (B, ..., D), to (B, D, L)."""
    return values.flatten(1, -2).transpose(1, 2)


def _linear_weight(_: nn.Linear, activation: Tensor, delta: Tensor) -> Tensor:
    return torch.einsum("b...o,b...i->boi", delta, activation)


def _linear_factors(_: nn.Linear, activation: Tensor, delta: Tensor) -> Any:
    return positions(delta), activation, positions


def _over_positions(_: nn.Module, __: Tensor, delta: Tensor) -> Tensor:
    return delta.flatten(1, -2).sum(1)[:, None, :] if delta.dim() > 2 else delta[:, None, :]


def _over_channels(_: nn.Module, __: Tensor, delta: Tensor) -> Tensor:
    return delta.reshape(*delta.shape[:2], -1).sum(-1)[:, None, :]


def _conv_weight(layer: _Convolution, activation: Tensor, delta: Tensor) -> Tensor:
    return _grouped(layer, delta.flatten(2), _patches(layer, activation))


def _conv_factors(layer: _Convolution, activation: Tensor, delta: Tensor) -> Any:
    return delta.flatten(2), activation, lambda values: _patches(layer, values)


def _transposed_weight(layer: _Transposed, activation: Tensor, delta: Tensor) -> Tensor:
    return _grouped(layer, activation.flatten(2), _seen(layer, delta, activation.shape[2:]))


def _transposed_factors(layer: _Transposed, activation: Tensor, delta: Tensor) -> Any:
    size = activation.shape[2:]
    return activation.flatten(2), delta, lambda values: _seen(layer, values, size)


def _grouped(layer: Any, rows: Tensor, patches: Tensor) -> Tensor:
    """Multiply (B, rows, L) by (B, columns, L) within each group of channels."""
    batch, _, length = patches.shape
    rows, patches = (values.reshape(batch, layer.groups, -1, length) for values in (rows, patches))
    return (rows @ patches.transpose(-1, -2)).flatten(1, 2)


def _patches(layer: _Convolution, activation: Tensor) -> Tensor:
    """Return what each position of the output sees of the input (B, C, ...): (B, C k k, L)."""
    padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        activation = functional.pad(activation, layer._reversed_padding_repeated_twice, mode=mode)
    else:
        padding = layer.padding
    return _unfolded(activation, layer, padding)


def _seen(layer: Any, delta: Tensor, size: torch.Size) -> Tensor:
    """Return what each position of the input writes to of the output (B, C, ...): (B, C k k, L)."""
    patches = _unfolded(delta, layer, layer.padding)
    if patches.shape[2] == size.numel():
        return patches
    own = zip(delta.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in own]  # the output's padding adds some
    return patches.unflatten(2, places)[(..., *map(slice, size))].flatten(2)


def _unfolded(values: Tensor, layer: Any, padding: tuple[int, ...]) -> Tensor:
    """Unfold (B, C, W) or (B, C, H, W)."""
    if values.dim() == 4:
        return functional.unfold(values, layer.kernel_size, layer.dilation, padding, layer.stride)
    kernel, dilation, stride = ((1, *own) for own in (layer.kernel_size, layer.dilation, layer.stride))
    return functional.unfold(values[:, :, None], kernel, dilation, (0, *padding), stride)


def _batch_norm_weight(layer: nn.BatchNorm2d, activation: Tensor, delta: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (activation.dim() - 2)
    mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    scaled = delta * (activation - mean.view(shape)) * (variance + layer.eps).rsqrt().view(shape)
    return _over_channels(layer, activation, scaled)


def _group_norm_weight(layer: nn.GroupNorm, activation: Tensor, delta: Tensor) -> Tensor:
    scaled = functional.group_norm(activation, layer.num_groups, eps=layer.eps)
    return _over_channels(layer, activation, delta * scaled)


def _layer_norm_weight(layer: nn.LayerNorm, activation: Tensor, delta: Tensor) -> Tensor:
    scaled = functional.layer_norm(activation, layer.normalized_shape, eps=layer.eps)
    return _over_places(layer, activation, delta * scaled)


def _rms_norm_weight(layer: nn.RMSNorm, activation: Tensor, delta: Tensor) -> Tensor:
    scaled = functional.rms_norm(activation, list(layer.normalized_shape), eps=layer.eps)
    return _over_places(layer, activation, delta * scaled)


def _normalised_axes(layer: nn.LayerNorm | nn.RMSNorm) -> int:
    return 1 + len(layer.normalized_shape)


def _over_places(layer: nn.LayerNorm | nn.RMSNorm, _: Tensor, delta: Tensor) -> Tensor:
    """Sum over all that lies between the examples and the axes that are normalised."""
    shape = tuple(layer.normalized_shape)
    summed = delta.reshape(len(delta), -1, *shape).sum(1)
    return summed.flatten(2) if len(shape) > 1 else summed[:, None]


def looked_up(layer: nn.Embedding, indices: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows of its table an embedding reads, (B, L), and their gradients, (B, L, D)."""
    rows, delta = indices.reshape(len(indices), -1).long(), delta.reshape(len(indices), -1, layer.embedding_dim)
    return rows, delta if layer.padding_idx is None else delta * (rows != layer.padding_idx)[..., None]


_CONVOLUTION = (_conv_weight, _over_channels)
_TRANSPOSED = (_transposed_weight, _over_channels)
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(_linear_weight, _over_positions, lambda _: 2, _linear_factors, everywhere=True),
    nn.Conv1d: Rule(*_CONVOLUTION, lambda _: 3, _conv_factors),
    nn.Conv2d: Rule(*_CONVOLUTION, lambda _: 4, _conv_factors),
    nn.ConvTranspose1d: Rule(*_TRANSPOSED, lambda _: 3, _transposed_factors),
    nn.ConvTranspose2d: Rule(*_TRANSPOSED, lambda _: 4, _transposed_factors),
    nn.BatchNorm1d: Rule(_batch_norm_weight, _over_channels, lambda _: 2),
    nn.BatchNorm2d: Rule(_batch_norm_weight, _over_channels, lambda _: 4),
    nn.GroupNorm: Rule(_group_norm_weight, _over_channels, lambda _: 2),
    nn.LayerNorm: Rule(_layer_norm_weight, _over_places, _normalised_axes, everywhere=True),
    nn.RMSNorm: Rule(_rms_norm_weight, None, _normalised_axes, everywhere=True),
    nn.Embedding: Rule(None, None, lambda _: 1, everywhere=True),
}
