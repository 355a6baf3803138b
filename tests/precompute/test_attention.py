import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from natscope.core.errors import BuildError
from natscope.core.jacobians import forward_with_penultimate, jacobian_blocks
from natscope.core.layers import follows
from natscope.core.measurements import MEASUREMENTS
from natscope.core.ragged import PaddedRuns, offsets_of
from natscope.precompute.data.text_sources import TextSpec
from natscope.precompute.data.texts import text_dataset
from natscope.precompute.training import order
from natscope.precompute.training import train as training
from natscope.precompute.training.attention import Attention
from natscope.precompute.training.models import ModelSpec, build_model, fitted
from natscope.precompute.training.train import RECIPES, TrainingSpec, train
from tests import oracles

_SPEC = ModelSpec("attention", (30, 9, 8, 3))


def _model(seed=0):
    return build_model(_SPEC, seed=seed).eval()


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(0)
    lengths = np.array([9, 5, 1, 7, 0])
    return torch.from_numpy(np.where(np.arange(9) < lengths[:, None], rng.integers(1, 30, (5, 9)), 0))


def test_more_padding_changes_no_logit(ids):
    model = _model()
    with torch.no_grad():
        alone = torch.cat([model(row[None, : max(1, int((row > 0).sum()))]) for row in ids])
        assert torch.allclose(model(ids), alone, atol=1e-6)
        assert torch.allclose(model(nn.functional.pad(ids, (0, 20))), alone, atol=1e-6)  # beyond its longest text
    assert torch.isfinite(alone).all()
    assert not torch.allclose(alone[0], alone[1])


def test_words_are_told_apart_by_what_they_are_and_where(ids):
    model = _model()
    with torch.no_grad():
        turned = ids[:1].flip(1)
        assert not torch.allclose(model(turned), model(ids[:1]), atol=1e-4)
        model.places.weight.zero_()
        assert torch.allclose(model(turned), model(ids[:1]), atol=1e-6)


