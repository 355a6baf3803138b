import math

import numpy as np
import pytest
import torch

import precompute.training as training
from core.errors import BuildError
from core.images import to_input
from precompute.datasets import load_dataset
from precompute.models import ModelSpec, build_model
from precompute.training import TrainingSpec, accuracy, train

_SPEC = TrainingSpec(epochs=4, batch_size=16, learning_rate=0.05)


@pytest.fixture(scope="module")
def data():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(70, 1, 3, 4, generator=rng), torch.randint(0, 3, (70,), generator=rng)


def _model(seed=0):
    return build_model(ModelSpec(widths=(12, 8, 3), bias=True), seed=seed)


def _trained(data, spec=_SPEC, **arguments):
    model = _model()
    train(model, *data, spec, **arguments)
    return model


def _same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("decay_epochs", "factors"),
    [
        (0, [1, 1, 1, 1, 1, 1]),
        (1, [1, 1, 1, 1, 2 / 3, 1 / 3]),
        (2, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (4, [3 / 6, 5 / 12, 4 / 12, 3 / 12, 2 / 12, 1 / 12]),
    ],
)
def test_two_epochs_are_momentum_sgd_written_out(data, decay_epochs, factors):
    spec = TrainingSpec(
        2, batch_size=32, learning_rate=0.1, decay_epochs=decay_epochs, momentum=0.8, weight_decay=0.01, seed=5
    )
    factor = iter(factors)
    images, labels = data[0].double(), data[1]
    model = build_model(ModelSpec(widths=(12, 3)), seed=0).double()
    w = model[1].weight.detach().numpy().copy()
    x, one_hot = images.flatten(1).numpy(), np.eye(3)[labels.numpy()]
    v = np.zeros_like(w)
    for epoch in range(2):
        order = np.random.default_rng([5, epoch]).permutation(70)
        for start in (0, 32, 64):
            rows = order[start : start + 32]
            p = np.exp(x[rows] @ w.T)
            p /= p.sum(axis=1, keepdims=True)
            v = 0.8 * v + (p - one_hot[rows]).T @ x[rows] / len(rows) + 0.01 * w
            w -= 0.1 * next(factor) * v
    train(model, images, labels, spec)
    np.testing.assert_allclose(model[1].weight.detach().numpy(), w, rtol=1e-10)


def test_the_seed_decides_the_result_and_the_model_ends_in_eval_mode(data):
    first = _trained(data)
    assert _same(first, _trained(data))
    assert not _same(first, _trained(data, TrainingSpec(epochs=4, batch_size=16, learning_rate=0.05, seed=1)))
    assert not first.training


def test_threads_do_not_change_the_bits_and_are_given_back(data):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = _trained(data)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert _same(first, _trained(data))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_training_killed_after_an_epoch_ends_bitwise_the_same(data, tmp_path, epoch):
    file = tmp_path / "checkpoint.safetensors"

    def kill(done, total):
        if done == epoch:
            raise _Killed

    with pytest.raises(_Killed, match=r"^$"):
        _trained(data, checkpoint=file, progress=kill)
    seen = []
    resumed = _trained(data, checkpoint=file, progress=lambda *step: seen.append(step))
    assert seen == [(done, 4) for done in range(epoch, 5)]
    assert _same(resumed, _trained(data))


def test_training_killed_within_an_epoch_ends_bitwise_the_same(data, tmp_path, monkeypatch):
    file, steps = tmp_path / "checkpoint.safetensors", []
    step = training._step

    def fails(*arguments):
        steps.append(arguments)
        if len(steps) == 13:
            raise _Killed
        step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", fails)
        with pytest.raises(_Killed, match=r"^$"):
            _trained(data, checkpoint=file)
    assert _same(_trained(data, checkpoint=file), _trained(data))


def test_a_finished_training_is_not_repeated(data, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    first = _trained(data, checkpoint=file)
    content, seen = file.read_bytes(), []
    assert _same(_trained(data, checkpoint=file, progress=lambda *step: seen.append(step)), first)
    assert seen == [(4, 4)]
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_of_other_settings_data_or_network_is_refused(data, tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    _trained(data, checkpoint=file)
    with pytest.raises(BuildError, match="is of another training"):
        _trained(data, TrainingSpec(epochs=5, batch_size=16, learning_rate=0.05), checkpoint=file)
    with pytest.raises(BuildError, match="is of another training"):
        _trained((data[0] + 1, data[1]), checkpoint=file)
    with pytest.raises(BuildError, match="is of another training"):
        train(build_model(ModelSpec(widths=(12, 3)), seed=0), *data, _SPEC, checkpoint=file)


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_checkpoint_is_named(data, tmp_path, damage):
    file = tmp_path / "checkpoint.safetensors"
    _trained(data, checkpoint=file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BuildError, match=r"checkpoint\.safetensors is damaged; delete it"):
        _trained(data, checkpoint=file)


def test_a_loss_that_runs_away_is_refused(data):
    with pytest.raises(BuildError, match="train with a smaller learning rate"):
        _trained(data, TrainingSpec(epochs=50, learning_rate=1e12))
    with pytest.raises(BuildError, match="NaN in epoch 1"):
        _trained((torch.full_like(data[0], math.nan), data[1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "Epochs, decay and warm-up epochs and seed"),
        ({"decay_epochs": -1}, "Epochs, decay and warm-up epochs and seed"),
        ({"batch_size": 0}, "batch size 1 or more"),
        ({"seed": -1}, "Epochs, decay and warm-up epochs and seed"),
        ({"learning_rate": 0.0}, "learning rate must be positive"),
        ({"learning_rate": math.nan}, "learning rate must be positive"),
        ({"momentum": 1.0}, "momentum in"),
        ({"weight_decay": -0.1}, "weight decay 0 or more"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(data, settings, message):
    with pytest.raises(BuildError, match=message):
        _trained(data, TrainingSpec(**settings))


def test_labels_that_do_not_fit_are_refused(data):
    with pytest.raises(BuildError, match="60 labels for 70 images"):
        _trained((data[0], data[1][:60]))


def test_a_spec_survives_a_dictionary():
    spec = TrainingSpec(epochs=3, seed=7)
    assert TrainingSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(TypeError, match="optimizer"):
        TrainingSpec.from_dict({"optimizer": "adam"})


def test_accuracy_is_the_share_of_hits():
    logits = np.array([[1, 2], [3, 0], [0, 5], [9, 1]], dtype=np.float32)
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75


def test_one_epoch_on_the_embedded_data_learns():
    data = load_dataset("fashion-mnist-quarter")
    images = to_input(data.train_images, mean=data.mean, std=data.std)
    model = build_model(ModelSpec(), seed=0)
    train(model, images, torch.tensor(data.train_labels), TrainingSpec(epochs=1))
    with torch.no_grad():
        logits = model(to_input(data.test_images, mean=data.mean, std=data.std)).numpy()
    assert accuracy(logits, data.test_labels) > 0.75
