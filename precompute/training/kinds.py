"""Modules that natscope cannot follow, with what to give in their place, and the kinds of numbers a network uses."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_HALVES, _WHOLE = (torch.float16, torch.bfloat16), (torch.int32, torch.int64)


def fault_of(model: nn.Module) -> str | None:
    """Return what is wrong with the kind of a network or of a module within, and what to give instead; else None."""
    for name, module in model.named_modules():
        kind, where = type(module).__name__, f" '{name}'" if name else ""
        if isinstance(module, _WRAPPERS):
            return f"the network{where} is wrapped in {kind}; give the one within, its .module"
        if hasattr(module, "_orig_mod"):  # by torch.compile
            return f"the module{where} is compiled, and natscope follows single layers; give its ._orig_mod"
        if getattr(module, "_compiled_call_impl", None) is not None:
            return f"the module{where} is compiled, and natscope follows single layers; leave out its .compile()"
        if isinstance(module, torch.jit.ScriptModule):
            return f"the module{where} is of TorchScript, whose layers natscope cannot follow; give what it came from"
        if type(module).__module__.startswith("torch.") and ".quantized" in type(module).__module__:
            return f"the {kind}{where} is quantized and has no gradient; give the network before it was quantized"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            return f"'{name}' is on the meta device and has no numbers; make the network on a real one"
    return None


class Types(TorchDispatchMode):
    """Notes the first half precision that an operation makes, and whether one takes whole numbers made of others."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        super().__init__()
        self.half: str | None = None
        self.looks_up = False
        self._whole: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note its types."""
        made = func(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self.looks_up |= any(tensor is whole for tensor in given for whole in self._whole)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.dtype in _HALVES:
                self.half = self.half or str(tensor.dtype).removeprefix("torch.")
            elif isinstance(tensor, Tensor) and tensor.dtype in _WHOLE and any(t.is_floating_point() for t in given):
                self._whole.append(tensor)
        return made
