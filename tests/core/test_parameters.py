import pytest
import torch
from torch import nn

from natscope.core.parameters import kernel_parameters


class Vision(nn.Module):
    """Layers of many kinds, and parameters that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        self.gain, self.mix = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(4, 8))
        self.words = nn.Embedding(10, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16)
        self.up = nn.ConvTranspose2d(6, 4, 3, groups=2)
        self.patch = nn.Conv2d(3, 8, (2, 5), groups=1)
        self.group, self.batch, self.root = nn.GroupNorm(2, 8), nn.BatchNorm1d(8), nn.RMSNorm(8)
        self.head = nn.Linear(8, 1)


WANTED = {
    "token": ("embeddings", 1),
    "position": ("embeddings", 1),
    "gain": ("normalisation", 1),
    "mix": ("weights", 8),
    "words.weight": ("embeddings", 1),
    "layer.self_attn.in_proj_weight": ("weights", 8),
    "layer.self_attn.in_proj_bias": ("biases", 1),
    "layer.self_attn.out_proj.weight": ("weights", 8),
    "layer.linear2.weight": ("weights", 16),
    "layer.linear2.bias": ("biases", 1),
    "layer.norm1.weight": ("normalisation", 1),
    "layer.norm1.bias": ("normalisation", 1),
    "up.weight": ("weights", 3 * 9),
    "up.bias": ("biases", 1),
    "patch.weight": ("weights", 3 * 10),
    "group.weight": ("normalisation", 1),
    "batch.bias": ("normalisation", 1),
    "root.weight": ("normalisation", 1),
    "head.weight": ("weights", 8),
}


@pytest.mark.parametrize("name", WANTED)
def test_a_parameter_is_what_its_layer_makes_it(name):
    found = kernel_parameters(Vision())[name]
    assert (found.role, found.fan_in) == WANTED[name]
    assert found.scale(ntk=False) == 1
    assert found.scale(ntk=True) == pytest.approx((2 / found.fan_in) ** 0.5 if found.role == "weights" else 1)


def test_all_parameters_that_require_gradients_belong_to_the_kernel():
    model = Vision()
    assert list(kernel_parameters(model)) == [name for name, _ in model.named_parameters()]
    model.patch.requires_grad_(False)
    assert not any(name.startswith("patch.") for name in kernel_parameters(model))
