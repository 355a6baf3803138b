"""Make the weights that ship: those of a trained bundle in half precision, if the network then answers the same.

`python -m assets.make_resnet9 BUNDLE NAME` writes assets/resnet9/NAME.safetensors.
"""

import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

import assets
from precompute.attributor import open_attributor

_LEAST = 0.995  # share of test images that must keep their answer


def main(bundle: Path, name: str) -> None:
    """Halve the weights of a bundle, compare the answers to all its test images, and write them."""
    attributor = open_attributor(bundle)
    model, images = attributor.features.model, np.asarray(attributor.bundle.array("test_images"))
    before = np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1)
    halves = {key: t.half() if t.is_floating_point() else t for key, t in model.state_dict().items()}
    model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in halves.items()})
    after = attributor.predict(images)
    labels, same = attributor.test_labels, float((before == after).mean())
    shares = [f"{np.mean(answers == labels):.2%}" for answers in (before, after)]
    print(f"{same:.2%} of answers are the same; test accuracy {shares[0]}, in half precision {shares[1]}")
    if same < _LEAST or not all(torch.isfinite(t).all() for t in halves.values()):
        sys.exit("Half precision changes too many answers; the weights were not written.")
    file = assets.path("resnet9", f"{name}.safetensors")
    safetensors.torch.save_file({key: t.contiguous() for key, t in halves.items()}, file)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
