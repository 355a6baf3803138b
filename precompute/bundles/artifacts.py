"""What single methods need of a bundle beyond its features: computed with the bundle, or added to it later."""

import functools
import importlib.metadata
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from torch import nn

from natscope.core.bundle.artifacts import EkfacSpec
from natscope.core.bundle.manifest import FACTOR_FILES, FACTORS
from natscope.core.errors import BuildError, out_of_memory
from natscope.core.features import FeatureMap
from natscope.core.images import ImageInputs
from natscope.core.methods import METHODS
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.store import Store

_SHARD = 1000


class Parts:
    """A trained network and its training data, from which the arrays of each method are made."""

    def __init__(
        self,
        store: Store,
        model: nn.Module,
        images: ImageInputs,
        labels: np.ndarray,
        *,
        sketch: SketchSpec,
        ekfac: EkfacSpec | None,
    ) -> None:
        """Keep what is needed.

        Args:
            store: where the arrays go.
            model: the trained network, in eval mode.
            images: all N training images.
            labels: (N,) int64.
            sketch: of the bundle.
            ekfac: how Kronfluence's factors are fitted; as usual for the network when None.
        """
        self.store, self.model, self.images, self.labels = store, model, images, labels
        self.sketch, self.ekfac = sketch, ekfac or EkfacSpec.usual(model)

    def add(self, methods: Iterable[str]) -> dict[str, Any]:
        """Compute and store what the methods need; give the settings of each, for the manifest.

        Raises:
            BuildError: if a method cannot be had for this bundle.
        """
        return {name: {"needs": METHODS[name].needs} | _MAKERS[name](self) for name in methods if name in _MAKERS}

    def _margins(self) -> np.ndarray:
        features = FeatureMap(self.model, self.sketch, ntk=False, batch_size=_SHARD)
        width = features.features(self.images[:1], self.labels[:1], measurement="margin").shape[1]

        def shard(part: slice) -> np.ndarray:
            block = features.features(self.images[part], self.labels[part], measurement="margin")
            if not np.isfinite(block).all():
                raise BuildError("A Jacobian is not finite; the network's weights have run away.")
            return block

        shape = (len(self.images), width)
        return self.store.large("margin_features", shape, np.dtype("float32"), shard, "Gradients of the margins")

    def _graddot(self) -> dict[str, Any]:
        self._margins()
        return {"measurement": "margin", "ntk": False}

    def _trak(self) -> dict[str, Any]:
        from natscope.core.methods.trak import trak_features

        names = ("trak_features", "trak_out_to_loss")
        found: tuple[np.ndarray, ...] = ()
        if not all(map(self.store.work.finished, names)):
            folder = self.store.work.path / "traker"
            shutil.rmtree(folder, ignore_errors=True)  # a TRAKer does not go on within a pass
            try:
                found = trak_features(
                    self.model,
                    lambda part: self.images[part],
                    self.labels,
                    self._margins(),
                    folder=folder,
                    progress=self.store.progress,
                )
            except ValueError as error:
                raise BuildError(str(error)) from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        for place, name in enumerate(names):
            self.store.small(name, lambda place=place: found[place])  # type: ignore[misc]
        self._margins()
        return {"checkpoints": 1, "ridge": 0.0, "traker": importlib.metadata.version("traker")}

    def _kronfluence(self) -> dict[str, Any]:
        from natscope.core.methods.ekfac import factors_folder, fit_factors

        names = [f"{FACTORS}/{file}" for file in FACTOR_FILES]
        home = self.store.work.path / "fitting"  # kronfluence goes on there after an interruption
        if not all(map(self.store.work.finished, names)):
            fit = functools.partial(fit_factors, self.model, self.images[:], home, self.ekfac, self.store.progress)
            begun = home.exists()
            try:
                fit()
            except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
                if not begun or out_of_memory(error):
                    raise
                shutil.rmtree(home)  # it was interrupted in the middle of a file
                fit()
        for name in names:
            self.store.file(name, functools.partial(_content, factors_folder(home) / Path(name).name))
        shutil.rmtree(home, ignore_errors=True)
        return self.ekfac.to_dict() | {"kronfluence": importlib.metadata.version("kronfluence")}


def _content(file: Path) -> bytes:
    """Return a file's bytes; kronfluence's tensors without their metadata, whose order is another in every run."""
    if file.suffix == ".safetensors":
        return safetensors.torch.save(safetensors.torch.load_file(file))
    return file.read_bytes()


_MAKERS: dict[str, Callable[[Parts], dict[str, Any]]] = {
    "graddot": Parts._graddot,
    "trak": Parts._trak,
    "kronfluence": Parts._kronfluence,
}
