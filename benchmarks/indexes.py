"""What each index recovers of the exact selection, on real features: `python -m benchmarks indexes --bundle DIR`.

The pools are of one logit: all images of a class, and for larger ones images of other classes after them. Of each index
the table says the least share of the exact selection's nats over all queries and sigma2 from 1e-6 to 1e5, and how many
of the exact picks it finds. With `--asked`, exact indexes are asked once a pick for so many rows in each direction,
without the check that no other row can win: it shows how few would do.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.network import Say, seconds
from natscope.core.bundle.attributor import Attributor
from natscope.core.greedy import Selection, info_gain_approx
from natscope.core.index.search import InnerProductIndex, build_index
from natscope.core.index.spec import EXACT, KINDS, IndexSpec
from natscope.core.pool import Pool
from natscope.precompute.bundles.opening import open_attributor

SIGMA2S = tuple(10.0**power for power in range(-6, 6))
POOLS = (1500, 5000)
_BUDGET, _QUERIES, _TARGETS = 50, 2, (0, 6)


def run(
    say: Say,
    *,
    bundle: Path | None = None,
    pools: tuple[int, ...] = POOLS,
    indexes: tuple[str, ...] = tuple(KINDS),
    asked: tuple[int, ...] = (),
) -> None:
    """Print a table.

    Args:
        say: prints a line.
        bundle: the bundle.
        pools: numbers of candidates.
        indexes: kinds of index.
        asked: rows that exact indexes are requested in each direction without a check, besides.
    """
    if bundle is None:
        say("Nothing to measure: name a bundle with --bundle, or build the demo's with `natscope demo`.")
        return
    attributor = open_attributor(bundle)
    say(f"InfoGain (approx), M = {_BUDGET}, {_QUERIES} test images of each of {len(_TARGETS)} classes, 12 sigma2")
    say(
        f"{'N':>6} {'index':<7} {'asked':>6} {'build s':>8} {'MB':>6} {'nats, least':>12} {'picks':>7} {'s':>7} "
        f"{'s, most':>8}"
    )
    for size in pools:
        cases = [_case(attributor, target, size) for target in _TARGETS]
        for kind in indexes:
            for limit in (0, *(asked if kind in EXACT else ())):
                say(_measured(cases, kind, limit))


Case = tuple[Pool, np.ndarray, dict[tuple[float, int], Selection]]


def _case(attributor: Attributor, target: int, size: int) -> Case:
    """Return a pool, queries about it, and the exact selection of each at each sigma2."""
    labels = attributor.train_labels
    own = size <= int((labels == target).sum())
    candidates, _ = attributor.candidates(target, "same-class" if own else "all", "none", lambda *_: None)
    rows = np.arange(size) if own else np.sort(np.argsort(labels != target, kind="stable")[:size])
    pool = Pool(np.asarray(candidates.pool.features[rows]))
    _ = pool.gram
    images = np.flatnonzero(attributor.test_labels == target)[:_QUERIES]
    queries = np.stack([attributor.query_features(attributor.query("test", int(i)), target) for i in images])
    found = {(s, q): info_gain_approx(pool, query, s, _BUDGET) for s in SIGMA2S for q, query in enumerate(queries)}
    return pool, queries, found


def _measured(cases: list[Case], kind: str, limit: int) -> str:
    shares, picks, times, built, size = [], [], [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        for pool, queries, exact in cases:
            file = Path(folder) / "index"
            built.append(seconds(lambda p=pool, f=file: build_index(p.features, IndexSpec(kind), f))[0])
            index, size = InnerProductIndex.load(file), file.stat().st_size
            for (sigma2, query), best in exact.items():
                search = _unchecked(index, limit) if limit else index
                time, found = seconds(
                    lambda p=pool, q=queries[query], s=sigma2, i=search: info_gain_approx(p, q, s, _BUDGET, index=i)
                )
                times.append(time)
                shares.append(found.nats[-1] / best.nats[-1])
                picks.append(np.isin(found.indices, best.indices).mean())
    return (
        f"{len(cases[0][0]):>6} {kind:<7} {limit or '':>6} {max(built):>8.2f} {size / 1e6:>6.1f} {min(shares):>12.6f} "
        f"{np.mean(picks):>7.4f} {np.median(times):>7.3f} {max(times):>8.3f}"
    )


def _unchecked(index: InnerProductIndex, limit: int) -> Any:
    """Return an exact index that asks once, for `limit` rows in each direction, and takes the best of those."""
    index.proposals, index.exact = limit, False
    return SimpleNamespace(exact=True, largest_square=index.largest_square)
