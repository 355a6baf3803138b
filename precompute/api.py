"""Building from Python: a trained network and its data, in whatever form they are at hand."""

import copy
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import singledispatch
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from natscope.core.bundle.format import Bundle, write_atomically
from natscope.core.bundle.request import quoted
from natscope.core.device import full_precision
from natscope.core.errors import BuildError
from natscope.core.index.spec import IndexSpec
from natscope.core.progress import Progress, silent
from natscope.core.scratch import temporary_folder
from natscope.core.sketches import SketchSpec
from natscope.core.text import type_of
from natscope.precompute.bundles import build as builder
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.datasets import Dataset
from natscope.precompute.data.named import own_reading, with_code
from natscope.precompute.data.own import own_dataset
from natscope.precompute.engines.local import Engine
from natscope.precompute.training.heads import giving_logits
from natscope.precompute.training.kinds import fault_of
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.train import apart
from natscope.precompute.training.trusted import trust
from natscope.precompute.training.validate import alike

_COMPARED = 4  # inputs
_WAY = 'pass factory="my_model:make", the name of a function without arguments that returns the network'


@singledispatch
def build(
    model: nn.Module | BuildSpec,
    train_set: Any,
    test_set: Any,
    *,
    out: str | Path,
    classes: Sequence[str] | None = None,
    factory: str | Callable[[], nn.Module] | None = None,
    transform: str | Callable[..., Any] | None = None,
    load: str | Callable[..., Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    columns: tuple[str, str] | None = None,
    name: str | None = None,
    methods: Sequence[str] | None = None,
    sketch: SketchSpec | None = None,
    index: IndexSpec | None = None,
    ntk: bool | None = None,
    layers: Sequence[str] = (),
    outputs: str = "own",
    reuse: Bundle | str | Path | None = None,
    output: str | int | None = None,
    engine: Engine | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Build the bundle of a trained network, resume an interrupted build, or open the bundle that is there.

    The weights are those that `model` has. A bundle holds no code: whoever opens it makes the network again by
    `factory`, from a module that is trusted, which building records for you.

    `natscope.build(spec, out, progress)` builds from a `BuildSpec` instead, as `natscope precompute` does.

    Args:
        model: the trained network; it maps a batch of inputs to logits, and is left as it is.
        train_set: a torch Dataset of (input, label) whose length is known, a pair (inputs, labels) of arrays or
            tensors, a DataFrame of paths and labels, a split of Hugging Face `datasets`, or a folder with a subfolder
            for each class. Inputs are floating-point numbers of any one shape, as the network takes them, or pictures.
        test_set: likewise.
        out: the folder to publish.
        classes: a title for each label; the data's own, or the labels themselves, when None.
        factory: what makes the network without arguments, as "module:function", or the function or class itself;
            `type(model)` when None.
        transform: makes an input of a picture, as "module:function" or the function itself. It is applied to items that
            are no inputs yet, and to what is uploaded later; without it and `load`, nothing can be uploaded unless the
            data are pictures of uint8.
        load: reads a file, given its path, likewise; a picture in RGB when None.
        mean: mean of each channel, in units where white is 1: it scales pictures of uint8, and shows inputs in their
            own colours.
        std: standard deviation of each channel, in the same units.
        columns: the names of the columns of inputs, or paths, and labels; ("path", "label") of a DataFrame, ("image",
            "label") of a split when None.
        name: a title for people; the folder's name when None.
        methods: those whose artifacts the bundle should hold; the usual ones when None.
        sketch: kind, dimension K and seed; as usual when None.
        index: over the features of each class; as usual when None.
        ntk: scale Jacobians as in the NTK parameterisation; as is best for the kind of network when None.
        layers: glob patterns of the names of parameters that the kernel is made of; all when there are none.
        outputs: "own", or "all" to store features under every class's logit.
        reuse: a bundle of the same network, or its folder, whose Jacobians are taken where they are the same, as after
            a correction of labels: batch by batch, up to 1,000 inputs each.
        output: which part of what the network returns are the logits: an entry's or attribute's name, such as "logits",
            or a tuple's item, such as 0; what is unambiguous when None.
        engine: where Jacobians and predictions are computed, such as
            `natscope.precompute.engines.local.LocalEngine(workers=4)` or
            `natscope.precompute.engines.on_ray.RayEngine("head:6379")`; in this process when None.
        progress: called with the stage's name, steps done and steps in all.

    Raises:
        DataError: if an item or label cannot be used; the sentence says which.
        BuildError: if the network cannot be made again or used, or settings contradict each other.
        BundleError: if `out` holds something else, or another process is building it.
        TypeError: if `model` is no network.

    Examples:
        >>> from my_model import Net  # a class of a module of yours, in a file
        >>> inputs, labels = torch.randn(60, 20), torch.arange(60) % 3
        >>> net, settings = Net(), {"sketch": natscope.SketchSpec(dim=64), "methods": ()}
        >>> bundle = natscope.build(net, (inputs, labels), (inputs[:9], labels[:9]), out="bundles/own", **settings)
        >>> bundle.array("train_inputs").shape
        (60, 20)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"natscope.build takes a torch.nn.Module or a BuildSpec, not {type(model).__name__}.")
    check_kind(model)
    own = {key: _reference(given, f"{key}=") for key, given in (("load", load), ("transform", transform))}
    code = own["load"] or "", own["transform"] or ""
    reading = own_reading(*code, classes=classes, mean=mean, std=std, columns=columns)
    title = name or Path(out).name
    data = with_code(own_dataset(train_set, test_set, reading, name=title, progress=progress), *code)
    part = None if output is None else str(output)
    architecture = _checked_factory(model, factory, data, part)
    with temporary_folder() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_atomically(weights, safetensors.torch.save(_state(model)))
        spec = BuildSpec(
            name=title,
            dataset=title,
            data=data,
            model=ModelSpec(architecture, None, output=part),
            weights=weights,
            methods=None if methods is None else tuple(methods),
            sketch=sketch_of(sketch),
            index=index or IndexSpec(),
            ntk=switch(ntk),
            layers=patterns(layers),
            outputs=outputs,
        )
        return builder.build(spec, Path(out), progress, reuse=_folder_of(reuse), engine=engine, tell=warnings.warn)


@build.register
def _(
    model: BuildSpec,
    out: Path,
    progress: Progress = silent,
    *,
    reuse: Bundle | str | Path | None = None,
    engine: Engine | None = None,
) -> Bundle:
    return builder.build(model, Path(out), progress, reuse=_folder_of(reuse), engine=engine, tell=warnings.warn)


def _folder_of(bundle: Bundle | str | Path | None) -> Path | None:
    """Return the folder of a bundle whose Jacobians are to be taken, if there is one."""
    if not isinstance(bundle, Bundle | str | Path | None):
        raise BuildError(f"reuse= takes a bundle or its folder, not {quoted(bundle)}.")
    return bundle.path if isinstance(bundle, Bundle) else None if bundle is None else Path(bundle)


def switch(ntk: bool | None) -> bool | None:
    """Return what was given as ntk=, or raise BuildError if it is none of its values."""
    if not (ntk is None or isinstance(ntk, bool)):
        raise BuildError(f"ntk= takes True, False or None, not {quoted(ntk)}.")
    return ntk


def patterns(layers: str | Sequence[str]) -> tuple[str, ...]:
    """Return glob patterns as a tuple; a text is one of them."""
    found = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Iterable) else [layers]
    if odd := [pattern for pattern in found if not isinstance(pattern, str)]:
        raise BuildError(f"layers= takes names of parameters, such as 'head.*', not {quoted(odd[0])}.")
    return tuple(found)


