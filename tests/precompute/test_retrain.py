import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from natscope.core.errors import BuildError
from natscope.precompute.training.removal import as_many_others
from natscope.precompute.training.retrain import outcome, patience, retrain, too_slow
from natscope.precompute.training.train import TrainingSpec, train


def test_without_leaving_anything_out_the_weights_are_the_bundles(attributor):
    model = retrain(attributor.bundle, np.empty(0, dtype=np.int64))
    for name, tensor in attributor.bundle.weights().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_what_is_left_out_is_never_seen_and_the_rest_keeps_its_order():
    seen = []

    class Watch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(1, 2, bias=False)

        def forward(self, batch):
            seen.append(batch[:, 0].int().tolist())
            return self.linear(batch / 20)

    images, labels = torch.arange(20.0)[:, None], torch.arange(20) % 2
    spec = TrainingSpec(epochs=2, batch_size=6, learning_rate=0.01)
    train(Watch(), images, labels, spec)
    whole = list(seen)
    gone = np.array([3, 17, *whole[3]])  # the last batch of the first epoch, of two images, among them
    left = [[image for image in batch if image not in gone] for batch in whole]
    seen.clear()
    train(Watch(), images, labels, spec, leave_out=gone)
    assert len(whole) == 8
    assert seen == [batch for batch in left if batch]
    seen.clear()
    train(Watch(), images, labels, spec, leave_out=gone, refill=True)
    assert list(map(len, seen)) == 2 * [6, 6, 20 - len(set(gone)) - 12]
    assert list(itertools.chain(*seen)) == list(itertools.chain(*left))
    with pytest.raises(BuildError, match="Nothing is left"):
        train(Watch(), images, labels, spec, leave_out=np.arange(20))


def test_a_checkpoint_of_another_remainder_is_refused(tmp_path):
    images, labels = torch.arange(20.0)[:, None] / 20, torch.arange(20) % 2
    spec, file = TrainingSpec(epochs=1, learning_rate=0.01), tmp_path / "checkpoint"
    train(torch.nn.Linear(1, 2), images, labels, spec, leave_out=np.array([1]), checkpoint=file)
    with pytest.raises(BuildError, match="another training"):
        train(torch.nn.Linear(1, 2), images, labels, spec, leave_out=np.array([2]), checkpoint=file)
    with pytest.raises(BuildError, match="another training"):
        train(torch.nn.Linear(1, 2), images, labels, spec, leave_out=np.array([1]), refill=True, checkpoint=file)


@pytest.mark.parametrize("refill", [False, True])
def test_batch_normalisation_never_sees_one_example(refill):
    images, labels = torch.randn(13, 3, generator=torch.manual_seed(0)), torch.arange(13) % 2
    for epochs, count in ((1, 4), (2, 6), (1, 11)):  # of batches of three, some are left with one, or with nothing
        for seed in range(8):
            seen = []
            model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
            model.register_forward_pre_hook(lambda module, asked, seen=seen: seen.append(len(asked[0])))
            gone = np.random.default_rng(seed).choice(13, count, replace=False)
            spec = TrainingSpec(epochs=epochs, batch_size=3, learning_rate=0.01, seed=seed)
            train(model, images, labels, spec, leave_out=gone, refill=refill)
            assert sum(seen) == epochs * (13 - count)
            assert min(seen) > 1


def test_dropout_is_that_of_a_training_with_all_images():
    torch.manual_seed(0)
    images, labels = torch.randn(20, 3), torch.arange(20) % 2
    spec, found = TrainingSpec(epochs=1, batch_size=5, learning_rate=0.01), {}
    for leave_out in (0, 1):
        seen = found[leave_out] = []
        model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 2))
        model[0].register_forward_hook(lambda module, asked, dropped, seen=seen: seen.append(dropped.clone()))
        first = np.random.default_rng([0, 0]).permutation(20)[:leave_out]
        train(model, images, labels, spec, leave_out=first)
    assert [len(batch) for batch in found[1]] == [4, 5, 5, 5]
    assert all(torch.equal(own, other) for own, other in zip(found[0][1:], found[1][1:], strict=True))


def test_loaded_weights_cannot_be_trained_again(attributor):
    class Loaded:
        manifest = replace(attributor.bundle.manifest, training={"weights": "0" * 64})

    with pytest.raises(BuildError, match="loaded, not trained"):
        retrain(Loaded(), np.array([1]))


