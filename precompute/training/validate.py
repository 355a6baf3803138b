"""Checks whether natscope can use a network for a data set, on a few images; one sentence says why not."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from natscope.core.device import device_of, full_precision
from natscope.core.errors import BuildError, out_of_memory
from natscope.core.examples import Inputs
from natscope.core.jacobians import batched_layers, forward_with_penultimate, jacobian_blocks, supported_layers
from natscope.core.text import type_of
from natscope.precompute.training.heads import OUTPUT, gave_one_logit, last_operation, remarks_of
from natscope.precompute.training.kinds import Types, fault_of
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.projects import first_line

_TOLERANCE = 1e-3  # relative, in norm: far above rounding, far below the error of a misread layer
_NEGLIGIBLE = 1e-5  # of the whole gradient's norm: a bias before a normalisation has rounding alone
_CHECKED, _FEWEST = 8, 3  # images, and those whose gradients are compared if a network is large
_NUMBERS = 2**26  # of gradients in memory at a time
_NOISE = 1e-3  # of an image's standard deviation
_SUM_OF_CHANCES = 1e-4
_GETS = " channels and gets "


@dataclass(frozen=True)
class Suitable:
    """What is known of a suitable network.

    Args:
        parameters: how many numbers it has.
        penultimate: how many numbers enter its last `Linear` layer; 0 if it has none.
        by_torch_func: descriptions of the layers whose Jacobian goes through `torch.func`: exact as well, but slower.
        remarks: what to know of its outputs and parameters, a clause each.
    """

    parameters: int
    penultimate: int
    by_torch_func: tuple[str, ...]
    remarks: tuple[str, ...] = ()


@full_precision()
def check_suitable(model: nn.Module, inputs: Tensor | Inputs, classes: int, spec: ModelSpec) -> Suitable:
    """Run a network in eval mode on a few images and differentiate it; it is left as it was, in eval mode.

    Jacobians are compared with plain backpropagation of each image alone, so a layer that natscope would misread (it
    mixes the images of a batch, or its weight is used outside it) is found before anything is built on it.

    Args:
        model: the network.
        inputs: (N, ...); a few from all over are run, in no order.
        classes: how many classes the data set has.
        spec: the network's specification, for messages.

    Raises:
        BuildError: if the network cannot be used.
    """
    if (fault := fault_of(model)) is not None:
        raise BuildError(f"The network {spec.title} cannot be attributed: {fault}.")
    rows = np.random.default_rng(0).choice(len(inputs), min(len(inputs), _CHECKED), replace=False)
    images = inputs[rows].to(device_of(model))
    trail = _Trail()
    model.eval()
    with _following(model, trail), _sentences(spec):
        logits = _run(model, images, spec, trail)
        _check_logits(model, logits, images, classes, spec)
        supported_layers(model)  # raises for batch norms that would fail below without being named
        _check_alone(model, images, spec, trail)
        penultimate = forward_with_penultimate(model, images)[1].shape[1]
        remarks = [*remarks_of(model), *_remarks(model, images)]
        ran = set(trail.ran)
        layers = [layer for name, layer in batched_layers(model, images[:1]).items() if name in ran]
        by_hand = {id(p) for layer in layers for n, p in layer.named_parameters() if n in ("weight", "bias")}
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        others = _described(model, [name for name, p in trained if id(p) not in by_hand])
        most = max(_FEWEST, _NUMBERS // sum(p.numel() for _, p in trained)) if trained else 0
        _compare(model, images[:most], spec, trail, others)
    return Suitable(sum(p.numel() for p in model.parameters()), penultimate, others, tuple(remarks))


def check_trains(model: nn.Module, images: Tensor, last: int, spec: ModelSpec) -> None:
    """Run one step forward and back in training mode, on a network that nothing else uses.

    Args:
        model: the network; its state is changed.
        images: (B, C, H, W), two or more.
        last: images in an epoch's last step, which may be 1.
        spec: the network's specification, for messages.

    Raises:
        BuildError: if the network cannot be trained.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise BuildError(
            f"All parameters of {spec.title} are frozen (requires_grad is False), so it cannot be trained; load its "
            "weights with --weights."
        )
    trail = _Trail()
    model.train()
    with _following(model, trail):
        try:
            logits = model(images)
            cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64)).backward()
        except (Exception, SystemExit) as error:  # somebody's code
            if out_of_memory(error):
                raise
            raise BuildError(
                f"The network {spec.title} cannot be trained: a step in training mode fails{trail.where(error)}."
            ) from error
        if last == 1:
            try:
                model(images[:1])
            except (Exception, SystemExit) as error:
                if out_of_memory(error):
                    raise
                raise BuildError(
                    f"The last step of every epoch has one example, with which {spec.title} fails in training mode; "
                    "choose another --batch-size."
                ) from error


