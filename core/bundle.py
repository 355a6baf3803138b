"""The bundle: one folder with all that attributions of one trained model need, read through memory maps, no pickle."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from core.errors import BundleError
from core.index_spec import IndexSpec
from core.search import InnerProductIndex
from core.sketches import SketchSpec

SCHEMA = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
_HASH_BLOCK = 2**22


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle as the manifest records it; `shape` and `dtype` for arrays only."""

    file: str
    bytes: int
    sha256: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Every setting that made a bundle, what came out, and a record of each file.

    Args:
        name: a title for people.
        dataset: name, classes, mean, std.
        model: the architecture's specification.
        training: the recipe, or the checksum of weights that were loaded.
        sketch: kind, dim, seed.
        ntk: whether Jacobians are scaled as in the NTK parameterisation.
        outputs: "own" (each example under its own label's logit) or "all" (under every class's logit too).
        poison: the attack's settings, or None.
        results: accuracy, typical distances, what was measured while building.
        layout: (fan_out, fan_in) of every layer of a network of Linear weights alone, else None.
        versions: of the libraries that built it.
        methods: settings of each method whose own parts the bundle holds.
        files: by logical name.
        index: settings of the indexes; None when they are flat.
        tuned: sigma2 of each method that `natscope tune` chose, and how, for coresets apart; None before.
    """

    name: str
    dataset: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    sketch: dict[str, Any]
    ntk: bool
    outputs: str
    poison: dict[str, Any] | None
    results: dict[str, Any]
    layout: tuple[tuple[int, int], ...] | None
    versions: dict[str, str]
    command: str
    methods: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    index: dict[str, Any] | None = None
    tuned: dict[str, Any] | None = None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Give the text of manifest.json; the same settings give the same bytes."""
        values = asdict(self)
        for later in ("index", "tuned"):
            if values[later] is None:
                del values[later]  # as in bundles that were built before there was a choice
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read the text of manifest.json.

        Raises:
            ValueError, TypeError, KeyError: if it is not one.
        """
        raw = json.loads(text)
        raw["files"] = {
            name: FileRecord(**{**record, "shape": _tuple(record["shape"])}) for name, record in raw["files"].items()
        }
        raw["layout"] = None if raw["layout"] is None else tuple((o, i) for o, i in raw["layout"])
        return cls(**raw)


class Bundle:
    """An open bundle. Arrays are read-only memory maps; opening checks sizes, `check_bundle` every byte."""

    def __init__(self, path: Path) -> None:
        """Open a bundle.

        Raises:
            BundleError: if there is none, it is of another schema, or files are missing or have another size.
        """
        self.path = path
        self.manifest = _read_manifest(path)
        for fault in _size_faults(path, self.manifest):
            raise BundleError(f"The bundle {path} is damaged: {fault} To mend it, {_mend(self.manifest, path)}.")

    @cached_property
    def identity(self) -> str:
        """A checksum of the manifest, and so of settings and contents: the key of every cache."""
        return hashlib.sha256(self.manifest.to_json().encode()).hexdigest()[:16]

    def sigma2(self, method: str, *, coreset: bool = False) -> float:
        """Give the usual noise variance for a method: the tuned one, else 1.

        Args:
            method: a name of the registry.
            coreset: to choose a coreset, for which it is tuned apart; that of single predictions where it was not.
        """
        tuned = self.manifest.tuned or {}
        single = tuned.get("sigma2", {}).get(method, 1.0)
        return float(tuned.get("coreset", {}).get("sigma2", {}).get(method, single) if coreset else single)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return tuple(self.manifest.dataset["classes"])

    @property
    def sketch_spec(self) -> SketchSpec:
        """The sketch of all features in this bundle."""
        return SketchSpec(**self.manifest.sketch)

    @property
    def index_spec(self) -> IndexSpec:
        """The indexes of the classes in this bundle."""
        return IndexSpec(**(self.manifest.index or {}))

    def has(self, name: str) -> bool:
        """Whether the bundle holds an array or index of this name."""
        return name in self.manifest.files

    def array(self, name: str) -> np.ndarray:
        """Give an array as a read-only memory map.

        Raises:
            BundleError: if the bundle has no such array, or the file is not the one that was recorded.
        """
        record = self._record(name)
        try:
            array = np.lib.format.open_memmap(self.path / record.file, mode="r")  # refuses pickled objects
        except Exception as error:  # the header's parser raises nearly everything on damaged bytes
            raise self._damaged(record.file) from error
        if array.shape != record.shape or str(array.dtype) != record.dtype:
            raise self._damaged(record.file)
        return array

    def index(self, name: str) -> InnerProductIndex:
        """Read an index.

        Raises:
            BundleError: if the bundle has no such index, or it cannot be read.
        """
        record = self._record(name)
        # FAISS reads on in damaged files, for hours or past the end, so it gets none.
        if sha256_of(self.path / record.file) != record.sha256:
            raise self._damaged(record.file)
        try:
            return InnerProductIndex.load(self.path / record.file)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(record.file) from error

    def weights(self) -> dict[str, Tensor]:
        """Read the trained weights.

        Raises:
            BundleError: if they cannot be read.
        """
        try:
            return safetensors.torch.load_file(self.path / self._record("weights").file)
        except (OSError, safetensors.SafetensorError) as error:
            raise self._damaged(WEIGHTS) from error

    def _record(self, name: str) -> FileRecord:
        if name not in self.manifest.files:
            raise BundleError(f"The bundle {self.path} holds no '{name}'; {_mend(self.manifest, self.path)}.")
        return self.manifest.files[name]

    def _damaged(self, file: str) -> BundleError:
        mend = _mend(self.manifest, self.path)
        return BundleError(f"The bundle {self.path} is damaged: '{file}' cannot be read. To mend it, {mend}.")


def check_bundle(path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Check every file's size and SHA-256; give one sentence a fault.

    Args:
        path: the bundle.
        progress: called with bytes read and bytes in all.

    Raises:
        BundleError: if there is no bundle with a readable manifest.
    """
    manifest = _read_manifest(path)
    faults = list(_size_faults(path, manifest))
    broken = {fault.split("'")[1] for fault in faults}
    total, done = sum(r.bytes for r in manifest.files.values()), 0
    for record in manifest.files.values():
        if record.file not in broken and sha256_of(path / record.file) != record.sha256:
            faults.append(f"'{record.file}' does not have the recorded checksum.")
        done += record.bytes
        progress(done, total)
    return faults


