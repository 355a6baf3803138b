"""Networks that return more than logits, one logit, or have no Linear layer: built, opened and asked as others are."""

import numpy as np
import pytest
import torch
from PIL import Image

import natscope
from natscope.app.cli.commands import main
from natscope.app.views.training_map import _arrangements
from natscope.core.errors import BuildError, QueryError
from natscope.core.methods import METHODS
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.opening import faults
from natscope.precompute.training.models import ModelSpec, network_of
from tests.conftest import module_of_ones_own

_MODULE = """
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, out=3):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, out)

    def body(self, x):
        return torch.relu(self.conv(x)).mean((2, 3))

    def forward(self, x):
        return self.head(self.body(x))


class Scores(Plain):
    def forward(self, x):
        features = self.body(x)
        return {"scores": self.head(features), "features": features}


seen = set()


def settings():
    cudnn = torch.backends.cudnn
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic


class Watching(Plain):
    def forward(self, x):
        seen.add(settings())
        return super().forward(x)


class One(Plain):
    def __init__(self):
        super().__init__(1)


class NoLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))).mean((2, 3))
"""
_SKETCH = SketchSpec(dim=32)


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    with module_of_ones_own(tmp_path_factory.mktemp("heads"), "net_with_a_head", _MODULE) as module:
        yield module


