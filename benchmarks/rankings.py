"""Record what every method answers on a bundle, or compare with what was recorded; `python -m benchmarks rankings`."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.network import Say
from natscope.core.analysis.coreset import VARIANTS, Coresets
from natscope.core.bundle.request import Request
from natscope.core.methods import METHODS
from natscope.precompute.bundles.opening import open_attributor

_SIGMA2S = (1e-6, 1e-2, 1.0, 1e2, 1e5)
_BUDGET = 50
_CORESETS = ("info_loss", "info_gain", "info_gain_approx", "repsim", "graddot", "random")
_UNTIMED = ("seconds",)  # the one value that is another in each run


def run(
    say: Say,
    *,
    bundle: Path | None = None,
    record: Path | None = None,
    against: Path | None = None,
    within: float = 1e-9,
) -> None:
    """Ask everything; write the answers to `record`, and end with exit code 1 if one differs from those of `against`.

    Args:
        say: prints a line.
        bundle: the bundle.
        record: JSON file to write.
        against: JSON file that was written.
        within: largest difference of a number from the recorded one, times 1 + its size; ranks are compared exactly.
    """
    if bundle is None:
        say("Nothing to ask: name a bundle with --bundle, or build the demo's with `natscope demo`.")
        return
    found = dict(_answers(bundle))
    say(f"{len(found)} answers of {len(METHODS)} methods on {bundle.name}.")
    if record is not None:
        record.write_text(json.dumps(found))
    if against is None:
        return
    known = json.loads(against.read_text())
    differing = [
        name for name in sorted(known.keys() | found.keys()) if _differ(known.get(name), found.get(name), within)
    ]
    for name in differing[:20]:
        say(f"  differs: {name}")
    say(f"{len(differing)} of {len(known)} recorded answers differ by more than {within:g}.")
    if differing:
        raise SystemExit(1)


def _answers(bundle: Path) -> Iterator[tuple[str, Any]]:
    attributor = open_attributor(bundle)
    classes = attributor.bundle.classes
    upload = np.asarray(attributor.bundle.examples("test").images[7])[:, ::-1].copy()  # an image that is in no split
    queries = [*(attributor.query("test", index) for index in range(10))]
    queries += [attributor.query("train", 3), attributor.given(upload)]
    methods = [METHODS[name] for name in attributor.usable()]
    for method, query in itertools.product(methods, queries):
        for sigma2 in _SIGMA2S if method.uses_sigma2 else (1.0,):
            name = f"{method.name} of {query.origin} {query.index} at {sigma2:g}"
            yield (
                name,
                _reported(attributor.attribute(query, Request(method.name, sigma2, _BUDGET)).to_dict(query, classes)),
            )
    for name, other in {
        "pool all": Request(pool="all", budget=_BUDGET),
        "conditioned on D": Request(conditioning="train", budget=_BUDGET),
    }.items():
        yield name, _reported(attributor.attribute(queries[0], other).to_dict(queries[0], classes))
    coresets = Coresets(attributor)
    asked = coresets.ask(np.arange(50))
    for method, variant in itertools.product(_CORESETS, VARIANTS):
        found = coresets.select(method, asked, sigma2=100.0, budget=100, variant=variant)
        nats = coresets.information(found, asked, 100.0)
        yield f"coreset by {method}, {variant}", {"rows": found.tolist(), "nats": nats.tolist()}


def _reported(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in _UNTIMED}


def _differ(known: Any, found: Any, within: float) -> bool:
    if isinstance(known, dict) and isinstance(found, dict):
        return known.keys() != found.keys() or any(_differ(known[name], found[name], within) for name in known)
    if isinstance(known, list) and isinstance(found, list):
        return len(known) != len(found) or any(_differ(a, b, within) for a, b in zip(known, found))
    if isinstance(known, float) and isinstance(found, float):
        return not math.isclose(known, found, rel_tol=within, abs_tol=within)
    return bool(known != found)
