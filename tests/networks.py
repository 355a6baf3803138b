"""A registry of small networks such as people bring, each to be differentiated rightly or refused in one sentence."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

NETWORKS: dict[str, "Case"] = {}


@dataclass(frozen=True)
class Case:
    """One network.

    Args:
        make: returns it, with its initial weights.
        shape: of one input.
        classes: how many logits it gives.
        refused: a pattern of the sentence that says why it cannot be used; None if it can be.
        by_torch_func: whether a layer of it goes through `torch.func`.
        output: what to take of what it returns, as `--output` does.
        in_torch_func: whether torch.func itself can differentiate it.
        remark: a pattern of what is said of its outputs and parameters; nothing is said when None.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 16, 16)
    classes: int = 4
    refused: str | None = None
    by_torch_func: bool = False
    output: str | None = None
    in_torch_func: bool = True
    remark: str | None = None


def case(name, **about):
    """Register the decorated function, or class, that makes a network."""

    def register(make):
        NETWORKS[name] = Case(make, **about)
        return make

    return register


class Base(nn.Module):
    """Two convolutions and a head; subclasses change one thing about it."""

    def __init__(self, out=4):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.head = nn.Linear(8, out)

    def body(self, x):
        return torch.relu(self.c2(torch.relu(self.c1(x)))).mean((2, 3))

    def forward(self, x):
        return self.head(self.body(x))


case("plain")(Base)


def bent(forward, out=4, **modules):
    """Return a Base with another forward and more modules."""

    class Bent(Base):
        def __init__(self):
            super().__init__(out)
            for name, module in modules.items():
                setattr(self, name, module)

    Bent.forward = forward
    return Bent()


def bends(name, **about):
    """Register a `Base` whose forward is the decorated function."""

    def register(forward):
        NETWORKS[name] = Case(lambda: bent(forward), **about)
        return forward

    return register


@case("mobilenet_v3_small", shape=(3, 32, 32))
def _mobilenet():
    return torchvision.models.mobilenet_v3_small(num_classes=4, width_mult=0.25)


@case("shufflenet", shape=(3, 32, 32))
def _shufflenet():
    return torchvision.models.ShuffleNetV2([1, 1, 1], [8, 16, 16, 32, 64], num_classes=4)


@case("swin block", by_torch_func=True)
def _swin():
    return torchvision.models.SwinTransformer(
        [4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=4, stochastic_depth_prob=0.1
    )


@case("convnext block", by_torch_func=True)
def _convnext():
    block = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=4)


@case("vision transformer", by_torch_func=True)
class TinyViT(nn.Module):
    """A class token, positions, and the library's encoder."""

    def __init__(self, d=8):
        super().__init__()
        self.patch = nn.Conv2d(3, d, 4, 4)
        self.token, self.position = (nn.Parameter(torch.randn(1, n, d) * 0.1) for n in (1, 17))
        layer = nn.TransformerEncoderLayer(d, 2, 16, batch_first=True, norm_first=True, dropout=0.1)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.layers(x))[:, 0])


@case("sequence first", by_torch_func=True)
class SequenceFirst(nn.Module):
    """Tokens along the first axis, as `nn.TransformerEncoderLayer` has it by default; as many as there are images."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).permute(2, 0, 1)
        return self.head(torch.tanh(self.mix(self.norm(tokens))).mean(0))


@case("LSTM head", by_torch_func=True)
class Recurrent(Base):
    """Rows of a picture, one after the other."""

    def __init__(self):
        super().__init__()
        self.c2, self.lstm = None, nn.LSTM(6, 8, batch_first=True)

    def forward(self, x):
        return self.head(self.lstm(torch.relu(self.c1(x)).mean(3).mT)[0][:, -1])


@case("mixer")
class Mixer(nn.Module):
    """Linear layers over channels and, transposed, over places."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.places, self.channels, self.head = nn.Linear(16, 16), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        x = x + self.places(self.norm(x).mT).mT
        return self.head((x + self.channels(functional.gelu(self.norm(x)))).mean(1))


@case("decoder")
def _decoder():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2),
        nn.GroupNorm(2, 6),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(6, 4, (2, 3), bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
    )


@case("sound", shape=(2, 40))
def _sound():
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, 2, padding=2, padding_mode="circular"),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.ConvTranspose1d(6, 4, 4, 2, 1),
        nn.Flatten(),
        nn.RMSNorm(160),
        nn.Linear(160, 4),
    )


@case("words", shape=(7,), by_torch_func=True)
class Words(nn.Module):
    """Numbers of words, which arrive as floating-point numbers."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(9, 8, padding_idx=0), nn.Embedding(7, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        numbers = (x.abs() * 4).long().clamp(max=8)
        tokens = self.words(numbers) + self.places(torch.arange(7))
        return self.head(torch.tanh(self.norm(tokens)).mean(1))


@case("tied weights", by_torch_func=True)
class Tied(Base):
    """One weight in two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.tanh(self.one(self.body(x))))))


@case("old weight norm", by_torch_func=True)
def _old_weight_norm():
    model = Base()
    model.c2 = torch.nn.utils.weight_norm(model.c2)
    return model


def _parametrized(kind):
    model = Base()
    model.c2, model.head = kind(model.c2), kind(model.head)
    return model


case("weight norm", by_torch_func=True)(lambda: _parametrized(parametrizations.weight_norm))
case("spectral norm", by_torch_func=True)(lambda: _parametrized(parametrizations.spectral_norm))


@bends("in-place ReLU")
def _in_place(self, x):
    x = functional.relu(self.c1(x), inplace=True)
    x = self.c2(x)
    x += 1
    return self.head(x.relu_().mean((2, 3)))


