"""TRAK (Park et al. 2023) through its authors' library, with natscope's sketched Jacobians plugged into its seams."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trak import TRAKer
from trak.gradient_computers import FunctionalGradientComputer
from trak.projectors import AbstractProjector, ProjectionType
from trak.score_computers import BasicScoreComputer

Progress = Callable[[str, int, int], None]
_AT_ONCE = 1000


def trak_features(
    model: nn.Module,
    inputs: Callable[[slice], Tensor],
    labels: np.ndarray,
    margin_features: np.ndarray,
    *,
    folder: Path,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Run a `TRAKer` over the training set: one checkpoint, no averaging, no ridge.

    Args:
        model: the trained network.
        inputs: gives the network's inputs (n, ...) of a slice of the training images.
        labels: (N,) int64.
        margin_features: (N, K) float, sketched Jacobians of the margin at the labels; N greater than K.
        folder: an empty folder for the TRAKer's own arrays.
        progress: called with a stage's name, images done and in all.

    Returns:
        Phi (Phi^T Phi)^-1 times a positive constant, (N, K) float32, and the weights 1 - p_y, (N,) float32.

    Raises:
        ValueError: if N is not greater than K: Phi^T Phi is then singular.
    """
    count, dim = margin_features.shape
    if count <= dim:
        raise ValueError(
            f"TRAK needs more training images than dimensions of the sketch, and {count:,} are not more than {dim:,}."
        )
    traker = _traker(model, count, dim, folder)
    traker.load_checkpoint(model.state_dict(), model_id=0)
    for start in range(0, count, _AT_ONCE):
        progress("TRAK: weights of the training images", start, count)
        part = slice(start, min(start + _AT_ONCE, count))
        rows = torch.from_numpy(np.array(margin_features[part], dtype=np.float32))
        batch = (inputs(part), torch.from_numpy(np.array(labels[part], dtype=np.int64)), rows)
        traker.featurize(batch, num_samples=len(rows))
    progress("TRAK: inverting what the images have in common", 0, 1)
    traker.finalize_features()
    progress("TRAK: inverting what the images have in common", 1, 1)
    store = traker.saver.current_store
    return np.array(store["features"]), np.array(store["out_to_loss"])[:, 0]


def scores(features: np.ndarray, out_to_loss: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Score training images for one query by traker's own score computer.

    Args:
        features: (n, K), rows of what `trak_features` gave.
        out_to_loss: (n,), likewise.
        query: (K,) sketched Jacobian of the query's margin.

    Returns:
        (n,) float64, positive for proponents, up to one positive factor.
    """
    total = torch.zeros(len(features), 1)
    rows = torch.from_numpy(np.array(features, dtype=np.float32))
    target = torch.from_numpy(np.array(query, dtype=np.float32))[None]
    BasicScoreComputer(torch.float32, torch.device("cpu")).get_scores(rows, target, accumulator=total)
    return total[:, 0].double().numpy() * out_to_loss


class _Sketched(FunctionalGradientComputer):
    """Takes the gradients from the batch, which brings them along; the loss's weights are the library's own."""

    def compute_per_sample_grad(self, batch: Any) -> Tensor:
        return batch[2].clone()

    def compute_loss_grad(self, batch: Any) -> Tensor:
        with torch.no_grad():
            return super().compute_loss_grad(batch[:2])


class _Identity(AbstractProjector):
    """Leaves gradients as they are: they are sketched already."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 0, ProjectionType.rademacher, "cpu")

    def project(self, grads: Tensor, model_id: int) -> Tensor:
        return grads

    def free_memory(self) -> None:
        pass


def _traker(model: nn.Module, count: int, dim: int, folder: Path) -> TRAKer:
    return TRAKer(
        model=model,
        task="image_classification",
        train_set_size=count,
        save_dir=str(folder),
        device="cpu",
        gradient_computer=_Sketched,
        projector=_Identity(dim),
        proj_dim=dim,
        use_half_precision=False,
        logging_level="ERROR",
    )
