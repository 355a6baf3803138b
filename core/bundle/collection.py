"""The collection on a Milvus server that a bundle is searched in, where its index is one of those."""

import numpy as np

from natscope.core.bundle.format import Bundle
from natscope.core.index.milvus import MilvusIndex, Server, collection_name
from natscope.core.index.spec import MILVUS
from natscope.core.progress import Progress
from natscope.core.rows import RowView

_CONTENT = ("features", "train_labels")


def on_server(bundle: Bundle) -> list[int]:
    """Return the classes whose index is on a Milvus server; those of a few rows have a file as ever."""
    spec = bundle.index_spec
    if spec.kind != MILVUS:
        return []
    return [label for label, count in enumerate(bundle.members) if spec.kind_of(int(count)) == MILVUS]


def name_of(bundle: Bundle) -> str:
    """Return the name of the collection, which follows from the features, the labels and the index's settings."""
    return collection_name([bundle.manifest.files[name].sha256 for name in _CONTENT], bundle.index_spec)


def is_filled(bundle: Bundle) -> bool:
    """Return whether the server holds all features of a bundle that need to be there; raises SearchError."""
    classes = _classes(bundle)
    return not classes or not Server().fault(name_of(bundle), bundle.index_spec, classes)


def fill(bundle: Bundle, progress: Progress) -> None:
    """Insert the features of a bundle into its collection, which is dropped and made again; raises SearchError."""
    Server().fill(name_of(bundle), bundle.index_spec, _classes(bundle), progress)


def open_index(bundle: Bundle, label: int) -> MilvusIndex:
    """Return the index over the features of a class.

    Raises:
        SearchError: if the server is away, or does not hold them.
    """
    rows, features = _members(bundle, label)
    return Server().index(name_of(bundle), label, rows, features, bundle.index_spec)


def _classes(bundle: Bundle) -> dict[int, tuple[np.ndarray, RowView]]:
    return {label: _members(bundle, label) for label in on_server(bundle)}


def _members(bundle: Bundle, label: int) -> tuple[np.ndarray, RowView]:
    rows = np.flatnonzero(bundle.array("train_labels") == label)
    return rows, RowView(bundle.array("features"), rows)
