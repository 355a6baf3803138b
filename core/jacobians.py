"""Per-example Jacobians of a scalar measurement, layer by layer, without a loop over examples.

One forward and one backward pass give, for every layer, its input a and the gradient delta of the measurement with
respect to its output. The gradient of a weight is then delta (x) a for `Linear` (kept as the two factors), a sum of
such products where it is used at many positions and for convolutions (kept as factors too, and multiplied out a few
examples at a time), and a sum over positions for normalisations (`natscope.core.layers`). Any other parameter goes
through `torch.func`: of other layers, of those that share it, and of those whose input has no axis of the examples.
"""

import functools
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from natscope.core.blocks import Block, Formed, Lookup, Outer, Summed
from natscope.core.device import full_precision
from natscope.core.errors import out_of_memory
from natscope.core.layers import RULES, follows, looked_up, position_axis
from natscope.core.measurements import MEASUREMENTS, Measurement
from natscope.core.parameters import kernel_parameters

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_guard = threading.Lock()
_unmapped: WeakSet[nn.Module] = WeakSet()  # networks that vmap cannot follow
_READS_NUMBERS = ("data-dependent control flow", ".item()")  # in vmap's errors: then examples may influence each other
_batched: WeakKeyDictionary[nn.Module, tuple[Any, frozenset[str]]] = WeakKeyDictionary()


def jacobian_blocks(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    measurement: str | Measurement = "logit",
    ntk: bool = False,
    layers: Sequence[str] = (),
) -> list[Block]:
    """Differentiate `measurement(model(x), y)` by every parameter of the kernel, for each example of a batch.

    Examples must not influence each other, so the model has to be in eval mode. Memory is that of one training step,
    and one gradient an example of whatever is not a weight of a `Linear` layer or a convolution.

    Args:
        model: any module that maps (B, ...) to logits (B, C).
        inputs: (B, ...).
        targets: (B,) int64, the class whose measurement is taken.
        measurement: a name of `natscope.core.measurements.MEASUREMENTS`, or a function of logits (B, C) and `targets`
            that returns (B,).
        ntk: scale each weight's block as in the NTK parameterisation: see `natscope.core.parameters.Parameter.scale`.
        layers: glob patterns of the names of parameters; all that require gradients when there are none.

    Returns:
        One block a parameter of the kernel, in the order of `named_parameters`; blocks carry no autograd graph.

    Raises:
        ValueError: if the model is in training mode, a batch norm keeps no running statistics, a layer's input is
            changed in place, or no parameter is left.
    """
    measure, scales = _wanted(model, measurement, ntk=ntk, layers=layers)
    with exclusive(model):
        blocks: dict[str, Block] = {}
        for name, layer, pairs in _pairs(model, inputs, targets, measure, scales):
            blocks |= {block.name: block for block in _layer_blocks(name, layer, pairs, scales)}
        others = {name: scale for name, scale in scales.items() if name not in blocks}
        blocks |= {block.name: block for block in _fallback(model, others, inputs, targets, measure)}
    return [blocks[name] for name in scales]


def position_blocks(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    measurement: str | Measurement = "logit",
    ntk: bool = False,
    layers: Sequence[str] = (),
) -> tuple[list[Block], list[Block]]:
    """Split the Jacobian of one example into what its positions contribute, for a network on sequences.

    A position contributes where a `Linear` layer, a normalisation of its last axes or an embedding treats it alone.

    Args:
        model: any module that maps (1, L, ...) to logits (1, C).
        inputs: (1, L, ...).
        targets: (1,) int64.
        measurement: as in `jacobian_blocks`.
        ntk: likewise.
        layers: likewise.

    Returns:
        Blocks of L rows, one a position, of which a parameter has one for every call of its layer; and blocks of 1 row,
        of all that belongs to no position. The sum of all rows is the example's Jacobian.
    """
    measure, scales = _wanted(model, measurement, ntk=ntk, layers=layers)
    placed: list[Block] = []
    whole: list[Block] = []
    with exclusive(model):
        for name, layer, pairs in _pairs(model, inputs, targets, measure, scales):
            found = (position_axis(layer, given, inputs.shape[1]) for given, _ in pairs)
            axes = [axis for axis in found if axis is not None]
            if len(axes) < len(pairs):
                whole += _layer_blocks(name, layer, pairs, scales)
                continue
            for axis, (given, delta) in zip(axes, pairs):  # the positions take the place of the examples
                moved = given.movedim(axis, 0), delta.movedim(axis, 0)
                placed += _layer_blocks(name, layer, [moved], scales)
        done = {block.name for block in (*placed, *whole)}
        others = {name: scale for name, scale in scales.items() if name not in done}
        whole += _fallback(model, others, inputs, targets, measure)
    return placed, whole


