import numpy as np

from natscope.core.images import Images
from natscope.core.ood import USUAL, distances, usual_distances


def _of(images):
    return Images(images, (0.5,), (0.5,))


def test_distances_are_to_the_nearest_training_image_in_pixels_and_in_directions():
    random = np.random.default_rng(0)
    images, train = (random.integers(0, 256, (n, 4, 4)).astype(np.uint8) for n in (3, 5000))
    own, theirs = random.normal(size=(3, 6)), random.normal(size=(5000, 6))
    found = distances(_of(images), own, train=_of(train), train_penultimate=theirs)
    pixels = np.linalg.norm(images.reshape(3, 1, -1) / 255 - train.reshape(1, 5000, -1) / 255, axis=2).min(1)
    own, theirs = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (own, theirs))
    directions = np.linalg.norm(own[:, None] - theirs[None], axis=2).min(1)
    np.testing.assert_allclose(found, np.stack([pixels, directions], axis=1), rtol=1e-3)


def test_a_copy_of_a_training_image_has_no_distance():
    train = np.random.default_rng(0).integers(0, 256, (9, 4, 4)).astype(np.uint8)
    features = train.reshape(9, -1).astype(np.float32)
    found = distances(_of(train[:2]), features[:2], train=_of(train), train_penultimate=features)
    np.testing.assert_allclose(found, 0, atol=2e-3)


def test_features_that_are_all_zero_do_not_divide_by_zero():
    zeros = np.zeros((2, 3), dtype=np.float32)
    images = np.zeros((2, 4, 4), dtype=np.uint8)
    found = distances(_of(images), zeros, train=_of(images), train_penultimate=zeros)
    assert found.tolist() == [[0, 0], [0, 0]]


def test_usual_distances_are_exceeded_by_few_images():
    found = np.random.default_rng(0).random((10_000, 2))
    usual = np.array(usual_distances(found))
    np.testing.assert_allclose((found > usual).mean(0), 1 - USUAL, atol=1e-4)
