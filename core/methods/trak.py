"""TRAK (Park et al. 2023) through its authors' library, with natscope's sketched Jacobians plugged into its seams."""

import contextlib
import io
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

from natscope.core.device import device_of, full_precision
from natscope.core.progress import Progress

_AT_ONCE = 1000
_NEARLY = 0.99  # cosine between a vector and its image under the matrix times its inverse


@full_precision()
def trak_features(
    model: nn.Module,
    inputs: Callable[[slice], Tensor],
    labels: np.ndarray,
    margin_features: np.ndarray,
    *,
    folder: Path,
    progress: Progress,
    ridge: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Run a `TRAKer` over the training set: one checkpoint, no averaging.

    Args:
        model: the trained network.
        inputs: returns the network's inputs (n, ...) of a slice of the training examples.
        labels: (N,) int64.
        margin_features: (N, K) float, sketched Jacobians of the margin at the labels; N greater than K.
        folder: an empty folder for the TRAKer's own arrays.
        progress: called with a stage's name, examples done and in all.
        ridge: traker's `lambda_reg`, added to the diagonal of Phi^T Phi / P, P the number of parameters.

    Returns:
        Phi (Phi^T Phi)^-1 times a positive constant, (N, K) float32, and the weights 1 - p_y, (N,) float32.

    Raises:
        ValueError: without a ridge, if N is not greater than K, or the gradients span less: Phi^T Phi is then singular.
    """
    count, dim = margin_features.shape
    if count <= dim and not ridge:
        raise ValueError(
            f"TRAK needs more training examples than dimensions of the sketch, and {count:,} are not more than {dim:,}."
        )
    used, device = _used(margin_features), device_of(model)
    traker = _traker(model, count, len(used), folder, ridge)
    traker.load_checkpoint(model.state_dict(), model_id=0)
    for start in range(0, count, _AT_ONCE):
        progress("TRAK: weights of the training examples", start, count)
        part = slice(start, min(start + _AT_ONCE, count))
        rows = torch.from_numpy(np.array(margin_features[part][:, used], dtype=np.float32))
        batch = (inputs(part), torch.from_numpy(np.array(labels[part], dtype=np.int64)), rows)
        traker.featurize(tuple(tensor.to(device) for tensor in batch), num_samples=len(rows))
    progress("TRAK: inverting what the examples have in common", 0, 1)
    singular = f"TRAK cannot be computed: {dim:,} dimensions are more than this network's gradients span; choose fewer."
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar of its own
            traker.finalize_features()
    except torch.linalg.LinAlgError as error:
        raise ValueError(singular) from error
    progress("TRAK: inverting what the examples have in common", 1, 1)
    store = traker.saver.current_store
    features = np.zeros((count, dim), dtype=np.float32)
    features[:, used] = store["features"] / float(traker.normalize_factor)  # traker divides queries by it as well
    if not ridge and not _is_inverse(margin_features, features, used):
        raise ValueError(singular)
    return features, np.array(store["out_to_loss"])[:, 0]


@full_precision()
def scores(features: np.ndarray, out_to_loss: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Score training examples for one query, or for several on average, by traker's own score computer.

    Args:
        features: (n, K), rows of what `trak_features` returned.
        out_to_loss: (n,), likewise.
        query: (K,) or (Q, K), sketched Jacobian of the query's margin.

    Returns:
        (n,) float64, positive for proponents, up to one positive factor.
    """
    target = torch.from_numpy(np.array(np.atleast_2d(query), dtype=np.float32))
    total = torch.zeros(len(features), len(target))
    rows = torch.from_numpy(np.array(features, dtype=np.float32))
    BasicScoreComputer(torch.float32, torch.device("cpu")).get_scores(rows, target, accumulator=total)
    return total.double().numpy().mean(axis=1) * out_to_loss


class _Sketched(FunctionalGradientComputer):
    """Takes the gradients from the batch, which carries them; the loss's weights are the library's own."""

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


def _used(features: np.ndarray) -> np.ndarray:
    """Return the coordinates that are not zero throughout: a CountSketch of a small network may leave some empty."""
    starts = range(0, len(features), _AT_ONCE)
    return np.flatnonzero(np.any([features[start : start + _AT_ONCE].any(axis=0) for start in starts], axis=0))


def _is_inverse(rows: np.ndarray, features: np.ndarray, used: np.ndarray) -> bool:
    """Check that Phi^T times `features` is a multiple of the identity; float32 gives nonsense silently."""
    probe = np.zeros(rows.shape[1], dtype=np.float32)
    probe[used] = np.random.default_rng(0).standard_normal(len(used))
    image = sum(
        rows[start : start + _AT_ONCE].T @ (features[start : start + _AT_ONCE] @ probe)
        for start in range(0, len(rows), _AT_ONCE)
    )
    cosine = image @ probe / (np.linalg.norm(image) * np.linalg.norm(probe))
    return bool(cosine > _NEARLY)


def _traker(model: nn.Module, count: int, dim: int, folder: Path, ridge: float) -> TRAKer:
    return TRAKer(
        model=model,
        task="image_classification",
        train_set_size=count,
        save_dir=str(folder),
        device=str(device_of(model)),
        gradient_computer=_Sketched,
        projector=_Identity(dim),
        proj_dim=dim,
        use_half_precision=False,
        lambda_reg=ridge,
        logging_level="ERROR",
    )
