"""A small cache shared by all visitors: bounded, with one computation a key however many ask at once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Keep the most recently used values, at most `size` of them."""

    def __init__(self, size: int) -> None:
        """Start empty."""
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._busy: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return the value of a key; the first caller computes it, the others wait."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            try:
                value = compute()
            except BaseException:
                with self._lock:
                    self._busy.pop(key, None)
                raise
            self.keep(key, value)
            return value

    def keep(self, key: Hashable, value: Value) -> None:
        """Remember a value that was computed elsewhere."""
        with self._lock:
            self._values[key] = value
            self._busy.pop(key, None)
            while len(self._values) > self._size:
                self._values.popitem(last=False)

    def peek(self, key: Hashable) -> Value | None:
        """Return a key's value if it is cached, else None."""
        with self._lock:
            return self._values.get(key)

    def __contains__(self, key: Hashable) -> bool:
        """Return whether a key's value is cached."""
        with self._lock:
            return key in self._values
