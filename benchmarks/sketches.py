"""Sketches against dense Rademacher projections (error) and against traker's CPU path (speed), on the same network."""

import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.network import Say, Trained, seconds, trained
from natscope.core.blocks import Block
from natscope.core.features import FeatureMap, kernel_of
from natscope.core.jacobians import jacobian_blocks
from natscope.core.sketches import DEFAULT_DIM, FOR_TRANSFORMERS, CountSketch, SketchSpec
from natscope.precompute.bundles.opening import open_attributor

_ERROR_EXAMPLES = 1000  # a hundred of each class
_ERROR_SEEDS = 3
_FORMED = 20  # examples of a bundle whose whole gradients are compared
_DIMENSIONS = (2048, 20_480)
_SCATTERED = 48
_TRAK_EXAMPLES = 512  # in one batch: its projection matrix is redrawn for every batch, so a large one favours it


def run(say: Say, *, bundle: Path | None = None) -> None:
    """Print relative Gram errors, examples a second, and both ratios.

    Args:
        say: prints a line.
        bundle: print those of its network alone, against the exact Gram of few examples.
    """
    if bundle is not None:
        _of_bundle(say, bundle)
        return
    here = trained()
    errors = {kind: _gram_errors(here, kind) for kind in ("dense", "countsketch", "tensorsketch")}
    reference = errors["dense"]
    say(f"Relative error of the Gram, K = {DEFAULT_DIM}, {_ERROR_EXAMPLES} images, mean of {_ERROR_SEEDS} seeds")
    say(f"{'sketch':<14}{'all images':>12}{'÷ dense':>9}{'same class':>13}{'÷ dense':>9}")
    for kind, (whole, own) in errors.items():
        say(f"{kind:<14}{whole:>12.4f}{whole / reference[0]:>9.2f}{own:>13.4f}{own / reference[1]:>9.2f}")

    blocks = jacobian_blocks(here.model, *_first(here, _SCATTERED), ntk=True)
    excess = excess_variances(blocks, DEFAULT_DIM)
    say(f"\nVariance of k(x, x) under CountSketch above that of a dense projection, {_SCATTERED} images")
    say(f"median {np.median(excess):.1%}, worst {excess.max():.1%}")

    say(f"\nExamples a second, from images to features, K = {DEFAULT_DIM}")
    base = _trak_speed(here)
    say(f"{'traker, its CPU path':<24}{base:>10.1f}{'÷ traker':>10}")
    for kind in ("countsketch", "tensorsketch"):
        speed = _speed(here, kind)
        say(f"{kind:<24}{speed:>10.0f}{speed / base:>10.0f}")


def _of_bundle(say: Say, bundle: Path) -> None:
    here = open_attributor(bundle)
    inputs, labels = here.bundle.inputs("train"), torch.from_numpy(np.array(here.bundle.array("train_labels")))
    rows = np.sort(np.random.default_rng(0).permutation(len(labels))[:_FORMED])
    own, exact = here.features, np.zeros((len(rows), len(rows)))
    parts = [jacobian_blocks(own.model, inputs[[row]], labels[[row]], ntk=own.ntk, layers=own.layers) for row in rows]
    for blocks in zip(*parts, strict=True):  # one parameter at a time
        whole = torch.cat([block.form().flatten(1) for block in blocks]).double()
        exact += (whole @ whole.T).numpy()
    pairs = np.triu_indices(len(rows), 1)
    typical = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))[pairs].mean()
    say(f"{bundle.name}: errors of {len(rows)} examples' Gram relative to ‖J‖², mean of {_ERROR_SEEDS} seeds")
    say(f"{'sketch':<18}{'K':>8}{'k(x, y)':>10}{'k(x, x)':>10}{'√(1/K)':>10}{'CPU s':>8}")
    for dim in _DIMENSIONS:
        for kind in ("countsketch", FOR_TRANSFORMERS):
            off, on, begun = [], [], time.process_time()
            for seed in range(_ERROR_SEEDS):
                tangent = FeatureMap(own.model, SketchSpec(kind, dim, seed), ntk=own.ntk, layers=own.layers)
                found = tangent.features(inputs[rows], labels[rows]).astype(np.float64)
                error = found @ found.T - exact
                off.append(np.abs(error[pairs]).mean() / typical)
                on.append(np.abs(error.diagonal() / exact.diagonal()).mean())
            took = (time.process_time() - begun) / _ERROR_SEEDS
            say(f"{kind:<18}{dim:>8,}{np.mean(off):>10.4f}{np.mean(on):>10.4f}{dim**-0.5:>10.4f}{took:>8.1f}")