def sketch_of(given: SketchSpec | None, usual: str = SketchSpec.kind) -> SketchSpec:
    """Return the sketch that is asked for, one of the usual kind when None."""
    if given is not None and not isinstance(given, SketchSpec):
        raise BuildError(f"sketch= takes a natscope.SketchSpec, not {quoted(given)}.")
    return given or SketchSpec(usual)


def check_kind(model: nn.Module) -> None:
    """Raise BuildError for what natscope cannot make again or follow, with what to give instead."""
    if (fault := fault_of(model)) is not None:
        raise BuildError(f"{fault[0].upper()}{fault[1:]}.")
    for name, tensor in model.named_parameters():
        if tensor.dtype not in (torch.float32, torch.float64):
            number = str(tensor.dtype).removeprefix("torch.")
            raise BuildError(
                f"The weights '{name}' are {number}, and natscope computes in float32; give model.float()."
            )


def _reference(given: str | Callable[..., Any] | None, what: str) -> str | None:
    """Return "module:name" of a function or class, by which another process finds it again.

    Args:
        given: the function, or the text already.
        what: how a sentence names it.
    """
    if given is None or isinstance(given, str):
        return given
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    if not module or not name:
        raise BuildError(
            f"{what} is {type_of(given)}, which has no name to find it by; give it one in a module, and pass "
            'that as text, such as "my_data:transform".'
        )
    if module == "__main__":
        raise BuildError(
            f"{name} was written in a notebook or script, which no other process can import; write it to a file such "
            "as my_model.py, and import it from there."
        )
    if not name.isidentifier():
        raise BuildError(
            f"{name} stands within another function or class of {module}, where no other process finds it; move it to "
            "the top of the module."
        )
    if getattr(sys.modules.get(module), name, given) is not given:  # as where a decorator keeps the name of another
        raise BuildError(
            f"{what} is another {type(given).__name__} than what {module} calls {name}; give it a name of its own "
            f'there, and pass that as text, such as "{module}:name".'
        )
    return f"{module}:{name}"


