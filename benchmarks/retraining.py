"""How fast the embedded network can be retrained and again: threads, processes, many models at once, bfloat16."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.network import Say
from natscope.core.images import to_input
from natscope.precompute.data.datasets import load_dataset
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.train import TrainingSpec, train

_EPOCHS = 2
_AT_ONCE = (2, 8)  # models
_REMOVED, _CHANGES = 300, 12  # images removed from one class; trainings in each precision


def run(say: Say) -> None:
    images, labels = _data()
    cores = torch.get_num_threads()
    _train(images, labels, 1, "float32")  # what the first training prepares is nobody's
    plain = _seconds(lambda: _train(images, labels, _EPOCHS, "float32"))
    rows = [("one network, one thread (as natscope trains)", plain)]
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(_warm, range(cores)))
        side = _seconds(lambda: list(pool.map(_one_more, range(cores))))
    rows.append((f"{cores} processes, one network each", side / cores))
    rows += [(f"{n} networks as one product", _seconds(lambda n=n: _together(images, labels, n)) / n) for n in _AT_ONCE]
    rows.append(("one network, bfloat16", _seconds(lambda: _train(images, labels, _EPOCHS, "bfloat16"))))
    say(f"Seconds a network for {_EPOCHS} epochs of the embedded data, and times faster than the first")
    for title, seconds in rows:
        say(f"{title:<48} {seconds:>7.2f} {plain / seconds:>6.2f}")
    say(_agreement(images, labels))


def _agreement(images: Tensor, labels: Tensor) -> str:
    """Compare the changes of answers that leaving images out causes in float32 and in bfloat16."""
    rng, epochs = np.random.default_rng(0), 4
    changes = {}
    asked = images[:2000]
    for precision in ("float32", "bfloat16"):
        whole = _train(images, labels, epochs, precision)(asked).argmax(1)
        found = []
        for position in range(_CHANGES):
            pool = np.flatnonzero(labels.numpy() == position % 10)
            out = rng.choice(pool, _REMOVED, replace=False)
            found.append((_train(images, labels, epochs, precision, out)(asked).argmax(1) != whole).numpy())
        changes[precision], rng = np.concatenate(found), np.random.default_rng(0)
    full, half = changes["float32"], changes["bfloat16"]
    both = (full & half).sum() / max((full | half).sum(), 1)
    return (
        f"Leaving out {_REMOVED} images changes {full.mean():.1%} of answers in float32 and {half.mean():.1%} in "
        f"bfloat16; of the answers that change in either, {both:.0%} change in both."
    )


@lru_cache(maxsize=1)
def _data() -> tuple[Tensor, Tensor]:
    data = load_dataset("fashion-mnist-quarter")
    inputs = to_input(data.train.images, mean=data.train.mean, std=data.train.std)
    return inputs, torch.from_numpy(np.array(data.train_labels))


def _train(
    images: Tensor, labels: Tensor, epochs: int, precision: str, out: np.ndarray | None = None
) -> torch.nn.Module:
    model = build_model(ModelSpec(), seed=0)
    train(model, images, labels, replace(TrainingSpec(), epochs=epochs, precision=precision), leave_out=out)
    return model


def _warm(position: int) -> None:
    torch.set_num_threads(1)
    _train(*_data(), 1, "float32")


def _one_more(position: int) -> None:
    _train(*_data(), _EPOCHS, "float32")


def _together(images: Tensor, labels: Tensor, count: int) -> None:
    """Train `count` networks that differ by their order of images, each layer of all of them as one batched product."""
    spec, inputs, targets = TrainingSpec(), images.flatten(1), one_hot(labels, 10).float()
    weights = [torch.stack([p] * count) for p in build_model(ModelSpec(), seed=0).state_dict().values()]
    momenta = [torch.zeros_like(w) for w in weights]
    for _ in range(_EPOCHS):
        order = torch.stack([torch.randperm(len(inputs)) for _ in range(count)])
        for rows in order.split(spec.batch_size, dim=1):
            activations = [inputs[rows]]
            for position, weight in enumerate(weights):
                outputs = torch.bmm(activations[-1], weight.transpose(1, 2))
                activations.append(outputs.relu_() if position + 1 < len(weights) else outputs)
            delta = (activations.pop().softmax(-1) - targets[rows]) / rows.shape[1]
            gradients = []
            for weight, activation in zip(weights[::-1], activations[::-1], strict=True):
                gradients.append(torch.bmm(delta.transpose(1, 2), activation))
                delta = torch.bmm(delta, weight) * (activation > 0)
            torch._foreach_mul_(momenta, spec.momentum)
            torch._foreach_add_(momenta, gradients[::-1])
            torch._foreach_add_(momenta, weights, alpha=spec.weight_decay)
            torch._foreach_add_(weights, momenta, alpha=-spec.learning_rate)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
