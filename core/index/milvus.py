"""The search on a Milvus server: features in a collection, each class in a partition, the training row as the key.

Address and token come from the environment alone, and no message repeats them: those of pymilvus do, so its logs are
off and its errors are replaced by sentences. Only float64 products of the features on disk decide: the server proposes.

As in FAISS's approximate kinds, rows are stored minus a mean of their class, because clusters and graphs would be about
the mean that all share. A mean moves all products with one vector alike, and cancels in differences of rows,
so whoever checks the stored vectors need not know it.
"""

import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from natscope.core.errors import SearchError
from natscope.core.index.spec import MILVUS, MILVUS_TYPES, IndexSpec
from natscope.core.progress import Progress
from natscope.core.recursion import first_of_best
from natscope.core.rows import Rows

URI, TOKEN = "NATSCOPE_MILVUS_URI", "NATSCOPE_MILVUS_TOKEN"
_CONNECT, _SEARCH, _OPEN = 5.0, 10.0, 20.0  # seconds that a page may wait for each
_WRITE, _STALLED = 600.0, 120.0  # seconds for one step of a build; and without any progress of what goes on by itself
_PROPOSED = {"ivf_rabitq": 1024}  # rows requested in each direction, where it is not the usual number
_USUALLY = 256
_MOST = 16_384  # rows that Milvus returns, at most
_MOST_LISTS, _MOST_REACHED = 65_536, 32_768
_MESSAGE = 2**24  # bytes of vectors sent at once
_SAMPLE = 10_000  # rows of a class whose mean is subtracted
_TRIED = (2048, 32)  # rows of a trial, of which a segment must have 1,024 for an index, and their dimensions
_FORMAT = 1  # of a collection; part of its name
_COMPLETE = "complete"  # the partition made last
_KEY, _VECTOR = "id", "vector"  # a hit of the client has an "id" whatever the key is called
_COMPARED = 4  # stored vectors compared when an index is opened
_COARSE = 0.25  # of a squared length: how far a product of codes may be off; other rows are off by about 1
_WIDEST = 64  # times the usual effort, up to which a search is widened
_AGAIN = "run the command that built the bundle again, which inserts its features"

Classes = Mapping[int, tuple[np.ndarray, Rows]]


class _RefusedError(SearchError):
    """The server answered, and did not do what it was asked."""


