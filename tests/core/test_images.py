import numpy as np
import pytest
import torch

from natscope.core.images import to_input


def test_grey_images_are_scaled_as_the_formula_says():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    found = to_input(images, mean=(0.286,), std=(0.353,))
    assert found.shape == (5, 1, 4, 3)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[:, 0].numpy(), (images / 255 - 0.286) / 0.353, atol=1e-6)


def test_colour_images_are_scaled_channel_by_channel():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    found = to_input(images, mean=mean, std=std)
    assert found.shape == (2, 3, 4, 5)
    assert found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), ((images / 255 - mean) / std).transpose(0, 3, 1, 2), atol=1e-6)


def test_read_only_and_reversed_arrays_are_taken_and_left_alone():
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    images.flags.writeable = False
    found = to_input(images[:, ::-1], mean=(0.0,), std=(1.0,))
    np.testing.assert_allclose(found[0, 0].numpy(), images[0, ::-1] / 255, atol=1e-7)
    assert images[0, 0, 1] == 1


def test_an_image_alone_gives_the_same_bits_as_in_a_batch():
    images = np.random.default_rng(0).integers(0, 256, (9, 28, 28), dtype=np.uint8)
    whole = to_input(images, mean=(0.286,), std=(0.353,))
    assert torch.equal(to_input(images[4:5], mean=(0.286,), std=(0.353,)), whole[4:5])


@pytest.mark.parametrize(
    ("images", "mean", "std", "message"),
    [
        (np.zeros((1, 2, 2)), (0.0,), (1.0,), "must be uint8"),
        (np.zeros((2, 2), np.uint8), (0.0,), (1.0,), "of shape"),
        (np.zeros((1, 2, 2, 4), np.uint8), (0.0,), (1.0,), "of shape"),
        (np.zeros((1, 2, 2), np.uint8), (0.0,) * 3, (1.0,) * 3, "1 channels need"),
        (np.zeros((1, 2, 2, 3), np.uint8), (0.0,) * 3, (1.0,), "3 channels need"),
        (np.zeros((1, 2, 2), np.uint8), (0.0,), (0.0,), "must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(images, mean, std, message):
    with pytest.raises(ValueError, match=message):
        to_input(images, mean=mean, std=std)