def excess_variances(blocks: Sequence[Block], dim: int) -> np.ndarray:
    """Return by how much the variance of k(x, x) under CountSketch exceeds a dense projection's, relative to it.

    A dense projection's is 2 / K (‖J‖⁴ - Σ J_p⁴). Two weights of one group and column always share a bucket, where
    others do with probability 1 / K, so each such pair adds 2 J_p² J_q².

    Args:
        blocks: the Jacobian of B examples, weights of `Linear` layers as factors.
        dim: K.

    Returns:
        (B,) float64.
    """
    squares, fourth, pairs, sketch = 0.0, 0.0, 0.0, CountSketch(SketchSpec(dim=dim))
    for block in blocks:
        gradient = block.form().double().square()
        height = sketch.group_height(block.shape)
        grouped = pad(gradient, (0, 0, 0, -gradient.shape[1] % height)).unflatten(1, (-1, height))
        squares += gradient.sum((1, 2)).numpy()
        fourth += gradient.square().sum((1, 2)).numpy()
        pairs += (grouped.sum(2).square() - grouped.square().sum(2)).sum((1, 2)).numpy()
    return np.asarray(dim * pairs / (squares**2 - fourth))


def _first(here: Trained, count: int) -> tuple[Tensor, Tensor]:
    return here.inputs[:count], torch.from_numpy(np.array(here.data.train_labels[:count]))


def _gram_errors(here: Trained, kind: str) -> tuple[float, float]:
    """Return the relative Frobenius error of the Gram of all images, and the mean of those of each class alone."""
    labels = here.data.train_labels
    rows = np.concatenate([np.flatnonzero(labels == c)[: _ERROR_EXAMPLES // 10] for c in range(10)])
    inputs, targets = here.inputs[torch.from_numpy(rows)], labels[rows]
    exact = FeatureMap(here.model, SketchSpec("exact"), ntk=True)
    factors = exact.features(inputs, targets)
    gram = kernel_of(SketchSpec("exact"), exact.layout(inputs[:1]))(factors, factors)
    whole, own = [], []
    for seed in range(_ERROR_SEEDS):
        features = FeatureMap(here.model, SketchSpec(kind, seed=seed), ntk=True).features(inputs, targets)
        difference = features.astype(np.float64) @ features.T.astype(np.float64) - gram
        whole.append(np.linalg.norm(difference) / np.linalg.norm(gram))
        blocks = [np.ix_(targets == c, targets == c) for c in range(10)]
        own.append(np.mean([np.linalg.norm(difference[b]) / np.linalg.norm(gram[b]) for b in blocks]))
    return float(np.mean(whole)), float(np.mean(own))


def _speed(here: Trained, kind: str) -> float:
    features = FeatureMap(here.model, SketchSpec(kind), ntk=True)
    features.features(here.inputs[:1000], here.data.train_labels[:1000])  # draws the tables
    taken, _ = seconds(lambda: features.features(here.inputs, here.data.train_labels))
    return len(here.inputs) / taken


def _trak_speed(here: Trained) -> float:
    from trak import TRAKer

    batch = _first(here, _TRAK_EXAMPLES)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = TRAKer(
            model=here.model,
            task="image_classification",
            train_set_size=_TRAK_EXAMPLES,
            save_dir=folder,
            device="cpu",
            proj_dim=DEFAULT_DIM,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        scorer.load_checkpoint(here.model.state_dict(), model_id=0)
        taken, _ = seconds(lambda: scorer.featurize(batch=batch, num_samples=_TRAK_EXAMPLES))
    return _TRAK_EXAMPLES / taken
