"""How far a sketch can be trusted: the error of its Gram matrix and the spread of its squared lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from natscope.core.features import FeatureMap, kernel_of
from natscope.core.sketches import SketchSpec


@dataclass(frozen=True)
class SketchError:
    """What a sketch does to a sample of examples.

    Args:
        error: relative Frobenius error of the sample's Gram matrix; 0 where there is nothing to compare.
        ratios: (n',) squared length of each feature over that of the Jacobian itself; examples to which the network
            does not respond at all are left out.
        expected: standard deviation of these ratios for an ideal sketch of K dimensions, sqrt(2 / K).
        exact: whether the Jacobians' own inner products were computed; otherwise both come from independent sketches.
    """

    error: float
    ratios: np.ndarray
    expected: float
    exact: bool

    @property
    def spread(self) -> float:
        """The root mean square deviation of the ratios from 1; 0 where there are none."""
        return float(np.sqrt(np.mean((self.ratios - 1) ** 2))) if len(self.ratios) else 0.0


def measure(
    model: nn.Module,
    spec: SketchSpec,
    inputs: Tensor,
    targets: np.ndarray,
    *,
    ntk: bool,
    layout: tuple[tuple[int, int], ...] | None,
    layers: Sequence[str] = (),
    others: int = 8,
) -> SketchError:
    """Measure a sketch on a sample.

    Args:
        model: the trained network.
        spec: the sketch, not the exact kernel.
        inputs: (n, ...).
        targets: (n,) int64.
        ntk: whether weight blocks are scaled as in the NTK parameterisation.
        layout: (fan_out, fan_in) of each layer when all parameters are weights of Linear layers: the exact Gram can
            then be computed.
        layers: glob patterns of the names of parameters; all when there are none.
        others: without a layout, how many independent sketches stand in for the exact Gram by their mean.
    """

    def sketched(by: SketchSpec) -> np.ndarray:
        return FeatureMap(model, by, ntk=ntk, layers=layers).features(inputs, targets)

    features = sketched(spec)
    gram = kernel_of(spec, layout)(features, features)
    if layout is not None:
        exact = SketchSpec("exact", spec.dim, spec.seed)
        rows = sketched(exact)
        reference, bias = kernel_of(exact, layout)(rows, rows), 0.0
    else:
        seeds = range(spec.seed + 1, spec.seed + 1 + others)
        grams = []
        for seed in seeds:
            rows = sketched(SketchSpec(spec.kind, spec.dim, seed))
            grams.append(kernel_of(spec, None)(rows, rows))
        reference = np.mean(grams, axis=0)
        # The mean of the others errs too: E|G - mean|^2 = (1 + 1/others) E|G - exact|^2.
        bias = 1 / others
    seen = np.diag(reference) > 0
    ratios = np.diag(gram)[seen] / np.diag(reference)[seen]
    error = np.linalg.norm(gram - reference) / (np.linalg.norm(reference) or 1.0) / np.sqrt(1 + bias)
    return SketchError(
        float(error), 1 + (ratios - 1) / np.sqrt(1 + bias), float(np.sqrt(2 / spec.dim)), layout is not None
    )
