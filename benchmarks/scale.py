"""How the cost of an index grows to ten million candidates: `python -m benchmarks scale`.

Nothing is stored: a row of features is computed whenever it is asked for, from its number alone, so that ten million of
them take no disk. It is the mean of one of 300 clusters plus a deviation: Gaussian numbers from a long table, from a
place that a hash of the row's number gives, times a length that varies by a factor of e, and a spectrum that falls as
1 / rank. The index is IVF-RaBitQ, a bit a feature. Costs are processor time on one thread; what generating rows took
is left out.
"""

import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.network import Say
from natscope.core.bundle.format import write_atomically
from natscope.core.greedy import info_gain_approx
from natscope.core.index.search import InnerProductIndex, build_index
from natscope.core.index.spec import IndexSpec
from natscope.core.pool import Pool
from natscope.core.rows import RowView

SIZES = (10_000, 100_000, 1_000_000)  # ten million, which take ten minutes, by --sizes
_K, _CLUSTERS, _BUDGET, _QUERIES, _SIGMA2, _TABLE = 256, 300, 50, 5, 1.0, 2**24
_SPEC = IndexSpec("ivfrabitq")


def run(say: Say, *, sizes: tuple[int, ...] = SIZES, out: Path | None = None) -> None:
    """Measure each size and print a line for it.

    Args:
        say: prints a line.
        sizes: N, numbers of candidates.
        out: JSON file for all of them, if one is wanted: assets/results/scale.json for the documentation.
    """
    say(f"IVF-RaBitQ over rows made on the fly, K = {_K}; InfoGain (approx), M = {_BUDGET}, {_QUERIES} queries")
    say(f"{'N':>11} {'lists':>6} {'build, s':>9} {'MB file':>8} {'pick, ms':>9} {'searches':>9} {'nats':>7}")
    threads, found = faiss.omp_get_max_threads(), []
    faiss.omp_set_num_threads(1)
    try:
        for size in sizes:
            found.append(row := _measured(size))
            say(
                f"{size:>11,} {row['lists']:>6} {row['build_seconds']:>9.1f} {row['file_mb']:>8.1f} "
                f"{1e3 * row['pick_seconds']:>9.2f} {row['searches']:>9.1f} {row['nats']:>7.3f}"
            )
            versions = {"faiss": faiss.__version__, "numpy": np.__version__}
            setting = {"dim": _K, "budget": _BUDGET, "sigma2": _SIGMA2, "queries": _QUERIES, "spec": _SPEC.to_dict()}
            result = {"setting": setting | {"machine": platform.machine(), "versions": versions}, "rows": found}
            if out is not None:
                write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    finally:
        faiss.omp_set_num_threads(threads)


class Generated:
    """Rows (n, K) float32, each computed from its number when it is asked for; counts the seconds that this takes."""

    def __init__(self, count: int) -> None:
        """Draw the clusters, the spectrum and the table, always the same ones."""
        random = np.random.default_rng(0)
        self.shape, self.dtype, self.seconds = (count, _K), np.dtype(np.float32), 0.0
        self._means = random.standard_normal((_CLUSTERS, _K), dtype=np.float32)
        self._means += 3 * random.standard_normal(_K, dtype=np.float32)  # rows of one class share a large mean
        table = random.standard_normal(_TABLE, dtype=np.float32)
        self._windows = np.lib.stride_tricks.sliding_window_view(table, _K)
        self._spectrum = (4 / np.sqrt(np.arange(1, _K + 1))).astype(np.float32)

    def __len__(self) -> int:
        """Return n."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return rows, by a slice or their numbers."""
        begun = time.process_time()
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        place, cluster, length = (_hashed(numbers, salt) for salt in range(3))
        scale = np.exp(length / 2.0**64 - 0.5).astype(np.float32)
        found = self._windows[place % len(self._windows)] * self._spectrum * scale[..., None]
        found += self._means[cluster % _CLUSTERS]
        self.seconds += time.process_time() - begun
        return found


def _measured(size: int) -> dict[str, Any]:
    made = Generated(size)
    queries = made[np.arange(size, size + _QUERIES)].astype(np.float64)  # beyond the candidates
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index"
        build, _ = _spent(made, lambda: build_index(made, _SPEC, file))
        index = InnerProductIndex.load(file)
        searches = [0]
        search = index._index.search

        def counted(*args: Any, **options: Any) -> Any:
            searches[0] += 1
            return search(*args, **options)

        index._index.search = counted
        pool = Pool(RowView(made, np.arange(size)))
        info_gain_approx(pool, queries[0], _SIGMA2, 1, index=index)  # maps the file
        searches[0] = 0
        picks, answers = _spent(
            made, lambda: [info_gain_approx(pool, query, _SIGMA2, _BUDGET, index=index) for query in queries]
        )
        return {
            "n": size,
            "lists": _SPEC.lists_of(size),
            "build_seconds": build,
            "file_mb": file.stat().st_size / 1e6,
            "pick_seconds": picks / (_BUDGET * _QUERIES),
            "searches": searches[0] / _QUERIES,
            "nats": float(np.mean([answer.nats[-1] for answer in answers])),
        }


def _spent(made: Generated, work: Any) -> tuple[float, Any]:
    """Return the processor time that work took, without what generating rows took, and what it returns."""
    begun, generating = time.process_time(), made.seconds
    found = work()
    return time.process_time() - begun - (made.seconds - generating), found


def _hashed(numbers: np.ndarray, salt: int) -> np.ndarray:
    """Return 64 mixed bits of each number (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = (numbers.astype(np.uint64) * np.uint64(3) + np.uint64(salt + 1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
