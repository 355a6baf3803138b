"""InfoGain (approx) by every index, from 1,500 to a million candidates: time, memory, recall, information recovered.

A million Jacobians of a real data set take longer than a benchmark may, so the features are synthetic, and drawn to
look like real ones to an index. The real ones are the Jacobians of class 0's logit for the 15,000 embedded training
images, K = 1024. They are cut into 300 clusters by k-means. A synthetic row is the mean of a cluster, chosen by its
size, plus a
Gaussian with the covariance that the real rows have within clusters, times the relative length of a random real row's
own deviation: first and second moments (the whole spectrum), coarse cluster structure and heavy tails are those of the
real features. What is not kept is fine structure, such as near-duplicates: within a cluster the deviations have about
300 effective dimensions and no neighbours, which makes the search harder than real features do. Queries are the real
features of test images of class 0.

Two sigma2 are measured. At 1000 the vector r that is searched with changes slowly, and all is easy; at 1 the first
picks explain half of the query, r is then unlike any row, and many rows are almost equally good: recall of the exact
picks says little there, and information recovered (InfoGain of the subset over that of the exact greedy one) is what
counts. The files were just written, so all are warm in the page cache.
"""

import itertools
import json
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks import milvus
from benchmarks.network import Say, seconds, trained
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.search import search_charts, search_title
from natscope.core import greedy
from natscope.core.bundle.format import write_atomically
from natscope.core.features import FeatureMap
from natscope.core.greedy import Selection
from natscope.core.images import to_input
from natscope.core.index.protocol import Index
from natscope.core.index.search import InnerProductIndex, build_index
from natscope.core.index.spec import KINDS, MILVUS, IndexSpec
from natscope.core.pool import Pool
from natscope.core.sketches import SketchSpec

OUT = Path(__file__).parents[1] / "assets/results/search.json"
SIZES = (1500, 5000, 10_000, 100_000)  # a million more by --sizes
INDEXES = (*KINDS, MILVUS)
_K, _CLUSTERS, _BUDGET, _QUERIES, _SIGMA2 = 1024, 300, 50, 5, (1.0, 1000.0)
_BLOCK = 10_000


def run(say: Say, *, sizes: tuple[int, ...] = SIZES, indexes: tuple[str, ...] = INDEXES, out: Path = OUT) -> None:
    """Measure, print a table, and write it with its figure after every index, beside what other runs measured.

    Args:
        say: prints a line.
        sizes: N, numbers of candidates.
        indexes: kinds of index; Milvus is left out where there is no server and none can be started.
        out: JSON file; PNG and SVG go beside it.
    """
    law, queries = _law()
    result = _earlier(out)
    say(f"InfoGain (approx), K = {_K} float32, M = {_BUDGET}, {_QUERIES} queries, features and indexes in files")
    say(
        f"{'N':>8} {'search':<14} {'σ²':>5} {'build s':>8} {'MB built':>9} {'MB file':>8} {'M = 1, s':>9} "
        f"{'M = 50, s':>10} {'recall':>7} {'nats':>7} {'÷ flat':>7}"
    )
    with tempfile.TemporaryDirectory() as folder, milvus.server(say) if MILVUS in indexes else nullcontext() as asked:
        indexes = tuple(kind for kind in indexes if kind != MILVUS or asked)
        for size in sizes:
            file = Path(folder) / "features.npy"
            law.draw(size, file)
            for row in _measure(np.load(file, mmap_mode="r"), queries, indexes, Path(folder)):
                _keep(result, row)
                _save(result, out)
                say(_line(row, result["rows"]))
            file.unlink()
    for kind, count in result["crossover"].items():
        say(f"{kind} is faster than the Gram path from about N = {count:,.0f} on")


@dataclass(frozen=True)
class _Law:
    """Of synthetic features: cluster means (C, K), their shares, scales of real deviations, a root of a covariance."""

    means: np.ndarray
    shares: np.ndarray
    scales: np.ndarray
    root: np.ndarray

    def draw(self, count: int, file: Path) -> None:
        """Write (count, K) float32; the first rows are the same for every count."""
        array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, self.means.shape[1]))
        for block in range(0, count, _BLOCK):
            rng = np.random.default_rng([7, block])
            cluster = rng.choice(len(self.shares), _BLOCK, p=self.shares)
            scale = rng.choice(self.scales, _BLOCK)[:, None]
            noise = rng.standard_normal((_BLOCK, self.means.shape[1]), dtype=np.float32)
            rows = self.means[cluster] + (noise * scale) @ self.root
            array[block : block + _BLOCK] = rows[: count - block]
        array.flush()