def _checked_factory(
    model: nn.Module, factory: str | Callable[[], nn.Module] | None, data: Dataset, output: str | None
) -> str:
    """Return the name of what makes the network again, once it is known to give the same outputs with its weights."""
    kind = type(model)
    if factory is None and kind.__module__.partition(".")[0] == "torch":
        raise BuildError(f"A {kind.__name__} cannot be made again without its layers; {_WAY}.")
    name = _reference(factory if factory is not None else kind, "factory=") or ""
    trust(name)
    try:
        again = build_model(ModelSpec(name, None, output=output), seed=0)
    except BuildError as error:
        if factory is not None:
            raise
        raise BuildError(f"The network cannot be made again: {str(error).rstrip('.')}; {_WAY}.") from error
    advice = "check factory=" if factory is not None else _WAY
    if (fault := _misfit(model, again)) is not None:
        raise BuildError(f"{name}() makes another network than the one that was given: {fault}; {advice}.")
    again.load_state_dict(_state(model))
    inputs = data.train.inputs[:_COMPARED]
    single = in_float32(model)
    with giving_logits(single, output):
        outputs, others = _outputs(single, inputs), _outputs(again, inputs)
    same = outputs is others if outputs is None or others is None else alike(others, outputs)
    if not same:
        raise BuildError(
            f"{name}() makes another network than the one that was given: it gives other outputs with the same "
            f"weights; {advice}."
        )
    return name


def _misfit(model: nn.Module, again: nn.Module) -> str | None:
    """Return the first difference between the weights of two networks; None if their names and shapes are the same."""
    own, other = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, again))
    for name in own | other:
        if name not in own or name not in other:
            return f"only one of them has '{name}'"
        if own[name] != other[name]:
            return f"'{name}' is {other[name]} in it, and {own[name]} in yours"
    learns = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in again.named_parameters():
        if parameter.requires_grad != learns.get(name, True):
            how = "frozen in yours and not in it" if parameter.requires_grad else "frozen in it and not in yours"
            return f"'{name}' is {how} (requires_grad)"
    return None


def _state(model: nn.Module) -> dict[str, Tensor]:
    return apart({name: tensor.cpu() for name, tensor in model.state_dict().items()})


@full_precision()
def _outputs(model: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return what a network says in eval mode; None where it fails, which the build explains."""
    with as_evaluated(model), torch.no_grad(), suppress(Exception):
        first = next(model.parameters())
        found = model(inputs.to(first.device, first.dtype))
        return found.float().cpu() if isinstance(found, Tensor) else None
    return None


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for a while, and each of its modules back into the mode that it was in."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def in_float32(model: nn.Module) -> nn.Module:
    """Return a network that computes in float32, as one that is made again for a bundle does: a copy if need be."""
    numbers = [*model.parameters(), *model.buffers()]
    if all(tensor.dtype == torch.float32 for tensor in numbers if tensor.is_floating_point()):
        return model
    try:
        return copy.deepcopy(model).float()
    except Exception as error:  # somebody's module, which may hold what cannot be copied
        raise BuildError(
            "natscope computes in float32, and this network, which is in float64, cannot be copied; give model.float()."
        ) from error
