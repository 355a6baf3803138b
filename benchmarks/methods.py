"""Seconds a query of every method, in one table, on the embedded bundle; `python -m benchmarks methods`."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.network import Say
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.request import QueryExample, Request
from natscope.core.methods import METHODS
from natscope.precompute.answer import Explainer
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec

_QUERIES, _BUDGET = 12, 10


def run(say: Say) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        started = time.perf_counter()
        build(BuildSpec(), out)
        usual = time.perf_counter() - started
        started = time.perf_counter()
        build(BuildSpec(methods=tuple(METHODS)), out)
        later = time.perf_counter() - started
        say(f"The bundle with all methods but kronfluence builds in {usual:.0f} s; kronfluence adds {later:.0f} s.")
        attributor = open_attributor(out)
        queries = [attributor.query("test", index) for index in range(_QUERIES)]
        explainer = Explainer(attributor)
        for _ in range(2):
            asked = [_elapsed(lambda index=index: explainer.explain(index)) for index in range(_QUERIES)]
        say(f"explain() on the open bundle takes {1000 * statistics.median(asked):.0f} ms, once a class is warm.")
        say(f"Seconds a query, pool of one class (1,500 images), M = {_BUDGET}, median of {_QUERIES} queries:")
        say(f"{'method':<18} {'first':>8} {'then':>8} {'÷ random':>9}")
        found = {}
        for name in METHODS:
            # The first look at a class opens its pool; here "first" is that of the method, "then" of warm classes.
            times = [_seconds(attributor, query, name) for query in queries]
            again = [_seconds(attributor, query, name) for query in queries]
            found[name] = (times[0], statistics.median(again))
        base = found["random"][1]
        for name, (first, then) in found.items():
            say(f"{name:<18} {first:8.3f} {then:8.3f} {then / base:9.1f}")


def _seconds(attributor: Attributor, query: QueryExample, name: str) -> float:
    return attributor.attribute(query, Request(name, budget=_BUDGET)).seconds


def _elapsed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
