"""How far features that are stored as float16 change what is found: `python -m benchmarks precision`."""

from pathlib import Path

import numpy as np

from benchmarks.network import Say
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.request import Attribution, Request
from natscope.core.methods import METHODS
from natscope.core.methods.artifacts import MARGINS
from natscope.core.metrics import jaccard
from natscope.precompute.bundles.opening import open_attributor

_BUDGET = 50
_RATIOS = (1e-4, 1.0, 1e4)  # of the usual sigma2


def run(say: Say, *, bundle: Path | None = None, queries: int = 40) -> None:
    """Compare answers from stored features with answers from features that are computed again, in float32.

    Args:
        say: prints a line.
        bundle: the bundle.
        queries: test images, the first ones.
    """
    if bundle is None:
        say("Nothing to compare: name a bundle with --bundle, or build the demo's with `natscope demo`.")
        return
    stored = open_attributor(bundle)
    exact = Attributor(stored.bundle, stored.features.model, recompute=True)
    kept = stored.bundle.array("features").dtype
    say(f"{bundle.name}: features stored as {kept} against float32, the first {_BUDGET} for {queries} queries")
    say(f"{'method':<20}{'σ²':>9}{'Jaccard':>10}{'least':>8}{'same order':>12}{'nats, largest difference':>27}")
    usable = [METHODS[name] for name in stored.usable()]
    for method in (m for m in usable if m.uses_sigma2 or MARGINS in m.needs):
        usual = stored.bundle.sigma2(method.name)
        for sigma2 in [ratio * usual for ratio in _RATIOS] if method.uses_sigma2 else [1.0]:
            pairs = [_pair(stored, exact, index, Request(method.name, sigma2, _BUDGET)) for index in range(queries)]
            overlaps = [jaccard(*map(_indices, pair)) for pair in pairs]
            same = np.mean([_indices(one) == _indices(other) for one, other in pairs])
            moved = [abs(one.nats - other.nats) / other.nats for one, other in pairs if one.nats and other.nats]
            nats = f"{max(moved):>26.2%}" if moved else f"{'':>26}"
            shown = f"{sigma2:.3g}" if method.uses_sigma2 else ""
            say(f"{method.name:<20}{shown:>9}{np.mean(overlaps):>10.4f}{min(overlaps):>8.3f}{same:>12.0%}{nats}")


def _pair(stored: Attributor, exact: Attributor, index: int, request: Request) -> tuple[Attribution, Attribution]:
    query = stored.query("test", index)
    return stored.attribute(query, request), exact.attribute(query, request)


def _indices(answer: Attribution) -> list[int]:
    return [item.train_index for item in answer.items]