def _law() -> tuple[_Law, np.ndarray]:
    """Return the law of the real features, and the features of test images to ask about (Q, K)."""
    here = trained()
    tangent = FeatureMap(here.model, SketchSpec(dim=_K), ntk=True)
    real = tangent.features(here.inputs, np.zeros(len(here.inputs), dtype=np.int64))
    test = here.data.test.images[np.flatnonzero(here.data.test_labels == 0)[:_QUERIES]]
    queries = tangent.features(
        to_input(test, mean=here.data.train.mean, std=here.data.train.std), np.zeros(len(test), np.int64)
    )
    means = real[np.random.default_rng(0).choice(len(real), _CLUSTERS, replace=False)]
    for _ in range(10):  # k-means; a cluster that runs empty stays where it was
        nearest = (real @ means.T - 0.5 * (means**2).sum(1)).argmax(1)
        means = np.stack([real[nearest == c].mean(0) if (nearest == c).any() else means[c] for c in range(_CLUSTERS)])
    nearest = (real @ means.T - 0.5 * (means**2).sum(1)).argmax(1)
    deviations = real - means[nearest]
    values, vectors = np.linalg.eigh(deviations.T @ deviations / (len(real) - _CLUSTERS))
    values = np.maximum(values, 0)
    scales = np.linalg.norm(deviations, axis=1) / np.sqrt(values.sum())
    shares = np.bincount(nearest, minlength=_CLUSTERS) / len(real)
    return _Law(means, shares, scales.astype(np.float32), (vectors * np.sqrt(values)).T.astype(np.float32)), queries


def _measure(
    features: np.ndarray, queries: np.ndarray, indexes: tuple[str, ...], folder: Path
) -> Iterator[dict[str, Any]]:
    size, large = len(features), len(features) > 100_000
    truth = _exact(features, queries)
    step, _ = seconds(lambda: np.abs(features @ queries[0]).argmax(), repeats=5)
    yield {"n": size, "search": "scan", "sigma2": _SIGMA2[0], "step_seconds": step, "seconds": _BUDGET * step}
    pool = Pool(features)
    built, _ = None, pool.diagonal  # kept between queries, like the Gram
    for sigma2 in _SIGMA2[: 1 if large else None]:  # both of these are exact, and one query is enough for their time
        with _memory() as used:
            built = built or (seconds(lambda: pool.gram)[0] if pool.fits_gram else None)
            found = [_timed(pool, queries[0], sigma2)]
            step, _ = _timed(pool, queries[0], sigma2, budget=1)
        yield _row(size, "gram", sigma2, truth, found, step) | {"build_seconds": built, "search_mb": used[0]}
    for kind in indexes:
        if kind == MILVUS:
            with milvus.filled(features) as (build, held):
                about: dict[str, Any] = {"spec": milvus.SPEC.to_dict(), "build_seconds": build}
                for sigma2 in _SIGMA2:
                    found = [_timed(pool, query, sigma2, index=held) for query in queries]
                    step, _ = _timed(pool, queries[0], sigma2, index=held, budget=1)
                    yield _row(size, held.kind, sigma2, truth, found, step) | about
            continue
        file = folder / f"{kind}.faiss"
        with _memory() as building:
            build, _ = seconds(lambda k=kind, f=file: build_index(features, IndexSpec(k), f))
        about = {"spec": IndexSpec(kind).to_dict()}
        about |= {"build_seconds": build, "build_mb": building[0], "file_mb": file.stat().st_size / 1e6}
        once = kind == "flat" and large
        for sigma2 in _SIGMA2[: 1 if once else None]:
            with _memory() as used:
                index = InnerProductIndex.load(file)
                found = [_timed(pool, query, sigma2, index=index) for query in (queries[:1] if once else queries)]
                step, _ = _timed(pool, queries[0], sigma2, index=index, budget=1)
            yield _row(size, kind, sigma2, truth, found, step) | about | {"search_mb": used[0]}
        del index
        file.unlink()


def _timed(
    pool: Pool, query: np.ndarray, sigma2: float, *, index: Index | None = None, budget: int = _BUDGET
) -> tuple[float, Selection]:
    return seconds(lambda: greedy.info_gain_approx(pool, query, sigma2, budget, index=index))


def _exact(features: np.ndarray, queries: np.ndarray) -> dict[float, list[Selection]]:
    """Select exactly for all queries and sigma2 in step, with one pass over the features (float32) a step."""
    asked = [(sigma2, query.astype(np.float64)) for sigma2 in _SIGMA2 for query in queries]
    residuals = [query.copy() for _, query in asked]
    picks: list[list[int]] = [[] for _ in asked]
    nats: list[list[float]] = [[] for _ in asked]
    for _ in range(_BUDGET):
        vectors = np.stack(residuals, axis=1).astype(np.float32)
        products = np.concatenate([np.abs(features[s : s + _BLOCK] @ vectors) for s in range(0, len(features), _BLOCK)])
        for position, (sigma2, query) in enumerate(asked):
            products[picks[position], position] = -1
            near = np.argpartition(-products[:, position], 16)[:16]  # told apart in float64
            picks[position].append(int(near[np.abs(features[near].astype(np.float64) @ residuals[position]).argmax()]))
            chosen = features[picks[position]].astype(np.float64)
            block = chosen @ chosen.T + sigma2 * np.eye(len(chosen))
            residuals[position] = query - chosen.T @ np.linalg.solve(block, chosen @ query)
            nats[position].append(float(-0.5 * np.log(residuals[position] @ query / (query @ query))))
    selections = [
        Selection(np.array(p), np.zeros(_BUDGET), np.zeros(_BUDGET, np.int8), np.array(n))
        for p, n in zip(picks, nats, strict=True)
    ]
    return {s: selections[i * len(queries) : (i + 1) * len(queries)] for i, s in enumerate(_SIGMA2)}


