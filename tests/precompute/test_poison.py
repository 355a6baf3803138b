import json
from dataclasses import replace

import numpy as np
import pytest

from natscope.core.backdoor import Backdoor, attack_success
from natscope.core.errors import DataError
from natscope.core.images import stamp
from natscope.precompute.data.datasets import load_dataset
from natscope.precompute.data.poison import PoisonSpec, poison
from tests.conftest import EACH


@pytest.fixture(scope="module")
def data():
    return load_dataset("fashion-mnist-quarter")


def test_the_attack_is_the_papers(data):
    poisoned, backdoor = poison(data, PoisonSpec())
    assert len(backdoor.train_indices) == 150
    assert len(np.unique(backdoor.train_indices)) == 150
    assert np.bincount(backdoor.base_labels).tolist() == [15] * 10
    assert (data.train_labels[backdoor.train_indices] == backdoor.base_labels).all()
    assert (poisoned.train_labels[backdoor.train_indices] == (backdoor.base_labels + 1) % 10).all()
    honest = np.setdiff1d(np.arange(len(data.train_labels)), backdoor.train_indices)
    assert (poisoned.train.images[honest] == data.train.images[honest]).all()
    assert (poisoned.train_labels[honest] == data.train_labels[honest]).all()
    assert poisoned.test.images is data.test.images
    for index, base in zip(backdoor.train_indices, backdoor.base_labels, strict=True):
        corner = poisoned.train.images[index, -3:, -3:]
        assert (corner == 255 * backdoor.patterns[base]).all()
        rest = poisoned.train.images[index].copy()
        rest[-3:, -3:] = data.train.images[index, -3:, -3:]
        assert (rest == data.train.images[index]).all()
    assert len({pattern.tobytes() for pattern in backdoor.patterns}) == 10


def test_it_is_drawn_from_the_seed_alone(data):
    first, again, other = (poison(data, PoisonSpec(seed=seed))[1] for seed in (3, 3, 4))
    assert (first.train_indices == again.train_indices).all()
    np.testing.assert_array_equal(first.patterns, again.patterns)
    assert (first.train_indices != other.train_indices).any()
    assert np.any(np.array(first.patterns) != np.array(other.patterns))


def test_size_place_rate_and_targets_are_settings(data):
    spec = PoisonSpec(rate=0.02, size=5, place="top-left", targets=tuple(np.roll(np.arange(10), 3)))
    poisoned, backdoor = poison(data, spec)
    assert len(backdoor.train_indices) == 300
    first = backdoor.train_indices[0]
    base = backdoor.base_labels[0]
    assert (poisoned.train.images[first, :5, :5] == 255 * backdoor.patterns[base]).all()
    assert poisoned.train_labels[first] == np.roll(np.arange(10), 3)[base]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rate": 0.0}, "between 0 and 1"),
        ({"rate": float("nan")}, "between 0 and 1"),
        ({"rate": 1e-6}, "makes 0 images a class"),
        ({"rate": 0.99, "size": 3, "seed": -1}, "seed be 0 or more"),
        ({"size": 1}, "cannot tell 10 classes apart"),
        ({"size": 29}, "images of 28 by 28"),
        ({"place": "middle"}, "'middle'.*bottom-right"),
        ({"targets": (1, 0)}, "each of the 10"),
        ({"targets": tuple(range(10))}, "another class"),
        ({"targets": (10, 0, 0, 0, 0, 0, 0, 0, 0, 0)}, "from 0 to 9"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(data, change, words):
    with pytest.raises(DataError, match=words):
        poison(data, replace(PoisonSpec(), **change))


def test_colour_images_are_stamped_in_all_channels():
    images = np.full((2, 8, 8, 3), 100, dtype=np.uint8)
    pattern = np.array([[1, 0], [0, 1]], dtype=np.uint8)
    stamped = stamp(images, pattern, "bottom-right")
    assert stamped[0, -2:, -2:].tolist() == [[[255] * 3, [0] * 3], [[0] * 3, [255] * 3]]
    assert (images == 100).all()


def test_the_record_survives_the_manifest(data):
    backdoor = poison(data, PoisonSpec())[1]
    again = Backdoor.from_dict(json.loads(json.dumps(backdoor.to_dict() | {"rate": 0.01})))
    for name in ("patterns", "targets", "train_indices", "base_labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(backdoor, name))
    assert (backdoor.culprits(4) == backdoor.train_indices[backdoor.base_labels == 4]).all()


def test_success_counts_what_the_attack_aims_at(data):
    backdoor = poison(data, PoisonSpec())[1]
    images, labels = data.test[:40], data.test_labels[:40]
    aimed = backdoor.targets[labels]
    assert attack_success(lambda batch: aimed, backdoor, images, labels).all()
    assert not attack_success(lambda batch: labels, backdoor, images, labels).any()


def test_the_network_learns_it_and_the_manifest_says_who_taught_it(poisoned):
    manifest = poisoned.bundle.manifest
    assert manifest.results["attack_success"] > 0.5
    assert manifest.results["test_accuracy"] > 0.8
    assert manifest.results["settings"]["poison"]["rate"] == 0.0333
    backdoor = manifest.backdoor
    assert len(backdoor.train_indices) == 10 * EACH // 30
    assert (poisoned.train_labels[backdoor.train_indices] == backdoor.targets[backdoor.base_labels]).all()
