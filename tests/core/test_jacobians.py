import numpy as np
import pytest
import torch
from torch import nn

from natscope.core.blocks import Formed, Lookup, Outer, squared_norm
from natscope.core.features import SHARD, FeatureMap
from natscope.core.jacobians import forward_with_penultimate, jacobian_blocks
from natscope.core.measurements import MEASUREMENTS
from natscope.core.peak import bytes_each
from natscope.core.sketches import SketchSpec
from tests import oracles
from tests.attention import READERS, reader


class Residual(nn.Module):
    """A block whose convolution runs twice, with an in-place activation on top of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(x + self.norm(self.conv(self.act(self.conv(x)))))


class Tied(nn.Module):
    """One weight used by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Scaled(nn.Module):
    """A parameter of no known layer, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.idle, self.head = nn.Parameter(torch.rand(5)), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(x * self.scale)


class Tokens(nn.Module):
    """Linear layers over a sequence, with an embedding and a LayerNorm, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.norm(torch.tanh(self.inner(x))).mean(1))


class ByName(Tokens):
    """The same, with layers that get their input by its name."""

    def forward(self, x):
        return self.head(input=self.norm(input=torch.tanh(self.inner(input=x))).mean(1))


CASES = {
    "mlp": (nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), (3, 4)),
    "mlp without biases": (nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)), (6,)),
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding=2, bias=False),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, (1, 3), padding="same", padding_mode="reflect"),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        ),
        (3, 9, 9),
    ),
    "batch norm": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, 3),
        ),
        (2, 4, 4),
    ),
    "along one axis": (
        nn.Sequential(
            nn.Conv1d(4, 6, 5, stride=2, dilation=2, groups=2, padding="valid"),
            nn.GroupNorm(3, 6),
            nn.Conv1d(6, 4, 3, padding=1, padding_mode="replicate", bias=False),
            nn.ReLU(inplace=True),
            nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1, output_padding=2, groups=2),
            nn.Flatten(),
            nn.RMSNorm(150),
            nn.Linear(150, 3),
        ),
        (4, 23),
    ),
    "transposed": (
        nn.Sequential(
            nn.ConvTranspose2d(2, 4, (2, 3), stride=(1, 2), padding=1, output_padding=(2, 1), dilation=3, bias=False),
            nn.LayerNorm((4, 7, 14)),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 2, 2, groups=2),
            nn.LayerNorm((15,), bias=False),
            nn.Flatten(),
            nn.Linear(2 * 8 * 15, 3),
        ),
        (2, 4, 5),
    ),
    "residual": (nn.Sequential(Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), (4, 5, 5)),
    "tied weights": (Tied(), (6,)),
    "other parameters": (Scaled(), (5,)),
    "tokens": (Tokens(), (4, 5)),
    "by name": (ByName(), (4, 5)),
}


def prepared(name, generator):
    model, shape = CASES[name]
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.normal_(module.weight, generator=generator)
    inputs = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    return model, inputs, torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("name", CASES)