def _wanted(
    model: nn.Module, measurement: str | Measurement, *, ntk: bool, layers: Sequence[str]
) -> tuple[Measurement, dict[str, float]]:
    """Return what is measured, and by name the factor of the Jacobian of each parameter of the kernel."""
    if model.training:
        raise ValueError("Jacobians need the model in eval mode: call model.eval() first.")
    wanted = kernel_parameters(model, layers)
    measure = MEASUREMENTS[measurement] if isinstance(measurement, str) else measurement
    return measure, {name: parameter.scale(ntk=ntk) for name, parameter in wanted.items()}


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Hold the lock of a network, as anyone must who hooks into it or replaces its parameters, in full precision.

    A hook sees the calls of every thread, and `torch.func.functional_call` changes the module for all of them: without
    the lock, two threads that use one network mix up their results.
    """
    with _locks_guard:
        lock = _locks.setdefault(model, threading.RLock())
    with lock, full_precision():
        yield


def _pairs(
    model: nn.Module, inputs: Tensor, targets: Tensor, measure: Measurement, scales: Mapping[str, float]
) -> Iterator[tuple[str, nn.Module, list[tuple[Tensor, Tensor]]]]:
    """Yield each layer that is differentiated by hand and ran, by name, and the (input, delta) pair of every call."""
    layers = {
        name: layer
        for name, layer in batched_layers(model, inputs[:1]).items()
        if any(_own(name, own) in scales for own, _ in layer.named_parameters(recurse=False))
    }
    with torch.enable_grad(), _recorded(layers) as calls:
        total = measure(model(inputs), targets).sum()
    for name, records in calls.items():
        if _own(name, "weight") in scales and any(call.version != _version(call.input) for call in records):
            raise ValueError(
                f"The network changes in place what its layer '{name}' has taken as input, which is then lost; leave "
                "out inplace=True or the operation whose name ends in _"
            )
    outputs = [call.output for records in calls.values() for call in records]
    with torch.enable_grad():
        deltas = iter(torch.autograd.grad(total, outputs, allow_unused=True) if outputs else ())
    for name, records in calls.items():
        kind = next(layers[name].parameters()).dtype  # under autocast, layers take and give another
        pairs = [(_as(kind, call.input), _as(kind, _or_zeros(next(deltas), call.output))) for call in records]
        yield name, layers[name], pairs


def _own(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def forward_with_penultimate(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Run the model once and also return what enters its last `Linear` layer (the penultimate features).

    Args:
        model: the network, in eval mode.
        inputs: (B, ...).

    Returns:
        Logits (B, C) and penultimate features (B, D), where D is 0 if no `Linear` layer runs, or the last one runs on
        each token of texts, which differ in length.
    """
    with exclusive(model):
        logits, last = _run_noting_last(model, inputs)
        if last is None or (last.dim() > 2 and not inputs.is_floating_point()):
            return logits, logits.new_zeros(len(logits), 0)
        alone = last if len(inputs) == 1 else _run_noting_last(model, inputs[:1])[1]
        if last.dim() > 1 and alone is not None and len(last) == len(inputs) and len(alone) == 1:
            return logits, last.flatten(1).to(logits.dtype)
        rows = [_run_noting_last(model, row[None])[1] for row in inputs]  # its first axis is not that of the examples
        return logits, torch.stack([row.flatten() for row in rows if row is not None]).to(logits.dtype)


def _run_noting_last(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args, named: seen.append(_input_of(args, named)), with_kwargs=True)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, seen[-1] if seen else None


def convolves(model: nn.Module) -> bool:
    """Return whether a network has a convolution: its work and memory an example are then those of many positions."""
    return any(isinstance(layer, nn.Conv2d) for layer in model.modules())


def linear_alone(model: nn.Module) -> bool:
    """Return whether all parameters of a network belong to `Linear` layers."""
    return all(isinstance(m, nn.Linear) for m in model.modules() if next(m.parameters(recurse=False), None) is not None)


