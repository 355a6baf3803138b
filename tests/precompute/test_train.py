import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from natscope.core.errors import BuildError
from natscope.core.images import ImageInputs, to_input
from natscope.precompute.data.datasets import load_dataset
from natscope.precompute.training import train as training
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.order import augmented, draw_moves
from natscope.precompute.training.train import RECIPES, TrainingSpec, accuracy, apart, train

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


def test_a_rate_that_falls_over_all_epochs_still_does_over_others():
    assert RECIPES["bert"].lasting(5) == dataclasses.replace(RECIPES["bert"], epochs=5, decay_epochs=5)
    assert RECIPES["attention"].lasting(9) == dataclasses.replace(RECIPES["attention"], epochs=9)
    assert TrainingSpec().lasting(40).decay_epochs == 1


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
    with pytest.raises(BuildError, match=r"checkpoint\.safetensors is damaged"):
        _trained(data, checkpoint=file)


def test_a_loss_that_runs_away_is_refused(data):
    with pytest.raises(BuildError, match="smaller learning rate"):
        _trained(data, TrainingSpec(epochs=50, learning_rate=1e12))
    with pytest.raises(BuildError, match="NaN in epoch 1"):
        _trained((torch.full_like(data[0], math.nan), data[1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "Epochs, decay and warm-up"),
        ({"decay_epochs": -1}, "Epochs, decay and warm-up"),
        ({"batch_size": 0}, "batch size 1 or more"),
        ({"seed": -1}, "Epochs, decay and warm-up"),
        ({"learning_rate": 0.0}, "learning rate must be"),
        ({"learning_rate": math.nan}, "learning rate must be"),
        ({"momentum": 1.0}, "momentum in"),
        ({"weight_decay": -0.1}, "weight decay 0 or more"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(data, settings, message):
    with pytest.raises(BuildError, match=message):
        _trained(data, TrainingSpec(**settings))


def test_labels_that_do_not_fit_are_refused(data):
    with pytest.raises(BuildError, match="60 labels for 70 examples"):
        _trained((data[0], data[1][:60]))


def test_a_spec_survives_a_dictionary():
    spec = TrainingSpec(epochs=3, seed=7)
    assert TrainingSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(TypeError, match="optimiser"):
        TrainingSpec.from_dict({"optimiser": "adam"})


def test_accuracy_is_the_share_of_hits():
    logits = np.array([[1, 2], [3, 0], [0, 5], [9, 1]], dtype=np.float32)
    assert accuracy(logits, np.array([1, 0, 0, 0])) == 0.75


def test_one_epoch_on_the_embedded_data_learns():
    data = load_dataset("fashion-mnist-quarter")
    images = to_input(data.train.images, mean=data.train.mean, std=data.train.std)
    model = build_model(ModelSpec(), seed=0)
    train(model, images, torch.tensor(data.train_labels), TrainingSpec(epochs=1))
    with torch.no_grad():
        logits = model(to_input(data.test.images, mean=data.train.mean, std=data.train.std)).numpy()
    assert accuracy(logits, data.test_labels) > 0.75


# Convolutions, the triangular rate, augmentation


_TRIANGLE = TrainingSpec(
    epochs=3, batch_size=16, learning_rate=0.2, decay_epochs=2, warmup_epochs=1, augment=True, precision="bfloat16"
)


def _small(dropout=0.0):
    """A network with all that must survive an interruption: batch norm's counts, momentum of convolutions, dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8, 3),
    )


@pytest.fixture(scope="module")
def colour():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (70, 9, 9, 3), dtype=np.uint8)
    return ImageInputs(images, (0.5,) * 3, (0.3,) * 3), torch.from_numpy(rng.integers(0, 3, 70))


def _state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first) and set(first) == set(second)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_convolutional_training_killed_after_an_epoch_ends_bitwise_the_same(colour, tmp_path, precision, epoch):
    spec = dataclasses.replace(_TRIANGLE, precision=precision)
    whole = _small(0.3)
    train(whole, *colour, spec)
    file = tmp_path / "checkpoint.safetensors"

    def kill(done, total):
        if done == epoch:
            raise _Killed

    with pytest.raises(_Killed, match=r"^$"):
        train(_small(0.3), *colour, spec, checkpoint=file, progress=kill)
    resumed = _small(0.3)
    torch.rand(7)  # the global generator is elsewhere by now
    train(resumed, *colour, spec, checkpoint=file)
    assert _equal(_state(resumed), _state(whole))
    other = _small(0.3)
    train(other, *colour, dataclasses.replace(spec, seed=1))
    assert not _equal(_state(other), _state(whole))


def test_a_training_leaves_the_global_generator_alone(colour):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = _small(0.3)
    torch.set_rng_state(before)
    train(model, *colour, dataclasses.replace(_TRIANGLE, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_stored_images_train_as_their_inputs_do(colour):
    spec = dataclasses.replace(_TRIANGLE, precision="float32")
    first, second = _small(), _small()
    train(first, *colour, spec)
    train(second, colour[0][:], colour[1], spec)
    assert _equal(_state(first), _state(second))


def test_the_rate_is_a_triangle():
    recipe = RECIPES["resnet9"]
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (24, 512, 5e-4)
    rates = [training.rate(recipe, e) for e in (0, 2.5, 5, 14.5, 24)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.25, 0])
    assert max(training.rate(recipe, e / 10) for e in range(241)) == 0.5
    flat = dataclasses.replace(recipe, warmup_epochs=0, decay_epochs=0)
    assert {training.rate(flat, e) for e in range(24)} == {0.5}


def test_augmentation_moves_and_mirrors_and_nothing_else():
    count, size = 200, 6
    images = 1 + torch.arange(count * 3 * size * size, dtype=torch.float32).view(count, 3, size, size)
    moved = augmented(images, draw_moves(len(images), np.random.default_rng(0)))
    assert moved.shape == images.shape
    assert torch.equal(moved, augmented(images, draw_moves(len(images), np.random.default_rng(0))))
    seen = set()
    for image, found in zip(images, moved, strict=True):
        padded = nn.functional.pad(image, (4,) * 4)
        crops = {
            (top, left, flipped): crop.flip(2) if flipped else crop
            for top in range(9)
            for left in range(9)
            for flipped in (False, True)
            if (crop := padded[:, top : top + size, left : left + size]) is not None
        }
        seen.add(next(key for key, crop in crops.items() if torch.equal(crop, found)))
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {flipped for _, _, flipped in seen} == {False, True}


def test_without_some_images_the_others_are_moved_as_before(monkeypatch):
    images, seen = torch.arange(40.0)[:, None, None, None].expand(40, 3, 8, 8), []
    labels, recipe = torch.arange(40) % 3, dataclasses.replace(_TRIANGLE, epochs=2, batch_size=8)

    def record(batch, moves):
        seen.extend(zip(batch[:, 0, 0, 0].tolist(), map(tuple, moves.tolist()), strict=True))
        return augmented(batch, moves)

    monkeypatch.setattr(training, "augmented", record)
    found = []
    for leave_out in (None, np.array([3, 17])):
        seen.clear()
        train(_small(), images / 40, labels, recipe, leave_out=leave_out)
        found.append([(round(40 * image), moves) for image, moves in seen])
    assert found[1] == [pair for pair in found[0] if pair[0] not in (3, 17)]
    assert len(found[0]) == 80 > len(found[1])


def test_bfloat16_trains_float32_weights(colour):
    model, exact = _small(), _small()
    train(model, *colour, _TRIANGLE)
    train(exact, *colour, dataclasses.replace(_TRIANGLE, precision="float32"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not _equal(_state(model), _state(exact))
    assert (model[0].weight - exact[0].weight).norm() < 0.5 * exact[0].weight.norm()  # drifts by some 0.2 in training
    with pytest.raises(BuildError, match=r"'float8'; .* float32, bfloat16"):
        train(_small(), *colour, dataclasses.replace(_TRIANGLE, precision="float8"))


def test_later_settings_are_written_only_where_they_are_used():
    assert {"warmup_epochs", "augment", "precision"}.isdisjoint(TrainingSpec().to_dict())
    assert TrainingSpec.from_dict(_TRIANGLE.to_dict()) == _TRIANGLE


def test_tied_weights_are_saved_apart():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    saved = apart(model.state_dict())
    assert len({tensor.data_ptr() for tensor in saved.values()}) == len(saved)
    assert all(tensor.is_contiguous() for tensor in saved.values())


def test_how_a_training_begins_is_repeatable_and_tells_networks_apart(data):
    images, labels = data
    seed = torch.get_rng_state()

    class Moody(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * np.random.default_rng().random()

    def of(kind=nn.Sequential, rate=0.2):
        def make():
            torch.manual_seed(0)
            return kind(nn.Flatten(), nn.Linear(images[0].numel(), 8), nn.Dropout(rate), nn.Linear(8, 3))

        return make

    spec = TrainingSpec(epochs=1, batch_size=4)
    once = training.beginning(of(), images, labels, spec)["first_losses"]
    assert len(once) == 3
    assert all(math.isfinite(loss) for loss in once)
    assert training.agree(once, training.first_losses(of(), images, labels, spec), spec)
    others = [
        training.first_losses(of(rate=0.3), images, labels, spec),
        training.first_losses(of(), images, labels.flip(0), spec),
        training.first_losses(of(), images, labels, dataclasses.replace(spec, learning_rate=0.5)),
        once[:2],
    ]
    assert not any(training.agree(once, other, spec) for other in others)
    assert training.beginning(of(Moody), images, labels, spec) == {}
    torch.set_rng_state(seed)
