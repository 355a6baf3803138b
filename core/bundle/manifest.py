"""The manifest of a bundle: what it records, read strictly, because a stranger may have written it.

`Manifest.from_json` is the one place where a manifest is checked: `natscope.core.bundle.schema` says what each value
may be, and here they are checked against each other. Whoever has a `Manifest` can rely on its types, numbers and texts.
"""

import hashlib
import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from natscope.core import modalities  # noqa: F401
from natscope.core.backdoor import Backdoor
from natscope.core.bundle.schema import SchemaError, checked
from natscope.core.encoders import misfit
from natscope.core.examples import Modality, modality_of
from natscope.core.files import from_json
from natscope.core.methods import METHODS
from natscope.core.methods.artifacts import MARGINS
from natscope.core.sketches import SKETCHES

SCHEMA = 3
PURPOSES = ("prediction", "coreset", "backdoor")  # what sigma2 is chosen for
OF_MARGINS = ("coreset",)  # those of them that use the features of margins
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
LARGEST, _MOST_VALUES = 4_000_000, 300_000  # bytes of a manifest, and values in it: at most a second's work
MOST_TRAINING, MOST_TEST = 10_000_000, 1_000_000  # pages look at the labels and answers of all of them
_PER_CLASS = ("gram", "index", "features_all", "train_gram")  # followed by "_" and the number of a class
_NEEDED = (
    *("train_labels", "train_logits", "test_labels", "test_logits"),
    *("penultimate", "features", "weights"),
)
_LARGEST_HEADER = 10_000  # bytes before the numbers of an array
LONGEST_SOURCE = 4096  # bytes of where an example comes from, as of a path
_MOST_SOURCES = 2**28  # bytes of all of them
_MOST_SHARES = 1.001  # 1 with rounding


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
        dataset: name, classes, the modality where it is another than `examples.USUAL`, and what that says of the data.
        model: the architecture's specification.
        training: the recipe, or the checksum of weights that were loaded.
        sketch: kind, dim, seed.
        ntk: whether Jacobians are scaled as in the NTK parameterisation.
        layers: glob patterns of the names of parameters that the kernel is made of; empty for all.
        outputs: "own" (each example under its own label's logit) or "all" (under every class's logit too).
        poison: the attack's settings, or None.
        results: accuracy, typical distances, what was measured while building.
        layout: (fan_out, fan_in) of every layer of a network of Linear weights alone, else None.
        versions: versions of the libraries that built it.
        command: what was typed to build it, without --out; see `plain_command`.
        methods: settings of each method whose own parts the bundle holds.
        files: by logical name.
        index: settings of the indexes; None when they are flat.
        tuned: sigma2 of each method for predictions, and how it was chosen; for other `PURPOSES` likewise under their
            names. None before `natscope tune`.
    """

    name: str
    dataset: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    sketch: dict[str, Any]
    ntk: bool
    layers: tuple[str, ...]
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

    @property
    def chosen(self) -> dict[str, dict[str, float]]:
        """The tuned sigma2 of each method, by purpose."""
        tuned = self.tuned or {}
        return {p: (tuned if p == "prediction" else tuned.get(p, {})).get("sigma2", {}) for p in PURPOSES}

    @property
    def modality(self) -> Modality:
        """The kind of the data's examples."""
        return modality_of(self.dataset)

    @property
    def foreign_inputs(self) -> bool:
        """Whether the network takes what natscope cannot make of the examples, so that it is stored."""
        return self.modality.stored in self.shapes("train")

    @cached_property
    def form(self) -> tuple[int, ...]:
        """What all examples have in common: see `natscope.core.examples.Examples.form`."""
        return self.modality.form(self.dataset, self.shapes("train"))

    def shapes(self, split: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays that hold the examples of a split, by the modality's names."""
        found = {name: self.files.get(f"{split}_{name}") for name in self.modality.arrays}
        return {name: record.shape or () for name, record in found.items() if record is not None}

    @cached_property
    def backdoor(self) -> Backdoor | None:
        """The backdoor that was planted in the training examples; None if they are honest."""
        return None if self.poison is None else Backdoor.from_dict(self.poison)

    def to_json(self) -> str:
        """Return the text of manifest.json; the same settings give the same bytes."""
        values = asdict(self)
        for later in ("index", "tuned"):
            if values[later] is None:
                del values[later]  # as in bundles that were built before there was a choice
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def check_settings(self) -> None:
        """Raise SchemaError if a setting could not be read again; files and results may still be missing."""
        checked(_parsed(self.to_json()))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Return the manifest that the text of manifest.json holds.

        Raises:
            SchemaError: if it is not valid, or one value does not fit another.
        """
        raw = _parsed(text)
        found = raw.get("schema")
        if type(found) is int and found != SCHEMA:
            raise SchemaError("is of another schema", schema=found)
        checked(raw)
        raw["files"] = {
            name: FileRecord(**{**record, "shape": _tuple(record.get("shape"))})
            for name, record in raw["files"].items()
        }
        raw["layers"] = tuple(raw["layers"])
        raw["layout"] = None if raw["layout"] is None else tuple((o, i) for o, i in raw["layout"])
        manifest = cls(**raw)
        for fault in _misfits(manifest):
            raise SchemaError(fault)
        return manifest

    @cached_property
    def identity(self) -> str:
        """A checksum of settings and contents."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def extends(self, other: "Manifest") -> bool:
        """Return whether this is of the same bundle, to which methods or chosen values may have been added since."""
        own = (self.dataset, self.model, self.training, self.poison, self.layers, self.ntk, self.sketch)
        others = (other.dataset, other.model, other.training, other.poison, other.layers, other.ntk, other.sketch)
        return own == others and all(self.files.get(name) == record for name, record in other.files.items())

    @property
    def width(self) -> int:
        """How many numbers a row of features has."""
        if self.sketch["kind"] == "exact":
            return sum(fan_out + fan_in for fan_out, fan_in in self.layout or ())
        return int(self.sketch["dim"])


def plain_command(command: str) -> bool:
    """Return whether a text is a `natscope precompute` command in which a shell finds nothing but plain words."""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return words[:2] == ["natscope", "precompute"] and shlex.join(words) == command and command.isprintable()


def _parsed(text: str | bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise SchemaError("names something twice")
        return dict(pairs)

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise SchemaError("holds a number that is not finite")
        return float(number)

    if len(text) > LARGEST:
        raise SchemaError(f"has more than {LARGEST // 10**6} MB")
    if (text.count(",") if isinstance(text, str) else text.count(b",")) > _MOST_VALUES:
        raise SchemaError(f"holds more than {_MOST_VALUES:,} values")
    try:
        raw = from_json(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except SchemaError:
        raise
    except ValueError as error:
        raise SchemaError("is not JSON that can be read") from error
    if not isinstance(raw, dict):
        raise SchemaError("holds no settings")
    return raw


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _misfits(manifest: Manifest) -> Iterator[str]:
    """Return a sentence on what in a manifest of the right types does not fit the rest; the first is what matters."""
    files, classes = manifest.files, len(manifest.dataset["classes"])
    kept = [f"{split}_{name}" for split in ("train", "test") for name in manifest.modality.needed]
    if missing := [name for name in (*kept, *manifest.modality.files, *_NEEDED) if name not in files]:
        yield f"records no '{missing[0]}'"
        return
    for method in METHODS.values():
        own = set(method.artifacts.names)
        if own & files.keys() and not own <= files.keys():
            yield f"records only a part of what {method.title} needs"
    if not plain_command(manifest.command):
        yield "holds a command that is not one of natscope's"
    yield from _setting_misfits(manifest, classes)
    for name, record in files.items():
        if record.file != file_of(name, classes, manifest.modality):
            yield "records a file that natscope does not know, or under another name"
            return
        if fault := _record_misfit(manifest, name, record):
            yield fault


def _setting_misfits(manifest: Manifest, classes: int) -> Iterator[str]:
    sketch, layout = manifest.sketch, manifest.layout
    if len(set(manifest.dataset["classes"])) < classes:
        yield "names two classes alike"  # a select box could not tell them apart
    if sketch["kind"] not in SKETCHES or (sketch["kind"] == "tensorsketch" and sketch["dim"] % 2):
        yield "names an unknown sketch"
    if sketch["kind"] == "exact" and (layout is None or manifest.outputs == "all"):
        yield "names the exact kernel where there can be none"
    try:
        form = manifest.form
    except ValueError as error:
        yield str(error)
        return
    if sum(manifest.results["kernel"]["shares"].values()) > _MOST_SHARES:
        yield "has shares of its kernel that add up to more than 1"
    if manifest.shapes("train").keys() != manifest.shapes("test").keys():
        yield "records the inputs of one split alone"
    if manifest.foreign_inputs:
        yield from _input_misfits(manifest)
        return
    yield from _network_misfits(manifest, form, classes)
    if manifest.poison is not None:
        yield from _poison_misfits(manifest, manifest.poison, form, classes)


def _input_misfits(manifest: Manifest) -> Iterator[str]:
    """Check a bundle whose network takes inputs that are stored: natscope neither trained it nor can train it again."""
    if manifest.poison is not None:
        yield "has a backdoor in pixels, and a network that does not take them"
    if ":" not in manifest.model["architecture"] or "weights" not in manifest.training:
        yield "stores inputs, and not the weights of a network of somebody's own"


def _network_misfits(manifest: Manifest, form: tuple[int, ...], classes: int) -> Iterator[str]:
    """Check the network against examples, classes and weights, before anybody builds it and allocates its memory."""
    architecture, widths = manifest.model["architecture"], manifest.model["widths"]
    if ":" in architecture:
        return
    if (config := manifest.model.get("config")) is not None:
        if fault := misfit(config, manifest.modality.name, form, classes):
            yield f"names a network that {fault}"
        return
    first = manifest.modality.networks.get(architecture, lambda form: ())(form)
    if not first or not widths or (*widths[: len(first)], widths[-1]) != (*first, classes):
        yield f"names widths that do not fit the {manifest.modality.many} and classes"
        return
    if architecture == "mlp":
        layers = [(fan_out, fan_in) for fan_in, fan_out in pairwise(widths)]
        if 4 * sum(o * (i + manifest.model["bias"]) for o, i in layers) > manifest.files["weights"].bytes:
            yield f"names a network whose weights '{WEIGHTS}' is too small for"
        if manifest.layout != (None if manifest.model["bias"] else tuple(layers)):
            yield "has another layout than its network"


def _poison_misfits(manifest: Manifest, poison: dict[str, Any], form: tuple[int, ...], classes: int) -> Iterator[str]:
    patterns, rows, bases = poison["patterns"], poison["train_indices"], poison["base_labels"]
    count = (manifest.files["train_labels"].shape or (0,))[0]
    whole = len(patterns) == len(poison["targets"]) == classes
    if not whole or not manifest.modality.suits(patterns, poison["size"], form):
        yield "has patches or targets that do not fit its classes and examples"
    if max(poison["targets"], default=0) >= classes or max(bases, default=0) >= classes:
        yield "names a poisoned class that does not exist"
    if len(rows) != len(bases) or any(b <= a for a, b in pairwise(rows)) or max(rows, default=0) >= count:
        yield "names poisoned examples that do not exist"
    if set(bases) != set(range(classes)):
        yield "has a backdoor and no poisoned example of some class"
    if "test_fooled" not in manifest.files or "attack_success" not in manifest.results:
        yield "has a backdoor and not how often it works"


def file_of(name: str, classes: int, modality: Modality) -> str | None:
    """Return the file that a logical name stands for; None if there is no such name."""
    split, _, own = name.partition("_")
    if split in ("train", "test") and own in modality.arrays:
        return f"{name}.npy"
    if name in modality.files:
        return modality.files[name]
    if name == "weights":
        return WEIGHTS
    if any(name in method.artifacts.files for method in METHODS.values()):
        return name
    if name in _FIXED or name in _features() or name in _numbers():
        return f"{name}.npy"
    kind, _, number = name.rpartition("_")
    if kind in _PER_CLASS and number.isascii() and number.isdecimal() and len(number) <= 6 and int(number) < classes:
        return (f"{name}.faiss" if kind == "index" else f"{name}.npy") if str(int(number)) == number else None
    return None


_INT, _BOOL, _BYTE, _SINGLE, _DOUBLE = ("int64",), ("bool",), ("uint8",), ("float32",), ("float64",)
_FLOATS = ("float16", "float32", "float64")  # what a user's own network may compute in
_STORED = ("float16", "float32")  # features
_FIXED: dict[str, tuple[str, ...]] = {
    "train_labels": _INT,
    "train_logits": _FLOATS,
    "train_sources": _BYTE,
    "test_labels": _INT,
    "test_logits": _FLOATS,
    "test_sources": _BYTE,
    "test_fooled": _BOOL,
    "penultimate": _FLOATS,
    "features": _STORED,
}


def _features() -> set[str]:
    """Return the names of what methods need in the form of the features."""
    return {MARGINS, *(name for method in METHODS.values() for name in method.artifacts.features)}


def _numbers() -> set[str]:
    return {name for method in METHODS.values() for name in method.artifacts.numbers}


def _record_misfit(manifest: Manifest, name: str, record: FileRecord) -> str | None:
    """Return what is wrong with an array's shape and type, which follow from the rest of the manifest."""
    if record.file.endswith(".npy"):
        vectors = name.startswith("features") or name in _features()
        own = manifest.modality.arrays.get(name.partition("_")[2])
        dtypes = own or _FIXED.get(name) or (_SINGLE if name in _numbers() else _STORED if vectors else _DOUBLE)
        shape = record.shape or ()
        if record.dtype not in dtypes or not _fits(manifest, name, shape):
            return f"records '{name}' with a shape or type that does not fit the rest"
        header = record.bytes - math.prod(shape) * np.dtype(record.dtype).itemsize
        return None if 0 < header <= _LARGEST_HEADER else f"records '{name}' with a size that does not fit its shape"
    return None if record.shape is None and record.dtype is None else f"records '{name}' as an array"


def _fits(manifest: Manifest, name: str, shape: tuple[int, ...]) -> bool:
    def first(other: str) -> int:
        return (manifest.files[other].shape or (0,))[0]

    classes = len(manifest.dataset["classes"])
    train, test = first("train_labels"), first("test_labels")
    if not (0 < train <= MOST_TRAINING and 0 < test <= MOST_TEST):
        return False
    count, (_, _, own) = test if name.startswith("test_") else train, name.partition("_")
    if own in manifest.modality.arrays and name.startswith(("train_", "test_")):
        return manifest.modality.fits(own, shape, count, manifest.shapes("train"))
    if name.startswith("gram_"):
        return len(shape) == 1 and 1 <= shape[0] <= train * (train + 1) // 2
    if name.startswith("train_gram_"):
        return shape == (manifest.width, manifest.width)
    if name.endswith("_sources"):
        return len(shape) == 1 and 1 <= shape[0] <= min(_MOST_SOURCES, (LONGEST_SOURCE + 1) * count)
    if name == "penultimate":
        none = manifest.layout is None and ":" in manifest.model["architecture"]  # perhaps it has no Linear layer
        return len(shape) == 2 and shape[0] == train and (shape[1] > 0 or none)
    if name.endswith("_logits"):
        return shape == (count, classes)
    if name in ("train_labels", "test_labels", "test_fooled") or name in _numbers():
        return shape == (count,)
    return shape == (train, manifest.width)  # features of some kind
