"""Open a bundle with the network that its manifest names."""

from pathlib import Path

from core.attribution import Attributor
from core.bundle import Bundle
from core.errors import BuildError, BundleError
from precompute.models import ModelSpec, build_model


def open_attributor(path: Path) -> Attributor:
    """Open a bundle and build its network.

    Raises:
        BundleError: if the bundle cannot be opened, or its network is unknown here.
    """
    bundle = Bundle(path)
    try:
        model = build_model(ModelSpec.from_dict(bundle.manifest.model), seed=0)
    except (BuildError, KeyError, TypeError) as error:
        raise BundleError(f"The bundle {path} names a network that this natscope cannot build.") from error
    return Attributor(bundle, model)
