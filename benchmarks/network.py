"""What every benchmark measures on: the embedded data, and the embedded MLP trained by its recipe."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from natscope.core.images import to_input
from natscope.precompute.data.datasets import Dataset, load_dataset
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.train import TrainingSpec, train

Result = TypeVar("Result")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """The data set, its training images as the network takes them (N, 1, 28, 28), and the trained network."""

    data: Dataset
    inputs: Tensor
    model: nn.Module


@lru_cache(maxsize=1)
def trained() -> Trained:
    """Train the embedded MLP (about 10 s), once a run."""
    data, model = load_dataset("fashion-mnist-quarter"), build_model(ModelSpec(), seed=0)
    inputs = to_input(data.train.images, mean=data.train.mean, std=data.train.std)
    train(model, inputs, torch.from_numpy(np.array(data.train_labels)), TrainingSpec())
    return Trained(data, inputs, model)


def seconds(work: Callable[[], Result], *, repeats: int = 1) -> tuple[float, Result]:
    """Return the shortest of some runs' wall-clock times, in seconds, and the last run's result."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - started)
    return min(times), result
