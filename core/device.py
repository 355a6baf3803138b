"""Where networks run: on the processor, or on the accelerator that $NATSCOPE_DEVICE names."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from natscope.core.errors import BuildError, out_of_memory


def device() -> torch.device:
    """Return the device for networks, their training and their Jacobians: $NATSCOPE_DEVICE, else the processor.

    Kernels, selections and indexes stay on the processor. On CUDA, convolutions do not round float32 to TF32 and are
    the same from run to run; what PyTorch adds up in any order there, as TensorSketch does, is so up to rounding.

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
    if found.type == "cuda":
        if found.index is not None:  # for libraries that take the current one
            torch.cuda.set_device(found)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
    return found


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in float32 as it is for a while, whatever a notebook has set, and not in TF32 or bfloat16."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a network's parameters are on."""
    return next(model.parameters()).device


def title(found: torch.device) -> str:
    """Return the name of a device for people and manifests."""
    return torch.cuda.get_device_name(found) if found.type == "cuda" else str(found)
