"""What a bundle has in common with one that is built: Jacobians of the same inputs and labels in the same network."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from natscope.core.bundle.format import Bundle, sha256_of
from natscope.core.errors import BuildError
from natscope.core.rows import Rows
from natscope.precompute.bundles.spec import BuildSpec, versions
from natscope.precompute.data.datasets import Dataset

_NEEDED = ("model", "weights", "weights_key", "weights_prefix", "sketch", "ntk", "layers")
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

    def taken(self, name: str, compute: Shard, batch: int, *, by_label: bool = True) -> Shard:
        """Return what gives the rows of an array of features: those that the bundle has, and the others as before.

        Batches with a row that is missing are computed whole, because the last bits of a row may depend on how many
        there are.

        Args:
            name: the array's name.
            compute: computes some rows.
            batch: how many it computes at a time.
            by_label: whether a row depends on its label.
        """
        if not self.bundle.has(name):
            return compute
        stored, usable = self.bundle.array(name), self.alike if by_label else self.rows >= 0

        def shard(part: slice) -> np.ndarray:
            found = []
            for start in range(part.start or 0, part.stop, batch):
                some = slice(start, min(start + batch, part.stop))
                there = bool(usable[some].all())
                found.append(np.asarray(stored[self.rows[some]], np.float32) if there else compute(some))
            return np.concatenate(found)

        return shard

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {"bundle": self.bundle.identity, "rows": int(self.alike.sum())}


def reusable(path: Path, spec: BuildSpec, data: Dataset) -> Reusable:
    """Return what of a bundle can be taken for another one.

    Args:
        path: the bundle that is there.
        spec: the settings of the one to build.
        data: what the one to build holds.

    Raises:
        BuildError: if nothing can be taken, with the reason.
        BundleError: if there is no bundle, or it is damaged.
    """
    if spec.weights is None:
        raise BuildError(
            f"Nothing of {path} can be reused: a network that is trained on other labels is another network; load "
            "weights with --weights."
        )
    bundle, own, now = Bundle(path), spec.settings(), versions()
    known, then = bundle.manifest.results["settings"], bundle.manifest.versions
    others = [f"its {name} differs" for name in _NEEDED if known.get(name) != own.get(name)]
    others += [f"it was built with another {name}" for name in _VERSIONS if then.get(name) != now.get(name)]
    about = bundle.manifest.dataset
    if bundle.stores_inputs != (data.train_inputs is not None):
        others.append("its network takes other inputs")
    elif not bundle.stores_inputs and (tuple(about["mean"]), tuple(about["std"])) != (data.mean, data.std):
        others.append("its pixels are scaled otherwise")
    if others:
        raise BuildError(f"Nothing of {path} can be reused: {others[0]}.")
    name = "train_images" if data.train_inputs is None else "train_inputs"
    for record in bundle.manifest.files.values():
        if record.file.startswith(("features", "margin_features")) and sha256_of(path / record.file) != record.sha256:
            raise BuildError(f"Nothing of {path} can be reused: its file {record.file} is damaged.")
    labels = np.asarray(bundle.array("train_labels")).tolist()
    known_inputs, known_items = dict[bytes, int](), dict[tuple[bytes, int], int]()
    for row, digest in enumerate(_digests(bundle.array(name))):
        known_inputs[digest] = known_items[digest, labels[row]] = row
    own_items = list(zip(_digests(getattr(data, name)), data.train_labels.tolist(), strict=True))
    rows = [known_items.get(item, known_inputs.get(item[0], -1)) for item in own_items]
    return Reusable(bundle, np.array(rows, dtype=np.int64), np.array([item in known_items for item in own_items]))


def _digests(rows: Rows) -> list[bytes]:
    return [hashlib.sha256(np.ascontiguousarray(rows[row]).tobytes()).digest() for row in range(len(rows))]
