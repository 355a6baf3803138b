import pytest
import torch
from torch import nn
from torch.nn.functional import linear, one_hot

from natscope.core.errors import BuildError
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.validate import check_suitable, check_trains
from tests.attention import READERS, reader
from tests.conftest import one_sentence

_SPEC = ModelSpec("their:net", None)


class Conv(nn.Module):
    """A small network for colour images; subclasses bend it."""

    def __init__(self, channels=3, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, classes)

    def features(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class Attention(nn.Module):
    """Tokens from patches, a bare parameter and multi-head attention: what is not done by hand."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.place = nn.Parameter(torch.zeros(1, 4, 8))
        self.norm = nn.LayerNorm(8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.norm(self.patches(x).flatten(2).mT + self.place)
        return self.head((tokens + self.mix(tokens, tokens, tokens)[0]).mean(1))


class Transformer(nn.Module):
    """The library's own encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(24, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.encoder(x.flatten(2).mT.reshape(len(x), 8, 24)).mean(1))


def _images(channels=3, side=8, count=3):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def _with(forward, **modules):
    """Return a Conv with another forward and more modules."""

    class Bent(Conv):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

    Bent.forward = forward
    torch.manual_seed(0)
    return Bent()


def _refused(model, images=None, classes=4, spec=_SPEC):
    with pytest.raises(BuildError, match=r"\.$") as caught:
        check_suitable(model, _images() if images is None else images, classes, spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_usual_network_suits_and_is_left_as_it_was():
    model = Conv()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = check_suitable(model, _images(), 4, _SPEC)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert (found.penultimate, found.by_torch_func) == (6, ())
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_natscopes_own_networks_suit():
    assert check_suitable(build_model(ModelSpec("resnet9", (3, 10)), seed=0), _images(3, 32, 2), 10, _SPEC)
    assert check_suitable(build_model(ModelSpec(widths=(64, 5, 4)), seed=0), _images(1, 8), 4, _SPEC)


def test_layers_that_go_through_torch_func_are_named():
    assert check_suitable(Attention(), _images(), 4, _SPEC).by_torch_func == (
        "Attention (1 parameter)",
        "MultiheadAttention 'mix' (2 parameters)",
        "NonDynamicallyQuantizableLinear 'mix.out_proj' (2 parameters)",
    )
    found = check_suitable(Transformer(), _images(), 4, _SPEC)
    assert "MultiheadAttention 'encoder.self_attn' (2 parameters)" in found.by_torch_func


def test_tied_weights_and_frozen_layers_suit():
    model = _with(lambda self, x: self.head(self.tied(self.tied2(self.features(x)))), tied=nn.Linear(6, 6))
    model.tied2 = nn.Linear(6, 6)
    model.tied2.weight = model.tied.weight
    model.conv.requires_grad_(False)
    found = check_suitable(model, _images(), 4, _SPEC)
    assert found.by_torch_func == ("Linear 'tied' (2 parameters)", "Linear 'tied2' (1 parameter)")


@pytest.mark.parametrize(
    ("model", "images", "sentence"),
    [
        (Conv(1), _images(), "Conv2d 'conv', which takes 1 channels and gets 3"),
        (Conv(3), _images(1), "1 channel (grey) and 8 × 8 pixels: "),
        (nn.Sequential(nn.Flatten(), nn.Linear(300, 4)), _images(), "Linear '1', which takes 300 numbers and gets 192"),
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(), nn.Linear(4, 4)), _images(), "it fails in Conv2d '0' ("),
        (build_model(ModelSpec("resnet9", (3, 4)), seed=0), _images(), "it fails in Conv2d '12' ("),
    ],
)
def test_images_that_do_not_go_in_name_the_layer(model, images, sentence):
    said = _refused(model, images)
    assert "their:net does not take images" in said
    assert sentence in said


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [
        (lambda self, x: self.head(self.features(x))[:, :3], "3 outputs"),
        (lambda self, x: (self.head(self.features(x)),), "gives a tuple;"),
        (lambda self, x: self.head(self.features(x)).squeeze(), "gives (4,) for one example alone;"),
        (lambda self, x: self.head(self.features(x))[: len(x) - (len(x) == 1)], "gives (0, 4) for one example"),
        (lambda self, x: self.head(self.features(x)) if len(x) > 1 else x.item(), "fails on one example alone"),
        (lambda self, x: {"logits": self.head(self.features(x))}, "gives a dict;"),
        (lambda self, x: self.head(self.features(x))[..., None], "float32 of shape (3, 4, 1)"),
        (lambda self, x: self.head(self.features(x)).mean(0), "float32 of shape (4,)"),
        (lambda self, x: self.head(self.features(x)).argmax(1), "int64 of shape (3,)"),
        (lambda self, x: self.head(self.features(x)) / 0, "their:net are not finite"),
        (lambda self, x: self.head(self.features(x)).bfloat16(), "computes in bfloat16, and natscope in float32"),
        (lambda self, x: self.head(self.features(x)).softmax(1), "softmax"),
        (lambda self, x: self.head(self.features(x) * torch.rand(6)), "other outputs every time"),
        (lambda self, x: self.head(self.features(x) - self.features(x).mean(0)), "in a batch than alone"),
        (
            lambda self, x: self.head(self.features(x)) + linear(self.features(x), self.head.weight),
            "'head.weight' for one example",
        ),
        (lambda self, x: self.head(self.features(x)).detach(), "cannot be differentiated"),
    ],
)
def test_outputs_that_cannot_be_attributed_are_one_sentence(forward, sentence):
    assert sentence in _refused(_with(forward))


