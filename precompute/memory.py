"""Attribution without a bundle: a few thousand examples, all that is needed of them kept in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.manifest import Manifest
from natscope.core.bundle.request import Request
from natscope.core.errors import DataError, QueryError
from natscope.core.examples import Examples
from natscope.core.features import FeatureMap, composition_of, kernel_of
from natscope.core.methods import METHODS, REFERENCE
from natscope.core.methods.artifacts import MARGINS
from natscope.core.sketches import FOR_TRANSFORMERS, SketchSpec
from natscope.precompute.answer import Answer, Explainer
from natscope.precompute.api import as_evaluated, check_kind, in_float32, patterns, sketch_of, switch
from natscope.precompute.bundles.build import SAMPLED_KERNEL, layout_of
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.bundles.store import halved
from natscope.precompute.data.datasets import Dataset
from natscope.precompute.data.items import Reading
from natscope.precompute.data.own import own_dataset
from natscope.precompute.data.own_texts import kind_of_texts, own_texts, own_tokens
from natscope.precompute.data.text_sources import TextSpec
from natscope.precompute.data.tokenizing import Given
from natscope.precompute.training.heads import giving_logits
from natscope.precompute.training.models import ModelSpec, one_sentence
from natscope.precompute.training.validate import check_suitable

_FAR = [np.inf, np.inf]  # nothing counts as unlike the training data where no test data show what is usual


class MemoryBundle(Bundle):
    """What a bundle holds, computed and kept in memory: for one network, which is there already."""

    def __init__(self, data: Dataset, features: FeatureMap, spec: BuildSpec, remarks: Sequence[str]) -> None:
        """Compute what every query needs: features, outputs.

        Args:
            data: the training set, in both parts.
            features: the network and the sketch.
            spec: the settings.
            remarks: what to know of the network's outputs and parameters.
        """
        self.path, self._sources, self.opened_with = Path(spec.name), {}, ""
        self._data, self._features = data, features
        inputs, labels = data.train.inputs, data.train_labels
        layout, outputs = layout_of(spec, features, inputs[:1]), features.outputs(inputs)
        rows = halved(features.features(inputs, labels))
        none = slice(0)
        self._arrays: dict[str, np.ndarray] = {
            "features": rows,
            "train_labels": labels,
            "train_logits": outputs.logits,
            "penultimate": outputs.penultimate,
            "test_labels": labels[none],
        }
        self.manifest = Manifest(
            name=spec.name,
            dataset={"name": data.name, "classes": data.classes, "modality": data.modality.name} | data.train.about(),
            model=spec.model.to_dict(),
            training={},
            sketch=spec.sketch.to_dict(),
            ntk=features.ntk,
            layers=features.layers,
            outputs=spec.outputs,
            poison=None,
            results={
                "kernel": {
                    "mean": float(np.mean(kernel_of(spec.sketch, layout).diagonal(rows))),
                    **composition_of(features, inputs[:SAMPLED_KERNEL], labels[:SAMPLED_KERNEL]),
                },
                "usual_distances": _FAR,
                "remarks": list(remarks),
            },
            layout=layout,
            versions={},
            command="",
        )

    def stamp(self) -> str:
        """Return nothing: there are no files that could change."""
        return ""

    def has(self, name: str) -> bool:
        """Return whether an array of this name is there, or is computed when it is needed."""
        return name == MARGINS or name in self._arrays

    @property
    def stores_inputs(self) -> bool:
        """Whether the network takes other inputs than the images."""
        return self._data.foreign

    def examples(self, split: str) -> Examples:
        """Return the training data; there are no test data."""
        return self._data.train if split == "train" else self._data.train[:0]

    def sources(self, split: str) -> tuple[str, ...]:
        """Return where each training example comes from."""
        return self._data.train_sources

    def load_into(self, model: nn.Module) -> None:
        """Do nothing: the network is there, with its weights."""

    def _mapped(self, name: str) -> np.ndarray:
        if name == MARGINS and name not in self._arrays:
            own = self._features
            margins = FeatureMap(own.model, own.sketch.spec, ntk=False, layers=own.layers)
            found = margins.features(self.inputs("train"), self._data.train_labels, measurement="margin")
            self._arrays[name] = halved(found)
        return self._arrays[name]


def attribute(
    model: nn.Module,
    train_set: Any,
    x: Any,
    *,
    method: str = REFERENCE,
    budget: int = Request.budget,
    sigma2: float | None = None,
    target: int | str | None = None,
    pool: str = "same-class",
    conditioning: str = "pool",
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    sketch: SketchSpec | None = None,
    ntk: bool | None = None,
    layers: Sequence[str] = (),
    output: str | int | None = None,
    tokenizer: Given | None = None,
    longest: int = TextSpec.longest,
) -> Answer:
    """Rank the training examples that a prediction relies on, without a bundle: all is computed now and forgotten.

    The picks are those of a bundle with the same settings. It suits a few thousand examples and one question; build a
    bundle for more.

    Args:
        model: the trained network; it is left as it is.
        train_set: as `natscope.build` takes it; or texts, each a str or two of them, or the numbers of their tokens, as
            a pair (texts, labels) or a torch Dataset of (text, label). The network then takes tokens, (B, L) int64,
            padded by 0.
        x: the query: an input as the network takes it, alone or as an item (input, label), a picture of uint8 where the
            training set is of such, a text or tokens likewise, or "train:3".
        method: a name of the registry that needs nothing but the features.
        budget: how many training examples, M.
        sigma2: observation noise variance; the usual multiple of mean k(x, x) when None.
        target: the class whose logit is explained, by number or title; the predicted one when None.
        pool: "same-class" or "all".
        conditioning: "pool" or "train".
        classes: a title for each label; the data's own, or the labels themselves, when None.
        mean: mean of each channel, in units where white is 1, of pictures of uint8.
        std: standard deviation of each channel, likewise.
        sketch: kind, dimension K and seed; as usual when None.
        ntk: scale Jacobians as in the NTK parameterisation; as is best for the kind of network when None.
        layers: glob patterns of the names of parameters that the kernel is made of; all when there are none.
        output: which part of what the network returns are the logits, as `natscope.build` takes it.
        tokenizer: of texts, with which the network was trained, or the path of its `tokenizer.json`.
        longest: tokens that a text is cut to.

    Raises:
        DataError, BuildError: as `natscope.build` does.
        QueryError: for a query or setting that cannot be used.
        TypeError: if `model` is no network.

    Examples:
        >>> inputs, labels = torch.randn(60, 20), torch.arange(60) % 3
        >>> net = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 3))
        >>> len(natscope.attribute(net, (inputs, labels), torch.randn(20), budget=5))
        5

        Texts, with the tokenizer that made tokens of them:

        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}, "[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> net = torch.nn.Sequential(torch.nn.EmbeddingBag(5, 8, padding_idx=0), torch.nn.Linear(8, 2))
        >>> texts, labels = ["a good film", "good", "a bad film", "very bad"], ["good", "good", "bad", "bad"]
        >>> len(natscope.attribute(net, (texts, labels), "a film", budget=1, tokenizer=words))
        1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"natscope.attribute takes a torch.nn.Module, not {type(model).__name__}.")
    check_kind(model)
    kind = kind_of_texts(train_set) if tokenizer is None else str
    if kind is not None and not (mean is None and std is None):
        raise DataError("mean= and std= are for pictures; leave them out for texts.")
    if kind is str:
        data = own_texts(train_set, tokenizer, classes=classes, longest=longest)
    elif kind is int:
        data, x = own_tokens(train_set, x, classes=classes)
    else:
        data = own_dataset(train_set, None, Reading(classes=classes, mean=mean, std=std), name="own data")
    own = f"{type(model).__module__}:{type(model).__name__}"
    spec = BuildSpec(
        name=type(model).__name__,
        dataset=data.name,
        model=ModelSpec(own, None, output=None if output is None else str(output)),
        sketch=sketch_of(sketch, SketchSpec.kind if kind is None else FOR_TRANSFORMERS),
        ntk=switch(ntk),
        layers=patterns(layers),
    )
    if isinstance(method, str) and method in METHODS and set(METHODS[method].files) - {MARGINS}:
        raise QueryError(
            f"{METHODS[method].title} needs what is computed once for all training data; build a bundle with "
            "natscope.build, and name the method in methods=."
        )
    model = in_float32(model)
    with as_evaluated(model), giving_logits(model, spec.model.output):
        suitable = check_suitable(model, data.train.inputs, len(data.classes), spec.model)
        features = spec.feature_map(model, data.modality)
        with one_sentence("The network fails on the training set", only=_by_number):
            explainer = Explainer(Attributor(MemoryBundle(data, features, spec, suitable.remarks), model))
        with one_sentence("The network fails on the query", only=_by_number, kind=QueryError):
            return explainer.explain(
                x, method, budget, sigma2=sigma2, target=target, pool=pool, conditioning=conditioning
            )


def _by_number(error: BaseException) -> bool:
    """Return whether an error may be that of a network which looks up a token that it does not have."""
    return isinstance(error, IndexError | RuntimeError)