@pytest.fixture(scope="module")
def sets():
    inputs = torch.randn(72, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (inputs[:60], torch.arange(60) % 3), (inputs[60:], torch.arange(12) % 3)


def _built(model, sets, out, **settings):
    return natscope.build(model, *sets, out=out, **({"sketch": _SKETCH, "methods": ()} | settings))


@pytest.fixture(scope="module")
def without_linear(own, sets, tmp_path_factory):
    torch.manual_seed(0)
    return _built(own.NoLinear(), sets, tmp_path_factory.mktemp("built") / "own", methods=None)


def test_the_logits_are_taken_out_of_what_a_network_returns(own, sets, tmp_path):
    model, plain = own.Scores(), own.Plain()
    plain.load_state_dict(model.state_dict())
    with pytest.raises(BuildError, match=r"gives a dict; .* --output"):
        _built(model, sets, tmp_path / "scores")
    bundle, other = _built(model, sets, tmp_path / "scores", output="scores"), _built(plain, sets, tmp_path / "plain")
    np.testing.assert_array_equal(bundle.array("features"), other.array("features"))
    assert bundle.manifest.model["output"] == "scores"
    assert "output" not in other.manifest.model
    assert ModelSpec.from_dict(other.manifest.model).output is None
    assert faults(bundle.path) == []
    asked = natscope.open(bundle.path).explain(sets[1][0][0], budget=4)
    assert [remark[4:28] for remark in asked.remarks] == ["of the kernel is not of "]  # mostly of biases
    found = natscope.attribute(model, sets[0], sets[1][0][0], budget=4, sketch=_SKETCH, output="scores")
    assert [i.train_index for i in asked.items] == [i.train_index for i in found.items]
    assert not model._forward_hooks


def test_one_logit_is_two_classes(own, sets, tmp_path):
    (inputs, labels), (tests, _) = sets
    model, two = own.One(), ((inputs, labels % 2), (tests, torch.arange(12) % 2))
    bundle = _built(model, two, tmp_path / "one", methods=["graddot"])
    assert "softmax is sigmoid(z)" in bundle.manifest.results["remarks"][0]
    for answer in (
        natscope.open(bundle.path).explain("test:0", budget=2),
        natscope.attribute(model, two[0], tests[0], budget=2, sketch=_SKETCH),
    ):
        assert answer.remarks[:-1] == tuple(bundle.manifest.results["remarks"])
        assert "of the kernel is not of weights" in answer.remarks[-1]
        assert "<p>Network: its one logit z stands for two classes" in answer._repr_html_()
    with torch.no_grad():
        chance = model(tests).sigmoid()[:, 0].numpy()
    logits = torch.from_numpy(bundle.array("test_logits").copy())
    np.testing.assert_allclose(logits.softmax(1)[:, 1], chance, rtol=1e-5)
    assert np.abs(bundle.array("features")).max(1).all()  # of both classes
    with pytest.raises(BuildError, match="1 output, which stands for two classes, and the data set 3 classes"):
        _built(model, sets, tmp_path / "three")


def test_without_a_linear_layer_repsim_alone_is_missing(without_linear, own, sets):
    assert without_linear.manifest.results["left_out"].keys() >= {"repsim"}
    assert without_linear.array("penultimate").shape == (60, 0)
    assert faults(without_linear.path) == []
    explainer = natscope.open(without_linear.path)
    for name, method in METHODS.items():
        if name == "repsim":
            with pytest.raises(QueryError, match=r"RepSim .* last torch\.nn\.Linear layer"):
                explainer.explain("test:0", method=name)
        elif name in without_linear.manifest.methods or not method.files:
            assert len(explainer.explain("test:0", method=name, budget=3).items) == 3
    model = network_of(without_linear, seed=0)
    without_linear.load_into(model)
    with pytest.raises(QueryError, match="RepSim"):
        natscope.attribute(model, sets[0], sets[1][0][0], method="repsim")
    other = without_linear.path.with_name("other")
    asked = _built(model, sets, other, methods=["repsim", "graddot"], factory=own.NoLinear)
    assert asked.manifest.results["left_out"].keys() == {"repsim"}


def test_a_map_has_no_penultimate_features_without_a_linear_layer(without_linear):
    class Served:
        bundle = without_linear

    assert _arrangements(Served) == ("kernel",)


def test_the_command_line_picks_an_output(own, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(3):
            folder = tmp_path / "images" / part / f"class{label}"
            folder.mkdir(parents=True)
            for row in range(8):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{row}.png")
    options = ["precompute", "--dataset", f"folder:{tmp_path / 'images'}", "--image-size", "8", "--epochs", "1"]
    options += ["--model", "net_with_a_head:Scores", "--dim", "16", "--check"]
    for given, code, sentence in (
        (["--output", "scores"], None, "Ready: "),
        ([], 2, "--output (output= in Python) to say which"),
    ):
        with pytest.raises(SystemExit) as exited:
            main([*options, *given])
        out, err = capsys.readouterr()
        assert exited.value.code in (code, code or 0)
        assert sentence in " ".join((out + err).split())
        assert not given or "--output scores" in out
    with pytest.raises(SystemExit) as exited:
        main([*options, "--model", "net_with_a_head:NoLinear"])
    said = " ".join(capsys.readouterr().out.split())
    assert exited.value.code in (None, 0)
    assert "Left out RepSim compares" in said
    with pytest.raises(SystemExit):
        main(["precompute", "--check", "--output", "0"])
    assert "--output (output= in Python) is for a network of yours; mlp gives logits." in capsys.readouterr().err


def test_float32_is_not_rounded_whatever_a_notebook_has_set(own, sets, tmp_path):
    query, before = sets[1][0][0], torch.get_float32_matmul_precision()
    asks = (
        lambda: natscope.attribute(own.Watching(), sets[0], query, budget=2, sketch=_SKETCH),
        lambda: _built(own.Watching(), sets, tmp_path / "watching", methods=None),
        lambda: natscope.open(tmp_path / "watching").explain(query, method="trak", budget=2),
        lambda: natscope.FeatureMap(own.Watching(), _SKETCH, ntk=False).outputs(sets[0][0]),
    )
    torch.set_float32_matmul_precision("medium")
    try:
        for ask in asks:
            own.seen.clear()
            ask()
            assert own.seen == {("highest", False, True)}
            assert own.settings() == ("medium", True, False)
    finally:
        torch.set_float32_matmul_precision(before)
