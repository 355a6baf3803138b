"""Pictures of inputs of any shape."""

import numpy as np
import pytest

from natscope.core.thumbnails import LARGEST, scaling_between, thumbnails


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((3, 10, 12), (10, 12, 3)),
        ((1, 10, 12), (10, 12)),
        ((10, 12), (10, 12)),
        ((5, 10, 12), (10, 12)),
        ((3, 128, 256), (32, 64, 3)),
        ((20,), (4, 5)),
        ((1,), (1, 1)),
        ((2,), (1, 2)),
        ((2, 3, 4, 5), (24, 5)),
        ((100_000,), (64, 64)),
        ((1, 100_000), (1, 64)),
    ],
)
def test_an_input_of_any_shape_has_a_small_picture(shape, wanted):
    inputs = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    mean, std = scaling_between(inputs.min(), inputs.max(), shape)
    found = thumbnails(inputs, mean=mean, std=std)
    assert found.shape == (4, *wanted)
    assert found.dtype == np.uint8
    assert max(wanted[:2]) <= LARGEST


def test_one_scaling_shows_the_least_black_and_the_largest_white():
    inputs = np.array([[[[-2.0, 0.0]]], [[[1.0, 2.0]]]], np.float32)
    mean, std = scaling_between(-2.0, 2.0, (1, 1, 2))
    assert thumbnails(inputs, mean=mean, std=std).tolist() == [[[0, 128]], [[191, 255]]]
    assert scaling_between(3.0, 3.0, (4,)) == ((-3.0,), (1.0,))


def test_pixels_of_a_known_scaling_are_shown_in_their_own_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    inputs = np.moveaxis((pixels / 255 - mean) / std, 3, 1).astype(np.float32)
    np.testing.assert_array_equal(thumbnails(inputs, mean=mean, std=std), pixels)
