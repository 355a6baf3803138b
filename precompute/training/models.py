"""Architectures by name or from anyone's module, and their initial weights."""

import importlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from natscope.core.bundle.format import Bundle
from natscope.core.device import device, precision, set_precision
from natscope.core.encoders import misfit
from natscope.core.errors import BuildError, NatscopeError, out_of_memory
from natscope.core.examples import Examples
from natscope.precompute.training.attention import HEADS, WIDTH, Attention
from natscope.precompute.training.heads import OUTPUT, attach
from natscope.precompute.training.kinds import fault_of
from natscope.precompute.training.pretrained import Found, Start, built, outline
from natscope.precompute.training.projects import raised_by_one, said
from natscope.precompute.training.resnet9 import resnet9
from natscope.precompute.training.trusted import Code, find

_HIDDEN: dict[str, tuple[int, ...]] = {
    "mlp": (512, 256),
    "resnet9": (),
    "attention": (WIDTH,),
}  # units between inputs and classes
# What code that was written for another purpose may set when it is imported.
_PROCESS_WIDE: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (precision, set_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
)
_LISTED = 10  # names in a message
_SPREAD = 0.1  # standard deviation of the numbers of a token's initial vector
_WIDEST, _DEEPEST = 2**24, 100  # the most that a manifest may have


@dataclass(frozen=True)
class ModelSpec:
    """A network without its weights.

    Args:
        architecture: a key of `ARCHITECTURES`, or "module.path:factory", a function or class that is called without
            arguments and returns a network from (B, C, H, W) images to (B, classes) logits. It runs in float32.
        widths: for an MLP the units of each layer, from the input's pixels to the classes; for a ResNet-9 its input
            channels and classes; for attention its vocabulary, the tokens of a text at most, the numbers of a token's
            vector and the classes. None fits them to the data set; a factory has no widths.
        bias: whether the layers of an MLP have biases.
        output: which part of what a factory's network returns are the logits: see
            `natscope.precompute.training.heads.Head`.
        config: settings of a network of `transformers`, whose architecture is a key of `natscope.core.encoders.KINDS`.
        start: the weights that its training begins with; None where others are loaded. They are no part of a manifest.
    """

    architecture: str = "mlp"
    widths: tuple[int, ...] | None = (784, *_HIDDEN["mlp"], 10)
    bias: bool = False
    output: str | None = None
    config: dict[str, Any] | None = None
    start: Start | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, without what few networks have and this one does not."""
        found = asdict(self) | {"widths": None if self.widths is None else list(self.widths)}
        return {name: v for name, v in found.items() if name not in ("output", "config", "start") or v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Undo `to_dict`; raises TypeError if a key is unknown."""
        spec = cls(**values)
        return replace(spec, widths=None if spec.widths is None else tuple(spec.widths))

    @classmethod
    def of(cls, found: Found, *, trained: bool = False) -> "ModelSpec":
        """Return a network of `transformers`; its weights are not those of its folder if others are `trained`."""
        return cls(found.kind, None, config=found.config, start=None if trained else found.start)

    @property
    def title(self) -> str:
        """The network's name on pages."""
        return self.architecture if self.widths is None else f"{self.architecture} {'-'.join(map(str, self.widths))}"


def fitted(spec: ModelSpec, examples: Examples, classes: int) -> ModelSpec:
    """Return the specification with widths that were left to the data set filled in.

    Args:
        spec: the network.
        examples: what it is to take.
        classes: how many there are.

    Raises:
        BuildError: if one of natscope's own networks takes no such examples, or a network has no choice of biases.
    """
    if spec.bias and spec.architecture != "mlp":
        raise BuildError(f"bias=True is for the network mlp, not for {spec.title}; leave it out.")
    if spec.config is not None:
        config = spec.config | {"num_labels": classes}
        if (fault := misfit(config, examples.modality.name, examples.form, classes)) is not None:
            raise BuildError(f"The network {spec.title} {fault}.")
        return replace(spec, config=config)
    if spec.architecture not in ARCHITECTURES:
        return spec
    if (first := examples.modality.networks.get(spec.architecture)) is None:
        known = ", ".join(examples.modality.networks)
        raise BuildError(
            f"The network {spec.architecture} takes no {examples.modality.many}; choose {known}, or name a factory of "
            "yours as module.path:function."
        )
    return (
        spec
        if spec.widths is not None
        else replace(spec, widths=(*first(examples.form), *_HIDDEN[spec.architecture], classes))
    )