def batched_layers(model: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """Return the layers differentiated by hand, by name: of exact types, no parameter shared with another module.

    Left out are those that ever get an input whose first axis does not count the examples, as when the patches of an
    example are put along it, or examples go in one by one. The network is run twice to see that, on one example and on
    two, and its answer is remembered: a layer's Jacobian is of the same form in every batch.

    Args:
        model: the network.
        example: (1, ...), any input.

    Raises:
        ValueError: if a batch norm keeps no running statistics.
    """
    layers = supported_layers(model)
    key = (tuple(example.shape), *((name, id(layer)) for name, layer in layers.items()))
    with exclusive(model):
        known = _batched.get(model)
        if known is None or known[0] != key:
            found = set(layers)
            for count in (1, 2):
                with torch.enable_grad(), _recorded(layers) as calls:
                    model(example.expand(count, *example.shape[1:]).clone())
                found -= {name for name, records in calls.items() if not all(c.counts(count) for c in records)}
            known = _batched[model] = (key, frozenset(found))
    return {name: layer for name, layer in layers.items() if name in known[1]}


def supported_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that could be differentiated by hand, by name; raises ValueError as `batched_layers` does."""
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(f"Batch norm '{name}' keeps no running statistics, so examples influence each other.")
        own = list(module.parameters(recurse=False))
        if follows(module) and own and all(uses[id(p)] == 1 for p in own):
            layers[name] = module
    return layers


def _input_of(args: tuple[Tensor, ...], named: dict[str, Tensor]) -> Tensor:
    """Return the input of a layer that was called by position or by name."""
    return args[0] if args else named["input"]


@dataclass(frozen=True)
class _Call:
    """One call of a layer: its input and output, and how often the input had been changed in place until then."""

    layer: nn.Module
    input: Tensor
    output: Tensor
    version: int

    def counts(self, examples: int) -> bool:
        """Return whether the first axis of input and output is that of so many examples."""
        enough = self.input.dim() >= RULES[type(self.layer)].axes(self.layer)
        return enough and len(self.input) == len(self.output) == examples


@contextmanager
def _recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[_Call]]]:
    """Record each layer's calls; the network continues with a copy, so in-place operations do no harm.

    Hooks come before those of the network's author, which may go on with another output.
    """
    calls: dict[str, list[_Call]] = defaultdict(list)

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], Tensor]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            given = _input_of(args, named)
            calls[name].append(_Call(layer, given, output, _version(given)))
            return output.clone()

        return hook

    hooks = [
        module.register_forward_hook(record(name), with_kwargs=True, prepend=True) for name, module in layers.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _as(kind: torch.dtype, values: Tensor) -> Tensor:
    return values.detach().to(kind) if values.is_floating_point() else values.detach()


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.detach()


def _layer_blocks(
    name: str, layer: Any, records: list[tuple[Tensor, Tensor]], scales: Mapping[str, float]
) -> Iterable[Block]:
    """Turn the recorded (input, delta) pairs of one layer into blocks; several calls of a layer add up."""
    rule = RULES[type(layer)]
    weight, bias = _own(name, "weight"), _own(name, "bias")
    if weight in scales:
        scale = scales[weight]
        activation, delta = records[0]
        if rule.weight is None:
            rows, deltas = (torch.cat(parts, 1) for parts in zip(*(looked_up(layer, *pair) for pair in records)))
            yield Lookup(weight, deltas, rows, len(layer.weight), scale)
        elif isinstance(layer, nn.Linear) and len(records) == 1 and activation.dim() == 2:
            yield Outer(weight, delta, activation, scale)
        elif rule.factors is not None and len(records) == 1 and getattr(layer, "groups", 1) == 1:
            yield Summed(weight, *rule.factors(layer, activation, delta), layer.weight[0].numel(), scale)
        else:
            yield Formed(weight, _total(rule.weight(layer, a, d) for a, d in records), scale)
    if rule.bias is not None and bias in scales:
        yield Formed(bias, _total(rule.bias(layer, a, d) for a, d in records), scales[bias])


def _total(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _fallback(
    model: nn.Module, scales: Mapping[str, float], inputs: Tensor, targets: Tensor, measure: Measurement
) -> Iterable[Formed]:
    """Differentiate parameters by torch.func, all examples at once; one after the other where vmap cannot follow."""
    if not scales:
        return
    if model not in _unmapped:
        try:
            found = _mapped(model, scales, inputs, targets, measure)
        except (RuntimeError, NotImplementedError) as error:
            if out_of_memory(error) or any(words in str(error) for words in _READS_NUMBERS):
                raise
            _unmapped.add(model)
    if model in _unmapped:
        found = _one_by_one(model, scales, inputs, targets, measure)
    for name, gradient in found.items():
        batch = len(gradient)
        rows = gradient.shape[1] if gradient.dim() > 2 else 1
        yield Formed(name, gradient.detach().reshape(batch, rows, -1), scales[name])


def _mapped(
    model: nn.Module, names: Iterable[str], inputs: Tensor, targets: Tensor, measure: Measurement
) -> dict[str, Tensor]:
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in names}

    def scalar(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return measure(functional_call(model, values, (x[None],)), y[None])[0]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # exact, and slow
        return vmap(grad(scalar), in_dims=(None, 0, 0))(parameters, inputs, targets)


def _one_by_one(
    model: nn.Module, names: Iterable[str], inputs: Tensor, targets: Tensor, measure: Measurement
) -> dict[str, Tensor]:
    parameters = {name: p for name, p in model.named_parameters() if name in names}
    rows = []
    for row in range(len(inputs)):
        some = slice(row, row + 1)
        with torch.enable_grad():
            value = measure(model(inputs[some]), targets[some])[0]
            found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        rows.append([_or_zeros(g, p).to_dense() for g, p in zip(found, parameters.values(), strict=True)])
    return dict(zip(parameters, map(torch.stack, zip(*rows, strict=True)), strict=True))
