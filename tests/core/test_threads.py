"""An attributor that several threads share answers each of them as if it were alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from natscope.core.bundle.request import Request
from natscope.core.features import FeatureMap
from natscope.core.methods import METHODS
from natscope.core.sketches import SketchSpec

_THREADS, _IMAGES = 8, 600


def _all_at_once(work, things):
    """Do work for every thing, in threads that start together; the results in the order of the things."""
    gate = threading.Barrier(_THREADS)

    def share(number):
        gate.wait()
        return [work(thing) for thing in things[number::_THREADS]]

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(share, range(_THREADS)))
    return [parts[place % _THREADS][place // _THREADS] for place in range(len(things))]


def test_queries_are_those_of_their_own_image(attributor):
    """5,000 queries in 8 threads: none holds another image's features."""
    alone = [attributor.query("test", index) for index in range(_IMAGES)]
    indices = [place % _IMAGES for place in range(5000)]
    for index, found in zip(indices, _all_at_once(lambda i: attributor.query("test", i), indices), strict=True):
        assert np.array_equal(found.penultimate, alone[index].penultimate)
        assert np.array_equal(found.probabilities, alone[index].probabilities)


def test_every_method_answers_as_it_does_alone(attributor):
    queries = [attributor.query("test", index) for index in range(6)]
    asked = [(query, Request(name, 10.0, 5)) for name in METHODS for query in queries]
    alone = [attributor.attribute(*one).items for one in asked]
    assert [answer.items for answer in _all_at_once(lambda one: attributor.attribute(*one), asked)] == alone


class _Gated(nn.Module):
    """A parameter of no layer, which `torch.func` differentiates by putting another one in its place for a while."""

    def __init__(self):
        super().__init__()
        self.head, self.gate = nn.Linear(12, 3), nn.Parameter(torch.linspace(0.5, 2, 12))

    def forward(self, x):
        return self.head(torch.tanh(x.flatten(1) * self.gate))


@pytest.mark.parametrize("measurement", ["logit", "margin"])
def test_networks_that_need_torch_func_can_be_shared(measurement):
    torch.manual_seed(0)
    maps = [FeatureMap(_Gated(), SketchSpec("countsketch", 64, 0), ntk=False)]
    maps.append(FeatureMap(maps[0].model, SketchSpec("countsketch", 64, 1), ntk=False))  # two maps, one network
    inputs = torch.randn(200, 1, 1, 12)

    def features(place):
        part = slice(place % 200, place % 200 + 1)
        found = maps[place % 2].features(inputs[part], np.array([place % 3]), measurement=measurement)
        return found, maps[place % 2].outputs(inputs[part]).penultimate

    places = list(range(400))
    alone = [features(place) for place in places]
    for one, other in zip(_all_at_once(features, places), alone, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])
