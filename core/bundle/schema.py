"""What each value of a manifest may be, as msgspec's structs: types, bounds, and text that can be shown anywhere."""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from natscope.core.bundle.bounds import (
    MOST_AXES,
    Count,
    Digest,
    Distance,
    Label,
    Note,
    Positive,
    Seed,
    Share,
    Side,
    Size,
    Steps,
    Text,
    Title,
    Variance,
    Word,
)
from natscope.core.encoders import KINDS, settings_of
from natscope.core.examples import MODALITIES, USUAL, Modality
from natscope.core.index.spec import IndexSpec
from natscope.core.text import plain

_MOST_SETTINGS = 20_000  # values in a bundle's settings, such as the targets of a backdoor
_DEPTH = 12  # of values within values, at most


class SchemaError(ValueError):
    """A manifest cannot be used.

    `fault` says why in words that follow its name, such as "holds a wrong value at name"; `schema` is the number of its
    schema if that differs from the one read here, else None.
    """

    def __init__(self, fault: str, *, schema: int | None = None) -> None:
        """Keep the fault and the schema."""
        super().__init__(fault)
        self.fault, self.schema = fault, schema


class _Strict(Struct, forbid_unknown_fields=True):
    pass


class _Dataset(_Strict):
    name: Text
    classes: Annotated[list[Title], Meta(min_length=2, max_length=10_000)]
    modality: Word | UnsetType = UNSET


class _Model(_Strict):
    architecture: Title
    widths: Annotated[list[Annotated[int, Meta(ge=1, le=2**24)]], Meta(min_length=2, max_length=100)] | None
    bias: bool
    output: Title | UnsetType = UNSET
    config: Annotated[dict[Word, Any], Meta(max_length=40)] | UnsetType = UNSET


class _Recipe(_Strict):
    epochs: Steps
    batch_size: Count
    learning_rate: Positive
    decay_epochs: Steps
    momentum: Annotated[float, Meta(ge=0, lt=1)]
    weight_decay: Annotated[float, Meta(ge=0, le=1e30)]
    seed: Seed
    warmup_epochs: Steps | UnsetType = UNSET
    augment: bool | UnsetType = UNSET
    precision: Literal["float32", "bfloat16"] | UnsetType = UNSET
    optimizer: Literal["sgd", "adamw"] | UnsetType = UNSET


class _Loaded(_Strict):
    weights: Digest


class _Sketch(_Strict):
    kind: Word
    dim: Annotated[int, Meta(ge=1, le=2**20)]
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class _Index(_Strict):
    kind: Word
    lists: Count | None
    probes: Count
    pieces: Count
    links: Annotated[int, Meta(ge=1, le=1024)]
    breadth: Count
    reach: Count
    seed: Seed
    milvus: Word | UnsetType = UNSET


class _Poison(_Strict):
    rate: Share
    size: Side
    place: Text
    targets: list[Label]
    seed: Seed
    patterns: list[Any]
    train_indices: list[Size]
    base_labels: list[Label]


class _Settings(Struct):
    """The settings that the bundle was built with: compared as a whole; only the training is read."""

    training: dict[str, Any] | None = None


class _Kernel(_Strict):
    mean: Distance
    shares: dict[Literal["weights", "biases", "normalisation", "embeddings"], Share]
    margin_mean: Distance | UnsetType = UNSET
    whole: dict[Literal["weights", "biases", "normalisation", "embeddings"], Share] | UnsetType = UNSET


class _Reused(_Strict):
    """The bundle from which Jacobians were taken, by its identity, and of how many training examples."""

    bundle: Text
    rows: Size


class _Results(_Strict):
    train_accuracy: Share
    test_accuracy: Share
    usual_distances: Annotated[list[Distance], Meta(min_length=2, max_length=2)]
    settings: _Settings
    kernel: _Kernel
    first_losses: Annotated[list[Distance], Meta(max_length=10)] | UnsetType = UNSET
    attack_success: Share | UnsetType = UNSET
    by_torch_func: list[Text] | UnsetType = UNSET
    data_remarks: list[Note] | UnsetType = UNSET
    remarks: list[Note] | UnsetType = UNSET
    skipped: list[Note] | UnsetType = UNSET
    left_out: dict[Word, Note] | UnsetType = UNSET
    reused: _Reused | UnsetType = UNSET


