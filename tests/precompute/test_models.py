import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from natscope.core.errors import BuildError
from natscope.core.images import Images
from natscope.core.jacobians import jacobian_blocks
from natscope.core.measurements import MEASUREMENTS
from natscope.precompute.training.models import ModelSpec, build_model, fitted, source_of
from natscope.precompute.training.trusted import trust
from tests import oracles
from tests.conftest import one_sentence


def test_the_default_is_the_papers_mlp():
    model = build_model(ModelSpec(), seed=0)
    assert [tuple(p.shape) for p in model.parameters()] == [(512, 784), (256, 512), (10, 256)]
    assert [type(layer) for layer in model] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_weights_are_kaiming_normal():
    for weight in build_model(ModelSpec(widths=(600, 500, 400)), seed=1).parameters():
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight.shape[1]), rel=0.01)
        assert abs(weight.mean().item()) < 0.001


def test_the_seed_alone_decides_the_weights():
    spec = ModelSpec(widths=(6, 5, 4))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(spec, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = build_model(spec, seed=3).state_dict(), build_model(spec, seed=4).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert not torch.equal(weight, other[name])


def test_biases_start_at_zero():
    model = build_model(ModelSpec(widths=(6, 5, 4), bias=True), seed=0)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert [b.abs().sum().item() for b in biases] == [0, 0]


def test_a_spec_survives_json():
    spec = ModelSpec(widths=(6, 5, 4), bias=True)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
    with pytest.raises(TypeError, match="depth"):
        ModelSpec.from_dict({"depth": 3})


@pytest.mark.parametrize("widths", [(), (784,), (784, 0, 10), (784, -5, 10), (784, 2.5, 10), (True, 10)])
def test_widths_that_make_no_network_are_refused(widths):
    with pytest.raises(BuildError, match="two or more positive"):
        build_model(ModelSpec(widths=widths), seed=0)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(BuildError, match=r"'vit'; .* mlp, resnet9,"):
        build_model(ModelSpec(architecture="vit"), seed=0)


# ResNet-9


def test_the_resnet9_is_the_papers():
    model = build_model(ModelSpec("resnet9", (3, 10)), seed=0)
    assert sum(p.numel() for p in model.parameters()) == 2_274_880
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0]) for m in convolutions] == [
        (3, 64, 3, 1, 1),
        (64, 128, 5, 2, 2),
        (128, 128, 3, 1, 1),
        (128, 128, 3, 1, 1),
        (128, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
        (256, 128, 3, 1, 0),
    ]
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert len([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]) == len(convolutions)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in head] == [(128, 10)]
    images, shapes = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    for layer in model:
        images = layer(images)
        shapes.append(tuple(images.shape[1:]))
    assert shapes[2::3][:2] == [(64, 32, 32), (128, 16, 16)]
    assert shapes[-5:] == [(128, 6, 6), (128, 1, 1), (128,), (10,), (10,)]
    torch.testing.assert_close(images, 0.2 * model[:-1](torch.randn(2, 3, 32, 32, generator=_seeded(0))))


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_resnet9s_weights_are_pytorchs_usual_ones_and_its_norms_start_as_nothing():
    model = build_model(ModelSpec("resnet9", (3, 10)), seed=1)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            usual = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size).weight
            assert layer.weight.std().item() == pytest.approx(usual.std().item(), rel=0.05)
            assert layer.weight.abs().max() <= layer.weight[0].numel() ** -0.5
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_the_resnet9s_jacobian_is_the_one_that_torch_func_gives(measurement):
    model, generator = build_model(ModelSpec("resnet9", (3, 4)), seed=0).double(), _seeded(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    images, targets = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64), torch.tensor([1, 3])
    wanted = oracles.jacobians(model.eval(), images, targets, MEASUREMENTS[measurement])
    blocks = jacobian_blocks(model, images, targets, measurement=measurement)
    assert [block.name for block in blocks] == list(wanted)
    for block in blocks:
        torch.testing.assert_close(
            block.form().reshape(wanted[block.name].shape), wanted[block.name], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    ("spec", "shape", "widths"),
    [
        (ModelSpec("mlp", None), (8, 6), (48, 512, 256, 3)),
        (ModelSpec("mlp", None), (8, 6, 3), (144, 512, 256, 3)),
        (ModelSpec("mlp", (48, 3)), (8, 6), (48, 3)),
        (ModelSpec("resnet9", None), (8, 6), (1, 3)),
        (ModelSpec("resnet9", None), (8, 6, 3), (3, 3)),
        (ModelSpec("my:net", None), (8, 6, 3), None),
    ],
)
def test_widths_are_fitted_to_the_data(spec, shape, widths):
    examples = Images(np.zeros((1, *shape), np.uint8), (0.5,), (0.5,))
    assert fitted(spec, examples, 3) == dataclasses.replace(spec, widths=widths)


@pytest.mark.parametrize("name", ["resnet9", "my:net"])
def test_biases_of_networks_without_a_choice_are_refused(name):
    examples = Images(np.zeros((1, 8, 6), np.uint8), (0.5,), (0.5,))
    assert fitted(ModelSpec("mlp", None, bias=True), examples, 3).bias
    with pytest.raises(BuildError, match=f"^bias=True is for the network mlp, not for {name}; leave it out.$"):
        fitted(ModelSpec(name, None, bias=True), examples, 3)


