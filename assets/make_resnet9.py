"""Make the weights of a ResNet-9 that ship: in half precision, if the network then answers the same.

`python -m natscope.assets.make_resnet9 WEIGHTS DATASET NAME` writes assets/resnet9/NAME.safetensors. WEIGHTS is the
file model.safetensors of a trained bundle, DATASET what it was trained on, as `natscope precompute --dataset` names it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from natscope import assets
from natscope.precompute.data.folders import FolderSpec
from natscope.precompute.data.named import load_named
from natscope.precompute.training.models import ModelSpec, build_model, fitted
from natscope.precompute.training.train import accuracy, logits_of

_LEAST = 0.995  # share of test images that must keep their answer


def make(weights: Path, dataset: str, name: str) -> None:
    """Halve weights, compare the answers to all test images, and write them.

    Args:
        weights: safetensors file of a ResNet-9, float32.
        dataset: a name of `natscope.precompute.data.datasets.DATASETS`, or "folder:PATH".
        name: of the file, without its ending.
    """
    data, _ = load_named(dataset, FolderSpec())
    model = build_model(fitted(ModelSpec("resnet9", None), data.test, len(data.classes)), seed=0)
    full = safetensors.torch.load_file(weights)
    halves = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in full.items()}
    answers = []
    for state in (full, halves):
        model.load_state_dict(state)
        answers.append(logits_of(model.eval(), data.test.inputs))
    same = float(np.mean(answers[0].argmax(axis=1) == answers[1].argmax(axis=1)))
    shares = [f"{accuracy(found, data.test_labels):.2%}" for found in answers]
    print(f"{same:.2%} of answers are the same; test accuracy {shares[0]}, in half precision {shares[1]}")
    if same < _LEAST or not all(torch.isfinite(tensor).all() for tensor in halves.values()):
        sys.exit("Half precision changes too many answers; the weights were not written.")
    file = assets.path("resnet9", f"{name}.safetensors")
    file.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file(halves, file)
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("name")
    make(**vars(parser.parse_args()))