def find_bundles(folder: Path) -> list[Path]:
    """List the bundles in a folder, or the folder itself when it is one, by name."""
    if (folder / MANIFEST).is_file():
        return [folder]
    return sorted(p.parent for p in folder.glob(f"*/{MANIFEST}") if not p.parent.name.endswith(".partial"))


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to disk and rename it: it is whole or it is not there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_manifest(path: Path) -> Manifest:
    if not path.is_dir():
        raise BundleError(f"There is no bundle at {path}; `natscope precompute --out {path}` makes one.")
    try:
        data = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} is no bundle: it has no readable {MANIFEST}; `natscope precompute --out FOLDER` makes one."
        ) from error
    rebuild = f"delete the folder and run `natscope precompute --out {path}` again"
    try:
        text = data.decode()
        schema = json.loads(text)["schema"]
        if schema != SCHEMA:
            raise BundleError(f"The bundle {path} has schema {schema}, this natscope reads schema {SCHEMA}: {rebuild}.")
        return Manifest.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"The bundle {path} is damaged: its {MANIFEST} cannot be read; {rebuild}.") from error


def _size_faults(path: Path, manifest: Manifest) -> Iterator[str]:
    for record in manifest.files.values():
        file = path / record.file
        if not file.is_file():
            yield f"'{record.file}' is missing."
        elif file.stat().st_size != record.bytes:
            yield f"'{record.file}' has {file.stat().st_size:,} bytes where {record.bytes:,} were recorded."


def _mend(manifest: Manifest, path: Path) -> str:
    return f"delete the folder and run `{manifest.command} --out {path}`"


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)
