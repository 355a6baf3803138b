"""Where networks run: on the processor, or on the accelerator that $NATSCOPE_DEVICE names."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from natscope.core.errors import BuildError, out_of_memory

_OPERATIONS = ("matmul", "conv", "rnn")


def device() -> torch.device:
    """Return the device for networks, their training and their Jacobians: $NATSCOPE_DEVICE, else the processor.

    Kernels, selections and indexes stay on the processor. What PyTorch adds up in any order on CUDA, as TensorSketch
    does, is the same from run to run up to rounding, and all else bit by bit (`full_precision`).

    Raises:
        BuildError: if PyTorch knows no such device, or it is not there.
    """
    name = os.environ.get("NATSCOPE_DEVICE") or "cpu"
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
        if found.type == "meta":
            raise ValueError
    except (RuntimeError, ValueError, AssertionError, ImportError) as error:
        if out_of_memory(error):
            raise
        raise BuildError(
            f"PyTorch finds no device {name} here; set --device or NATSCOPE_DEVICE to cpu, cuda or cuda:1, for example."
        ) from error
    if found.type == "cuda" and found.index is not None:  # for libraries that take the current one
        torch.cuda.set_device(found)
    return found


@dataclass(frozen=True)
class Precision:
    """How PyTorch multiplies float32, in this whole process.

    Args:
        products: as `torch.set_float32_matmul_precision` takes it; None where a program has set operations one by one.
        convolutions: whether cuDNN may use TF32; None likewise.
        operations: the precision of each operation that PyTorch, since 2.9, sets by itself.
        deterministic: whether convolutions are the same from run to run.
    """

    products: str | None
    convolutions: bool | None
    operations: tuple[str, ...]
    deterministic: bool


def precision() -> Precision:
    """Return how float32 is multiplied now."""
    cudnn = torch.backends.cudnn
    convolutions = products = None
    with suppress(RuntimeError):  # of versions that refuse to answer by one word for all
        products = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = cudnn.allow_tf32
    return Precision(products, convolutions, tuple(op.fp32_precision for op in _operations()), cudnn.deterministic)


def set_precision(wanted: Precision) -> None:
    """Multiply float32 in that way from now on."""
    if wanted.products is not None:
        torch.set_float32_matmul_precision(wanted.products)
    if wanted.convolutions is not None:
        torch.backends.cudnn.allow_tf32 = wanted.convolutions
    for operation, name in zip(_operations(), wanted.operations, strict=True):
        operation.fp32_precision = name
    torch.backends.cudnn.deterministic = wanted.deterministic


def _operations() -> list[Any]:
    backends = torch.backends
    parts = ((backends.cuda, "matmul"), *((b, n) for b in (backends.cudnn, backends.mkldnn) for n in _OPERATIONS))
    found = (getattr(owner, name, None) for owner, name in parts)
    return [operation for operation in found if hasattr(operation, "fp32_precision")]


class _Before:
    """What the process had set before the first of those who now compute in full precision."""

    def __init__(self) -> None:
        self.guard, self.users, self.precision = threading.Lock(), 0, precision()


_before = _Before()


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in float32 as it is for a while, and the same from run to run, whatever a program has set.

    PyTorch's settings are those of the process: other threads compute so as well until the last one is done.
    """
    with _before.guard:
        if not _before.users:
            _before.precision = precision()
            set_precision(Precision("highest", False, ("ieee",) * len(_operations()), deterministic=True))
        _before.users += 1
    try:
        yield
    finally:
        with _before.guard:
            _before.users -= 1
            if not _before.users:
                set_precision(_before.precision)


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a network's parameters are on."""
    return next(model.parameters()).device


def reseed(seed: int, found: torch.device) -> None:
    """Seed what a network draws on a device, such as dropout.

    `torch.manual_seed` seeds all devices, and for CUDA it writes down the whole call stack even where there is no GPU,
    which takes time before every step of a small network. On the processor only its own generator gets the seed.
    """
    (torch.default_generator.manual_seed if found.type == "cpu" else torch.manual_seed)(seed)


def title(found: torch.device) -> str:
    """Return the name of a device for people and manifests."""
    return torch.cuda.get_device_name(found) if found.type == "cuda" else str(found)