def test_logits_are_attention_written_out(ids):
    model, row = _model(1).double(), ids[1, :5]
    state = {name: value.numpy() for name, value in model.state_dict().items()}

    def norm(x, name):
        scaled = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    x = state["tokens.weight"][row] + state["places.weight"][:5]
    seen, mixed = norm(x, "block.first"), []
    q, k, v = (linear(seen, f"block.{name}") for name in ("queries", "keys", "values"))
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(q[:, head] @ k[:, head].T / 2)
        mixed.append(weights / weights.sum(1, keepdims=True) @ v[:, head])
    x = x + linear(np.concatenate(mixed, axis=1), "block.mixed")
    up = torch.from_numpy(linear(norm(x, "block.second"), "block.up"))
    x = x + linear(nn.functional.gelu(up).numpy(), "block.down")
    logits = norm(x, "norm").mean(0) @ state["head.weight"].T + state["head.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(model(ids)[1].numpy(), logits, rtol=1e-9, atol=1e-12)


def test_natscope_differentiates_all_of_it_by_hand(ids):
    model, targets = _model().double(), torch.tensor([0, 1, 2, 0])
    own = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    assert all(follows(module) for module in own)
    wanted = oracles.jacobians(model, ids[:4], targets, MEASUREMENTS["logit"])
    blocks = jacobian_blocks(model, ids[:4], targets)
    assert {block.name for block in blocks} == wanted.keys()
    for block in blocks:
        truth = wanted[block.name]
        torch.testing.assert_close(block.form().reshape(truth.shape), truth, rtol=1e-9, atol=1e-12)
    assert forward_with_penultimate(model, ids)[1].shape == (5, 8)


def test_the_weights_depend_on_the_seed_alone():
    first, again, other = _model(), _model(), _model(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.tokens.weight, other.tokens.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    outline = Attention(30, 9, 8, 3, device="meta")
    assert {name: p.shape for name, p in outline.state_dict().items()} == {
        n: p.shape for n, p in first.state_dict().items()
    }


@pytest.mark.parametrize("widths", [None, (30, 9, 8), (30, 9, 7, 3), (30, 9, 8, 0), (2**25, 9, 8, 3), (30, 9, 8.0, 3)])
def test_widths_that_make_no_network_are_refused(widths):
    with pytest.raises(BuildError, match="An attention network has four widths"):
        build_model(ModelSpec("attention", widths), seed=0)


# Training by AdamW


@pytest.fixture(scope="module")
def austen():
    return text_dataset("austen", TextSpec())[0]


_FEW = dataclasses.replace(RECIPES["attention"], epochs=3, batch_size=16)


def _trained(data, spec=_FEW, **arguments):
    model = build_model(fitted(ModelSpec("attention", None), data.train, len(data.classes)), seed=0)
    train(model, data.train[:100].inputs, torch.tensor(data.train_labels[:100]), spec, **arguments)
    return model


class _Killed(Exception):
    pass


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_training_by_adamw_killed_after_an_epoch_ends_bitwise_the_same(austen, tmp_path, epoch):
    file = tmp_path / "checkpoint.safetensors"

    def kill(done, total):
        if done == epoch:
            raise _Killed

    with pytest.raises(_Killed, match=r"^$"):
        _trained(austen, checkpoint=file, progress=kill)
    resumed, whole = _trained(austen, checkpoint=file), _trained(austen)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    with pytest.raises(BuildError, match="is of another training"):
        _trained(austen, dataclasses.replace(_FEW, optimizer="sgd"), checkpoint=file)


def test_a_checkpoint_without_a_part_of_the_state_is_damaged(austen, tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.safetensors"
    monkeypatch.setitem(training._STATE, "step", "momentum/")  # its shape is none of a parameter's
    _trained(austen, checkpoint=file)
    monkeypatch.undo()
    with pytest.raises(BuildError, match=r"checkpoint\.safetensors is damaged"):
        _trained(austen, checkpoint=file)


def test_a_step_of_adamw_is_written_out(austen):
    spec = TrainingSpec(
        2, batch_size=100, learning_rate=0.01, decay_epochs=0, momentum=0.8, weight_decay=0.1, optimizer="adamw"
    )
    x, y = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)).double(), torch.arange(100) % 3
    model = build_model(ModelSpec(widths=(5, 3)), seed=0).double()
    w, one_hot = model[1].weight.detach().numpy().copy(), np.eye(3)[y.numpy()]
    mean, square = np.zeros_like(w), np.zeros_like(w)
    for step in (1, 2):
        p = np.exp(x.numpy() @ w.T)
        gradient = (p / p.sum(1, keepdims=True) - one_hot).T @ x.numpy() / 100
        mean, square = 0.8 * mean + 0.2 * gradient, 0.999 * square + 0.001 * gradient**2
        w -= 0.01 * 0.1 * w
        w -= 0.01 * (mean / (1 - 0.8**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    train(model, x, y, spec)
    np.testing.assert_allclose(model[1].weight.detach().numpy(), w, rtol=1e-9)


def test_the_optimizer_is_written_only_where_it_is_not_the_usual_one():
    assert "optimizer" not in TrainingSpec().to_dict()
    assert TrainingSpec.from_dict(_FEW.to_dict()) == _FEW
    with pytest.raises(BuildError, match="no optimizer 'adam'; choose one of sgd, adamw"):
        training.check_recipe(TrainingSpec(optimizer="adam"))


def test_texts_cannot_be_mirrored(austen):
    with pytest.raises(BuildError, match="Only images can be moved and mirrored"):
        _trained(austen, dataclasses.replace(_FEW, augment=True))


@pytest.mark.slow
def test_four_of_five_passages_of_held_out_chapters_are_told_apart(austen):
    model = build_model(fitted(ModelSpec("attention", None), austen.train, 6), seed=0)
    train(model, austen.train.inputs, torch.tensor(austen.train_labels), RECIPES["attention"])
    logits = training.logits_of(model, austen.test.inputs)
    assert training.accuracy(logits, austen.test_labels) > 0.82


def test_a_batch_in_parts_of_like_length_trains_as_a_whole_one(monkeypatch):
    rng, lengths = np.random.default_rng(0), np.array([9, 1, 5, 7, 3, 9, 2, 4, 6, 8, 1])
    inputs = PaddedRuns(rng.integers(1, 30, lengths.sum()).astype(np.int32), offsets_of(lengths))
    labels, spec = torch.from_numpy(rng.integers(0, 3, len(lengths))), TrainingSpec(epochs=3, batch_size=6)
    widths, found = [], []
    for parts in (1, 4):
        monkeypatch.setattr(order, "_PARTS", parts)
        model = _model()
        hook = model.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape))
        train(model, inputs, labels, spec, leave_out=np.array([3]))
        hook.remove()
        found.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.allclose(*found, atol=1e-6)
    whole, split = widths[:6], widths[6:]
    assert sum(count for count, _ in whole) == sum(count for count, _ in split) == 3 * 10
    assert sum(count * width for count, width in split) < 0.8 * sum(count * width for count, width in whole)


def test_parts_hold_each_row_once_and_the_shortest_first():
    lengths = np.array([4, 1, 3, 2, 8, 9])
    assert [part.tolist() for part in order.parts_of(torch.tensor([5, 1, 4, 0, 2]), lengths)] == [[1, 2, 0], [4, 5]]
    for batch in ([3], []):
        assert [part.tolist() for part in order.parts_of(torch.tensor(batch, dtype=torch.int64), lengths)] == [batch]