@pytest.mark.parametrize("norm", [nn.GroupNorm(6, 6), nn.InstanceNorm2d(6, affine=True)])
def test_a_bias_that_a_normalisation_takes_away_suits(norm):
    """Its gradient is rounding alone."""
    model = Conv()
    model.norm = norm
    assert check_suitable(model, _images(), 4, _SPEC).parameters


class Tie(nn.Module):
    """The larger of what two layers of the same weights give, after the rounding of one batch size or another."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 4)
        self.right.load_state_dict(self.left.state_dict())

    def forward(self, x):
        first, second, _ = x.flatten(2).unbind(1)
        rounding = 1e-6 if len(x) > 1 else -1e-6
        return self.head(torch.maximum(self.left(first) + rounding, self.right(second)))


def test_ties_of_equal_numbers_are_no_fault_of_a_network():
    grey = _images(1).expand(-1, 3, -1, -1)
    assert check_suitable(Tie(), grey, 4, _SPEC)


def test_a_network_whose_eval_returns_nothing_suits():
    class Quiet(Conv):
        def train(self, mode=True):
            super().train(mode)

    assert check_suitable(Quiet(), _images(), 4, _SPEC).parameters


def test_a_batch_norm_without_running_statistics_is_named():
    model = _with(Conv.forward)
    model.norm = nn.BatchNorm2d(6, track_running_stats=False)
    assert _refused(model).startswith("Batch norm 'norm' ")


class Router(nn.Module):
    """Does what torch.func cannot follow: it looks at a number."""

    def forward(self, x):
        return 2 * x if x.sum() > 0 else x


def test_what_torch_func_cannot_follow_is_named():
    model = _with(
        lambda self, x: self.head(self.slope(self.router(self.features(x)))), slope=nn.PReLU(), router=Router()
    )
    said = _refused(model)
    assert "PReLU 'slope' (1 parameter) needs torch.func" in said
    assert "fails in Router 'router' (" in said


def test_training_is_tried_in_training_mode():
    check_trains(Conv(), _images(), 0, _SPEC)

    def auxiliary(self, x):
        return (Conv.forward(self, x), x) if self.training else Conv.forward(self, x)

    def single(self, x):
        return self.head(self.flat(self.features(x)))

    def broken(self, x):
        return self.head(self.features(x)) + one_hot(torch.zeros(7, dtype=torch.int64)) if self.training else x

    cases = (
        (_with(auxiliary), 0, "in training mode fails"),
        (_with(broken), 0, "in training mode fails"),
        (_with(single, flat=nn.BatchNorm1d(6)), 1, "last step of every epoch"),
        (Conv().requires_grad_(False), 0, "their:net are frozen"),
    )
    for model, last, sentence in cases:
        with pytest.raises(BuildError, match=r"\.$") as caught:
            check_trains(model, _images(), last, _SPEC)
        assert sentence in one_sentence(str(caught.value))
    check_trains(_with(single, flat=nn.BatchNorm1d(6)), _images(), 2, _SPEC)


def test_a_lack_of_memory_is_no_fault_of_a_network():
    def forward(self, x):
        raise MemoryError

    model = _with(forward)
    with pytest.raises(MemoryError):
        check_suitable(model, _images(), 4, _SPEC)
    with pytest.raises(MemoryError):
        check_trains(model, _images(), 0, _SPEC)


class _Sorting(nn.Module):
    """Sorts a batch by its lengths and puts it back, as code around recurrent layers does."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        order = x.abs().sum(1).sort(descending=True, stable=True)[1]
        return self.head(self.body(x[order]).tanh()[order.argsort()])


def test_a_network_that_sorts_a_batch_is_seen_though_its_first_inputs_are_in_order():
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    x = x[x.abs().sum(1).argsort(descending=True)]
    with pytest.raises(BuildError, match=r"first axis|influence each other"):
        check_suitable(_Sorting(), x, 3, ModelSpec("sorting:Net", None))


IDS = torch.tensor([[3, 7, 3, 19, 1], [11, 3, 0, 0, 0], [5, 5, 5, 0, 0], [8, 0, 0, 0, 0]])


class Texts:
    """Ids that are read row by row."""

    shape, lengths = tuple(IDS.shape), (IDS > 0).sum(1).numpy()

    def __len__(self):
        return len(IDS)

    def __getitem__(self, rows):
        return IDS[rows]


@pytest.mark.parametrize("name", READERS)
def test_networks_on_tokens_suit(name):
    model, seen = reader(name), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    suitable = check_suitable(model, Texts(), 3, _SPEC)
    assert suitable.penultimate == 8
    assert len(suitable.by_torch_func) == (name != "places of each text")
    given = {tuple(row) for row in IDS.tolist()}
    plain = [ids for ids in seen if not torch._C._functorch.is_functorch_wrapped_tensor(ids)]
    assert {tuple(row) for ids in plain for row in ids.tolist()} == given  # others are no tokens


class Padded(nn.Module):
    """The library's encoder, which leaves padding out by nested tensors."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.encoder(self.words(ids), src_key_padding_mask=ids == 0)[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_librarys_encoder_suits_with_padding():
    torch.manual_seed(0)
    assert check_suitable(Padded(), Texts(), 3, _SPEC).penultimate == 8


def test_a_weight_of_a_network_on_tokens_that_is_used_past_its_layer_is_named():
    model = reader()
    model.head.register_forward_hook(lambda layer, args, logits: logits + linear(args[0], layer.weight))
    with pytest.raises(BuildError, match=r"the gradient of 'head\.weight' for one example is another"):
        check_suitable(model, Texts(), 3, _SPEC)
