"""How long work on images takes measured on few of them, and how much memory is taken."""

import ctypes
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

IDLE = 700e6  # bytes of Python and its libraries
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
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)  # what was freed by work that was tried counts no longer
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):  # no Linux
        return IDLE