def network_of(bundle: Bundle, *, seed: int | None = None) -> nn.Module:
    """Return the network that a bundle's manifest names, on `device()`.

    One whose code natscope brings takes memory only after the bundle's weights are known to fit it.

    Args:
        bundle: the bundle.
        seed: of the weights that training begins with; weights are anything if None, since others will be loaded.

    Raises:
        BuildError: as `build_model` does.
        BundleError: if its code is not trusted, in which case none of it is run; or if the bundle's weights are
            damaged, or do not fit a network of natscope's own.
    """
    spec = ModelSpec.from_dict(bundle.manifest.model)
    empty = None
    if spec.config is not None:
        empty = outline(spec.architecture, spec.config)
        spec = spec if seed is None else replace(spec, start=_start_of(bundle))
    elif spec.architecture in ARCHITECTURES:
        empty = ARCHITECTURES[spec.architecture](spec, "meta")
    if empty is not None:
        bundle.check_weights({name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()})
    return build_model(spec, seed=seed or 0, bundle=bundle).to(device())


def _start_of(bundle: Bundle) -> Start:
    try:
        return msgspec.convert(bundle.manifest.results["settings"]["model"]["start"], Start, strict=True)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise BuildError(f"The bundle {bundle.path} does not say which weights its training began with.") from error


def build_model(spec: ModelSpec, *, seed: int, bundle: Bundle | None = None) -> nn.Module:
    """Build a network with the initial weights of the paper.

    Those of an MLP are Kaiming-normal, N(0, 2 / fan_in), with zero biases; those of other layers PyTorch's usual ones,
    uniform within 1 / sqrt(fan_in), and vectors of tokens N(0, 0.1²). They depend on `seed` alone. A factory draws its
    own, after the global generator is seeded just for it.

    Args:
        spec: the network. A factory's module is imported only if it is trusted: see
            `natscope.precompute.training.trusted`.
        seed: seed of the weights.
        bundle: the bundle whose manifest names the network, if any.

    Raises:
        BuildError: if the architecture is unknown, the widths make no network, or the factory fails.
        BundleError: if the factory's module is not trusted.
    """
    if ":" in spec.architecture:
        model = _from_factory(find(spec.architecture, bundle), seed)
        attach(model, spec.output)
        return model
    if spec.config is not None:
        return built(spec.architecture, spec.config, spec.start, seed=seed)
    if spec.output is not None:
        raise BuildError(f"{OUTPUT} is for a network of yours; {spec.architecture} gives logits.")
    if spec.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise BuildError(
            f"There is no architecture {spec.architecture!r}; choose one of {known}, or name a network of "
            "transformers as hf:PATH, or a factory of yours as module.path:function."
        )
    model = ARCHITECTURES[spec.architecture](spec, "cpu")
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if spec.architecture == "mlp":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            else:
                nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=_SPREAD, generator=generator)
    return model


