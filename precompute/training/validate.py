"""Checks whether natscope can use a network for a data set, on a few images; one sentence says why not."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from natscope.core.errors import BuildError, out_of_memory
from natscope.core.jacobians import forward_with_penultimate, jacobian_blocks, supported_layers
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.projects import first_line

_TOLERANCE = 0.05  # relative, in norm: far above rounding, far below the error of a misread layer
_NEGLIGIBLE = 1e-4  # of the whole gradient's norm: a bias before a normalisation has rounding alone
_SUM_OF_CHANCES = 1e-4


@dataclass(frozen=True)
class Suitable:
    """What is known of a suitable network.

    Args:
        parameters: how many trainable numbers it has.
        penultimate: how many numbers enter its last `Linear` layer.
        by_torch_func: descriptions of the layers whose Jacobian goes through `torch.func`: exact as well, but slower.
    """

    parameters: int
    penultimate: int
    by_torch_func: tuple[str, ...]


def check_suitable(model: nn.Module, images: Tensor, classes: int, spec: ModelSpec) -> Suitable:
    """Run a network in eval mode on a few images and differentiate it; it is left as it was, in eval mode.

    Jacobians are compared with plain backpropagation of one image alone, so a layer that natscope would misread (it
    mixes the images of a batch, or its weight is used outside it) is found before anything is built on it.

    Args:
        model: the network.
        images: (B, ...), two or three inputs.
        classes: how many classes the data set has.
        spec: the network's specification, for messages.

    Raises:
        BuildError: if the network cannot be used.
    """
    trail = _Trail()
    model.eval()
    with _following(model, trail):
        logits = _run(model, images, spec, trail)
        _check_logits(model, logits, images, classes, spec)
        try:
            penultimate = forward_with_penultimate(model, images)[1].shape[1]
        except ValueError as error:
            raise BuildError(
                f"The network {spec.title} runs no torch.nn.Linear layer, and natscope compares images by what enters "
                "the last one; let it end in one."
            ) from error
        ran = set(trail.ran)
        with _sentences(spec):
            by_hand = {id(p) for name, m in supported_layers(model).items() if name in ran for p in m.parameters()}
            others = [(name, p) for name, p in model.named_parameters() if id(p) not in by_hand]
            layers = _described(model, [name for name, _ in others])
            blocks = _blocks(model, images, spec, trail, layers)
    _compare(model, images, blocks, spec)
    return Suitable(sum(p.numel() for p in model.parameters()), penultimate, layers)


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
                    f"The last step of every epoch has one image, with which {spec.title} fails in training mode; "
                    "choose another --batch-size."
                ) from error


@dataclass
class _Trail:
    """Where a forward pass is: the modules that it has entered and not left."""

    inside: list[tuple[str, nn.Module, tuple[int, ...]]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

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
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
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
    try:
        with torch.no_grad():
            return model(images)
    except (Exception, SystemExit) as error:  # somebody's code
        if out_of_memory(error):
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
        colours = "1 channel (grey)" if images.shape[1] == 1 else f"{images.shape[1]} channels (colour)"
        raise BuildError(
            f"The network {spec.title} does not take images of {colours} and {height} × {width} pixels: it fails"
            f"{trail.where(error)}."
        ) from error


def _check_logits(model: nn.Module, logits: Any, images: Tensor, classes: int, spec: ModelSpec) -> None:
    count = len(images)
    if not isinstance(logits, Tensor):
        raise BuildError(
            f"The network {spec.title} gives a {type(logits).__name__}; natscope needs one that gives a tensor of "
            "logits, (images, classes)."
        )
    if logits.dim() != 2 or len(logits) != count or not logits.is_floating_point():
        raise BuildError(
            f"The network {spec.title} gives {str(logits.dtype).removeprefix('torch.')} of shape {tuple(logits.shape)} "
            f"for {count} images; natscope needs logits of shape (images, classes)."
        )
    if logits.dtype not in (torch.float32, torch.float64):
        raise BuildError(
            f"The network {spec.title} gives {str(logits.dtype).removeprefix('torch.')}; natscope runs networks in "
            "float32, so leave half precision and autocast out of it."
        )
    if logits.shape[1] != classes:
        raise BuildError(f"The network has {logits.shape[1]} outputs and the data set {classes} classes.")
    if not torch.isfinite(logits).all():
        raise BuildError(
            f"The outputs of {spec.title} are not finite numbers; its weights, or an operation in it, run away."
        )
    if logits.shape[1] > 1 and (logits >= 0).all() and ((logits.sum(1) - 1).abs() < _SUM_OF_CHANCES).all():
        raise BuildError(
            f"The network {spec.title} seems to end in a softmax: its outputs are probabilities, and natscope needs "
            "the logits before it."
        )
    with torch.no_grad():
        again = model(images)
    if not torch.allclose(again, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise BuildError(
            f"The network {spec.title} gives other outputs every time, in eval mode too; switch off what is random in "
            "it unless self.training."
        )


@contextmanager
def _sentences(spec: ModelSpec) -> Iterator[None]:
    """Turn the library's error about networks that it cannot differentiate into a sentence."""
    try:
        yield
    except ValueError as error:
        raise BuildError(f"{str(error).rstrip('.')}; {spec.title} cannot be attributed.") from error