@dataclass
class _Trail:
    """Where a forward pass is: the modules that it has entered and not left."""

    inside: list[tuple[str, nn.Module, tuple[int, ...]]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    looks_up: bool = False  # whether whole numbers that it makes of its inputs are used, as indices are

    def where(self, error: BaseException) -> str:
        """Return in which layer the pass stopped, and why, as the end of a sentence."""
        reason = first_line(error)
        if not self.inside or not self.inside[-1][0]:
            return f" ({reason})"
        name, module, shape = self.inside[-1]
        wanted = _wanted(module, shape)
        return f" in {_title(name, module)}" + (f", which {wanted}" if wanted else f" ({reason})")


@contextmanager
def _following(model: nn.Module, trail: _Trail) -> Iterator[None]:
    def enter(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        whole = args and isinstance(args[0], Tensor) and not args[0].is_nested  # nested tensors have no shape
        shape = tuple(args[0].shape) if whole else ()
        trail.inside.append((name, module, shape))
        trail.ran.append(name)

    def leave() -> None:
        trail.inside.pop()

    hooks: list[Any] = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: enter(name, m, args)))
        hooks.append(module.register_forward_hook(lambda *_: leave()))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(model: nn.Module, images: Tensor, spec: ModelSpec, trail: _Trail) -> Any:
    seen = Types()
    try:
        with torch.no_grad(), seen:
            logits = model(images)
    except (Exception, SystemExit) as error:  # somebody's code
        if out_of_memory(error) or isinstance(error, BuildError):
            raise
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise BuildError(
                f"The network {spec.title} does not take inputs of shape {tuple(images.shape[1:])}: it fails"
                f"{trail.where(error)}."
            ) from error
        height, width = images.shape[2:]
        if spec.architecture == "mlp":
            pixels = images[0].numel()
            raise BuildError(
                f"The network does not take images of {pixels} pixels; the first width must be {pixels}."
            ) from error
        grey, fault = images.shape[1] == 1, trail.where(error)
        colours = "1 channel (grey)" if grey else f"{images.shape[1]} channels (colour)"
        other = f"; folders are read otherwise by --channels {'colour' if grey else 'grey'}" if _GETS in fault else ""
        raise BuildError(
            f"The network {spec.title} does not take images of {colours} and {height} × {width} pixels: it fails"
            f"{fault}{other}."
        ) from error
    trail.looks_up = seen.looks_up or not images.is_floating_point()
    if seen.half is not None:
        raise BuildError(
            f"The network {spec.title} computes in {seen.half}, and natscope in float32; leave half precision and "
            "autocast out of it, at least unless self.training."
        )
    return logits


def _check_logits(model: nn.Module, logits: Any, images: Tensor, classes: int, spec: ModelSpec) -> None:
    count = len(images)
    if not isinstance(logits, Tensor):
        raise BuildError(
            f"The network {spec.title} gives {type_of(logits)}; natscope needs one that gives a tensor of "
            f"logits, (examples, classes), or {OUTPUT} to say which part of it they are."
        )
    if logits.dim() != 2 or len(logits) != count or not logits.is_floating_point():
        raise BuildError(
            f"The network {spec.title} gives {str(logits.dtype).removeprefix('torch.')} of shape {tuple(logits.shape)} "
            f"for {count} examples; natscope needs logits of shape (examples, classes)."
        )
    if logits.shape[1] != classes:
        one = "1 output, which stands for two classes," if gave_one_logit(model) else None
        raise BuildError(f"The network has {one or f'{logits.shape[1]} outputs'} and the data set {classes} classes.")
    if not torch.isfinite(logits).all():
        raise BuildError(
            f"The outputs of {spec.title} are not finite numbers; its weights, or an operation in it, run away."
        )
    if logits.shape[1] > 1 and (logits >= 0).all() and ((logits.sum(1) - 1).abs() < _SUM_OF_CHANCES).all():
        raise BuildError(
            f"The network {spec.title} seems to end in a softmax: its outputs are probabilities, and natscope needs "
            "the logits before it."
        )
    with torch.enable_grad():
        end = last_operation(model(images))
    if end in ("softmax", "sigmoid", "log-sigmoid"):
        raise BuildError(
            f"The network {spec.title} ends in a {end}: its outputs are probabilities, and natscope needs the logits "
            "before it."
        )
    with torch.no_grad():
        again = model(images)
    if not alike(again, logits):
        raise BuildError(
            f"The network {spec.title} gives other outputs every time, in eval mode too; switch off what is random in "
            "it unless self.training."
        )


