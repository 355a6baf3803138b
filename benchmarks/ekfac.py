"""How well EK-FAC's factors are fitted: rank correlation of scores with those of the exact Fisher.

The exact one is a closed form that only networks of Linear layers have: the Fisher's directions are outer products, so
that the variances along the axes are one matrix product.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from kronfluence.arguments import FactorArguments
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks.network import Say, trained
from natscope.core.images import to_input
from natscope.core.measurements import margin
from natscope.core.methods.artifacts import EkfacSpec
from natscope.core.methods.ekfac import (
    _NAME,
    EkfacInfluence,
    _analyzer,
    _MarginTask,
    _quiet,
    factors_folder,
    fit_factors,
)

_QUERIES = 20
_Layers = list[tuple[Tensor, Tensor]]


class _Sampled(_MarginTask):
    """The library's usual way: labels drawn from the network."""

    def compute_train_loss(self, batch, model, sample=False):
        logits = model(batch[0])
        labels = torch.multinomial(torch.softmax(logits.detach(), dim=1), 1)[:, 0] if sample else batch[1]
        return cross_entropy(logits, labels, reduction="sum")


def run(say: Say) -> None:
    net = trained()
    labels = np.array(net.data.train_labels)
    queries = to_input(net.data.test.images[:_QUERIES], mean=net.data.train.mean, std=net.data.train.std)
    targets = net.model(queries).argmax(1)
    exact = _exact_scores(net.model, net.inputs, torch.from_numpy(labels), queries, targets)
    say(f"Rank correlation with the exact Fisher's scores, {_QUERIES} test images: among their class | among all")
    found = {}
    fits = {"natscope's settings": _ours, "all images, labels drawn": _full, "the same, again": _again}
    for name, fit in fits.items():
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            fit(net.model, net.inputs, torch.from_numpy(labels), Path(folder))
            fitted = time.perf_counter() - started
            influence = EkfacInfluence(net.model, factors_folder(Path(folder)))
            found[name] = np.stack(
                [influence.scores(queries[i : i + 1], int(targets[i]), net.inputs, labels)[0] for i in range(_QUERIES)]
            )
        say(f"{name:<26} {fitted:6.1f} s   {_agreement(found[name], exact, labels, targets)}")
    first, second = found["all images, labels drawn"], found["the same, again"]
    say(f"{'two such fits':<26} {'':>6}     {_agreement(first, second, labels, targets)}")


def _ours(model: nn.Module, inputs: Tensor, labels: Tensor, folder: Path) -> None:
    fit_factors(model, inputs, folder, EkfacSpec(), lambda stage, done, total: None)


def _full(model: nn.Module, inputs: Tensor, labels: Tensor, folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    with _quiet():
        analyzer = _analyzer(model, folder, _Sampled())
        everything = FactorArguments(strategy="ekfac", covariance_max_examples=None, lambda_max_examples=None)
        data = TensorDataset(inputs, labels)
        analyzer.fit_all_factors(_NAME, data, per_device_batch_size=500, factor_args=everything)


def _again(model: nn.Module, inputs: Tensor, labels: Tensor, folder: Path) -> None:
    _full(model, inputs, labels, folder, seed=1)


def _agreement(found: np.ndarray, wanted: np.ndarray, labels: np.ndarray, targets: Tensor) -> str:
    own = [
        spearmanr(f[labels == int(t)], w[labels == int(t)]).statistic
        for f, w, t in zip(found, wanted, targets, strict=True)
    ]
    everyone = [spearmanr(f, w).statistic for f, w in zip(found, wanted, strict=True)]
    return f"{np.mean(own):.3f} (least {min(own):.3f}) | {np.mean(everyone):.3f} (least {min(everyone):.3f})"


def _layers(model: nn.Module, inputs: Tensor, direction: Tensor) -> _Layers:
    """Return each layer's input and the gradient of <logits, direction> by its output."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    seen, hidden = [], inputs.flatten(1)
    for position, layer in enumerate(linear):
        output = hidden @ layer.weight.T
        seen.append((hidden, output))
        hidden = torch.relu(output) if position + 1 < len(linear) else output
    result = []
    for position in range(len(linear) - 1, -1, -1):
        result.append((seen[position][0], direction))
        if position:
            direction = (direction @ linear[position].weight) * (seen[position - 1][1] > 0)
    return result[::-1]


@torch.no_grad()
def _exact_scores(model: nn.Module, inputs: Tensor, labels: Tensor, queries: Tensor, targets: Tensor) -> np.ndarray:
    shares = torch.softmax(model(inputs), dim=1)
    classes = shares.shape[1]
    passes = [
        _layers(model, inputs, shares[:, k : k + 1].sqrt() * (torch.eye(classes)[k] - shares)) for k in range(classes)
    ]
    train = _layers(model, inputs, torch.eye(classes)[labels] - shares)
    with torch.enable_grad():
        logits = model(queries).detach().requires_grad_()
        (back,) = torch.autograd.grad(margin(logits, targets).sum(), logits)
    asked = _layers(model, queries, back)
    total = torch.zeros(len(queries), len(inputs))
    for position in range(len(train)):
        activation = train[position][0]
        axes_in = torch.linalg.eigh((activation.T @ activation).double())[1].float()
        axes_out = torch.linalg.eigh(sum(d.T @ d for _, d in (p[position] for p in passes)).double())[1].float()
        turned = (activation @ axes_in) ** 2
        variances = sum(((d @ axes_out) ** 2).T @ turned for _, d in (p[position] for p in passes)) / len(inputs)
        (a_query, d_query), (a_train, d_train) = asked[position], train[position]
        gradient = (d_query @ axes_out)[:, :, None] * (a_query @ axes_in)[:, None, :]
        gradient /= variances + 0.1 * variances.mean()
        total += torch.einsum("qoi,no,ni->qn", gradient, d_train @ axes_out, a_train @ axes_in)
    return total.numpy()
