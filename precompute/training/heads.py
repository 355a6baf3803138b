"""What a network of one's own returns, turned into logits (B, C): a part of a tuple or dict, or two classes of one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from natscope.core.errors import BuildError

OUTPUT = "--output (output= in Python)"  # as a sentence names the option
_USUAL = ("logits", "out")  # of Hugging Face's models and torchvision's
_LISTED = 10
_PASSING = ("View", "Reshape", "Squeeze", "Unsqueeze", "Stack", "Cat", "Neg", "Clone", "Alias", "Select", "Slice")
_SCALING = ("Mul", "Div")
_ENDS = {"LogSoftmax": "log-softmax", "Softmax": "softmax", "Sigmoid": "sigmoid", "LogSigmoid": "log-sigmoid"}
_DEEPEST = 20  # operations behind an output that are looked at


@dataclass
class Head:
    """A forward hook of a whole network, which gives its logits in place of what it returns.

    One logit z an example, with shape (B,), (B, 1) or, for one example, (), stands for two classes. It becomes
    (-z/2, z/2): their softmax is sigmoid(z), as that of (0, z) would be, and both classes have a Jacobian, where the
    constant 0 has none.

    Args:
        output: the name, or the number, of the logits in what the network returns. When None, a tensor is taken as it
            is, and of the rest what is unambiguous: the entry "logits" or "out", or a tuple's first item if it alone
            has its shape (B, C).
        remarks: what it did at its last call, a sentence each.
        one_logit: whether that was to make two classes of one logit.
    """

    output: str | None
    remarks: tuple[str, ...] = ()
    one_logit: bool = False

    def __call__(self, model: nn.Module, args: tuple[Any, ...], named: dict[str, Any], value: Any) -> Any:
        """Return the logits; raises BuildError if `output` names nothing of the value."""
        count = next((len(a) for a in (*args, *named.values()) if isinstance(a, Tensor) and a.dim()), 0)
        found, remarks = value, []
        if not isinstance(value, Tensor):
            name = self.output if self.output is not None else _unambiguous(value, count)
            if name is None:
                return value
            found = _part(value, name)
            if self.output is None:
                remarks.append(
                    f"logits are '{name}' of the {type(value).__name__} that it returns; {OUTPUT} names another part"
                )
        elif self.output is not None and not model.training:
            raise BuildError(
                f"The network gives a tensor, so there is no '{self.output}' to take of it; leave out {OUTPUT}."
            )
        floats = isinstance(found, Tensor) and found.is_floating_point()
        self.one_logit = floats and found.dim() < 3 and found.numel() == count > 0
        if self.one_logit:
            half = found.reshape(count, 1) / 2
            found = half.new_tensor([-1.0, 1.0]) * half
            remarks.append(
                "its one logit z stands for two classes, of logits −z/2 and z/2, whose softmax is sigmoid(z)"
            )
        self.remarks = tuple(remarks)
        return found


def attach(model: nn.Module, output: str | None) -> RemovableHandle:
    """Let a network give logits from now on, until the handle is removed; names of parameters stay as they are."""
    return model.register_forward_hook(Head(output), with_kwargs=True)


@contextmanager
def giving_logits(model: nn.Module, output: str | None) -> Iterator[None]:
    """Let a network give logits for a while."""
    handle = attach(model, output)
    try:
        yield
    finally:
        handle.remove()


def remarks_of(model: nn.Module) -> tuple[str, ...]:
    """Return what the `Head` of a network did at its last call, if it has one."""
    head = _head_of(model)
    return () if head is None else head.remarks


def gave_one_logit(model: nn.Module) -> bool:
    """Return whether the `Head` of a network made two classes of one logit at its last call."""
    head = _head_of(model)
    return head is not None and head.one_logit


def _head_of(model: nn.Module) -> Head | None:
    return next((hook for hook in model._forward_hooks.values() if isinstance(hook, Head)), None)


def last_operation(logits: Tensor) -> str | None:
    """Return which function of those that make probabilities ends a network, by the graph of its outputs; else None."""
    node: Any = logits.grad_fn
    for _ in range(_DEEPEST):
        if node is None:
            return None
        kind = node.name().removesuffix("0").removesuffix("Backward").lstrip("_")
        if kind in _ENDS:
            return _ENDS[kind]
        inner = [following for following, _ in node.next_functions if following is not None]
        if not (kind.startswith(_PASSING) or (kind.startswith(_SCALING) and len(inner) == 1)) or not inner:
            return None
        node = inner[0]
    return None


def _unambiguous(value: Any, count: int) -> str | None:
    usual = [name for name in _USUAL if isinstance(_entry(value, name), Tensor)]
    if len(usual) == 1:
        return usual[0]
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        first = value[0]
        alike = [item for item in value if isinstance(item, Tensor) and item.shape == first.shape]
        if first.dim() == 2 and len(first) == count and first.is_floating_point() and len(alike) == 1:
            return "0"
    return None


def _entry(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _part(value: Any, name: str) -> Any:
    found = _entry(value, name)
    if found is not None:
        return found
    if isinstance(value, tuple | list) and name.removeprefix("-").isdecimal() and -len(value) <= int(name) < len(value):
        return value[int(name)]
    if isinstance(value, Mapping):
        there = ", ".join(map(str, list(value)[:_LISTED]))
    elif isinstance(value, tuple | list):
        there = f"items 0 to {len(value) - 1}"
    else:
        there = ", ".join(list(vars(value))[:_LISTED]) if hasattr(value, "__dict__") else "nothing by a name"
    raise BuildError(f"There is no '{name}' in the {type(value).__name__} that the network gives; it has {there}.")