def _mlp(spec: ModelSpec, device: str) -> nn.Module:
    widths = spec.widths or ()
    if not (2 <= len(widths) <= _DEEPEST and all(type(width) is int and 0 < width <= _WIDEST for width in widths)):
        shown = ", ".join(map(str, widths[:5])) + (", …" if len(widths) > 5 else "")
        raise BuildError(
            f"Widths must be two or more positive whole numbers, from pixels to classes, at most {_DEEPEST} and none "
            f"above {_WIDEST:,}, not {shown}."
        )
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [skip_init(nn.Linear, fan_in, fan_out, bias=spec.bias, device=device), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _resnet9(spec: ModelSpec, device: str) -> nn.Module:
    widths = spec.widths or ()
    if len(widths) != 2 or not all(type(width) is int and 0 < width <= _WIDEST for width in widths):
        raise BuildError(f"A resnet9 has two widths, its input channels and its classes, not {list(widths)}.")
    return resnet9(*widths, device=device)


def _attention(spec: ModelSpec, device: str) -> nn.Module:
    widths = spec.widths or ()
    if (
        len(widths) != 4
        or not all(type(width) is int and 0 < width <= _WIDEST for width in widths)
        or widths[2] % HEADS
    ):
        raise BuildError(
            "An attention network has four widths: tokens of its vocabulary, tokens of a text at most, numbers of a "
            f"token's vector (a multiple of {HEADS}) and classes; not {list(widths)}."
        )
    return Attention(*widths, device=device)


def source_of(spec: ModelSpec) -> str | None:
    """Return the checksum of a factory's source files, by which a build notices edits.

    Raises:
        BuildError: if the factory's module cannot be found.
        BundleError: if it is not trusted.
    """
    return find(spec.architecture).digest if ":" in spec.architecture else None


def function_of(name: str, bundle: Bundle | None = None) -> Callable[..., Any]:
    """Import a user's own function, such as one that makes an input of a file.

    Args:
        name: "module.path:function".
        bundle: the bundle whose manifest names it, if any.

    Raises:
        BuildError: if there is none, or importing it fails.
        UntrustedError: if its module is not trusted, in which case none of it is run.
    """
    code = find(name, bundle)
    with code.importable(), torch.random.fork_rng(devices=[]), _defaults_kept():
        return function_in(code)


def function_in(code: Code) -> Callable[..., Any]:
    """Import a function of a module that can be imported now; raises BuildError as `function_of` does."""
    name, function = f"{code.module}:{code.factory}", _imported(code, inspect.isfunction)
    if not callable(function):
        raise BuildError(f"{name} is no function; it cannot be called.")
    defined = inspect.isroutine(function) or inspect.isclass(function)
    if defined and getattr(function, "__module__", None) != code.module:  # trusted is the module, not what it imports
        raise BuildError(f"{name} was imported into that module; name a function that is defined in it.")
    return function


def _factory_of(code: Code) -> Callable[[], Any]:
    factory = _imported(code, _is_network)
    if not (inspect.isfunction(factory) or _is_network(factory)):
        raise BuildError(
            f"{code.module}:{code.factory} is neither a function nor a torch.nn.Module, so it makes no network."
        )
    return factory


def _imported(code: Code, wanted: Callable[[Any], bool]) -> Any:
    """Import a name of a module: the only place where code runs that is not natscope's, and only what `find` found.

    Args:
        code: what was found.
        wanted: whether a value is of the kind that is asked for, to say what else there is.
    """
    path, name = code.module, code.factory
    with one_sentence(f"The module {path} fails when it is imported"):
        module = importlib.import_module(path)
        factory = getattr(module, name, None)
    if factory is None:
        own = [n for n, v in vars(module).items() if wanted(v) and v.__module__ == path][:_LISTED]
        there = f"it has {', '.join(own)}" if own else "name a function or class that is defined in it"
        raise BuildError(f"The module {path} has no '{name}'; {there}.")
    return factory


def _is_network(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def made(code: Code, function: Callable[[Code], Callable[[], Any]], *, seed: int) -> Any:
    """Return what a function of somebody's gives; it draws random numbers of its own, and what it sets is undone.

    Args:
        code: where it is.
        function: imports it.
        seed: of its random numbers.
    """
    with code.importable(), torch.random.fork_rng(devices=[]), _defaults_kept():
        make = function(code)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        with one_sentence(f"{code.module}:{code.factory}() failed"):
            return make()


def _from_factory(code: Code, seed: int) -> nn.Module:
    name = f"{code.module}:{code.factory}"
    model = made(code, _factory_of, seed=seed)
    if not isinstance(model, nn.Module):
        raise BuildError(f"{name}() gave {type(model).__name__}, not a torch.nn.Module.")
    with one_sentence(f"The network of {name} fails"):
        lazy = [title for title, p in model.named_parameters() if nn.parameter.is_lazy(p)]
        if lazy:
            raise BuildError(f"The parameter '{lazy[0]}' of {name} has no shape yet; use layers that are not lazy.")
        if next(model.parameters(), None) is None:
            raise BuildError(f"The network of {name} has no parameters, so there is nothing to attribute by.")
        if (fault := fault_of(model)) is not None:
            raise BuildError(f"{name}() gave {type(model).__name__}, which cannot be used: {fault}.")
        state, names = model.state_dict(), {title for title, _ in model.named_parameters()}
        if not (names <= state.keys() and all(isinstance(value, Tensor) for value in state.values())):
            raise BuildError(
                f"The state_dict of {name} does not hold the parameters, and tensors alone; leave out get_extra_state, "
                "and methods of your own that change it."
            )
        return model.to("cpu", torch.float32)


@contextmanager
def _defaults_kept() -> Iterator[None]:
    """Undo what somebody's code changes for all that runs in this process."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    drawn = random.getstate(), np.random.get_state()  # noqa: NPY002
    others = [(setting, value()) for value, setting in _PROCESS_WIDE]
    try:
        with np.errstate():
            yield
    finally:
        for setting, was in others:
            setting(was)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])  # noqa: NPY002
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def foreign(spec: ModelSpec) -> AbstractContextManager[None]:
    """Turn what the code of a user's network raises into one sentence; whatever else is raised stays as it is."""
    return one_sentence(f"The network {spec.title} fails", only=raised_by_one)


@contextmanager
def one_sentence(
    what: str, *, only: Callable[[BaseException], bool] = lambda _: True, kind: type[NatscopeError] = BuildError
) -> Iterator[None]:
    """Turn whatever somebody's code raises into one sentence, even SystemExit, which would end a session silently.

    A lack of memory is not the code's fault, and is raised as it is.

    Args:
        what: how the sentence begins.
        only: whether an error is one to be turned.
        kind: what is raised in its place.
    """
    try:
        yield
    except (NatscopeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if out_of_memory(error) or not only(error):
            raise
        raise kind(f"{what}: {said(error)}.") from error


ARCHITECTURES: dict[str, Callable[[ModelSpec, str], nn.Module]] = {
    "mlp": _mlp,
    "resnet9": _resnet9,
    "attention": _attention,
}