@case("reused module")
class Twice(Base):
    """One convolution that runs twice."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Conv2d(8, 8, 3, 1, 1)

    def body(self, x):
        x = torch.relu(self.c2(torch.relu(self.c1(x))))
        return torch.relu(self.middle(torch.relu(self.middle(x)))).mean((2, 3))


@bends("log-softmax", remark="log-probabilities")
def _log_softmax(self, x):
    return functional.log_softmax(self.head(self.body(x)), 1)


@bends("dictionary", remark="logits are 'logits'")
def _dictionary(self, x):
    features = self.body(x)
    return {"features": features, "logits": self.head(features)}


@bends("object", remark="logits are 'logits'")
def _object(self, x):
    features = self.body(x)
    return SimpleNamespace(features=features, logits=self.head(features))


@bends("tuple", output="1")
def _tuple(self, x):
    features = self.body(x)
    return features, self.head(features)


@case("frozen backbone", remark="frozen")
def _frozen():
    model = Base()
    model.c1.requires_grad_(False)
    model.c2.requires_grad_(False)
    return model


case("one logit", classes=2, remark="one logit z")(lambda: Base(1))
case("one logit in a row", classes=2, remark="one logit z")(
    lambda: bent(lambda self, x: self.head(self.body(x)).squeeze(), 1)
)


@case("no Linear")
def _no_linear():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@case("ArcFace", by_torch_func=True)
class ArcFace(Base):
    """A head that is a weight alone."""

    def __init__(self):
        super().__init__()
        self.head, self.weight = None, nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        return 8 * functional.linear(functional.normalize(self.body(x)), functional.normalize(self.weight))


class OwnConv(nn.Conv2d):
    """A subclass that changes nothing."""


@case("subclass", by_torch_func=True)
def _subclass():
    model = Base()
    model.c2 = OwnConv(6, 8, 3, 2, 1)
    return model


@bends("F.linear", by_torch_func=True)
def _functional(self, x):
    return functional.linear(self.body(x), self.head.weight, self.head.bias)


@bends("keyword call")
def _keyword(self, x):
    return self.head(input=torch.relu(self.c2(input=torch.relu(self.c1(input=x)))).mean((2, 3)))


@case("patches", by_torch_func=True)
class Patches(nn.Module):
    """Crops that are flattened into the batch."""

    def __init__(self):
        super().__init__()
        self.c, self.head = nn.Conv2d(3, 8, 3, 1, 1), nn.Linear(8, 4)

    def forward(self, x):
        batch = len(x)
        x = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(batch * 4, 3, 8, 8)
        return self.head(torch.relu(self.c(x)).mean((2, 3)).view(batch, 4, 8).mean(1))


@bends("one by one", by_torch_func=True)
def _one_by_one(self, x):
    return torch.stack([self.head(row) for row in self.body(x).unbind()])


@bends("checkpointed", in_torch_func=False)
def _checkpointed(self, x):
    return self.head(checkpoint(self.body, x, use_reentrant=False))


@case("author's hook")
def _hooked():
    model = Base()
    model.c1.register_forward_hook(lambda module, args, output: output * 2)
    return model


# What is refused.
bends("bfloat16", refused="bfloat16.*float32")(lambda self, x: self.head(self.body(x)).bfloat16())


@bends("autocast", refused="bfloat16.*autocast")
def _autocast(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return self.head(self.body(x)).float()


@bends("past its layer", refused="'head.weight'.*past its layer")
def _past(self, x):
    features = self.body(x)
    extra = functional.linear(features, self.head.weight[3:])
    return self.head(features) + functional.pad(extra, (3, 0))


@bends("data-dependent branch", refused="in a batch than alone")
def _branch(self, x):
    return self.head(self.body(x if x.mean() > 0 else -x))


@bends("batch statistics", refused="in a batch than alone")
def _batch_statistics(self, x):
    features = self.body(x)
    return self.head(features - features.mean(0))


@bends("input changed in place", refused="in place.*'head'")
def _in_place_input(self, x):
    features = self.body(x)
    logits = self.head(features)
    features.zero_()
    return logits


@case("TorchScript within", refused="'c2'.*TorchScript")
def _scripted():
    model = Base()
    model.c2 = torch.jit.script(model.c2)
    return model


@case("quantized", refused="'head'.*quantized")
def _quantized():
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(Base(), {nn.Linear}, dtype=torch.qint8)


@case("compiled within", refused="'c2'.*compiled.*_orig_mod")
def _compiled():
    model = Base()
    model.c2 = torch.compile(model.c2)
    return model


@case("compiled in place", refused=r"'c2'.*compiled.*\.compile\(\)")
def _compiled_in_place():
    model = Base()
    model.c2.compile()
    return model


case("meta", refused="'c1.weight'.*meta")(lambda: Base().to("meta"))


@case("words by the whole batch", shape=(7,), refused="in a batch than alone")
class WordsByBatch(Words):
    """Its probes would be indices out of range."""

    def forward(self, x):
        tokens = self.words(x.abs().long()) + self.places(torch.arange(7))
        return self.head(torch.tanh(self.norm(tokens)).mean(1)) + x.mean()


bends("softmax", refused="softmax")(lambda self, x: self.head(self.body(x)).softmax(1))
bends("sigmoid", refused="sigmoid")(lambda self, x: self.head(self.body(x)).sigmoid())
bends("a tuple of two", refused="--output")(lambda self, x: (self.head(self.body(x)), self.head(self.body(-x))))
