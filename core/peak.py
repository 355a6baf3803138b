"""How much memory the tensors of some work on examples need, measured on few of them."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def bytes_each(run: Callable[[int], Any], few: int = 2, more: int = 6) -> float:
    """Return how many bytes each additional example adds to the peak memory of the tensors of some work.

    Args:
        run: does it for so many examples.
        few: how many it is done for first.
        more: how many it is done for then.
    """
    peaks = [peak_bytes(partial(run, number)) for number in (few, more)]
    return max(0.0, (peaks[1] - peaks[0]) / (more - few))


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the peak memory of the tensors that some work makes."""
    with _Peak() as peak:
        run()
    return peak.most


class _Peak(TorchDispatchMode):
    """Tracks the total size of the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._now = 0, 0
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            self._now -= size
            del self._live[key]

        self._live[key] = weakref.ref(storage, freed)
        self._now += size
        self.most = max(self.most, self._now)