def _row(
    size: int,
    search: str,
    sigma2: float,
    truth: dict[float, list[Selection]],
    found: list[tuple[float, Selection]],
    step: float,
) -> dict[str, Any]:
    pairs = list(zip((selection for _, selection in found), truth[sigma2], strict=False))
    shares = [picked.nats[-1] / best.nats[-1] for picked, best in pairs]  # type: ignore[index]
    return {
        "n": size,
        "search": search,
        "sigma2": sigma2,
        "queries": len(found),
        "step_seconds": step,
        "seconds": float(np.median([time for time, _ in found])),
        "recall": float(np.mean([len(np.intersect1d(p.indices, best.indices)) / _BUDGET for p, best in pairs])),
        "information": float(np.mean(shares)),
        "information_least": float(np.min(shares)),
    }


@contextmanager
def _memory() -> Iterator[list[float]]:
    """Sample the process's own memory (no mapped files); the list then holds by how many MB it rose at most."""
    status, rise, stop = Path("/proc/self/status"), [float("nan")], threading.Event()
    if not status.exists():
        yield rise
        return

    def own() -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1e3

    start = peak = own()

    def sample() -> None:
        nonlocal peak
        while not stop.wait(0.02):
            peak = max(peak, own())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield rise
    finally:
        stop.set()
        thread.join()
        rise[0] = max(peak, own()) - start


def _setting() -> dict[str, Any]:
    return {
        "dim": _K,
        "dtype": "float32",
        "budget": _BUDGET,
        "queries": _QUERIES,
        "clusters": _CLUSTERS,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {"faiss": faiss.__version__, "numpy": np.__version__},
    }


def _earlier(out: Path) -> dict[str, Any]:
    """Return the result of earlier runs with the same setting, or an empty one."""
    setting = json.loads(json.dumps(_setting()))
    try:
        result = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = {}
    return result if result.get("setting") == setting else {"setting": setting, "rows": [], "crossover": {}}


def _keep(result: dict[str, Any], row: dict[str, Any]) -> None:
    def key(r: dict[str, Any]) -> tuple[Any, ...]:
        return r["n"], r["search"], r["sigma2"]

    result["rows"] = sorted([r for r in result["rows"] if key(r) != key(row)] + [row], key=key)
    result["crossover"] = _crossover(result["rows"])


def _crossover(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return for each index the N from which it is faster than the Gram path at the first sigma2, between two sizes."""
    times = {(r["search"], r["n"]): r["seconds"] for r in rows if r["sigma2"] == _SIGMA2[0]}
    found = {}
    for kind in KINDS:
        shared = sorted(n for search, n in times if search == kind and ("gram", n) in times)
        lead = [(n, np.log(times["gram", n] / times[kind, n])) for n in shared]
        for (small, before), (large, after) in itertools.pairwise(lead):
            if before < 0 <= after:
                share = -before / (after - before)
                found[kind] = float(small * (large / small) ** share)
    return found


def _save(result: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    for kind in ("png", "svg"):
        drawn = chart_file(*search_charts(result), kind=kind, columns=2, title=search_title(result))
        write_atomically(out.with_suffix(f".{kind}"), drawn)


def _line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    def number(name: str, width: int, digits: int) -> str:
        return f"{'' if row.get(name) is None else format(row[name], f'.{digits}f'):>{width}}"

    flat = {r["sigma2"]: r["seconds"] for r in rows if (r["n"], r["search"]) == (row["n"], "flat")}
    against = flat.get(row["sigma2"], flat.get(_SIGMA2[0]))  # of a million, a flat index is timed once
    ratio = f"{against / row['seconds']:.1f} ×" if against else ""
    return (
        f"{row['n']:>8} {row['search']:<14} {row['sigma2']:>5.0f} {number('build_seconds', 8, 1)} "
        f"{number('build_mb', 9, 0)} {number('file_mb', 8, 0)} {number('step_seconds', 9, 3)} "
        f"{number('seconds', 10, 3)} {number('recall', 7, 2)} {number('information', 7, 4)} {ratio:>7}"
    )
