"""The passes over a bundle's examples, as tasks: each takes some rows, and knows paths and settings alone.

A task may run in any process that sees the bundle's folder. The network and the examples are opened there once.
"""

import hashlib
import io
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from natscope.core.bundle.file_checks import bounded, whole_header
from natscope.core.bundle.format import WEIGHTS
from natscope.core.device import device
from natscope.core.errors import BuildError
from natscope.core.examples import MODALITIES, Inputs
from natscope.core.features import FeatureMap
from natscope.core.files import opened, replacing, sha256_of, write_atomically
from natscope.core.index.search import build_index
from natscope.core.index.spec import IndexSpec
from natscope.core.kernels import Kernel, packed
from natscope.core.posterior import blocks, feature_gram
from natscope.core.rows import RowView
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.reuse import Reusable
from natscope.precompute.training.models import ModelSpec, build_model, foreign, source_of
from natscope.precompute.training.trusted import admit

Rows = Mapping[str, np.ndarray]
GROUP = 2**16  # rows whose Gram is one task
_HALF_ERROR = 2.0**-11  # of a float16 number, at most, relative to its size


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and its data, as a task opens them.

    Args:
        folder: of a bundle, or of an unfinished one that holds both.
        network: without its weights.
        modality: the name of the examples' kind.
        about: what a manifest says of them.
        run: names what is opened, so that no process takes it for another.
        source: the checksum of the code of a user's own network, where the passes were begun.
    """

    folder: Path
    network: ModelSpec
    modality: str
    about: Mapping[str, Any]
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    source: str | None = field(init=False)

    def __post_init__(self) -> None:
        """Note what the code is; this does not run where a task is unpickled."""
        object.__setattr__(self, "source", source_of(self.network))

    def open(self) -> "Opened":
        """Return both, opened at most once in this process as long as no other is.

        Raises:
            BuildError: if the code of a user's own network is not what it was where the passes were begun.
        """
        found = _latest.get(self.run)
        if found is None:
            _latest.clear()
            _latest[self.run] = found = Opened(self)
        return found

    def close(self) -> None:
        """Forget what was opened in this process."""
        _latest.pop(self.run, None)


_latest: dict[str, "Opened"] = {}


class Opened:
    """A network with its weights, and the arrays of its folder."""

    def __init__(self, trained: Trained) -> None:
        self._trained, self._maps, self._inputs = trained, dict[Tangent, FeatureMap](), dict[str, Inputs]()
        if trained.source is not None:  # whoever starts a build trusts it
            admit(trained.network.architecture, trained.source)
        model = build_model(trained.network, seed=0)
        model.load_state_dict(safetensors.torch.load_file(trained.folder / WEIGHTS))
        self._model = model.to(device()).eval()

    def map(self, tangent: "Tangent") -> FeatureMap:
        """Return what turns examples into features."""
        if tangent not in self._maps:
            self._maps[tangent] = tangent.map(self._model)
        return self._maps[tangent]

    def inputs(self, split: str) -> Inputs:
        """Return what the network takes for the examples of a split."""
        if split not in self._inputs:
            self._inputs[split] = self._read(split)
        return self._inputs[split]

    def _read(self, split: str) -> Inputs:
        folder, modality = self._trained.folder, MODALITIES[self._trained.modality]

        def array(name: str) -> np.ndarray | None:
            return stored(folder, f"{split}_{name}") if (folder / f"{split}_{name}.npy").is_file() else None

        def content(name: str) -> bytes:
            return (folder / modality.files[name]).read_bytes()

        return modality.read(array, content, self._trained.about).inputs


def stored(folder: Path, name: str) -> np.ndarray:
    """Return an array of a folder as a read-only memory map."""
    return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class Tangent:
    """The settings of a `FeatureMap`, whose batches have been measured."""

    sketch: SketchSpec
    ntk: bool
    layers: tuple[str, ...]
    batch: int

    @classmethod
    def of(cls, features: FeatureMap) -> "Tangent":
        """Return those of one that has computed features."""
        return cls(features.sketch.spec, features.ntk, features.layers, features.batch_size)

    def map(self, model: Any) -> FeatureMap:
        """Return it for a network."""
        return FeatureMap(model, self.sketch, ntk=self.ntk, layers=self.layers, batch_size=self.batch, measured=True)


@dataclass(frozen=True)
class Predictions:
    """Logits and penultimate features.

    Args:
        trained: what is opened.
        tangent: whose batches these are.
        split: of the examples.
        names: of the array of logits, and of that of penultimate features if they are kept.
    """

    trained: Trained
    tangent: Tangent
    split: str
    names: tuple[str, ...]

    def __call__(self, part: slice) -> Rows:
        """Return both for some rows."""
        with foreign(self.trained.network):
            opened = self.trained.open()
            found = opened.map(self.tangent).outputs(opened.inputs(self.split)[part])
        if not (bounded(found.logits) and bounded(found.penultimate)):
            title = self.trained.network.title
            raise BuildError(f"The outputs of {title} are not finite numbers for some examples of the data.")
        return dict(zip(self.names, (found.logits, found.penultimate), strict=False))


@dataclass(frozen=True)
class Jacobians:
    """Sketched Jacobians of the training examples.

    Args:
        name: of the array.
        trained: what is opened.
        tangent: the kernel.
        target: the class whose logit it is of; each example's own label when None.
        measurement: "logit" or "margin".
        reuse: rows of another bundle that need not be computed again.
        half: store float16; raises `CoarseError` for rows that it does not hold.
    """

    name: str
    trained: Trained
    tangent: Tangent
    target: int | None = None
    measurement: str = "logit"
    reuse: Reusable | None = None
    half: bool = False

    def __call__(self, part: slice) -> Rows:
        """Return some rows.

        Raises:
            BuildError: if a number is not finite.
        """
        rows = self._shard(part)
        if not bounded(rows):
            raise BuildError("A Jacobian is not finite; the network's weights have run away.")
        return {self.name: half(rows) if self.half else rows}

    def _shard(self, part: slice) -> np.ndarray:
        if self.reuse is None:
            return self._computed(part)
        taken = self.reuse.taken(self.name, self._computed, self.tangent.batch, by_label=self.target is None)
        return taken[0 if self.half else 1](part)

    def _computed(self, part: slice) -> np.ndarray:
        labels = stored(self.trained.folder, "train_labels")[part]
        targets = labels if self.target is None else np.full(len(labels), self.target)
        with foreign(self.trained.network):
            opened = self.trained.open()
            return opened.map(self.tangent).features(
                opened.inputs("train")[part], targets, measurement=self.measurement
            )


class CoarseError(Exception):
    """Rows cannot be kept as float16."""


def half(rows: np.ndarray) -> np.ndarray:
    """Return feature vectors (n, K) as float16 if that is precise enough.

    A float16 number is within 1 part in 2048 of what it stands for, unless that is above 65,504 or below 6e-5.

    Raises:
        CoarseError: if such numbers would move a row further from the original, relative to its length.
    """
    with np.errstate(over="ignore"):
        found = rows.astype(np.float16)
    if not (np.linalg.norm(found - rows, axis=1) <= _HALF_ERROR * np.linalg.norm(rows, axis=1)).all():
        raise CoarseError
    return found


@dataclass(frozen=True)
class Class:
    """The Gram and the index of each class, written into the folder that holds its features.

    Args:
        folder: the bundle's.
        kernel: that multiplies the features.
        index: the index.
    """

    folder: Path
    kernel: Kernel
    index: IndexSpec

    def __call__(self, wanted: tuple[int, tuple[str, ...]]) -> None:
        """Write what one class has: its number, and "gram", "index" or both."""
        (label, kinds), features = wanted, stored(self.folder, "features")
        rows = np.flatnonzero(stored(self.folder, "train_labels") == label)
        if "gram" in kinds:
            members = np.asarray(features[rows])
            with replacing(self.folder / f"gram_{label}.npy") as file, file.open("xb") as handle:
                np.save(handle, packed(self.kernel(members, members)), allow_pickle=False)
        if "index" in kinds:
            with replacing(self.folder / f"index_{label}.faiss") as file:
                build_index(RowView(features, rows), self.index, file)


@dataclass(frozen=True)
class Gram:
    """The sum of phi phi^T over some rows of an array of features (N, K), in float64.

    Args:
        folder: the bundle's.
        name: of the array.
    """

    folder: Path
    name: str

    def __call__(self, part: slice) -> Rows:
        """Return the sum over some rows, (K, K)."""
        return {"gram": feature_gram(blocks(stored(self.folder, self.name)[part]))}


@dataclass(frozen=True)
class Written:
    """A task whose rows are written into one file a shard, complete or absent, for whoever asked to join them.

    What a process that was killed had finished is not computed again.

    Args:
        task: returns the rows of each array.
        folder: of the files.
        names: of the arrays.
    """

    task: Callable[[slice], Rows]
    folder: Path
    names: tuple[str, ...]

    def __call__(self, part: slice) -> dict[str, str]:
        """Return the name of the file of each array's rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = {file.name.split(".")[0]: file for file in self.folder.glob(f"*.{part.start}-{part.stop}.*.npy")}
        if known.keys() == set(self.names) and all(_digest_in(f) == sha256_of(f, links=False) for f in known.values()):
            return {name: file.name for name, file in known.items()}
        names = {}
        for name, rows in self.task(part).items():
            content = _npy(rows)
            digest = hashlib.sha256(content).hexdigest()
            names[name] = f"{name}.{part.start}-{part.stop}.{digest}.npy"
            write_atomically(self.folder / names[name], content)
        return names

    def read(self, name: str) -> np.ndarray:
        """Return the rows of a file; raises BuildError if they are not those that were written."""
        file = self.folder / name
        with opened(file) as handle:
            whole_header(handle)
            handle.seek(0)
            content = handle.read()
        if hashlib.sha256(content).hexdigest() != _digest_in(file):
            raise BuildError(f"The file {file} was changed while it was used; run the same command again.")
        return np.load(io.BytesIO(content), allow_pickle=False)


def _digest_in(file: Path) -> str:
    return file.name.split(".")[2]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
