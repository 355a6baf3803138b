"""How long work on images takes and how much memory it needs, measured on few of them."""

import resource
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_IDLE = 700e6  # bytes of Python and its libraries
_LONG_ENOUGH = 0.6  # seconds of work from which the rest is extrapolated


def seconds_each(run: Callable[[int], Any], most: int) -> tuple[float, float]:
    """Return the seconds that any work takes at least, and those that each image adds.

    It is timed on more and more images until they take long enough beyond what two take.
    """
    few = min(2, most)
    run(few)  # the first run includes warming up
    least = number = seconds(lambda: run(few)), few
    while number[1] < most and number[0] - least[0] < _LONG_ENOUGH / 2:
        grown = _LONG_ENOUGH / max(number[0] - least[0], 1e-6)
        more = min(most, int(number[1] * min(16.0, max(2.0, grown))))
        number = seconds(lambda: run(more)), more  # noqa: B023 - called at once
    if number[1] == few:
        return 0.0, least[0] / few
    each = max(0.0, (number[0] - least[0]) / (number[1] - few))
    return max(0.0, least[0] - each * few), each


def seconds(run: Callable[[], Any]) -> float:
    """Return the seconds that some work takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def resident() -> float:
    """Return the bytes of memory that this process takes now, or what is usual where that cannot be known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):  # no Linux
        return _IDLE


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