def _blocks(model: nn.Module, images: Tensor, spec: ModelSpec, trail: _Trail, others: tuple[str, ...]) -> list[Any]:
    targets = torch.zeros(len(images), dtype=torch.int64)
    try:
        return jacobian_blocks(model, images, targets)
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


def _compare(model: nn.Module, images: Tensor, blocks: list[Any], spec: ModelSpec) -> None:
    """Compare the Jacobian of the first image within the batch with plain backpropagation of it alone."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return
    with torch.enable_grad():
        alone = _alone(model, images[:1], spec)
        if not isinstance(alone, Tensor) or alone.dim() != 2 or len(alone) != 1:
            form = tuple(alone.shape) if isinstance(alone, Tensor) else type(alone).__name__
            raise BuildError(
                f"The network {spec.title} gives {form} for one image alone; natscope needs logits of shape "
                "(images, classes) for any number of images."
            )
        found = torch.autograd.grad(alone[0, 0], list(trained.values()), allow_unused=True)
    truth = dict(zip(trained, found, strict=True))
    least = _NEGLIGIBLE * float(torch.stack([g.norm() for g in found if g is not None] or [torch.zeros(())]).norm())
    for block in blocks:
        formed = block.form()
        wanted = truth.get(block.name)
        if block.name in trained and (len(formed) != len(images) or _differs(formed[0].flatten(), wanted, least)):
            raise BuildError(
                f"The network {spec.title} cannot be attributed: the gradient of '{block.name}' for one image is "
                "another in a batch than alone, or its weight is used past its layer's own call; keep images along "
                "the first axis of every layer's input, and call layers as modules."
            )


def _alone(model: nn.Module, image: Tensor, spec: ModelSpec) -> Any:
    try:
        return model(image)
    except (Exception, SystemExit) as error:  # somebody's code
        if out_of_memory(error):
            raise
        raise BuildError(f"The network {spec.title} fails on one image alone ({first_line(error)}).") from error


def _differs(found: Tensor, wanted: Tensor | None, least: float) -> bool:
    """Return whether two gradients differ by more than rounding, and by more than the norm `least`."""
    wanted = torch.zeros_like(found) if wanted is None else wanted.flatten()
    largest = max(float(wanted.norm()), float(found.norm()), 1e-12)
    return bool((found - wanted).norm() > max(_TOLERANCE * largest, least))


def _wanted(module: nn.Module, shape: tuple[int, ...]) -> str:
    """Return the end of a sentence on what a layer takes and what it got, if its own size tells; else ""."""
    if isinstance(module, nn.Conv2d) and len(shape) == 4 and shape[1] != module.in_channels:
        return f"takes {module.in_channels} channels and gets {shape[1]}"
    if isinstance(module, nn.Linear) and shape and shape[-1] != module.in_features:
        return f"takes {module.in_features:,} numbers and gets {shape[-1]:,}"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and len(shape) > 1 and shape[1] != module.num_features:
        return f"takes {module.num_features} channels and gets {shape[1]}"
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
