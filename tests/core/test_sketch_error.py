import numpy as np
import pytest
import torch

from natscope.core import sketch_error
from natscope.core.sketches import SketchSpec


@pytest.fixture(scope="module")
def sample():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(30, 40, bias=False), torch.nn.ReLU(), torch.nn.Linear(40, 5, bias=False)
    )
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 5
    return model.eval(), torch.randn(120, 30, generator=generator), np.arange(120) % 5


def measure(sample, dim, layout, seed=0):
    model, inputs, targets = sample
    return sketch_error.measure(model, SketchSpec("dense", dim, seed), inputs, targets, ntk=False, layout=layout)


LAYOUT = ((40, 30), (5, 40))


def test_the_error_against_the_exact_kernel_falls_with_the_root_of_the_dimension(sample):
    small = np.mean([measure(sample, 64, LAYOUT, seed).error for seed in range(6)])
    large = np.mean([measure(sample, 1024, LAYOUT, seed).error for seed in range(6)])
    assert small / large == pytest.approx(4, rel=0.2)


def test_the_spread_is_that_of_johnson_and_lindenstrauss(sample):
    found = [measure(sample, 256, LAYOUT, seed) for seed in range(8)]
    assert found[0].exact
    assert found[0].expected == pytest.approx((2 / 256) ** 0.5)
    assert np.mean([each.spread for each in found]) == pytest.approx(found[0].expected, rel=0.2)


def test_without_the_exact_kernel_other_sketches_estimate_the_same(sample):
    exact, estimated = ([measure(sample, 256, layout, seed) for seed in range(0, 90, 9)] for layout in (LAYOUT, None))
    assert not estimated[0].exact
    for what in ("error", "spread"):
        wanted, found = (np.mean([getattr(each, what) for each in group]) for group in (exact, estimated))
        assert found == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("layout", [LAYOUT, None])
def test_images_to_which_the_network_does_not_respond_do_not_count(sample, layout):
    model, inputs, targets = sample
    silent = torch.cat([inputs, torch.zeros(3, 30)])
    found = measure((model, silent, np.append(targets, [0, 1, 2])), 256, layout)
    without = measure(sample, 256, layout)
    assert found.ratios == pytest.approx(without.ratios)
    assert (found.error, found.spread) == pytest.approx((without.error, without.spread))


@pytest.mark.parametrize("layout", [LAYOUT, None])
def test_where_the_network_responds_to_no_image_there_is_nothing_to_measure(sample, layout):
    found = measure((sample[0], torch.zeros(3, 30), np.arange(3)), 256, layout)
    assert (len(found.ratios), found.error, found.spread) == (0, 0, 0)
