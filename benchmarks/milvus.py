"""A Milvus server to measure: the one that the environment names, or else one that is started for the run."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np

from benchmarks.network import Say, seconds
from natscope.core.index.milvus import URI, MilvusIndex, Server, collection_name
from natscope.core.index.spec import MILVUS, IndexSpec
from natscope.core.rows import Rows
from tests.milvus_server import milvus_server, missing

SPEC = IndexSpec(MILVUS)
_NAME = collection_name(["benchmark"], SPEC)


@contextlib.contextmanager
def server(say: Say) -> Iterator[bool]:
    """Give whether there is a server, which is asked by the environment's address meanwhile."""
    if os.environ.get(URI):
        yield True
    elif reason := missing():
        say(f"Milvus is not measured: {reason}.")
        yield False
    else:
        with milvus_server() as started:
            os.environ[URI] = started.uri
            try:
                yield True
            finally:
                del os.environ[URI]


@contextlib.contextmanager
def filled(features: Rows) -> Iterator[tuple[float, MilvusIndex]]:
    """Insert features (n, K); give the seconds that this took, and the index. The collection is dropped afterwards."""
    rows, asked = np.arange(len(features)), Server()
    try:
        time, _ = seconds(lambda: asked.fill(_NAME, SPEC, {0: (rows, features)}, lambda *_: None))
        yield time, asked.index(_NAME, 0, rows, features, SPEC)
    finally:
        asked.drop(_NAME)
