"""How much of an attribution each token of a text carries: an exact share of the inner product of two feature vectors.

The Jacobian of a layer that treats every position alone is a sum over positions: delta_t (x) a_t of a `Linear` layer,
delta_t * x_t of a normalisation, delta_t in the row of its token of an embedding. Sketches are linear, so the sketch of
each position's part is its feature vector phi_t, and

    phi = sum_t phi_t + rest,        phi^T r = sum_t phi_t^T r + rest^T r        for any vector r.

The rest is of parameters that no position has to itself: of layers after pooling, of convolutions, and of positional
tables. A share is a position's part of the link after it has read its context. It is no cause: without the token, the
link may change by another amount.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from natscope.core.device import device_of
from natscope.core.features import FeatureMap
from natscope.core.jacobians import position_blocks

PADDING = 0  # the id that fills up the shorter texts of a batch


@dataclass(frozen=True)
class Shares:
    """A link phi^T r, split over the tokens of one text.

    Args:
        tokens: (L,) float64, each token's share; 0 for padding.
        unassigned: the share that belongs to no token.
    """

    tokens: np.ndarray
    unassigned: float

    @property
    def total(self) -> float:
        """The link itself."""
        return float(self.tokens.sum()) + self.unassigned


@dataclass(frozen=True)
class PairShares:
    """A kernel value k(x, x'), split over pairs of a token of x and a token of x'.

    Args:
        pairs: (L, L') float64.
        unassigned: the share of what belongs to no token of x, of x' or of both.
    """

    pairs: np.ndarray
    unassigned: float

    @property
    def total(self) -> float:
        """The kernel value itself."""
        return float(self.pairs.sum()) + self.unassigned


def token_features(features: FeatureMap, ids: Tensor, target: int, *, measurement: str = "logit") -> np.ndarray:
    """Return the features of each position of one text, and last those of what belongs to none, (L + 1, K) float32.

    Their sum is what `FeatureMap.features` returns for the text. Where padding contributes, as in a network that does
    not mask it, that counts as the last row's.

    Args:
        features: the network and the sketch.
        ids: (1, L) int64, the text's tokens.
        target: the class whose measurement is taken.
        measurement: a name of `natscope.core.measurements.MEASUREMENTS`.

    Raises:
        ValueError: if there is not one text, or the kernel is the exact one.
    """
    if ids.dim() != 2 or len(ids) != 1:
        raise ValueError(f"Shares are of the tokens of one text, (1, length), not of {tuple(ids.shape)}.")
    if features.sketch.spec.kind == "exact":
        raise ValueError("The exact kernel has no feature vectors that tokens could share; choose another sketch.")
    device = device_of(features.model)
    placed, whole = position_blocks(
        features.model,
        ids.to(device),
        torch.tensor([target], device=device),
        measurement=measurement,
        ntk=features.ntk,
        layers=features.layers,
    )
    rows = torch.zeros(ids.shape[1] + 1, features.sketch.spec.dim, device=device)
    for part, blocks in ((rows[:-1], placed), (rows[-1:], whole)):
        if blocks:
            part += features.sketch(blocks)
    padding = (ids[0] == PADDING).to(device).nonzero()[:, 0]
    rows[-1] += rows[padding].sum(0)
    rows[padding] = 0
    return rows.cpu().numpy()


def token_shares(
    features: FeatureMap, ids: Tensor, target: int, residual: np.ndarray, *, measurement: str = "logit"
) -> Shares:
    """Split phi^T r over the tokens of one text.

    Args:
        features: the network and the sketch.
        ids: (1, L) int64, the text's tokens.
        target: the class whose measurement is taken for phi.
        residual: (K,), the vector r that the text is linked with, such as the features of a query.
        measurement: a name of `natscope.core.measurements.MEASUREMENTS`.
    """
    shares = token_features(features, ids, target, measurement=measurement).astype(np.float64) @ residual
    return Shares(shares[:-1], float(shares[-1]))


def pair_shares(
    features: FeatureMap, first: Tensor, first_target: int, second: Tensor, second_target: int
) -> PairShares:
    """Split the sketched kernel k(x, x') of two logits over pairs of tokens.

    Args:
        features: the network and the sketch.
        first: (1, L) int64, the tokens of x.
        first_target: the class whose logit is taken for x.
        second: (1, L') int64, the tokens of x'.
        second_target: the class whose logit is taken for x'.
    """
    left, right = (
        token_features(features, ids, target).astype(np.float64)
        for ids, target in ((first, first_target), (second, second_target))
    )
    table = left @ right.T
    return PairShares(table[:-1, :-1], float(table[-1].sum() + table[:-1, -1].sum()))
