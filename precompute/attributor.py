"""Open a bundle with the network that its manifest names."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.attribution import Attributor
from core.bundle import FIX, Bundle, check_bundle
from core.errors import BuildError, BundleError, QueryError, out_of_memory
from core.methods import METHODS
from precompute.models import network_of

_COMPARED = 4  # test images
_TOLERANCE = 1e-2


def open_attributor(path: Path) -> Attributor:
    """Open a bundle and build its network.

    Raises:
        BundleError: if the bundle cannot be opened, or its network is unknown here or of code that is not trusted.
    """
    bundle = Bundle(path)
    try:
        model = network_of(bundle, seed=0)
    except BuildError as error:
        raise BundleError(f"The network of the bundle {path} cannot be built: {error}") from error
    attributor = Attributor(bundle, model)
    _check_unchanged(attributor)
    return attributor


def faults(path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Return one sentence for each fault of a bundle that anything which opens or uses it would find.

    Args:
        path: the bundle.
        progress: called with bytes read and bytes in all.

    Raises:
        BundleError: if there is no bundle with a manifest that can be used.
    """
    if found := check_bundle(path, progress):
        return found
    try:
        open_attributor(path).check()
    except BundleError as error:
        return [str(error)]
    return []


def served(
    opened: Sequence[Attributor], methods: Sequence[str], missing: Callable[[Attributor, str], str | None]
) -> list[str]:
    """Give the methods that every bundle can serve.

    Args:
        opened: of the bundles.
        methods: names.
        missing: says in a sentence what a bundle lacks for a method; None where nothing is missing.

    Raises:
        QueryError: if there is none.
    """
    lacking = {name: [m for attributor in opened if (m := missing(attributor, name))] for name in methods}
    if all(lacking.values()):
        raise QueryError(next(iter(lacking.values()))[0] if lacking else "Name at least one method.")
    return [name for name in methods if not lacking[name]]


def lacks(attributor: Attributor, method: str) -> str | None:
    """Say in a sentence what a bundle lacks to attribute by a method; None where nothing is missing."""
    return attributor.missing(METHODS[method])


def _check_unchanged(attributor: Attributor) -> None:
    """Compare a few outputs with those that were stored: the weights may be others, or the module edited since."""
    bundle = attributor.bundle
    architecture = bundle.manifest.model["architecture"]
    stored = np.asarray(bundle.array("test_logits")[:_COMPARED])
    try:
        inputs = attributor.inputs(np.asarray(bundle.array("test_images")[:_COMPARED]))
        found, layout = attributor.features.outputs(inputs), attributor.features.layout(inputs[:1])
    except (Exception, SystemExit) as error:  # anybody's code, or images that are too small for the network
        if out_of_memory(error):
            raise
        raise BundleError(f"The network {architecture} of the bundle {bundle.path} fails: {error}") from error
    fits = (
        found.logits.shape == stored.shape
        and found.penultimate.shape[1] == bundle.array("penultimate").shape[1]
        and layout == bundle.manifest.layout
    )
    if not fits or not np.allclose(
        found.logits, stored, rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(stored).max(initial=0)
    ):
        raise BundleError(
            f"The network {architecture} is not the one that the bundle {bundle.path} was built with: its outputs "
            "are others; undo the changes to its module, or build the bundle again in another folder."
            if ":" in architecture
            else f"The bundle {bundle.path} is damaged: its network does not give the outputs that were recorded. To "
            f"fix it, {FIX}."
        )
