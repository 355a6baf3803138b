"""Trained weights from a file that somebody else may have written: tensors alone, never code."""

# A pickle's operations are only listed here, and none is run.
import pickletools  # nosec B403
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from natscope.core.errors import BuildError, out_of_memory
from natscope.precompute.training.models import ModelSpec

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which training scripts keep weights
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # of DataParallel, torch.compile and usual wrappers
_TORCH = (b"PK", b"\x80")  # how files of torch.save begin: as an archive, or in the older format
_DEEPEST = 20  # tuples within tuples: a state dict has three
_LARGEST_PICKLE = 2**28  # bytes of a pickle, which holds no numbers
_PICKLES = 4  # of a file in the older format before its numbers: a magic number, the format, the system and the content
_SAVE = "save torch.save(model.state_dict(), FILE) or a safetensors file, and load that"


def load_weights(model: nn.Module, path: Path, spec: ModelSpec) -> None:
    """Load weights into a network, in its own precision.

    Args:
        model: the network.
        path: a safetensors file, or one that `torch.save` wrote from a state dict, plain or under one of the keys
            state_dict, model_state_dict, model and net. A prefix that all its names have in common and the network's
            do not, as DataParallel and torch.compile add, is removed.
        spec: the network's specification, for messages.

    Raises:
        BuildError: if the file cannot be read, holds code, or does not fit the network.
    """
    if not path.is_file():
        raise BuildError(f"There is no file of weights at {path}.")
    try:
        with path.open("rb") as file:
            pickled = file.read(2).startswith(_TORCH)
        found = _state_of(_unpickled(path), path) if pickled else safetensors.torch.load_file(path)
    except OSError as error:
        if out_of_memory(error):
            raise
        raise BuildError(f"The weights in {path} cannot be read: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise BuildError(f"{path} is neither a safetensors file of weights nor one of torch.save.") from error
    weights = _without_prefix(found, model)
    _check_kinds(model, weights, path)
    try:
        model.load_state_dict(weights)
    except (Exception, SystemExit) as error:  # a user's modules may raise anything
        if out_of_memory(error):
            raise
        fault = _fault(model, weights) or str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise BuildError(
            f"The weights in {path} do not fit the network {spec.title}: {fault}; {_advice(spec)}."
        ) from error


def _unpickled(path: Path) -> Any:
    if _nesting(path) > _DEEPEST:
        raise BuildError(f"{path} holds tuples within tuples without end, and not the weights of a network: {_SAVE}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile and torch
        if out_of_memory(error):
            raise
        if "weights_only" in str(error):  # torch's advice is to load it anyway
            raise BuildError(
                f"{path} holds something else than weights, such as a whole network, and loading that could run any "
                f"code: {_SAVE}."
            ) from error
        raise BuildError(f"{path} is damaged, or not a file of weights that torch.save wrote.") from error


def _nesting(path: Path) -> int:
    """Return how deep the tuples of a file's pickles are nested; hashing one takes two to the power of its depth."""
    deepest = 0
    with suppress(Exception), ExitStack() as stack:  # torch says what is wrong with the file
        streams: list[IO[bytes]] = [stack.enter_context(path.open("rb"))] * _PICKLES
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            streams = [archive.open(name) for name in archive.namelist() if name.endswith(".pkl")]
        for depth in chain.from_iterable(map(_depths, streams)):
            deepest = max(deepest, depth)
    return deepest


def _depths(stream: IO[bytes]) -> Iterator[int]:
    """Yield the depth of each value that a pickle would make; only what is hashed counts.

    Its operations are listed, and none of them is run.
    """
    stack: list[int | None] = []  # depth of each value; None for a mark
    memo: dict[int, int] = {}
    for operation, argument, position in pickletools.genops(stream):
        name, before = operation.name, operation.stack_before
        if (position or 0) > _LARGEST_PICKLE:
            yield _DEEPEST + 1
            return
        if name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(str(argument))])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(str(argument))] = stack[-1] or 0
        else:
            taken: list[int | None] = []
            if pickletools.markobject in before:
                while (value := stack.pop()) is not None:
                    taken.append(value)
                before = before[: before.index(pickletools.markobject)]
            taken += [stack.pop() for _ in before]
            made = name.startswith("TUPLE") or name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX")
            depth = max((value or 0 for value in taken), default=0) + 1 if made else 0
            yield depth
            stack += [None if kind is pickletools.markobject else depth for kind in operation.stack_after]


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors from what training scripts save."""
    for _ in range(2):
        inner = next((content[key] for key in _WRAPPERS if _holds(content, key)), None)
        content = content if inner is None else inner
    if not isinstance(content, Mapping) or not content:
        raise BuildError(f"{path} holds {type(content).__name__} and not the weights of a network by name: {_SAVE}.")
    strange = next((k for k, v in content.items() if not (isinstance(k, str) and isinstance(v, Tensor))), None)
    if strange is not None:
        raise BuildError(f"{path} holds {strange!r}, which is not a weight of a network: {_SAVE}.")
    return dict(content)


def _holds(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _without_prefix(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    names = set(model.state_dict())
    while prefix := next((p for p in _PREFIXES if weights and all(name.startswith(p) for name in weights)), None):
        if any(name.startswith(prefix) for name in names):
            break
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _check_kinds(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Refuse what torch would convert silently, integers and complex numbers, and tensors that are not dense."""
    own = dict(model.named_parameters())
    for name, tensor in weights.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise BuildError(f"{path} holds '{name}' as a sparse, nested or empty tensor; save its numbers one by one.")
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise BuildError(f"{path} holds '{name}' as {kind}, and natscope needs floating-point weights.")


def _fault(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """Return the first difference between what the network has and what the file holds."""
    own = model.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    surplus = [name for name in weights if name not in own]
    if missing:
        return f"the file has no '{missing[0]}'{_more(missing)}" + (
            f", but '{surplus[0]}'{_more(surplus)}" if surplus else ""
        )
    if surplus:
        return f"the network has no '{surplus[0]}'{_more(surplus)}, which the file holds"
    for name, tensor in own.items():
        if name in weights and tensor.shape != weights[name].shape:
            here, there = (" × ".join(map(str, shape)) or "one number" for shape in (tensor.shape, weights[name].shape))
            return f"its '{name}' is {here}, the file's {there}"
    return ""


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _advice(spec: ModelSpec) -> str:
    if spec.architecture == "mlp":
        return "check --widths and --bias"
    if spec.widths is not None:
        return "check --model and the data set's classes and colours"
    return f"load weights that were trained with the network of {spec.architecture}"
