"""Modules that natscope cannot follow, whatever they compute: what to give in their place, in one sentence."""

import torch
from torch import nn

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


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
        if ".quantized" in type(module).__module__:
            return f"the {kind}{where} is quantized and has no gradient; give the network before it was quantized"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            return f"'{name}' is on the meta device and has no numbers; make the network on a real one"
    return None