class Server:
    """A Milvus server, and what natscope does there."""

    def __init__(self) -> None:
        """Connect to the server that the environment names, or take the connection that there is.

        Raises:
            SearchError: without pymilvus or an address, and if the server does not answer.
        """
        uri = os.environ.get(URI, "").strip()
        if not uri:
            raise SearchError(
                f"This index is on a Milvus server: set {URI} to the server's address, such as http://localhost:19530, "
                f"and {TOKEN} if it asks for one."
            )
        if not uri.startswith(("http://", "https://", "tcp://", "unix:")):
            raise SearchError(f"{URI} is not the address of a Milvus server, such as http://localhost:19530.")
        with _asking("connect"):
            self._client = _client(uri, os.environ.get(TOKEN, ""))

    def try_type(self, spec: IndexSpec) -> None:
        """Build an index of the type over a few random vectors, and drop it.

        Raises:
            SearchError: if the server does not have this type.
        """
        count, width = _TRIED
        name = f"natscope_trial_{os.getpid()}_{time.time_ns()}"
        rows = np.random.default_rng(0).standard_normal(_TRIED, dtype=np.float32)
        lacks = SearchError(
            f"This Milvus server does not build the index {spec.milvus}; choose another of "
            f"{', '.join(MILVUS_TYPES)} with --milvus-index."
        )
        try:
            self._create(name, spec, width, count, lacks)
            self._insert(name, 0, np.arange(count), rows)
            with _asking("store vectors"):
                self._client.flush(name, timeout=_WRITE)
            self._await_index(name, count, lambda *_: None, patience=_OPEN, stalled=lacks)
        finally:
            with _asking("drop a collection"):
                self._client.drop_collection(name, timeout=_SEARCH)

    def fault(self, name: str, spec: IndexSpec, classes: Classes, patience: float = _STALLED) -> str:
        """Return a sentence on what is wrong with a collection, "" if it holds all rows of these classes.

        The number of rows is compared, and a few vectors of each class.

        Args:
            name: the collection's.
            spec: the index.
            classes: by label, the training rows (n,) int64 and their features (n, K).
            patience: seconds to wait for a collection that is being loaded.

        Raises:
            SearchError: if the server goes away, or is still loading the collection after that.
        """
        with _asking("look for a collection"):
            found = self._client.has_collection(name, timeout=_SEARCH)
            found = found and self._client.has_partition(name, _COMPLETE, timeout=_SEARCH)
        if not found or not self._has_rows(name, classes):
            return f"The Milvus server does not hold the features of this bundle, or not all; {_AGAIN}."
        if not all(self._has_vectors(name, spec, label, *own, patience) for label, own in classes.items()):
            return f"The Milvus server holds other vectors than this bundle; {_AGAIN}."
        return ""

    def fill(self, name: str, spec: IndexSpec, classes: Classes, progress: Progress) -> None:
        """Insert classes into a new collection, after dropping one of this name; it counts as complete at the end only.

        Args:
            name: the collection's.
            spec: the index.
            classes: by label, the training rows (n,) int64 and their features (n, K).
            progress: called with the stage's name, steps done and steps in all.

        Raises:
            SearchError: if the server refuses something or goes away.
        """
        count, largest = (gather(len(rows) for rows, _ in classes.values()) for gather in (sum, max))
        width = next(features.shape[1] for _, features in classes.values())
        with _asking("drop a collection"):
            self._client.drop_collection(name, timeout=_WRITE)
        self._create(name, spec, width, largest)
        for done, (label, (rows, features)) in enumerate(classes.items()):
            progress("Features into Milvus, class by class", done, len(classes))
            self._insert(name, label, rows, features)
        progress("Features into Milvus, class by class", len(classes), len(classes))
        with _asking("store vectors"):
            self._client.flush(name, timeout=_WRITE)
        self._await_index(name, count, progress)
        if not self._has_rows(name, classes):
            raise SearchError(f"The Milvus server lost vectors while they were inserted; {_AGAIN}.")
        with _asking("create a partition"):
            self._client.create_partition(name, _COMPLETE, timeout=_SEARCH)
        self._load(name, _STALLED)

    def index(self, name: str, label: int, rows: np.ndarray, features: Rows, spec: IndexSpec) -> "MilvusIndex":
        """Return the index over a class, after comparing the number of its rows and a few vectors with the features.

        Args:
            name: the collection's.
            label: the class.
            rows: (n,) int64, its training rows, rising.
            features: (n, K).
            spec: the index.

        Raises:
            SearchError: if the collection is not that of these features, or is still being loaded.
        """
        if fault := self.fault(name, spec, {label: (rows, features)}, _OPEN):
            raise SearchError(fault)
        return MilvusIndex(self._client, name, label, rows, spec, self._lists(name))

    def drop(self, name: str) -> None:
        """Drop a collection, if there is one of this name."""
        with _asking("drop a collection"):
            self._client.drop_collection(name, timeout=_WRITE)

    def _create(self, name: str, spec: IndexSpec, width: int, largest: int, refused: SearchError | None = None) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(_KEY, DataType.INT64, is_primary=True)
        schema.add_field(_VECTOR, DataType.FLOAT_VECTOR, dim=width)
        built = {"nlist": min(spec.lists_of(largest), _MOST_LISTS)} if spec.milvus.startswith("ivf") else {}
        built |= {"M": spec.links, "efConstruction": spec.breadth} if spec.milvus == "hnsw" else {}
        index = self._client.prepare_index_params()
        index.add_index(_VECTOR, index_type=spec.milvus.upper(), metric_type="IP", params=built)
        with _asking("create a collection"):
            self._client.create_collection(name, schema=schema, consistency_level="Eventually", timeout=_SEARCH)
        with _asking("create an index", refused):
            self._client.create_index(name, index, timeout=_SEARCH)

    def _insert(self, name: str, label: int, rows: np.ndarray, features: Rows) -> None:
        sample = np.sort(np.random.default_rng(0).permutation(len(rows))[:_SAMPLE])
        mean = np.asarray(features[sample], dtype=np.float32).mean(axis=0)
        step = max(1, _MESSAGE // (4 * len(mean)))
        with _asking("create a partition"):
            self._client.create_partition(name, _partition(label), timeout=_SEARCH)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            block = np.asarray(features[part], dtype=np.float32) - mean
            data = [{_KEY: int(row), _VECTOR: vector} for row, vector in zip(rows[part], block, strict=True)]
            with _asking("insert vectors"):
                self._client.insert(name, data, partition_name=_partition(label), timeout=_WRITE)

    def _lists(self, name: str) -> int:
        """Return how many lists the index of each partition has, which follows from the largest class; 1 if none."""
        with _asking("describe its index"):
            return int(self._client.describe_index(name, _VECTOR, timeout=_SEARCH).get("nlist", 1))

    def _has_rows(self, name: str, classes: Classes) -> bool:
        with _asking("count vectors"):
            there = {*self._client.list_partitions(name, timeout=_SEARCH)} >= {*map(_partition, classes)}
            return there and all(
                self._client.get_partition_stats(name, _partition(label), timeout=_SEARCH)["row_count"] == len(rows)
                for label, (rows, _) in classes.items()
            )

    def _has_vectors(
        self, name: str, spec: IndexSpec, label: int, rows: np.ndarray, features: Rows, patience: float
    ) -> bool:
        """Return whether the differences of a few rows have the products with each other that they should have.

        They are searched for, not read: what counts is what is searched, and a server may keep only codes of it.
        """
        some = np.unique(np.linspace(0, len(rows) - 1, _COMPARED).astype(np.int64))
        keys, until = rows[some].tolist(), time.monotonic() + patience
        differences = np.asarray(features[some], dtype=np.float64)
        differences = differences[1:] - differences[0]
        lists = self._lists(name)
        how = _effort(spec, lists, len(some), lists)  # some lists may hold none of them
        while True:
            self._load(name, patience)
            try:
                hits = _hits(self._client, name, label, differences, len(some), f"{_KEY} in {keys}", how)
                break
            except _RefusedError:  # a server that was just started counts a collection as loaded too early
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        if any(found.keys() != {*keys} for found in hits):
            return False
        found = np.array([[hit[key] - hit[keys[0]] for key in keys[1:]] for hit in hits])
        return bool(np.abs(found - differences @ differences.T).max() <= _COARSE * (differences**2).sum(axis=1).max())

    def _await_index(
        self,
        name: str,
        count: int,
        progress: Progress,
        *,
        patience: float = _STALLED,
        stalled: SearchError | None = None,
    ) -> None:
        """Wait until the index covers all rows; what a server cannot build stays pending without an error."""

        def indexed() -> int:
            with _asking("build its index"):
                done = int(self._client.describe_index(name, _VECTOR, timeout=_SEARCH)["indexed_rows"])
            progress("Index in Milvus", min(done, count), count)
            return done

        if not _reached(indexed, count, patience):
            raise stalled or SearchError("The Milvus server does not get on with its index; its log says why.")

    def _load(self, name: str, patience: float) -> None:
        def share() -> int:
            with _asking("load the collection"):
                state = self._client.get_load_state(name, timeout=_SEARCH)
            return 100 if state["state"].name == "Loaded" else int(state.get("progress", 0))

        if share() == 100:
            return
        with _asking("load the collection"):
            self._client.load_collection(name, timeout=_SEARCH, _async=True)
        if not _reached(share, 100, patience):
            raise SearchError("The Milvus server is still loading the features of this bundle; try again in a minute.")


class MilvusIndex:
    """An index over the rows of one class on a Milvus server: it proposes, and the caller's features decide."""

    exact = False

    def __init__(self, client: Any, name: str, label: int, rows: np.ndarray, spec: IndexSpec, lists: int) -> None:
        """Wrap a partition; see `Server.index`."""
        self._client, self._name, self._label, self._rows = client, name, label, rows
        self._spec, self._lists = spec, lists
        self.kind = f"{MILVUS}-{spec.milvus}"
        self.proposals = _PROPOSED.get(spec.milvus, _USUALLY)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def largest_square(
        self, vector: np.ndarray, features: Rows, *, excluded: Sequence[int] | np.ndarray
    ) -> tuple[int, float]:
        """Return the best of the proposed rows and its inner product with `vector` in float64, ties to the lowest row.

        Raises:
            ValueError: if every row is excluded.
            SearchError: if the server goes away.
        """
        candidates = self.propose(vector, self.proposals, excluded=excluded)
        if not len(candidates):
            raise ValueError("Every row of the index is excluded.")
        products = np.asarray(features[candidates], dtype=np.float64) @ vector
        best = first_of_best(products**2)
        return int(candidates[best]), float(products[best])

    def propose(self, vector: np.ndarray, count: int, *, excluded: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return rows whose product with a vector (K,) is likely among the `count` largest, or smallest; rising.

        Both directions are one request, and a search that finds too few is widened. If no more than `count` rows are
        left, they are the answer, and the server is not asked.

        Raises:
            SearchError: if the server goes away, or answers with rows of another class.
        """
        taken = np.unique(np.asarray(excluded, dtype=np.int64))
        count = min(count, _MOST)
        if len(self) - len(taken) <= count:
            return np.setdiff1d(np.arange(len(self)), taken)
        left_out = f"{_KEY} not in {self._rows[taken].tolist()}" if len(taken) else ""
        both, effort = np.stack([vector, -vector]), 1
        while True:
            how = _effort(self._spec, self._lists, count, effort)
            hits = _hits(self._client, self._name, self._label, both, count, left_out, how)
            if min(map(len, hits)) == count or effort >= _WIDEST:
                break
            effort *= 4
        keys = np.unique([key for each in hits for key in each]).astype(np.int64)
        found = np.minimum(np.searchsorted(self._rows, keys), len(self) - 1)
        if not len(keys) or not np.array_equal(self._rows[found], keys) or np.isin(found, taken).any():
            raise SearchError(f"The Milvus server no longer holds the vectors of this bundle; {_AGAIN}.")
        return found


def collection_name(content: Sequence[str], spec: IndexSpec) -> str:
    """Return the name of the collection of features with these digests, under an index's settings."""
    settings = json.dumps([_FORMAT, list(content), spec.to_dict()], sort_keys=True)
    return f"natscope_{hashlib.sha256(settings.encode()).hexdigest()[:40]}"


def _partition(label: int) -> str:
    return f"class_{label}"


def _effort(spec: IndexSpec, lists: int, wanted: int, effort: int) -> dict[str, int]:
    """Return how widely an index of so many lists is searched for `wanted` rows, at some times the usual effort."""
    if spec.milvus == "hnsw":
        return {"ef": min(max(spec.reach, wanted) * effort, _MOST_REACHED)}
    if spec.milvus == "diskann":
        return {"search_list": min(2 * effort, 10) * wanted}
    return {"nprobe": min(spec.probes * effort, lists)}


def _hits(
    client: Any, name: str, label: int, vectors: np.ndarray, count: int, condition: str, how: dict[str, int]
) -> list[dict[int, float]]:
    """Return for each vector the keys found in a class and their products, as far as the index knows these."""
    with _asking("search"):
        answers = client.search(
            name,
            list(vectors.astype(np.float32)),
            anns_field=_VECTOR,
            limit=count,
            filter=condition,
            partition_names=[_partition(label)],
            search_params={"metric_type": "IP", "params": how},
            consistency_level="Eventually",
            timeout=_SEARCH,
        )
    return [{int(hit[_KEY]): float(hit["distance"]) for hit in answer} for answer in answers]


def _reached(done: Callable[[], int], wanted: int, patience: float) -> bool:
    """Wait until a number has risen to what is wanted; return whether it has, or has stood still for too long."""
    last, since = -1, time.monotonic()
    while (now := done()) < wanted:
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > patience:
            return False
        time.sleep(0.1)
    return True


@functools.lru_cache(maxsize=1)
def _client(uri: str, token: str) -> Any:
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise SearchError("The search on Milvus needs pymilvus: pip install natscope[milvus]") from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)  # its messages hold the address
    return MilvusClient(uri=uri, token=token, timeout=_CONNECT)


@contextmanager
def _asking(what: str, refused: SearchError | None = None) -> Iterator[None]:
    """Turn what the client raises into one sentence without the address, or into `refused` if the server answers."""
    try:
        yield
    except SearchError:
        raise
    except _raised() as error:
        code = getattr(error, "code", None)
        if not isinstance(code, int) or code <= 2:  # 1 and 2: no answer in time, no connection
            _client.cache_clear()
            raise SearchError(
                f"The Milvus server that {URI} names does not answer, or refuses {TOKEN}; start it, or correct these "
                "two variables, and try again."
            ) from None
        raise refused or _RefusedError(
            f"The Milvus server refused to {what} (its error {code}); if it has just started, try again in a minute, "
            "else its log says why."
        ) from None


def _raised() -> tuple[type[Exception], ...]:
    """Return what pymilvus raises of its own and lets through of gRPC, which has ValueError for a closed channel."""
    import grpc
    from pymilvus import MilvusException

    return MilvusException, grpc.RpcError, grpc.FutureTimeoutError, ConnectionError, TimeoutError, ValueError
