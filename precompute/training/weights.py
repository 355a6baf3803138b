"""Trained weights from a file that somebody else may have written: tensors alone, never code."""

# A pickle's operations are only listed here, and none is run.
import pickletools  # nosec B403
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
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

# Keys under which training scripts keep weights; those of averaged weights are the second half.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module"),
    *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema"),
)
# Of DataParallel, torch.compile and usual wrappers.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "ema_model.", "_model.")
_AVERAGED = "n_averaged"  # what torch.optim.swa_utils.AveragedModel counts, beside its network under "module."
_BATCHES = "num_batches_tracked"
_TORCH = (b"PK", b"\x80")  # how files of torch.save begin: as an archive, or in the older format
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,100})")  # what torch.load says it would not import
_DEEPEST_ENTRY = 3  # wrappers in wrappers
_DEEPEST = 20  # tuples within tuples: a state dict has three
_LARGEST_PICKLE = 2**28  # bytes of a pickle, which holds no numbers
_PICKLES = 4  # of a file in the older format before its numbers: a magic number, the format, the system and the content
_SHOWN = 200  # characters of a list of entries
_SAVE = "save torch.save(model.state_dict(), FILE) or a safetensors file, and load that"


def load_weights(model: nn.Module, path: Path, spec: ModelSpec, *, key: str | None = None, prefix: str = "") -> None:
    """Load weights into a network, in its own precision.

    Args:
        model: the network.
        path: a safetensors file, or one that `torch.save` wrote from a state dict, plain or under a usual key such as
            state_dict, model_state or ema. A prefix that its names have and the network's do not, as DataParallel,
            torch.compile and modules around a network add, is removed.
        spec: the network's specification, for messages.
        key: the entry of the file that holds the state dict, entries of entries separated by dots; the usual one when
            None.
        prefix: take what is named so, and without it; nothing else is then removed.

    Raises:
        BuildError: if the file cannot be read, holds code or numbers that are not finite, or does not fit the network.
    """
    if not path.is_file():
        raise BuildError(f"There is no file of weights at {path}.")
    try:
        with path.open("rb") as file:
            pickled = file.read(2).startswith(_TORCH)
        content = _unpickled(path) if pickled else safetensors.torch.load_file(path)
        found = _state_of(content if key is None else _entry(content, key, path), path, key)
    except OSError as error:
        if out_of_memory(error):
            raise
        raise BuildError(f"The weights in {path} cannot be read: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise BuildError(f"{path} is neither a safetensors file of weights nor one of torch.save.") from error
    weights = _named(found, prefix, path) if prefix else _without_prefix(found, model)
    _check_kinds(model, weights, path)
    try:
        model.load_state_dict(weights)
    except (Exception, SystemExit) as error:  # a user's modules may raise anything
        if out_of_memory(error):
            raise
        fault = _fault(model, weights) or str(error).strip().splitlines()[-1].strip().rstrip(".")
        advice = _other_prefix(model, weights) or _advice(spec)
        raise BuildError(f"The weights in {path} do not fit the network {spec.title}: {fault}; {advice}.") from error
    check_finite(model, "choose other weights")


def check_finite(model: nn.Module, fix: str) -> None:
    """Raise BuildError, with what to do about it, if a network's weights are not all finite numbers."""
    strange = next((name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()), None)
    if strange is not None:
        raise BuildError(f"The weights '{strange}' hold values that are not finite numbers; {fix}.")


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
        if "TorchScript" in str(error):
            raise BuildError(f"{path} is a network of TorchScript, not weights by name: {_SAVE}.") from error
        if "weights_only" in str(error):  # torch's advice is to load it anyway
            named = _GLOBAL.search(str(error))
            raise BuildError(
                f"{path} holds something else than weights, such as a whole network{f' ({named[1]})' if named else ''},"
                f" and loading that could run any code: {_SAVE}."
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


def _entry(content: Any, key: str, path: Path) -> Any:
    """Return what a file holds under a key, or under a key of what it holds under another."""
    if isinstance(content, Mapping) and key in content:
        return content[key]
    head, dot, rest = key.partition(".")
    if dot and isinstance(content, Mapping) and head in content:
        return _entry(content[head], rest, path)
    if isinstance(content, Mapping) and any(isinstance(k, str) and k.startswith(f"{key}.") for k in content):
        raise BuildError(f"{path} has no entry '{key}', but names that begin so; take them by --prefix {key}.")
    there = ", ".join(str(k) for k in content if isinstance(k, str))[:_SHOWN] if isinstance(content, Mapping) else ""
    raise BuildError(f"{path} has no entry '{key}'; {f'it holds {there}' if there else 'it has no entries by name'}.")


def _state_of(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    """Return the tensors from what training scripts save; raise BuildError where there are several to choose from."""
    place = "" if key is None else f"{key}."
    for _ in range(_DEEPEST_ENTRY):
        held = [name for name in _WRAPPERS if isinstance(content, Mapping) and _holds_weights(content.get(name))]
        plain = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
        direct = any(tensor.ndim for tensor in plain.values())  # a number of steps or a best accuracy has no axis
        if held and direct and place:  # what was named is a state dict, whatever else it holds
            content = {k: v for k, v in content.items() if k not in held}
            break
        if len(held) + direct > 1:
            there = [f"under {' and '.join(held)}", *(["by name beside it"] if direct else [])]
            raise BuildError(
                f"{path} holds weights {' and '.join(there)}; choose by --key {place}{held[0]}, for example."
            )
        if not held:
            break
        content, place = content[held[0]], f"{place}{held[0]}."
    if not isinstance(content, Mapping) or not content:
        raise BuildError(f"{path} holds {type(content).__name__} and not the weights of a network by name: {_SAVE}.")
    strange = next((k for k, v in content.items() if not (isinstance(k, str) and isinstance(v, Tensor))), None)
    if strange is not None:
        inner = [k for k, v in content.items() if isinstance(k, str) and _holds_weights(v)]
        advice = f"name the entry that holds the weights by --key {place}{inner[0]}" if inner else _SAVE
        kind = type(content[strange]).__name__
        raise BuildError(f"{path} holds {strange!r}, a {kind}, which is not a weight of a network: {advice}.")
    return dict(content)


def _holds_weights(found: Any, depth: int = 2) -> bool:
    """Return whether an entry holds tensors, or entries that do."""
    values = found.values() if isinstance(found, Mapping) else ()
    return any(isinstance(value, Tensor) or (depth > 1 and _holds_weights(value, depth - 1)) for value in values)


def _named(weights: dict[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """Return what is named with a prefix, without it."""
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if not found:
        raise BuildError(f"No name in {path} begins with '{prefix}'; the first is '{next(iter(weights))}'.")
    return found


def _without_prefix(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    names = set(model.state_dict())
    if _AVERAGED in weights and _AVERAGED not in names:
        weights = {name: tensor for name, tensor in weights.items() if name != _AVERAGED}
    while prefix := next((p for p in _PREFIXES if weights and all(name.startswith(p) for name in weights)), None):
        if any(name.startswith(prefix) for name in names):
            break
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    for prefix in (*_PREFIXES, *_common(weights)):  # some names have it, or it is a name of the user's own
        bare = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        if len(bare) == len(weights) and _counted(bare) == _counted(names):
            return bare
    return weights


def _counted(names: Iterable[str]) -> set[str]:
    """Return the names without those of counts of batches, which older files lack."""
    return {name for name in names if not name.endswith(_BATCHES)}


def _common(weights: dict[str, Tensor]) -> list[str]:
    """Return the prefixes that end in a dot and that all names have in common."""
    first = next(iter(weights), "")
    found = [first[: place + 1] for place, letter in enumerate(first) if letter == "."]
    return [prefix for prefix in found if all(name.startswith(prefix) for name in weights)]


def _other_prefix(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """Return the advice to name a prefix under which the file holds all that the network needs, if there is one."""
    own = _counted(model.state_dict())
    for name in weights:
        prefix = name.removesuffix(min(own, key=len))
        if prefix != name and prefix.endswith(".") and all(prefix + other in weights for other in own):
            return f"take those that begin with {prefix} by --prefix {prefix}"
    return ""


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
    missing = [name for name in own if name not in weights and not name.endswith(_BATCHES)]
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
