import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from natscope.core.cache import BoundedCache


def test_the_least_recently_used_value_goes_first():
    cache = BoundedCache(2)
    for key in "aba":
        cache.get(key, lambda key=key: key)
    cache.get("c", lambda: "c")
    assert "a" in cache
    assert "b" not in cache


def test_however_many_ask_at_once_a_value_is_computed_once():
    cache, calls, all_here = BoundedCache(2), [], threading.Barrier(8)

    def ask():
        all_here.wait()
        return cache.get("key", lambda: calls.append(1) or len(calls))

    with ThreadPoolExecutor(8) as pool:
        answers = [f.result() for f in [pool.submit(ask) for _ in range(8)]]
    assert answers == [1] * 8
    assert len(calls) == 1


def test_a_failed_computation_is_tried_again():
    cache = BoundedCache(1)
    with pytest.raises(ZeroDivisionError, match="zero"):
        cache.get("key", lambda: 1 // 0)
    assert cache.get("key", lambda: "well") == "well"


def test_a_value_may_be_computed_with_another_value_of_the_same_cache():
    cache = BoundedCache(2)
    assert cache.get("outer", lambda: cache.get("inner", lambda: 1) + 1) == 2