def test_every_block_is_the_gradient_that_torch_func_gives(name, measurement, generator):
    model, inputs, targets = prepared(name, generator)
    wanted = oracles.jacobians(model, inputs, targets, MEASUREMENTS[measurement])
    blocks = jacobian_blocks(model, inputs, targets, measurement=measurement)
    assert [block.name for block in blocks] == [n for n, _ in model.named_parameters()]
    for block in blocks:
        formed = block.form()
        assert not formed.requires_grad
        assert formed.shape[1:] == block.shape
        torch.testing.assert_close(formed.reshape(wanted[block.name].shape), wanted[block.name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_network_is_left_as_it_was(name, generator):
    model, inputs, targets = prepared(name, generator)
    before = model(inputs)
    jacobian_blocks(model, inputs, targets)
    assert torch.equal(model(inputs), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_ntk_scales_the_weights_of_linear_and_conv_layers_by_gain_over_root_fan_in(generator):
    model, inputs, targets = prepared("batch norm", generator)
    plain = {block.name: block.form() for block in jacobian_blocks(model, inputs, targets)}
    for block in jacobian_blocks(model, inputs, targets, ntk=True):
        fan_in = {"0.weight": 2 * 9, "4.weight": 16, "6.weight": 5}.get(block.name)
        scale = (2 / fan_in) ** 0.5 if fan_in else 1.0
        torch.testing.assert_close(block.form(), scale * plain[block.name])


class Frozen(nn.Module):
    """A head on a body that nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6).requires_grad_(False), nn.Linear(6, 3)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


@pytest.mark.parametrize("ntk", [False, True])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_subclass_of_a_layer_is_scaled_as_the_layer(kind, ntk, generator):
    """It goes through torch.func."""
    subclass = type("Own", (kind,), {})
    plain, own = (
        nn.Sequential(layer(2, 3, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))
        .double()
        .eval()
        for layer in (kind, subclass)
    )
    own.load_state_dict(plain.state_dict())
    inputs = torch.randn(4, 2, 4, 4, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0])
    for left, right in zip(*(jacobian_blocks(m, inputs, targets, ntk=ntk) for m in (plain, own)), strict=True):
        torch.testing.assert_close(left.form().flatten(1), right.form().flatten(1))


def test_frozen_parameters_are_not_in_the_kernel(generator):
    model = Frozen().double().eval()
    inputs, targets = torch.randn(2, 5, generator=generator, dtype=torch.float64), torch.tensor([0, 2])
    (block,) = jacobian_blocks(model, inputs, targets)
    wanted = oracles.jacobians(model, inputs, targets, MEASUREMENTS["logit"])["head.weight"]
    assert block.name == "head.weight"
    torch.testing.assert_close(block.form(), wanted)


@pytest.mark.parametrize("name", ["residual", "tokens", "tied weights"])
def test_layers_are_chosen_by_patterns(name, generator):
    model, inputs, targets = prepared(name, generator)
    blocks = {block.name: block.form() for block in jacobian_blocks(model, inputs, targets)}
    some = jacobian_blocks(model, inputs, targets, layers=("*.weight",))
    assert [block.name for block in some] == [name for name in blocks if name.endswith(".weight")]
    for block in some:
        torch.testing.assert_close(block.form(), blocks[block.name])


def test_a_network_of_which_nothing_is_left_has_no_jacobian():
    model, inputs, targets = nn.Linear(2, 2).eval(), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"'head\.\*'.*weight, bias"):
        jacobian_blocks(model, inputs, targets, layers=("weight", "head.*"))
    with pytest.raises(ValueError, match="requires_grad"):
        jacobian_blocks(model.requires_grad_(False), inputs, targets)


def test_weights_of_linear_layers_stay_factored(generator):
    model, inputs, targets = prepared("mlp", generator)
    kinds = {block.name: type(block) for block in jacobian_blocks(model, inputs, targets)}
    assert kinds == {"1.weight": Outer, "1.bias": Formed, "3.weight": Outer, "3.bias": Formed}


def test_the_margin_is_the_log_odds_of_the_class():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([2, 0])
    chance = logits.softmax(1)[[0, 1], targets]
    torch.testing.assert_close(MEASUREMENTS["margin"](logits, targets), torch.log(chance / (1 - chance)))


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        jacobian_blocks(nn.Linear(2, 2), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))


def test_a_batch_norm_without_running_statistics_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="'1' keeps no running"):
        jacobian_blocks(model, torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))


def test_penultimate_features_are_what_enters_the_last_linear_layer(generator):
    model, inputs, _ = prepared("mlp", generator)
    logits, penultimate = forward_with_penultimate(model, inputs)
    torch.testing.assert_close(logits, model(inputs))
    torch.testing.assert_close(penultimate, model[:-1](inputs))


def test_a_network_without_a_linear_layer_has_no_penultimate_features():
    logits, penultimate = forward_with_penultimate(nn.Flatten(), torch.ones(2, 3))
    assert (logits.shape, penultimate.shape) == ((2, 3), (2, 0))


class OneByOne(nn.Module):
    """A head that gets one example at a time, without an axis of the examples, or tokens before them."""

    def __init__(self, how):
        super().__init__()
        self.head, self.how = nn.Linear(5, 3), how

    def forward(self, x):
        if self.how == "alone":
            return torch.stack([self.head(row) for row in x.flatten(1)])
        return self.head(x.reshape(len(x), -1, 5).transpose(0, 1)).mean(0)


@pytest.mark.parametrize(("how", "width"), [("alone", 5), ("tokens", 15)])
def test_penultimate_features_are_of_one_example_however_the_last_layer_takes_it(how, width):
    model, inputs = OneByOne(how), torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(forward_with_penultimate(model, inputs)[1], inputs)


@pytest.mark.parametrize("count", [1, 3])
def test_a_layer_that_never_gets_a_batch_has_a_jacobian_of_one_form(count, generator):
    """Three tokens before three examples look like a batch of them."""
    model = OneByOne("tokens").double().eval()
    inputs = torch.randn(count, 15, generator=generator, dtype=torch.float64)
    targets = torch.zeros(count, dtype=torch.int64)
    wanted = oracles.jacobians(model, inputs, targets, MEASUREMENTS["logit"])
    for block in jacobian_blocks(model, inputs, targets):
        assert isinstance(block, Formed)
        torch.testing.assert_close(block.form().reshape(wanted[block.name].shape), wanted[block.name])


def test_a_batch_takes_no_more_memory_than_the_bound_and_gives_the_same_numbers(generator, monkeypatch):
    model, inputs, _ = prepared("convolutions", generator)
    model, inputs, targets = model.float(), inputs.float().repeat(5, 1, 1, 1), torch.arange(20) % 3
    usual = FeatureMap(model, SketchSpec(dim=64), ntk=True)
    wanted = usual.features(inputs, targets)
    assert usual.batch_size == 64
    each = bytes_each(lambda count: usual.features(inputs[:count], targets[:count]), 1, 2)
    monkeypatch.setattr("natscope.core.features._MOST", 3.5 * each)
    bound = FeatureMap(model, SketchSpec(dim=64), ntk=True)
    np.testing.assert_allclose(bound.features(inputs, targets), wanted, rtol=1e-5, atol=1e-6)
    assert bound.batch_size == 3
    assert bytes_each(lambda count: bound.features(inputs[:count], targets[:count]), 6, 18) < each / 10
    model, inputs, targets = prepared("mlp", generator)
    small = FeatureMap(model.float(), SketchSpec(dim=64), ntk=True)
    monkeypatch.undo()
    small.features(inputs.float().repeat(3, 1, 1), targets.repeat(3))
    assert small.batch_size == SHARD


TEXTS = torch.tensor([[3, 7, 3, 19, 1], [11, 3, 0, 0, 0], [5, 5, 5, 0, 0]])


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("name", READERS)
def test_every_block_of_a_network_on_tokens_is_the_gradient_that_torch_func_gives(name, measurement):
    model, targets = reader(name).double(), torch.tensor([0, 2, 1])
    wanted = oracles.jacobians(model, TEXTS, targets, MEASUREMENTS[measurement])
    whole = sum(g.square().sum() for g in wanted.values()).sqrt()
    blocks = jacobian_blocks(model, TEXTS, targets, measurement=measurement)
    assert [block.name for block in blocks] == [n for n, _ in model.named_parameters()]
    for block in blocks:
        truth = wanted[block.name]
        torch.testing.assert_close(block.form().reshape(truth.shape), truth, rtol=1e-10, atol=1e-14 * float(whole))
        assert squared_norm(block) == pytest.approx(float(truth.square().sum()), rel=1e-9, abs=1e-24 * float(whole))


@pytest.mark.parametrize("name", READERS)
def test_padding_changes_no_gradient(name):
    model, targets = reader(name).double(), torch.tensor([0, 2, 1])
    alone = jacobian_blocks(model, TEXTS[1:2, :2], targets[1:2])
    for block, padded in zip(alone, jacobian_blocks(model, TEXTS, targets), strict=True):
        torch.testing.assert_close(padded.form()[1], block.form()[0], rtol=1e-10, atol=1e-12)


def test_logits_and_penultimate_features_of_tokens():
    model = reader()
    logits, penultimate = forward_with_penultimate(model, TEXTS)
    assert torch.equal(logits, model(TEXTS))
    assert penultimate.shape == (3, 8)
    each = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 3), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten())
    assert forward_with_penultimate(each, TEXTS)[1].shape == (3, 0)  # D may not change with the longest text's length


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_a_table_is_kept_as_the_rows_that_are_read(kind):
    model = reader(masks=False)
    (table,) = jacobian_blocks(model, TEXTS.to(kind), torch.tensor([0, 2, 1]), layers=("words.*",))
    assert isinstance(table, Lookup)
    assert table.shape == (20, 8)
    torch.testing.assert_close(table.form(slice(5, 12)), table.form()[:, 5:12])
    assert not table.form()[:, 0].any()  # the row of padding, which does not learn


class ReadTwice(nn.Module):
    """A table that is read by two calls of one layer, of texts and of one number a text."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(torch.tanh(self.words(ids)).mean(1) * self.words(ids[:, 0]))


def test_a_table_that_is_read_twice_has_the_sum_of_both():
    model, targets = ReadTwice().double().eval(), torch.tensor([0, 2, 1])
    wanted = oracles.jacobians(model, TEXTS, targets, MEASUREMENTS["logit"])
    table = jacobian_blocks(model, TEXTS, targets)[0]
    assert isinstance(table, Lookup)
    torch.testing.assert_close(table.form(), wanted["words.weight"])
