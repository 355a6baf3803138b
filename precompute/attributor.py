"""Open a bundle with the network that its manifest names."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.attribution import Attributor
from core.bundle import Bundle
from core.errors import BuildError, BundleError, QueryError
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
    except (KeyError, TypeError) as error:
        raise BundleError(f"The bundle {path} names a network that this natscope cannot build.") from error
    attributor = Attributor(bundle, model)
    if ":" in (architecture := bundle.manifest.model["architecture"]):
        _check_unchanged(attributor, architecture)
    return attributor


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


def _check_unchanged(attributor: Attributor, architecture: str) -> None:
    """Compare a few outputs with those that were stored: somebody's own module may have been edited since."""
    bundle = attributor.bundle
    stored = np.asarray(bundle.array("test_logits")[:_COMPARED])
    try:
        found = attributor.features.outputs(attributor.inputs(np.asarray(bundle.array("test_images")[:_COMPARED])))
    except (Exception, SystemExit) as error:  # anybody's code
        raise BundleError(f"The network {architecture} of the bundle {bundle.path} fails: {error}") from error
    if found.logits.shape != stored.shape or not np.allclose(
        found.logits, stored, rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(stored).max()
    ):
        raise BundleError(
            f"The network {architecture} is not the one that the bundle {bundle.path} was built with: its outputs "
            "are others; undo the changes to its module, or build the bundle again in another folder."
        )
