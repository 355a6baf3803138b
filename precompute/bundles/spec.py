"""The settings of a bundle, what else could change its bytes, and how large it will be."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from natscope.core.bundle.bounds import LONGEST
from natscope.core.bundle.format import sha256_of
from natscope.core.device import device, title
from natscope.core.errors import BuildError, DataError, FileError
from natscope.core.examples import Modality
from natscope.core.features import FeatureMap
from natscope.core.index.spec import IndexSpec
from natscope.core.methods import METHODS, Size
from natscope.core.methods.artifacts import MARGINS, EkfacSpec
from natscope.core.parameters import kernel_parameters, weights_alone
from natscope.core.pool import LARGEST_GRAM
from natscope.core.progress import Progress, silent
from natscope.core.sketches import SketchSpec
from natscope.precompute.data.datasets import FOLDER, Dataset
from natscope.precompute.data.folders import FolderSpec, fingerprint
from natscope.precompute.data.named import load_named
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.data.remote import Fetched, displayed, fetch, name_in, url_in
from natscope.precompute.data.tables import format_of
from natscope.precompute.data.text_sources import TEXT, TextSpec, of_texts
from natscope.precompute.data.text_sources import fingerprint as fingerprint_of_texts
from natscope.precompute.training.models import ModelSpec, source_of
from natscope.precompute.training.train import TrainingSpec
from natscope.precompute.training.trusted import find
from natscope.precompute.training.validate import Suitable
from natscope.precompute.training.weights import load_weights

_VERSIONS = ("natscope", "torch", "numpy", "scipy", "faiss-cpu")


@dataclass(frozen=True)
class BuildSpec:
    """Every setting of a bundle; the same settings, versions and threads give the same bytes.

    Args:
        name: a title for people.
        dataset: a name of `natscope.precompute.data.datasets.DATASETS`, "folder:PATH" or "folder:URL", or of texts (see
            `natscope.precompute.data.texts.text_dataset`); with `data` any title.
        data: the data set itself; loaded by its name when None.
        made_by: the user's own function that gave it, as "module:function"; empty if none is known.
        folder: how the images of a folder are read.
        text: how texts are read and cut into tokens.
        classes: labels to keep, renumbered in this order; all of them when None.
        per_class: how many training images of each class to keep, the first ones; all of them when None.
        scaling: mean and standard deviation of each channel, white being 1; the data set's own when None.
        poison: the backdoor that is taught to the network; none when None.
        model: the architecture.
        training: the recipe; ignored when `weights` is given.
        sketch: kind, dimension K and seed.
        index: over the features of each class.
        ntk: scale Jacobians as in the NTK parameterisation; as is best for the kind of network when None.
        layers: glob patterns of the names of parameters that the kernel is made of; all when there are none.
        outputs: "own", or "all" to store features under every class's logit.
        weights: file of trained weights to load instead of training, safetensors or of `torch.save`.
        weights_key: the file's entry that holds them; the usual one when None.
        weights_prefix: take those named so, without it; all when empty.
        methods: names of those whose artifacts the bundle should hold; the usual ones when None. More can be added
            later.
        ekfac: how EK-FAC factors are fitted; as usual for the network when None.
        command: what to type to build this bundle (without --out), for messages.
        fetched: where on this computer that lies which URLs name; see `here`.

    Examples:
        >>> natscope.BuildSpec(classes=(0, 1), sketch=natscope.SketchSpec(dim=1024)).dataset
        'fashion-mnist-quarter'
    """

    name: str = "Fashion-MNIST (25%), MLP"
    dataset: str = "fashion-mnist-quarter"
    data: Dataset | None = None
    made_by: str = ""
    folder: FolderSpec = field(default_factory=FolderSpec)
    text: TextSpec = field(default_factory=TextSpec)
    classes: tuple[int, ...] | None = None
    per_class: int | None = None
    scaling: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    poison: PoisonSpec | None = None
    model: ModelSpec = field(default_factory=ModelSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    sketch: SketchSpec = field(default_factory=SketchSpec)
    index: IndexSpec = field(default_factory=IndexSpec)
    ntk: bool | None = None
    layers: tuple[str, ...] = ()
    outputs: str = "own"
    weights: Path | None = None
    weights_key: str | None = None
    weights_prefix: str = ""
    methods: tuple[str, ...] | None = None
    ekfac: EkfacSpec | None = None
    command: str = "natscope precompute"
    fetched: Fetched = field(default_factory=Fetched)

    def here(self, progress: Progress = silent) -> "BuildSpec":
        """Return the same settings once what URLs name is fetched; nothing secret is left in the URLs.

        Raises:
            DataError: if something cannot be fetched.
        """
        (prefix, url), found, test = url_in(self.dataset), self.fetched, self.text.test
        if self.data is not None:
            return self
        if prefix in (FOLDER, TEXT) and found.data is None:
            table = prefix == TEXT and format_of(Path(name_in(url))) is not None
            found = replace(found, data=fetch(url, progress, table=table))
        if isinstance(test, str) and url_in(test)[1] and of_texts(self.dataset) and found.test is None:
            found, test = replace(found, test=fetch(test, progress, table=True)), displayed(test)
        if found == self.fetched:
            return self
        return replace(self, dataset=displayed(self.dataset), text=replace(self.text, test=test), fetched=found)

    @property
    def _local(self) -> tuple[str, TextSpec]:
        """The name of the data set and how texts are read, with paths for URLs."""
        name = self.dataset if self.fetched.data is None else f"{url_in(self.dataset)[0]}{self.fetched.data}"
        return name, replace(self.text, test=self.fetched.test or self.text.test)

    def feature_map(self, model: nn.Module, modality: Modality) -> FeatureMap:
        """Return what turns examples of a modality into the features of a network.

        Raises:
            BuildError: if the sketch cannot be made, or no parameter of the network is left.
        """
        try:
            layers = self.layers or modality.layers
            kernel_parameters(model, layers)
            ntk = weights_alone(model, layers) if self.ntk is None else self.ntk
            return FeatureMap(model, self.sketch, ntk=ntk, layers=layers)
        except ValueError as error:
            raise BuildError(str(error)) from error

    @property
    def path(self) -> Path | None:
        """The folder of images that is loaded; None for data of another kind."""
        if self.data is not None or not self.dataset.startswith(FOLDER):
            return None
        return Path(self.here()._local[0].removeprefix(FOLDER))

    @property
    def own_code(self) -> tuple[str, ...]:
        """The user's own functions that make an input of a file, each as "module:function"."""
        return tuple(filter(None, self._code.values()))

    @property
    def _code(self) -> dict[str, str]:
        if self.data is None:
            return {"load": self.folder.load, "transform": self.folder.transform}
        about = self.data.train.about()
        return {key: about.get(key, "") for key in ("load", "transform")}

    def load(self, progress: Progress, *, sample: int | None = None) -> tuple[Dataset, list[str]]:
        """Return the data set, and a line for each file of a folder that was skipped; see `load_named`."""
        if self.data is not None:
            return self.data, []
        if of_texts(self.dataset) and self.weights is not None and self.text.tokenizer is None:
            raise BuildError(
                "Weights belong to the tokens that they were trained on; name the tokenizer.json that goes with them "
                "by --tokenizer."
            )
        spec = self.here(progress)
        name, text = spec._local
        try:
            data, skipped = load_named(name, spec.folder, progress, text=text, sample=sample)
        except DataError as error:
            raise DataError(spec.fetched.by_url(str(error), spec.dataset, str(spec.text.test))) from error
        return (data if name == spec.dataset else replace(data, name=spec.dataset[:LONGEST])), skipped

    def load_into(self, model: nn.Module, spec: ModelSpec) -> None:
        """Load the weights that are given into a network of a specification; see `load_weights`."""
        if self.weights is not None:
            load_weights(model, self.weights, spec, key=self.weights_key, prefix=self.weights_prefix)

    def settings(self, *, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what makes the bundle as JSON-able values, loaded weights by their checksum.

        Args:
            like: those of a bundle, perhaps of an earlier version, whose rule makes the fingerprint of a folder.
        """
        if (spec := self.here()) is not self:
            return spec.settings(like=like)
        values = asdict(replace(self, data=None))
        del values["data"], values["made_by"], values["fetched"]
        if self.data is not None:
            values["content"] = self.data.content
            own = {"data": self.made_by} | self._code
            values |= {key: name for key, name in own.items() if name}
        if self.own_code:
            values["code"] = {name: find(name).digest for name in self.own_code}
        del values["command"]  # text for people: it changes no other byte
        del values["methods"], values["ekfac"]  # artifacts are added without changing the rest
        for later in ("classes", "per_class", "scaling", "poison"):
            if values[later] is None:
                del values[later]
        for later in ("weights_key", "weights_prefix"):
            if not values[later]:
                del values[later]
        if self.index.kind == "flat" or self.sketch.kind == "exact":
            del values["index"]  # as in bundles built before there was a choice
        else:
            values["index"] = self.index.to_dict()
        values["model"], values["training"] = self.model.to_dict(), self.training.to_dict()
        if (source := source_of(self.model)) is not None:
            values["model"]["source"] = source
        del values["folder"], values["text"]
        if self.data is None and of_texts(self.dataset):
            values["text"] = self.text.to_dict() | {"files": fingerprint_of_texts(*self._local)}
        if self.path is not None:
            known = like.get("folder") if isinstance(like, Mapping) else None  # perhaps a stranger's
            known = known.get("files") if isinstance(known, Mapping) else None
            files = fingerprint(self.path, self.folder, like=known)
            values["folder"] = self.folder.to_dict() | {"files": files}
        if self.weights is not None:
            if not self.weights.is_file():
                raise BuildError(f"There is no file of weights at {self.weights}.")
            try:
                values["training"], values["weights"] = None, sha256_of(self.weights)
            except FileError as error:
                raise BuildError(f"The weights in {self.weights} cannot be used: the file {error.fault}.") from error
        return json.loads(json.dumps(values))


def versions() -> dict[str, str]:
    """Return what could change the bytes of a bundle beside its settings: libraries, processor, number of threads."""
    found = {name: importlib.metadata.version(name) for name in _VERSIONS}
    found |= {"machine": platform.machine(), "threads": str(torch.get_num_threads())}
    return found if device().type == "cpu" else found | {"device": title(device())}


def size_of(count: int, sketch: SketchSpec, network: Suitable | None = None) -> Size:
    """Return what the cost of artifacts depends on, for N = `count` training images and a network, if it is known."""
    size = Size(count, sketch.dim, vectors=sketch.kind != "exact")
    return size if network is None else replace(size, parameters=network.parameters, penultimate=network.penultimate)


def artifact_bytes(methods: tuple[str, ...], size: Size) -> int:
    """Estimate the size of the artifacts of methods, work in progress included."""
    margins = _each(size) * size.count * size.dim if any(MARGINS in METHODS[name].needs for name in methods) else 0
    return int(1.1 * (margins + sum(METHODS[name].artifacts.bytes(size) for name in methods)))


def estimated_bytes(
    spec: BuildSpec, data: Dataset, layout: tuple[tuple[int, int], ...] | None, network: Suitable | None = None
) -> int:
    """Estimate the size of a bundle, with a tenth to spare; `network` is used if there is no layout."""
    count, classes = len(data.train), len(data.classes)
    exact = spec.sketch.kind == "exact" and layout is not None
    width = sum(o + i for o, i in layout) if exact and layout else spec.sketch.dim
    members = np.bincount(data.train_labels, minlength=classes)
    grams = sum(4 * int(n) * (int(n) + 1) for n in members if n <= LARGEST_GRAM)
    indexes = 0 if exact else sum(spec.index.bytes(int(n), width) for n in members if n)
    size = Size(count, width, vectors=not exact)
    own = _each(size) * count * width
    every = classes * (own + 8 * width**2) if spec.outputs == "all" else 0
    shapes = layout or ((classes, 512),)
    outputs = 4 * (count * (shapes[-1][1] + classes) + len(data.test) * classes)
    weights = 4 * sum(o * i for o, i in shapes)
    if network is not None and layout is None:
        outputs += 4 * count * (network.penultimate - shapes[-1][1])
        weights = 12 * network.parameters  # weights, and their momentum while training
    stored = data.train.nbytes + data.test.nbytes
    whole = int(1.1 * (stored + own + indexes + grams + every + outputs + weights)) + 2**20
    return whole + artifact_bytes(wanted(spec.methods, size), size)


def _each(size: Size) -> int:
    """Return the bytes of one stored number of a feature, assuming that vectors fit into float16."""
    return 2 if size.vectors else 4


def wanted(methods: tuple[str, ...] | None, size: Size) -> tuple[str, ...]:
    """Return the methods whose artifacts a bundle should hold, in order.

    Args:
        methods: requested names; when None, the usual ones that the bundle can hold.
        size: the bundle's size.

    Raises:
        BuildError: for a name that no method has, or a method whose files this bundle cannot hold.
    """
    if methods is None:
        return tuple(name for name in usual() if METHODS[name].artifacts.obstacle(size) is None)
    for name in methods:
        if name not in METHODS:
            raise BuildError(f"There is no method '{name}'; choose from {', '.join(METHODS)}.")
        if METHODS[name].files and (obstacle := METHODS[name].artifacts.obstacle(size)):
            raise BuildError(obstacle)
    return tuple(name for name in METHODS if name in methods)


def usual() -> tuple[str, ...]:
    """Return the methods whose artifacts a bundle gets by default, if it can hold them."""
    return tuple(name for name, m in METHODS.items() if m.files and m.artifacts.usual)


def left_out(methods: tuple[str, ...] | None, size: Size) -> dict[str, str]:
    """Return the reason for each usual method that this bundle cannot serve.

    One that needs files is then not requested by name: see `wanted`.
    """
    known = [name for name, m in METHODS.items() if m.artifacts.usual and (methods is None or not m.files)]
    found = {name: METHODS[name].artifacts.obstacle(size) for name in known}
    return {name: obstacle for name, obstacle in found.items() if obstacle is not None}
