"""Scalar measurements of a network's output: the function of the logits whose Jacobian is attributed."""

from collections.abc import Callable

import torch
from torch import Tensor

Measurement = Callable[[Tensor, Tensor], Tensor]


def logit(logits: Tensor, targets: Tensor) -> Tensor:
    """Return z_y, the logit of the target class, the measurement of the information methods.

    Args:
        logits: (B, C).
        targets: (B,) int64, one class an example.

    Returns:
        (B,), in logit units.
    """
    return logits.gather(1, targets[:, None])[:, 0]


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Return TRAK's multiclass margin z_y - logsumexp(z over the other classes) (Park et al. 2023, section 3.3).

    Args:
        logits: (B, C), C at least 2.
        targets: (B,) int64.

    Returns:
        (B,), the log odds of the target class.
    """
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return logit(logits, targets) - others.logsumexp(dim=1)


def loss_weight(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - p_y, the probability of all other classes: minus the loss's derivative by the margin.

    Args:
        logits: (B, C).
        targets: (B,) int64.

    Returns:
        (B,) in [0, 1], without the cancellation of 1 - p_y where p_y is near 1.
    """
    return torch.sigmoid(-margin(logits, targets))


MEASUREMENTS: dict[str, Measurement] = {"logit": logit, "margin": margin}
