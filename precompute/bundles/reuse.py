"""What a bundle has in common with one that is built: Jacobians of the same inputs and labels in the same network."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natscope.core.bundle.format import Bundle, sha256_of
from natscope.core.errors import BuildError
from natscope.core.examples import Inputs
from natscope.core.features import shards
from natscope.core.text import short
from natscope.precompute.bundles.spec import BuildSpec, versions
from natscope.precompute.data.datasets import Dataset

_NEEDED = ("model", "weights", "weights_key", "weights_prefix", "sketch", "ntk", "layers")
_AT_ONCE = 2**22  # numbers
_VERSIONS = ("natscope", "torch", "machine", "device")

Shard = Callable[[slice], np.ndarray]


@dataclass(frozen=True, eq=False)
class Reusable:
    """Rows of a bundle that need not be computed again.

    Args:
        bundle: that has them.
        rows: (N,) int64, for each training input the row of the same input there; -1 where there is none.
        alike: (N,) bool, whether its label is the same there, too.
    """

    bundle: Bundle
    rows: np.ndarray
    alike: np.ndarray

    def __reduce__(self) -> tuple[Callable[..., "Reusable"], tuple[Path, np.ndarray, np.ndarray]]:
        """Open the bundle again in another process."""
        return _again, (self.bundle.path.absolute(), self.rows, self.alike)

    def taken(self, name: str, compute: Shard, batch: int, *, by_label: bool = True) -> tuple[Shard, Shard]:
        """Return what gives the rows of an array of features: those that the bundle has, and the others as before.

        The last bits of a row may depend on how many are computed with it. So a batch with a row that is missing is
        computed whole, and one is taken only if each of its rows was computed in a batch of that size.

        Args:
            name: the array's name.
            compute: computes some rows.
            batch: how many it computes at a time.
            by_label: whether a row depends on its label.

        Returns:
            What gives them as they are stored, which may be rounded to float16, and what gives them in full precision.
        """
        if not self.bundle.has(name):
            return compute, compute
        stored, there = self.bundle.array(name), self._there(name, batch, by_label=by_label)

        def shard(part: slice) -> np.ndarray:
            found = [
                np.asarray(stored[self.rows[some]], np.float32) if there(some) else compute(some)
                for some in _batches(part, batch)
            ]
            return np.concatenate(found)

        return shard, compute if stored.dtype == np.float16 else shard

    def to_dict(self, filled: np.ndarray, batch: int) -> dict[str, Any]:
        """Return what a manifest says: the bundle, and how many of the features (N, K) that were filled are its own."""
        there = self._there("features", batch)
        taken = sum(some.stop - some.start for some in _all_batches(filled, batch) if there(some))
        rounded = self.bundle.array("features").dtype.itemsize < filled.dtype.itemsize  # which do not do for these
        return {"bundle": self.bundle.identity, "rows": 0 if rounded else taken}

    def _there(self, name: str, batch: int, *, by_label: bool = True) -> Callable[[slice], bool]:
        usable = self.alike if by_label else self.rows >= 0
        sizes = [some.stop - some.start for some in _all_batches(self.bundle.array(name), batch)]
        size = np.repeat(sizes, sizes)
        return lambda some: bool(usable[some].all() and (size[self.rows[some]] == some.stop - some.start).all())


def _again(path: Path, rows: np.ndarray, alike: np.ndarray) -> Reusable:
    return Reusable(Bundle(path), rows, alike)


def checked(path: Path, spec: BuildSpec) -> Bundle:
    """Open a bundle from which Jacobians are to be taken, whose settings are known to allow that.

    Args:
        path: the bundle.
        spec: the settings of the one to build.

    Raises:
        BuildError: if nothing can be taken, with the reason.
        BundleError: if there is no bundle, or it is damaged.
    """
    if spec.weights is None:
        raise BuildError(
            f"Nothing of {path} can be reused: a network that is trained on other labels is another network; give the "
            "weights of one that is trained."
        )
    bundle = Bundle(path)
    known, own = bundle.manifest.results["settings"], spec.settings()
    for name in _NEEDED:
        if known.get(name) != own.get(name):
            raise BuildError(f"Nothing of {path} can be reused: its {name} differs.")
    return bundle


def comparable(path: Path, spec: BuildSpec, data: Dataset) -> Bundle:
    """Open a bundle as `checked` does, known to be whole and made on such a machine, of inputs of this form.

    Args:
        path: the bundle.
        spec: the settings of the one to build.
        data: what the one to build holds, or a sample of it.

    Raises:
        BuildError: if nothing can be taken, with the reason.
        BundleError: if there is no bundle, or it is damaged.
    """
    bundle, now = checked(path, spec), versions()
    then, about = bundle.manifest.versions, bundle.manifest.dataset
    others = [f"it was built with another {name}" for name in _VERSIONS if then.get(name) != now.get(name)]
    if then.get("threads") != now["threads"]:
        was = short(then.get("threads", "an unknown number of"))
        others.append(f"it was built with {was} threads, not {now['threads']}, which OMP_NUM_THREADS sets")
    own = data.train.about()
    alike = bundle.modality is data.modality and bundle.manifest.form == data.train.form
    if alike and data.foreign:
        alike = bundle.inputs("train").shape[1:] == data.train.inputs.shape[1:]
    if not alike or bundle.stores_inputs != data.foreign:
        others.append("its network takes other inputs")
    elif not data.foreign and any(about.get(key) != value for key, value in own.items()):
        others.append("its inputs are made of the data otherwise")
    if others:
        raise BuildError(f"Nothing of {path} can be reused: {others[0]}.")
    for record in bundle.manifest.files.values():
        if record.file.startswith(("features", "margin_features")) and sha256_of(path / record.file) != record.sha256:
            raise BuildError(f"Nothing of {path} can be reused: its file {record.file} is damaged.")
    return bundle


def reusable(path: Path, spec: BuildSpec, data: Dataset) -> Reusable:
    """Return what of a bundle can be taken for another one; arguments and errors are those of `comparable`."""
    bundle = comparable(path, spec, data)
    labels = np.asarray(bundle.array("train_labels")).tolist()
    known_inputs, known_items = dict[bytes, int](), dict[tuple[bytes, int], int]()
    for row, digest in enumerate(_digests(bundle.inputs("train"))):
        known_inputs[digest] = known_items[digest, labels[row]] = row
    own_items = list(zip(_digests(data.train.inputs), data.train_labels.tolist(), strict=True))
    rows = [known_items.get(item, known_inputs.get(item[0], -1)) for item in own_items]
    return Reusable(bundle, np.array(rows, dtype=np.int64), np.array([item in known_items for item in own_items]))


def _all_batches(array: np.ndarray, batch: int) -> Iterator[slice]:
    for part in shards(array.shape, array.dtype):
        yield from _batches(part, batch)


def _batches(part: slice, batch: int) -> Iterator[slice]:
    for start in range(part.start, part.stop, batch):
        yield slice(start, min(start + batch, part.stop))


def _digests(inputs: Inputs) -> Iterator[bytes]:
    """Yield a checksum of each input without its padding, read some at a time."""
    lengths = inputs.lengths
    for part in _batches(slice(0, len(inputs)), max(1, _AT_ONCE // math.prod(inputs.shape[1:]))):
        rows = inputs[part].numpy()
        ends = [None] * len(rows) if lengths is None else lengths[part].tolist()
        for row, end in zip(rows, ends, strict=True):
            yield hashlib.sha256(np.ascontiguousarray(row[:end]).data).digest()