@pytest.mark.parametrize("widths", [None, (3,), (3, 10, 10), (0, 10)])
def test_a_resnet9_has_two_widths(widths):
    with pytest.raises(BuildError, match="A resnet9 has two widths"):
        build_model(ModelSpec("resnet9", widths), seed=0)


# Factories


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of the user's and give its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = []

    def write(text):
        names.append(f"their_module_{len(names)}")
        (tmp_path / f"{names[-1]}.py").write_text(f"import torch\nfrom torch import nn\n{text}\n")
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def _built(name, seed=0):
    trust(name)
    return build_model(ModelSpec(name, None), seed=seed)


def test_a_factory_is_a_function_or_a_class(module):
    name = module(
        "def net():\n    return nn.Linear(2, 3).half()\n"
        "class Net(nn.Module):\n    def __init__(self, width=3):\n        super().__init__()\n"
        "        self.head = nn.Linear(2, width)\n"
    )
    for attribute in ("net", "Net"):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first, again, other = (next(_built(f"{name}:{attribute}", seed).parameters()) for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), state)
        assert first.dtype == torch.float32
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_what_a_factory_draws_with_any_generator_depends_on_the_seed(module):
    name = module(
        "import random\nimport numpy as np\n"
        "def net():\n    model = nn.Linear(2, 3)\n    model.drawn = random.random(), np.random.rand()\n    return model"
    )
    first, again, other = (_built(f"{name}:net", seed).drawn for seed in (3, 3, 4))
    assert first == again
    assert not set(first) & set(other)


def test_an_edited_module_has_another_source(module, tmp_path):
    name = module("net = lambda: nn.Linear(2, 3)")
    spec = ModelSpec(f"{name}:net", None)
    trust(spec.architecture)
    first = source_of(spec)
    assert source_of(spec) == first
    (tmp_path / f"{name}.py").write_text("import beside_it")
    second = source_of(spec)
    assert second not in (first, None)
    for text in ("WIDTH = 3", "WIDTH = 4"):
        (tmp_path / "beside_it.py").write_text(text)
        assert source_of(spec) not in (first, second)
        second = source_of(spec)
    assert source_of(ModelSpec()) is None


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        ("", "net", r"module {name} has no 'net'; name a function or class that is defined in it\.$"),
        ("class Net(nn.Module):\n    pass", "net", r"module {name} has no 'net'; it has Net\.$"),
        ("net = 3", "net", "^{name}:net is neither a function"),
        ("net = nn.Linear(2, 3)", "net", "is neither a function"),
        ("def net():\n    return 3", "net", r"^{name}:net\(\) gave int, not a torch\.nn\.Module\.$"),
        ("def net(width):\n    pass", "net", r"^{name}:net\(\) failed: TypeError: .*'width'"),
        ("def net():\n    return nn.ReLU()", "net", "has no parameters"),
        ("def net():\n    return nn.DataParallel(nn.Linear(2, 3))", "net", "gave DataParallel, .* give the one within"),
        ("def net():\n    return torch.compile(nn.Linear(2, 3))", "net", "gave OptimizedModule, .* give its"),
        ("def net():\n    return torch.jit.script(nn.Linear(2, 3))", "net", "gave RecursiveScriptModule, .* give what"),
        (
            "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 3)\n"
            "    def get_extra_state(self):\n        return {}\n    def set_extra_state(self, state):\n        pass",
            "Net",
            "state_dict of {name}:Net does not hold .*; leave out get_extra_state",
        ),
        (
            "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 3)\n"
            "    def state_dict(self, **rest):\n        return {}",
            "Net",
            "does not hold the parameters, and tensors alone",
        ),
        ("def net():\n    return nn.LazyLinear(3)", "net", "parameter 'weight' of .* no shape"),
        ("import nothing_of_the_kind", "net", r"module {name} fails .* ModuleNotFoundError: .*'nothing_of_the_kind'"),
        ("def net(:", "net", r"module {name} fails .* SyntaxError: "),
        ("1 / 0", "net", "module {name} fails .* ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:.torch.jit")
def test_factories_that_make_no_network_are_one_sentence(module, text, attribute, message):
    name = module(text)
    with pytest.raises(BuildError, match=message.format(name=name)) as caught:
        _built(f"{name}:{attribute}")
    one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "name",
    ["http.server:test", "os:abort", "natscope.core.cache:BoundedCache", "natscope.app.cli.commands:main"],
)
def test_a_strangers_manifest_calls_nothing_of_python_or_natscope(name):
    with pytest.raises(BuildError, match="of Python or natscope"):
        _built(name)


def test_a_module_that_is_not_there_is_one_sentence():
    with pytest.raises(BuildError, match="no module nowhere_at_all"):
        _built("nowhere_at_all:net")


@pytest.mark.parametrize(
    "name", [":net", "a b:net", "..up:net", "up.:net", "a:b:c", "a:", "\x1b[2J:net", "a" * 500 + ":b"]
)
def test_a_name_that_no_module_can_have_is_one_sentence(name):
    with pytest.raises(BuildError, match=r"^--model \(factory= in Python\) takes module\.path:function") as caught:
        _built(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_a_lack_of_memory_is_no_fault_of_a_factory(module):
    for text in ("raise MemoryError", "def net():\n    raise MemoryError"):
        with pytest.raises(MemoryError):
            _built(f"{module(text)}:net")
