"""How long work on images takes and how much memory it needs, measured on few of them."""

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_LONG_ENOUGH = 0.6  # seconds of work from which the rest is extrapolated


def seconds_each(run: Callable[[int], Any], most: int) -> float:
    """Return the seconds an image takes, timed on more and more images until that can be extrapolated."""
    number = min(2, most)
    run(number)  # the first run includes warming up
    while True:
        begun = time.perf_counter()
        run(number)
        spent = time.perf_counter() - begun
        if spent > _LONG_ENOUGH / 2 or number == most:
            return spent / number
        number = min(most, int(number * min(16.0, max(2.0, _LONG_ENOUGH / max(spent, 1e-6)))))


def bytes_each(run: Callable[[int], Any]) -> float:
    """Return how many bytes each additional image adds to the peak memory of the tensors of some work."""
    few, more = 2, 6
    peaks = []
    for number in (few, more):
        with _Peak() as peak:
            run(number)
        peaks.append(peak.most)
    return max(0.0, (peaks[1] - peaks[0]) / (more - few))


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