def test_a_convolutional_network_is_trained_again_while_somebody_waits_if_its_data_are_few(attributor):
    class Bundle:
        def __init__(self, epochs):
            model = {"architecture": "resnet9", "widths": [1, 10], "bias": False}
            training = attributor.bundle.manifest.training | {"epochs": epochs}
            self.manifest = replace(attributor.bundle.manifest, model=model, training=training)
            self.inputs, self.modality = attributor.bundle.inputs, attributor.bundle.modality

    count, pixels = len(attributor.train_labels), 28 * 28
    epochs = 30_000 * 32 * 32 // (count * pixels)
    few, many = Bundle(epochs), Bundle(epochs + 1)
    assert too_slow(few, linear=False) is None
    assert too_slow(many, linear=False, count=count // 2) is None
    assert f"{count:,} images" in too_slow(many, linear=False)
    assert too_slow(many, linear=True) is None
    assert patience(few, linear=False) == "a few minutes"


def test_how_long_training_takes_follows_from_examples_epochs_and_network(attributor):
    class Bundle:
        def __init__(self, epochs=1, *, lengths=None, weights=4, multiplied=40):
            training = attributor.bundle.manifest.training | {"epochs": epochs}
            shape = (1000, 128) if lengths is not None else (1000, 1, 32, 32)
            self.manifest = replace(
                attributor.bundle.manifest, training=training, files={"weights": SimpleNamespace(bytes=weights)}
            )
            self.inputs, self.modality = lambda split: Given(shape, lengths), attributor.bundle.modality
            self.examples = lambda split: SimpleNamespace(form=(30_000, 128))
            self.shapes_of_weights = lambda: {"table": (30_000, 768), "layer": (multiplied, 100)}

    @dataclass
    class Given:
        shape: tuple
        lengths: np.ndarray | None

        def __len__(self):
            return self.shape[0]

    short = np.full(1000, 10)
    assert patience(Bundle(3, lengths=short), linear=False) == "a few seconds"  # not by the longest text
    assert too_slow(Bundle(3, lengths=short), linear=False) is None
    assert "takes too long" in too_slow(Bundle(3, lengths=short, multiplied=860_000), linear=False)  # as of a BERT
    assert patience(Bundle(3, lengths=short, multiplied=860_000), linear=False) == "a few minutes"
    assert [patience(Bundle(epochs), linear=False) for epochs in (1, 3, 7, 10, 30)] == [
        "a few seconds",
        "less than half a minute",
        "less than a minute",
        "a minute or two",
        "a few minutes",
    ]
    assert patience(Bundle(30, weights=4 * 10**5), linear=True) == "a few seconds"
    assert patience(Bundle(30, weights=4 * 10**8), linear=True) == "a few minutes"


def test_no_network_is_built_to_see_how_long_its_training_takes(attributor, monkeypatch):
    monkeypatch.setattr("natscope.precompute.training.retrain.network_of", lambda *_, **__: pytest.fail("built"))
    assert too_slow(attributor.bundle, linear=attributor.linear) is None


def test_without_its_culprits_the_attack_on_a_class_fails_and_the_others_stay(poisoned):
    bundle, backdoor = poisoned.bundle, poisoned.bundle.manifest.backdoor
    index = int(np.flatnonzero(poisoned.test_labels == 9)[0])
    before = outcome(bundle, poisoned.features.model, backdoor, index)
    assert before.success == pytest.approx(bundle.manifest.results["attack_success"])
    assert before.accuracy == pytest.approx(bundle.manifest.results["test_accuracy"])
    healed = outcome(bundle, retrain(bundle, backdoor.culprits(9)), backdoor, index)
    assert before.class_success > 0.5
    assert healed.class_success < 0.2
    assert healed.success > before.success - 0.2
    assert healed.accuracy > before.accuracy - 0.02


def test_as_many_others_are_others():
    pool, found = np.arange(10, 30), np.arange(12, 22)
    others = as_many_others(pool, found)
    assert sorted(others.tolist()) == [10, 11, *range(22, 30)]
    assert as_many_others(pool, found[:3]).tolist() == as_many_others(pool, found[:3]).tolist()
