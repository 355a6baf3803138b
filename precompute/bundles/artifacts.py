"""What individual methods need of a bundle beyond its features: computed with the bundle, or added to it later."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from natscope.core.errors import BuildError
from natscope.core.examples import Inputs
from natscope.core.features import FeatureMap, kernel_of
from natscope.core.methods import METHODS, Method
from natscope.core.methods.artifacts import MARGINS, EkfacSpec
from natscope.precompute.bundles.passes import Jacobians, Tangent, Trained
from natscope.precompute.bundles.reuse import Reusable
from natscope.precompute.bundles.store import PROBED, Store, halved
from natscope.precompute.training.projects import raised_by_one


class Preparation:
    """A trained network and its training data, from which the artifacts of each method are computed and stored."""

    def __init__(
        self,
        store: Store,
        trained: Trained,
        features: FeatureMap,
        images: Inputs,
        labels: np.ndarray,
        *,
        ekfac: EkfacSpec | None,
        reuse: Reusable | None = None,
    ) -> None:
        """Compute nothing yet.

        Args:
            store: where the artifacts go.
            trained: the network and its data, as tasks open them.
            features: the trained network, its kernel's parameters, and the bundle's sketch.
            images: all N training images.
            labels: (N,) int64.
            ekfac: how EK-FAC factors are fitted; as usual for the network when None.
            reuse: rows of another bundle that need not be computed again.
        """
        self.model, self.labels, self.progress = features.model, labels, store.progress
        self.folder: Path = store.work.path / "methods"
        self.ekfac = ekfac or EkfacSpec.usual(self.model)
        self.kernel: dict[str, float] = {}  # what the results say of the margins' features, once they are there
        self._store, self._trained, self._images, self._features, self._reuse = store, trained, images, features, reuse

    def add(self, methods: Iterable[str], *, requested: bool) -> tuple[dict[str, Any], dict[str, str]]:
        """Compute and store what the methods need.

        Args:
            methods: their names.
            requested: whether they were requested by name, so that one that cannot be added is an error.

        Returns:
            The settings of each, for the manifest; and for each that cannot be added and was not requested, the reason.

        Raises:
            BuildError: if a requested method cannot be added to this bundle.
        """
        added: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        for method in (METHODS[name] for name in methods if METHODS[name].files):
            try:
                added[method.name] = {"needs": list(method.files)} | self._prepare(method)
            except ValueError as error:
                shutil.rmtree(self.folder, ignore_errors=True)  # after an interruption its content is used
                if raised_by_one(error):
                    raise
                if requested:
                    raise BuildError(str(error)) from error
                left_out[method.name] = str(error)
        return added, left_out

    def inputs(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Return the network's inputs for training images."""
        return self._images[rows]

    def margins(self) -> np.ndarray:
        """Return the sketched Jacobians (N, K) of the margin at the labels, filled shard by shard."""
        spec = self._features.sketch.spec
        features = FeatureMap(self.model, spec, ntk=False, layers=self._features.layers)

        some = features.features(self._images[:PROBED], self.labels[:PROBED], measurement="margin")
        task = Jacobians(MARGINS, self._trained, Tangent.of(features), measurement="margin", reuse=self._reuse)
        shape, halve = (len(self._images), some.shape[1]), spec.kind != "exact"
        rows = self._store.features(task, shape, "Gradients of the margins", halve=halve)
        layout = features.layout(self._images[:1])
        self.kernel = {"margin_mean": float(np.mean(kernel_of(spec, layout).diagonal(rows)))}
        return rows

    def _prepare(self, method: Method) -> dict[str, Any]:
        artifacts, computed = method.artifacts, dict[str, np.ndarray | bytes]()
        if not all(map(self._store.work.finished, artifacts.names)):
            computed = dict(artifacts.compute(self))
        for name in artifacts.names:
            if name in artifacts.files:
                self._store.file(name, _given(computed, name))
            else:
                given = _halved if name in artifacts.features else _given
                self._store.small(name, given(computed, name))
        shutil.rmtree(self.folder, ignore_errors=True)
        if MARGINS in method.needs:
            self.margins()
        return artifacts.settings(self)


def _given(computed: dict[str, Any], name: str) -> Callable[[], Any]:
    return lambda: computed[name]


def _halved(computed: dict[str, Any], name: str) -> Callable[[], np.ndarray]:
    return lambda: halved(computed[name])
