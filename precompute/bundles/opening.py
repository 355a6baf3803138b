"""Open a bundle with the network that its manifest names."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from torch import Tensor

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import FIX, Bundle
from natscope.core.bundle.verify import check_bundle
from natscope.core.device import device
from natscope.core.errors import BuildError, BundleError, QueryError, UntrustedError
from natscope.core.jacobians import convolves
from natscope.core.methods import METHODS
from natscope.precompute.training.models import ModelSpec, foreign, network_of, one_sentence

_COMPARED = 4  # images
_PIXELS = 2**16  # that a network convolves while it is checked: more would take minutes and gigabytes
_TOLERANCE = 1e-2


def open_attributor(path: Path, *, patient: bool = False) -> Attributor:
    """Open a bundle and build its network.

    Args:
        path: the bundle.
        patient: whether to compute what takes minutes, as an experiment does, instead of refusing.

    Raises:
        BundleError: if the bundle cannot be opened, or its network is unknown here or of code that is not trusted.

    Examples:
        >>> attributor = natscope.open_attributor(Path("bundles/fashion-mnist"))
        >>> query = attributor.query("test", 12)
        >>> attributor.bundle.classes[query.predicted]
        'Sandal'
    """
    bundle = Bundle(path)
    device()  # what is wrong with it is not the bundle's fault
    try:
        model = network_of(bundle)
    except BuildError as error:
        raise BundleError(f"The network of the bundle {path} cannot be built: {error}") from error
    attributor = Attributor(bundle, model, patient=patient)
    _check_unchanged(attributor)
    return attributor


def faults(
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    untried: Callable[[str], None] = lambda sentence: None,
) -> list[str]:
    """Return one sentence for each fault of a bundle that opening or using it would reveal.

    Args:
        path: the bundle.
        progress: called with bytes read and bytes in all.
        untried: called with a sentence if the network's code is not trusted and so was not tried.

    Raises:
        BundleError: if there is no bundle with a manifest that can be used.
    """
    if found := check_bundle(path, progress):
        return found
    device()
    try:
        attributor = open_attributor(path)
        with foreign(ModelSpec.from_dict(attributor.bundle.manifest.model)):
            attributor.check()
            _check_features(attributor)
    except UntrustedError as error:
        untried(str(error))
    except (BundleError, BuildError) as error:
        return [str(error)]
    return []


def open_only(bundles: Sequence[Path]) -> Attributor:
    """Open the bundle of an experiment that is about one.

    Raises:
        QueryError: if there are several.
    """
    if len(bundles) > 1:
        raise QueryError(f"This experiment is about one bundle, and {bundles[0].parent} holds {len(bundles)}.")
    return open_attributor(bundles[0], patient=True)


def common_methods(
    opened: Sequence[Attributor], methods: Sequence[str], missing: Callable[[Attributor, str], str | None]
) -> list[str]:
    """Return the methods that every one of some bundles can serve.

    Args:
        opened: an attributor for each bundle.
        methods: names.
        missing: returns a sentence on what a bundle lacks for a method; None if nothing is missing.

    Raises:
        QueryError: if there is no such method, or the bundles are of different test examples.
    """
    if any(not np.array_equal(attributor.test_labels, opened[0].test_labels) for attributor in opened):
        raise QueryError("These bundles are of different test examples; average over bundles of the same ones.")
    lacking = {name: [m for attributor in opened if (m := missing(attributor, name))] for name in methods}
    if all(lacking.values()):
        raise QueryError(next(iter(lacking.values()))[0] if lacking else "Name at least one method.")
    return [name for name in methods if not lacking[name]]


def lacks(attributor: Attributor, method: str) -> str | None:
    """Return a sentence on what a bundle lacks to attribute by a method; None if nothing is missing."""
    return attributor.missing(METHODS[method])


def _check_unchanged(attributor: Attributor) -> None:
    """Compare the network's outputs for a few images with the stored ones: it, or a setting, may have changed.

    Four images of each split are compared, fewer if a network convolves images of more than 128 x 128 pixels; above
    256 x 256 only the logits of one test image.
    """
    bundle, features = attributor.bundle, attributor.features
    architecture = bundle.manifest.model["architecture"]
    tests, trained = (_first(attributor, split) for split in ("test", "train"))
    with _failures(bundle):
        outputs = features.outputs(tests)
        found, width = {"test_logits": outputs.logits}, outputs.penultimate.shape[1:]
        layout = None if convolves(features.model) else features.layout(tests[:1])
        if len(trained):
            outputs = features.outputs(trained)
            found |= {"train_logits": outputs.logits, "penultimate": outputs.penultimate}
    fits = layout == bundle.manifest.layout and width == bundle.array("penultimate").shape[1:]
    if not fits or not all(_is_stored(bundle, name, rows) for name, rows in found.items()):
        raise BundleError(
            f"The network {architecture} is not the one that the bundle {bundle.path} was built with: its outputs "
            "have changed; undo the changes to its module, or build the bundle again in another folder."
            if ":" in architecture
            else f"The bundle {bundle.path} is damaged: its network does not give the outputs that were recorded. To "
            f"fix it, {FIX}."
        )
    if bundle.sketch_spec.kind != "dense":  # a dense sketch takes a minute to draw its signs
        _check_features(attributor)


def _check_features(attributor: Attributor) -> None:
    """Compare the features of a few images with the stored ones: sketch or scaling may have changed."""
    bundle, inputs = attributor.bundle, _first(attributor, "train")
    if not len(inputs):
        return
    with _failures(bundle):
        found = attributor.features.features(inputs, attributor.train_labels[: len(inputs)])
    if not _is_stored(bundle, "features", found):
        raise BundleError(
            f"The bundle {bundle.path} is damaged: 'features.npy' does not hold what its settings call for. To fix "
            f"it, {FIX}."
        )


def _failures(bundle: Bundle) -> AbstractContextManager[None]:
    """Turn what a network raises, or what fails on its outputs or on images too small for it, into a BundleError."""
    network = bundle.manifest.model["architecture"]
    return one_sentence(f"The network {network} of the bundle {bundle.path} fails", kind=BundleError)


def _first(attributor: Attributor, split: str) -> Tensor:
    """Return the first inputs of a split, those to be compared."""
    inputs, count = attributor.bundle.inputs(split), _COMPARED
    if convolves(attributor.features.model):
        count = min(_COMPARED, _PIXELS // math.prod(inputs.shape[2:]))
        if split == "test":
            count = max(count, 1)
    return inputs[:count]


def _is_stored(bundle: Bundle, name: str, rows: np.ndarray) -> bool:
    """Return whether an array begins with some rows, up to differences between processors."""
    stored = np.asarray(bundle.array(name)[: len(rows)])
    scale = np.abs(stored).max(initial=0)
    return rows.shape == stored.shape and np.allclose(rows, stored, rtol=_TOLERANCE, atol=_TOLERANCE * scale)