class _Chosen(_Strict):
    sigma2: dict[Word, Variance]
    score: Note
    date: Text
    files: dict[Word, Text] | UnsetType = UNSET


class _Tuned(_Strict):
    sigma2: dict[Word, Variance] | UnsetType = UNSET
    score: Note | UnsetType = UNSET
    date: Text | UnsetType = UNSET
    files: dict[Word, Text] | UnsetType = UNSET
    coreset: _Chosen | UnsetType = UNSET
    backdoor: _Chosen | UnsetType = UNSET


class _Record(_Strict):
    file: Text
    bytes: Size
    sha256: Digest
    shape: Annotated[list[Size], Meta(max_length=MOST_AXES)] | None = None
    dtype: Word | None = None


class _Manifest(_Strict):
    name: Title
    dataset: dict[str, Any]
    model: _Model
    training: dict[str, Any]
    sketch: _Sketch
    ntk: bool
    layers: Annotated[list[Text], Meta(max_length=1000)]
    outputs: Literal["own", "all"]
    poison: _Poison | None
    results: _Results
    layout: Annotated[list[tuple[Count, Count]], Meta(max_length=1000)] | None
    versions: Annotated[dict[Text, Text], Meta(max_length=100)]
    command: Note
    methods: dict[Word, dict[Word, Any]]
    files: dict[str, _Record]
    schema: Literal[3]
    index: _Index | None = None
    tuned: _Tuned | None = None


def checked(raw: dict[str, Any]) -> None:
    """Raise SchemaError if a value of a manifest, as parsed from JSON, is not allowed."""
    if raw.keys() - {known.name for known in msgspec.structs.fields(_Manifest)}:
        raise SchemaError("holds a setting that natscope does not know")
    if not _shallow(raw, _DEPTH):
        raise SchemaError("holds settings within settings without end")
    _convert(raw, _Manifest, "")
    if _count(raw["methods"]) + _count(raw["results"]["settings"]) > _MOST_SETTINGS:
        raise SchemaError("holds too many settings")
    _convert(raw["training"], _Loaded if "weights" in raw["training"] else _Recipe, "training")
    if (config := raw["model"].get("config")) is not None:
        if raw["model"]["architecture"] not in KINDS:
            raise SchemaError("holds a wrong value at model.architecture")
        _convert(config, KINDS[raw["model"]["architecture"]], "model.config")
        if settings_of(raw["model"]["architecture"], config) != config:
            raise SchemaError("leaves out a value at model.config")
    modality = _dataset(raw["dataset"])
    if raw["poison"] is not None and raw["poison"]["place"] not in modality.places:
        raise SchemaError("holds a wrong value at poison.place")
    if raw.get("index") is not None:
        try:
            IndexSpec(**raw["index"])
        except ValueError as error:
            raise SchemaError("holds a wrong value at index.kind or index.milvus") from error
    # The settings are compared and never shown; a folder of examples may have any name.
    if not _plain(raw | {"results": {k: v for k, v in raw["results"].items() if k != "settings"}}):
        raise SchemaError("holds text that cannot be printed")


def _dataset(raw: dict[str, Any]) -> Modality:
    """Check what a manifest says of the data, and return their modality."""
    common = {field.name for field in msgspec.structs.fields(_Dataset)}
    _convert({key: value for key, value in raw.items() if key in common}, _Dataset, "dataset")
    if (name := raw.get("modality", USUAL)) not in MODALITIES:
        raise SchemaError("holds a wrong value at dataset.modality")
    _convert({key: value for key, value in raw.items() if key not in common}, MODALITIES[name].about, "dataset")
    return MODALITIES[name]


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(plain, value)) and all(map(_plain, value.values()))
    return plain(value) if isinstance(value, str) else not isinstance(value, list) or all(map(_plain, value))


def _count(value: Any) -> int:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count, within))


def _shallow(value: Any, left: int) -> bool:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left > 0 and all(_shallow(v, left - 1) for v in within)


def _convert(raw: Any, kind: type, place: str) -> None:
    try:
        msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        # What follows "at" is made of our own names; what precedes it may quote the stranger's.
        found = re.search(r" - at `\$([\w.\[\]]*)`\Z", str(error), re.ASCII)
        place = ".".join(part for part in (place, found[1].lstrip(".") if found else "") if part)
        raise SchemaError(f"holds a wrong value{f' at {place}' if place else ''}") from error