def _remarks(model: nn.Module, images: Tensor) -> Iterator[str]:
    """Yield what to know of a network's outputs and parameters, a clause each."""
    with torch.no_grad():
        if (model(images).logsumexp(1).abs() < _SUM_OF_CHANCES).all():
            yield (
                "its outputs are log-probabilities (log-softmax), so what is explained is log p of a class and not its "
                "logit; probabilities and margins are the same"
            )
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    frozen, whole = sum(size for size, learns in sizes if not learns), sum(size for size, _ in sizes)
    if frozen:
        yield f"{frozen / whole:.1%} of its parameters are frozen (requires_grad is False) and left out of the kernel"


def _check_alone(model: nn.Module, images: Tensor, spec: ModelSpec, trail: _Trail) -> None:
    """Compare outputs for images alone with those in a batch, also for what may lead them through another branch."""
    outputs = []
    for image in images:
        alone = _alone(model, image[None], spec)
        if not isinstance(alone, Tensor) or alone.dim() != 2 or len(alone) != 1:
            form = tuple(alone.shape) if isinstance(alone, Tensor) else type(alone).__name__
            raise BuildError(
                f"The network {spec.title} gives {form} for one example alone; natscope needs logits of shape "
                "(examples, classes) for any number of examples."
            )
        outputs.append(alone[0])
    with torch.no_grad():
        same = all(map(alike, outputs, model(images)))
    if not same or (not trail.looks_up and _mixes(model, images)):
        raise BuildError(
            f"The network {spec.title} cannot be attributed: its outputs for an example are others in a batch than "
            "alone, so the examples of a batch influence each other; let nothing in it depend on the values of tensors "
            "for the whole batch, such as if or item()."
        )


def _mixes(model: nn.Module, images: Tensor) -> bool:
    """Return whether a batch with images of other brightness changes outputs; they may be no index of anything."""
    probes = torch.cat([images, *(factor * images[:1] for factor in (-1, 0, 0.1, 10))])
    try:
        with torch.no_grad():
            pairs = list(zip(model(probes), (model(probe[None])[0] for probe in probes), strict=True))
    except Exception as error:  # a probe is none of the data's inputs, and the network may refuse it
        if out_of_memory(error):
            raise
        return False
    return not all(alike(alone, together) for together, alone in pairs if torch.isfinite(together).all())


def alike(found: Tensor, other: Tensor) -> bool:
    """Return whether two outputs (B, C) are the same up to rounding, relative to the largest."""
    scale = float(other.abs().max()) if other.numel() else 0.0
    return found.shape == other.shape and torch.allclose(found, other, rtol=1e-3, atol=1e-3 * scale)


@contextmanager
def _sentences(spec: ModelSpec) -> Iterator[None]:
    """Turn the library's error about networks that it cannot differentiate into a sentence."""
    try:
        yield
    except ValueError as error:
        raise BuildError(f"{str(error).rstrip('.')}; {spec.title} cannot be attributed.") from error


def _blocks(
    model: nn.Module, images: Tensor, weights: Tensor, spec: ModelSpec, trail: _Trail, others: tuple[str, ...]
) -> list[Any]:
    targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    try:
        return jacobian_blocks(model, images, targets, measurement=lambda logits, _: logits @ weights)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        if not others:
            raise BuildError(f"The network {spec.title} cannot be differentiated{trail.where(error)}.") from error
        raise BuildError(
            f"The network {spec.title} cannot be attributed: {others[0]} needs torch.func, which fails"
            f"{trail.where(error)}; let nothing in it depend on the values of tensors, such as if, item() or random "
            "numbers."
        ) from error


