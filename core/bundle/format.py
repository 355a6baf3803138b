"""The bundle: one folder with all that attributions of one trained model need, read through memory maps, no pickle.

A stranger may have made it. Its manifest is checked by `natscope.core.bundle.manifest`, each file by
`natscope.core.bundle.file_checks` before it is first used, and an index by `natscope.core.index.file_checks`; each
fault is one sentence, in `natscope verify` as on a page.
"""

import math
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor, nn

from natscope.core.bundle.file_checks import fault, mapped, once, size_fault, stamp
from natscope.core.bundle.manifest import (
    LARGEST,
    LONGEST_SOURCE,
    MANIFEST,
    OF_MARGINS,
    PURPOSES,
    SCHEMA,
    WEIGHTS,
    FileRecord,
    Manifest,
)
from natscope.core.bundle.schema import SchemaError
from natscope.core.cache import BoundedCache
from natscope.core.errors import BundleError, FileError, out_of_memory
from natscope.core.examples import Examples, Inputs, Modality
from natscope.core.files import REFUSED, opened, read_open, sha256_of, write_atomically
from natscope.core.index.file_checks import index_fault
from natscope.core.index.search import InnerProductIndex
from natscope.core.index.spec import IndexSpec
from natscope.core.methods import METHODS
from natscope.core.methods.artifacts import FACTORS
from natscope.core.rows import RowView
from natscope.core.sketches import SketchSpec

__all__ = [
    "MANIFEST",
    "WEIGHTS",
    "Bundle",
    "Manifest",
    "find_bundles",
    "read_manifest",
    "sha256_of",
    "write_atomically",
    "write_manifest",
]
FIX = "delete the folder and build it again with the command that made it"
GRID = range(-6, 6)  # exponents of the paper's grid of sigma2
_OF_CORESETS = 0.1  # usual sigma2 for coresets, as a multiple of the features' scale: `natscope tune --score coreset`
_DECADES = 20  # that a scale may be from 1, so that no sigma2 around it is too small or too large
_MANIFESTS: BoundedCache[Manifest | SchemaError] = BoundedCache(64)


