"""What the kernel is made of, and how well each parameterisation finds the images that planted a backdoor."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.network import Say
from natscope.core.backdoor import Backdoor
from natscope.core.blocks import squared_norm
from natscope.core.bundle.format import Bundle
from natscope.core.images import ImageInputs
from natscope.core.jacobians import jacobian_blocks
from natscope.core.metrics import recall_at_k
from natscope.core.parameters import ROLES, WEIGHTS, kernel_parameters
from natscope.core.sketches import SketchSpec, make_sketch
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.demo import EMBEDDED, POISONED
from natscope.precompute.experiments.backdoor import backdoor_of
from natscope.precompute.training.models import ModelSpec, build_model

_AT = 50
_QUERIES = 16  # fooled test images of each class
_CLEAN = 600  # clean images of each pool, which stand for all of them
_AT_ONCE = 32
_SCALED = "weights, scaled"
VARIANTS = {
    "NTK: weights scaled, the rest as it is": (_SCALED, *ROLES[1:]),
    "no scaling": ROLES,
    "weights alone, scaled": (_SCALED,),
    "weights alone, no scaling": (WEIGHTS,),
}


def run(say: Say, bundle: Path | None = None) -> None:
    """Print each role's share of the kernel, and recall of planted images at large σ², for a poisoned bundle.

    As σ² grows, InfoGain and InfoLoss rank by the squared kernel with the query (Lemma 1), which needs no choice of σ².

    Args:
        say: prints a line.
        bundle: a poisoned bundle, of any network; the demo's, built anew, when None.
    """
    with tempfile.TemporaryDirectory() as folder:
        _measure(
            say, Bundle(bundle) if bundle else build(replace(EMBEDDED[POISONED], methods=()), Path(folder) / POISONED)
        )


def _measure(say: Say, opened: Bundle) -> None:
    model = build_model(ModelSpec.from_dict(opened.manifest.model), seed=0, bundle=opened)
    opened.load_into(model)
    model.eval()
    backdoor = backdoor_of(opened)
    recalls: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    shares: list[dict[str, float]] = []
    for base, target in enumerate(backdoor.targets.tolist()):
        queries = _fooled(opened, model, backdoor, base)
        rows, weights = _pool(opened, backdoor, base, target)
        if not len(queries):
            continue
        inputs = [_inputs(opened, queries), _inputs(opened, np.asarray(opened.examples("train").images[rows]))]
        (asked, _), (pool, norms) = (_by_role(model, images, target) for images in inputs)
        shares.append(norms)
        for variant, parts in VARIANTS.items():
            kernel = sum(asked[part] for part in parts if part in asked) @ sum(pool[p] for p in parts if p in pool).T  # type: ignore[union-attr]
            truth = set(np.flatnonzero(np.isin(rows, backdoor.culprits(base))).tolist())
            recalls[variant] += [_recall(scores, weights, truth) for scores in (kernel**2).numpy()]
    say(f"{opened.manifest.name}: {opened.manifest.results['attack_success']:.1%} of stamped test images are fooled")
    for scaled in (True, False):
        parts = [name for name in shares[0] if name != (WEIGHTS if scaled else _SCALED)]
        means = {name: float(np.mean([each[name] for each in shares])) for name in parts}
        listed = ", ".join(f"{name} {value / sum(means.values()):.1%}" for name, value in means.items())
        say(f"mean ‖J‖² {sum(means.values()):,.1f}, {'scaled' if scaled else 'not scaled'}: {listed}")
    say(f"{'recall@50 as σ² → ∞':<42}{'mean':>7}{'± error':>9}")
    for variant, found in recalls.items():
        say(f"{variant:<42}{np.mean(found):>7.3f}{np.std(found) / len(found) ** 0.5:>9.3f}")


def _inputs(bundle: Bundle, images: np.ndarray) -> ImageInputs:
    return ImageInputs(images, bundle.manifest.dataset["mean"], bundle.manifest.dataset["std"])


def _fooled(bundle: Bundle, model: nn.Module, backdoor: Backdoor, base: int) -> np.ndarray:
    """Return stamped test images of a class that the network takes for the attack's target."""
    labels, logits = np.asarray(bundle.array("test_labels")), np.asarray(bundle.array("test_logits"))
    right = np.flatnonzero((labels == base) & (logits.argmax(axis=1) == base))[: 20 * _QUERIES]
    images = backdoor.stamped(np.asarray(bundle.examples("test").images[right]), labels[right])
    with torch.no_grad():
        found = model(_inputs(bundle, images)[:]).argmax(dim=1).numpy()
    return images[found == backdoor.targets[base]][:_QUERIES]


def _pool(bundle: Bundle, backdoor: Backdoor, base: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of a pool, all planted images and some clean ones, and how many images each stands for."""
    pool = np.flatnonzero(np.asarray(bundle.array("train_labels")) == target)
    planted = backdoor.culprits(base)
    clean = np.setdiff1d(pool, planted)
    some = np.random.default_rng(base).permutation(clean)[:_CLEAN]
    weights = np.concatenate([np.ones(len(planted)), np.full(len(some), len(clean) / len(some))])
    return np.concatenate([planted, some]), weights


def _recall(scores: np.ndarray, weights: np.ndarray, truth: set[int]) -> float:
    """Return the share of planted images among the first 50 of the whole pool, of which some images stand for more."""
    order = np.argsort(-scores, kind="stable")
    first = int(np.searchsorted(np.cumsum(weights[order]), _AT, side="right"))
    return recall_at_k(order[:first].tolist(), truth, max(first, 1)) if first else 0.0


def _by_role(model: nn.Module, images: ImageInputs, target: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the sketched Jacobians of each role of parameters, (N, K), and their mean squared norms."""
    parameters, sketch = kernel_parameters(model), make_sketch(SketchSpec())
    parts: dict[str, list[Tensor]] = {}
    norms: dict[str, float] = {}
    for start in range(0, len(images), _AT_ONCE):
        inputs = images[start : start + _AT_ONCE]
        blocks = jacobian_blocks(model, inputs, torch.full((len(inputs),), target))
        for name in (*ROLES, _SCALED):
            role = WEIGHTS if name == _SCALED else name
            scales = {n: p.scale(ntk=name == _SCALED) for n, p in parameters.items() if p.role == role}
            own = [replace(block, scale=scales[block.name]) for block in blocks if block.name in scales]
            if own:
                parts.setdefault(name, []).append(sketch(own))
                norms[name] = norms.get(name, 0.0) + sum(map(squared_norm, own)) / len(images)
    return {name: torch.cat(found).double() for name, found in parts.items()}, norms
