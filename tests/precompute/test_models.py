import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from core.errors import BuildError
from precompute.models import ModelSpec, build_model


def test_the_default_is_the_papers_mlp():
    model = build_model(ModelSpec(), seed=0)
    assert [tuple(p.shape) for p in model.parameters()] == [(512, 784), (256, 512), (10, 256)]
    assert [type(layer) for layer in model] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_weights_are_kaiming_normal():
    for weight in build_model(ModelSpec(widths=(600, 500, 400)), seed=1).parameters():
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight.shape[1]), rel=0.01)
        assert abs(weight.mean().item()) < 0.001


def test_the_seed_alone_decides_the_weights():
    spec = ModelSpec(widths=(6, 5, 4))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(spec, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = build_model(spec, seed=3).state_dict(), build_model(spec, seed=4).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert not torch.equal(weight, other[name])


def test_biases_start_at_zero():
    model = build_model(ModelSpec(widths=(6, 5, 4), bias=True), seed=0)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert [b.abs().sum().item() for b in biases] == [0, 0]


def test_a_spec_survives_json():
    spec = ModelSpec(widths=(6, 5, 4), bias=True)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    with pytest.raises(TypeError, match="depth"):
        ModelSpec.from_dict({"depth": 3})


@pytest.mark.parametrize("widths", [(), (784,), (784, 0, 10), (784, -5, 10), (784, 2.5, 10), (True, 10)])
def test_widths_that_make_no_network_are_refused(widths):
    with pytest.raises(BuildError, match="two or more positive whole numbers"):
        build_model(ModelSpec(widths=widths), seed=0)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(BuildError, match=r"no architecture 'vit'; choose one of mlp, resnet9, or name a factory"):
        build_model(ModelSpec(architecture="vit"), seed=0)
