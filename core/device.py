"""Where networks run: on the processor, or on the accelerator that $NATSCOPE_DEVICE names."""

import os

import torch

from natscope.core.errors import BuildError


def device() -> torch.device:
    """Return the device for networks, their training and their Jacobians: $NATSCOPE_DEVICE, else the processor.

    Kernels, selections and indexes stay on the processor. On CUDA, float32 is not rounded to TF32, and the same device
    gives the same bits where PyTorch can do that.

    Raises:
        BuildError: if PyTorch knows no such device, or it is not there.
    """
    name = os.environ.get("NATSCOPE_DEVICE") or "cpu"
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
        if found.type == "meta":
            raise ValueError
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        raise BuildError(
            f"NATSCOPE_DEVICE is {name}, which PyTorch does not find here; set it to cpu, cuda or cuda:1, for example."
        ) from error
    if found.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
    return found


def title(found: torch.device) -> str:
    """Return the name of a device for people and manifests."""
    return torch.cuda.get_device_name(found) if found.type == "cuda" else str(found)