def _compare(model: nn.Module, images: Tensor, spec: ModelSpec, trail: _Trail, others: tuple[str, ...]) -> None:
    """Compare the Jacobian of each image within the batch with plain backpropagation of it alone.

    Equal numbers in an image make ties, of which a maximum takes one or another by rounding; so images that differ are
    tried again with a little noise, unless they are indices.
    """
    name = _misread(model, images, spec, trail, others)
    if name is not None and not trail.looks_up:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
        name = _misread(model, images + _NOISE * images.std() * noise, spec, trail, others)
    if name is not None:
        raise BuildError(
            f"The network {spec.title} cannot be attributed: the gradient of '{name}' for one example is another in a "
            "batch than alone, or its weight is used past its layer's own call; keep examples along the first axis of "
            "every layer's input, and call layers as modules."
        )


def _misread(model: nn.Module, images: Tensor, spec: ModelSpec, trail: _Trail, others: tuple[str, ...]) -> str | None:
    """Return the first parameter whose Jacobian is not that of an image alone; None if there is none.

    What is differentiated is a sum of all logits with random weights, which shows what is wrong in any one of them.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return None
    with torch.no_grad():
        logits = model(images[:1])
    weights = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(0)).to(logits)
    blocks = {block.name: block.form() for block in _blocks(model, images, weights, spec, trail, others)}
    for row in range(len(images)):
        try:
            with torch.enable_grad():
                value = (model(images[row : row + 1]) @ weights)[0]
                found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise BuildError(f"The network {spec.title} cannot be differentiated ({first_line(error)}).") from error
        truth = {name: None if g is None else g.to_dense() for name, g in zip(trained, found, strict=True)}
        whole = torch.stack([g.norm() for g in truth.values() if g is not None] or [torch.zeros(())]).norm()
        for name, formed in blocks.items():
            same = len(formed) == len(images)
            if not same or _differs(formed[row].flatten(), truth[name], _NEGLIGIBLE * float(whole)):
                return name
    return None


def _alone(model: nn.Module, image: Tensor, spec: ModelSpec) -> Any:
    try:
        with torch.no_grad():
            return model(image)
    except (Exception, SystemExit) as error:  # somebody's code
        if out_of_memory(error):
            raise
        raise BuildError(f"The network {spec.title} fails on one example alone ({first_line(error)}).") from error


def _differs(found: Tensor, wanted: Tensor | None, least: float) -> bool:
    """Return whether two gradients differ by more than rounding, and by more than the norm `least`."""
    wanted = torch.zeros_like(found) if wanted is None else wanted.flatten()
    largest = max(float(wanted.norm()), float(found.norm()), 1e-12)
    return bool((found - wanted).norm() > max(_TOLERANCE * largest, least))


def _wanted(module: nn.Module, shape: tuple[int, ...]) -> str:
    """Return the end of a sentence on what a layer takes and what it got, if its own size tells; else ""."""
    if isinstance(module, nn.Conv2d) and len(shape) == 4 and shape[1] != module.in_channels:
        return f"takes {module.in_channels}{_GETS}{shape[1]}"
    if isinstance(module, nn.Linear) and shape and shape[-1] != module.in_features:
        return f"takes {module.in_features:,} numbers and gets {shape[-1]:,}"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and len(shape) > 1 and shape[1] != module.num_features:
        return f"takes {module.num_features}{_GETS}{shape[1]}"
    return ""


def _title(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} '{name}'"


def _described(model: nn.Module, names: list[str]) -> tuple[str, ...]:
    """Return the names of the layers that own some parameters, such as LayerNorm 'norm' (2 parameters)."""
    counts = Counter(name.rpartition(".")[0] for name in names)
    return tuple(
        f"{_title(owner, model.get_submodule(owner)) if owner else type(model).__name__} "
        f"({count} parameter{'s' if count > 1 else ''})"
        for owner, count in counts.items()
    )