class Bundle:
    """An open bundle. Arrays are read-only memory maps; a file is read in full once, before its first use.

    Examples:
        >>> bundle = natscope.Bundle(Path("bundles/fashion-mnist"))
        >>> bundle.classes[:3]
        ('T-shirt/top', 'Trouser', 'Pullover')
        >>> len(bundle.examples("test"))
        10000
    """

    def __init__(self, path: Path) -> None:
        """Open a bundle.

        Raises:
            BundleError: if there is none, its manifest cannot be used, or files are missing or have another size.
        """
        self.path = path
        self.manifest = read_manifest(path)
        self.opened_with = self.stamp()
        self._sources: dict[str, tuple[str, ...]] = {}
        self._examples: dict[str, Examples] = {}
        for record in self.manifest.files.values():
            if wrong := size_fault(path, record):
                raise self._damaged(record, wrong)

    def __repr__(self) -> str:
        """Return its folder and title."""
        return f"Bundle({str(self.path)!r}: {self.manifest.name})"

    @property
    def identity(self) -> str:
        """A checksum of the manifest, and so of settings and contents: the key of every cache."""
        return self.manifest.identity

    def stamp(self) -> str:
        """Return a stamp of the bundle's files by which changes are noticed: see `file_checks.stamp`."""
        return stamp(self.path, self.manifest.files.values())

    def check_unchanged(self) -> None:
        """Raise BundleError if a file that the manifest records has changed since the bundle was opened."""
        if self.stamp() != self.opened_with:
            raise BundleError(
                f"The files of the bundle {self.path} changed while it was open; open it, or run the command, again."
            )

    def sigma2(self, method: str, *, purpose: str = "prediction") -> float:
        """Return the usual noise variance for a method: what was tuned, else its usual multiple of the features' scale.

        What was tuned for predictions serves other purposes too, except those whose features have another scale.

        Args:
            method: a name of the registry.
            purpose: one of `PURPOSES`.

        Raises:
            ValueError: for another purpose.
        """
        ratio = _OF_CORESETS if purpose in OF_MARGINS else METHODS[method].ratio if method in METHODS else 1.0
        usual, chosen = ratio * self.scale(purpose), self.manifest.chosen
        of_features = {} if purpose in OF_MARGINS else chosen["prediction"]
        return float(chosen[purpose].get(method, of_features.get(method, usual)))

    def mean_kernel(self, purpose: str = "prediction") -> float:
        """Return mean k(x, x) over the training examples, of the features that serve a purpose of `PURPOSES`.

        A sigma2 means what its ratio to this number is.

        Raises:
            ValueError: for another purpose.
        """
        if purpose not in PURPOSES:
            raise ValueError(f"sigma2 is chosen for one of {', '.join(PURPOSES)}, not for {purpose}.")
        kernel = self.manifest.results["kernel"]
        return float(kernel.get("margin_mean", kernel["mean"]) if purpose in OF_MARGINS else kernel["mean"])

    def scale(self, purpose: str = "prediction") -> float:
        """Return the power of ten nearest to `mean_kernel`: values of sigma2 are tried and offered around it."""
        mean = self.mean_kernel(purpose)
        return 10.0 ** min(max(round(math.log10(mean)), -_DECADES), _DECADES) if mean > 0 else 1.0

    def sigma2s(self, purpose: str = "prediction") -> tuple[float, ...]:
        """Return the values of sigma2 among which is chosen: the paper's 10^-6 ... 10^5, times the scale."""
        return tuple(10.0**exponent * self.scale(purpose) for exponent in GRID)

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
        return IndexSpec(**(self.manifest.index or {"kind": "flat"}))

    @cached_property
    def members(self) -> np.ndarray:
        """How many training examples each class has, (C,) int64.

        Raises:
            BundleError: if labels are damaged, or the manifest does not fit them.
        """
        labels = self._mapped("train_labels")
        members = np.bincount(labels, minlength=len(self.classes))
        for label, count in enumerate(members):
            gram = self.manifest.files.get(f"gram_{label}")
            if gram is not None and gram.shape != (count * (count + 1) // 2,):
                raise self._damaged(gram, "has another shape than its class has examples")
        if (backdoor := self.manifest.backdoor) is not None:
            targets = backdoor.targets[backdoor.base_labels]
            if not np.array_equal(labels[backdoor.train_indices], targets):
                raise self._damaged(self.manifest.files["train_labels"], "does not fit the backdoor that was recorded")
        return members

    def has(self, name: str) -> bool:
        """Return whether the bundle holds an array or index of this name."""
        return name in self.manifest.files

    def array(self, name: str) -> np.ndarray:
        """Return an array as a read-only memory map.

        Raises:
            BundleError: if the bundle has no such array, or the file is not the one that was recorded.
        """
        if name == "train_labels" or name.startswith("gram_"):
            _ = self.members  # what is recorded fits them
        return self._mapped(name)

    @property
    def stores_inputs(self) -> bool:
        """Whether the network takes inputs of its own, so that the examples are only there to be looked at."""
        return self.manifest.foreign_inputs

    @property
    def modality(self) -> Modality:
        """The kind of the examples."""
        return self.manifest.modality

    def examples(self, split: str) -> Examples:
        """Return the examples of "train" or "test", read row by row.

        Raises:
            BundleError: if a file is not the one that was recorded.
        """
        for name in (*(f"{split}_{own}" for own in self.modality.arrays), *self.modality.files):
            if self.has(name):
                self._checked_record(name)
        if split not in self._examples:
            self._examples[split] = self._read_examples(split)
        return self._examples[split]

    def _read_examples(self, split: str) -> Examples:
        def array(name: str) -> np.ndarray | None:
            return self.array(f"{split}_{name}") if self.has(f"{split}_{name}") else None

        try:
            return self.modality.read(array, self._content, self.manifest.dataset)
        except ValueError as error:
            raise BundleError(f"The bundle {self.path} is damaged: it {error}. To fix it, {FIX}.") from error

    def _content(self, name: str) -> bytes:
        record = self._checked_record(name)
        path = self.path / record.file
        with opened(path) as file:
            return read_open(path, file, record.bytes)

    def inputs(self, split: str) -> Inputs:
        """Return what the network takes for the examples of "train" or "test"; errors are those of `examples`."""
        return self.examples(split).inputs

    def sources(self, split: str) -> tuple[str, ...]:
        """Return where each example of "train" or "test" comes from: its file within the data set, or its row there.

        Raises:
            BundleError: if the file that says so is damaged.
        """
        if split not in self._sources:
            count, name = len(self.array(f"{split}_labels")), f"{split}_sources"
            found = [f"{split} row {row}" for row in range(count)]  # as earlier versions numbered what they kept
            if self.has(name):
                found = np.asarray(self.array(name)).tobytes().decode(errors="replace").split("\n")
                if len(found) != count or max(map(len, found)) > LONGEST_SOURCE:
                    raise self._damaged(self.manifest.files[name], "does not have a line of text for each example")
            self._sources[split] = tuple(found)
        return self._sources[split]

    def index(self, name: str) -> InnerProductIndex:
        """Return the index over the features of a class.

        Args:
            name: "index_" and the number of the class.

        Raises:
            BundleError: if the bundle has no such index, or it is not valid for these features.
        """
        record = self._checked_record(name)
        label = int(name.rpartition("_")[2])
        rows = np.flatnonzero(self.array("train_labels") == label)
        if not len(rows):
            raise self._damaged(record, "is about a class without examples")
        path, members = self.path / record.file, RowView(self.array("features"), rows)
        if wrong := index_fault(path, members, self.index_spec):
            raise self._damaged(record, wrong)
        try:
            return InnerProductIndex.load(path)
        except (RuntimeError, ValueError) as error:
            if out_of_memory(error):
                raise
            raise self._damaged(record, "cannot be read") from error

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights.

        Raises:
            BundleError: if they cannot be read.
        """
        return safetensors.torch.load_file(self.path / self._checked_record("weights").file)

    def shapes_of_weights(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the trained weights, which are not loaded.

        Raises:
            BundleError: if they are damaged.
        """
        with safetensors.safe_open(self.path / self._checked_record("weights").file, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}

    def check_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the names and shapes of the trained weights with those of a network.

        Raises:
            BundleError: if they are damaged, or do not match.
        """
        if self.shapes_of_weights() != dict(shapes):
            raise self._misfit()

    def load_into(self, model: nn.Module) -> None:
        """Load the trained weights into a network that was built as the manifest says.

        Raises:
            BundleError: if they cannot be read, or do not fit the network.
        """
        try:
            model.load_state_dict(self.weights())
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise self._misfit() from error

    def factors(self) -> Path:
        """Return the folder of EK-FAC factors, after checking that every file is as recorded.

        Raises:
            BundleError: if one is damaged, or there are none.
        """
        for name in (name for name in self.manifest.files if name.startswith(f"{FACTORS}/")):
            self._checked_record(name)
        return self.path / FACTORS

    def unlike_features(self, name: str) -> BundleError:
        """Return the error of an array whose numbers do not follow from the features."""
        return self._damaged(self.manifest.files[name], "does not follow from the features")

    def _mapped(self, name: str) -> np.ndarray:
        record = self._checked_record(name)
        try:
            return mapped(self.path / record.file, record)
        except FileError as error:
            raise self._damaged(record, error.fault) from error
        except ValueError as error:
            raise self._damaged(record, "is not an array of the recorded shape and type") from error

    def _checked_record(self, name: str) -> FileRecord:
        """Return the record of a file, once the file is known to match it."""
        if name not in self.manifest.files:
            raise BundleError(f"The bundle {self.path} holds no '{name}'; {FIX}.")
        record = self.manifest.files[name]
        if wrong := fault(self.path, record, len(self.classes)):
            raise self._damaged(record, wrong)
        return record

    def _misfit(self) -> BundleError:
        own = ":" in self.manifest.model["architecture"]
        fix = "open it with the code that it was built with, or build it again in another folder" if own else FIX
        return BundleError(f"The weights in {self.path} do not fit the network that its manifest names; {fix}.")

    def _damaged(self, record: FileRecord, wrong: str) -> BundleError:
        if wrong.startswith(REFUSED):
            return BundleError(f"The bundle {self.path} cannot be opened: '{record.file}' {wrong}.")
        return BundleError(f"The bundle {self.path} is damaged: '{record.file}' {wrong}. To fix it, {FIX}.")


def find_bundles(folder: Path) -> list[Path]:
    """Return the bundles in a folder by name, damaged ones too but none that no page can name; or the folder itself."""
    try:
        if (folder / MANIFEST).is_file():
            return [folder]
        found = [path for path in folder.iterdir() if path.name.isprintable() and path.suffix != ".partial"]
    except (OSError, ValueError):
        return []
    return sorted(path for path in found if os.path.lexists(path / MANIFEST))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of a bundle in one step.

    Raises:
        BundleError: if it could not be read again.
    """
    text = manifest.to_json()
    try:
        manifest.check_settings()
        Manifest.from_json(text)
    except SchemaError as error:
        raise BundleError(f"The bundle {path} cannot be recorded: its {MANIFEST} {error}.") from error
    write_atomically(path / MANIFEST, text.encode())


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a bundle, checked, without looking at the files that it records.

    Raises:
        BundleError: if there is no bundle, or its manifest cannot be used.
    """
    try:
        there = path.is_dir()
    except (OSError, ValueError):
        there = False
    if not there:
        raise BundleError(f"There is no bundle at {path}; `natscope precompute --out {path}` makes one.")
    file = path / MANIFEST
    try:
        with opened(file) as handle:
            found = once(_MANIFESTS, os.fstat(handle.fileno()), (), lambda: _parsed(read_open(file, handle, LARGEST)))
    except FileError as error:
        if error.fault.startswith(REFUSED):
            raise BundleError(f"The bundle {path} cannot be opened: its {MANIFEST} {error.fault}.") from error
        raise BundleError(
            f"{path} is not a bundle: its {MANIFEST} {error.fault}; `natscope precompute --out FOLDER` makes one."
        ) from error
    if isinstance(found, Manifest):
        return found
    if found.schema is not None:
        raise BundleError(f"The bundle {path} has schema {found.schema}, this natscope reads schema {SCHEMA}: {FIX}.")
    raise BundleError(f"The bundle {path} is damaged: its {MANIFEST} {found}. To fix it, {FIX}.")


def _parsed(text: bytes) -> Manifest | SchemaError:
    try:
        return Manifest.from_json(text)
    except SchemaError as error:
        return SchemaError(error.fault, schema=error.schema)  # without the frames that hold what was read
