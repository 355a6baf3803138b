"""Questions from Python: files go the way of the training images, and what makes no sense is one sentence."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import natscope
from natscope.core.bundle import candidates
from natscope.core.errors import BuildError, DataError, QueryError
from natscope.core.features import FeatureMap
from natscope.core.sketches import SketchSpec
from natscope.precompute.data.decode import Decoding
from natscope.precompute.data.folders import FolderSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec
from tests.conftest import one_sentence

_SIDE = 10


def _wide(row, random):
    """Return a photo that is not square."""
    return random.integers(0, 255, (12, 24, 3), dtype=np.uint8)


def _glass(row, random):
    """Return a picture with transparent parts, over colours that nobody sees."""
    pixels = random.integers(0, 255, (_SIDE, _SIDE, 4), dtype=np.uint8)
    pixels[..., 3] = random.integers(0, 2, (_SIDE, _SIDE), dtype=np.uint8) * 255
    return pixels


def _deep(row, random):
    """Return grey values of twelve bits in a file of sixteen."""
    return random.integers(0, 4096, (_SIDE, _SIDE)).astype(np.uint16)


def _bright(row, random):
    """Return a grey picture on a dark ground; the first one's is light."""
    return np.full((_SIDE, _SIDE), 255 if row == 0 else 0, np.uint8) ^ random.integers(0, 9, (_SIDE, _SIDE), np.uint8)


def _folder(path, make):
    random, found = np.random.default_rng(0), {}
    for row in range(24):
        file = path / "ab"[row % 2] / f"{row:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        options = {"exif": _turned()} if make is _wide and row % 3 == 0 else {}
        Image.fromarray(make(row, random)).save(buffer, "PNG", **options)
        file.write_bytes(buffer.getvalue())
        found[file.relative_to(path).as_posix()] = file
    return found


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _built(path, out, reading=None):
    return natscope.build(
        natscope.BuildSpec(
            "Folder",
            f"folder:{path}",
            folder=FolderSpec(_SIDE, reading=reading or Decoding()),
            model=ModelSpec(widths=None),
            training=TrainingSpec(epochs=1, batch_size=4),
            sketch=SketchSpec(dim=16),
            methods=(),
        ),
        out,
    )


@pytest.mark.parametrize(
    ("make", "reading"),
    [
        (_wide, Decoding()),
        (_wide, Decoding(fit="crop")),
        (_wide, Decoding(orientation="stored")),
        (_glass, Decoding()),
        (_glass, Decoding(background="grey")),
        (_glass, Decoding(background="ignore")),
        (_deep, Decoding(bits=12)),
    ],
)
def test_a_file_is_asked_about_as_the_training_image_that_it_is(tmp_path, make, reading):
    files = _folder(tmp_path / "data", make)
    bundle = _built(tmp_path / "data", tmp_path / "own", reading)
    explainer = natscope.open(bundle)
    for row in (0, 5, 11):
        file = files[bundle.sources("train")[row]]
        stored = explainer.explain(f"train:{row}", budget=2).query
        label = int(bundle.array("train_labels")[row])
        with Image.open(file) as picture:
            asked = [explainer.explain(given, budget=2).query for given in (file, (str(file), label), picture)]
        for query in asked:
            np.testing.assert_array_equal(query.example.images[0], stored.example.images[0])
            found = explainer.attributor.query_features(query, label)
            np.testing.assert_array_equal(found, explainer.attributor.query_features(stored, label))
        assert [query.label for query in asked] == [None, label, None]


def test_light_and_dark_are_exchanged_as_for_an_upload_unless_told(tmp_path):
    files = _folder(tmp_path / "data", _bright)
    bundle = _built(tmp_path / "data", tmp_path / "own")
    explainer, file = natscope.open(bundle), files["a/00.png"]
    with Image.open(file) as picture:
        pixels = np.asarray(picture)
        for given in (file, picture):
            kept, turned = (explainer.explain(given, invert=invert).query.example.images[0] for invert in (False, None))
            np.testing.assert_array_equal(kept, pixels)
            np.testing.assert_array_equal(turned, 255 - pixels)


class Net(nn.Module):
    """Takes inputs of (3, 4)."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


_X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
_FEW = {"sketch": SketchSpec(dim=16), "methods": ()}


@pytest.fixture(scope="module")
def sets():
    inputs = torch.randn(30, 3, 4, generator=torch.Generator().manual_seed(1))
    return (inputs, torch.arange(30) % 3), (inputs[:6] + 0.1, torch.arange(6) % 3)


@pytest.fixture(scope="module")
def explainer(sets, tmp_path_factory):
    torch.manual_seed(0)
    classes = ["ant", "bee", "cat"]
    return natscope.open(
        natscope.build(Net(), *sets, out=tmp_path_factory.mktemp("x") / "own", classes=classes, **_FEW)
    )


_ODD = [
    ({"query": (_X, 99)}, "no class 99; choose one from 0 to 2"),
    ({"query": (_X, -1)}, "no class -1"),
    ({"query": (_X, 1.0)}, "by its number or its title, not by 1.0"),
    ({"query": (_X, "dog")}, "no class 'dog'; choose one of ant, bee, cat"),
    ({"query": (_X, True)}, "not by True"),
    ({"query": None}, "A query is .*, not None"),
    ({"query": True}, "A query is .*, not True"),
    ({"query": 1.5}, "A query is .*, not 1.5"),
    ({"query": {}}, "A query is .*, not {}"),
    ({"query": "x" * 5000}, "A query is .*, and there is no file 'x{59}…"),
    ({"query": "a\0b"}, "A query is"),
    ({"query": "test:-1"}, "A query is"),
    ({"query": -1}, "no test image -1"),
    ({"query": torch.tensor(6)}, "no test image 6"),
    ({"query": "train:30"}, "no train image 30"),
    ({"query": _X * np.nan}, "not finite"),
    ({"query": np.full((3, 4), np.inf)}, "not finite"),
    ({"query": np.full((3, 4), 1e300)}, "too large for float32"),
    ({"query": torch.zeros(4, 3)}, r"inputs of shape \(3, 4\), not \(4, 3\)"),
    ({"query": torch.zeros(2, 3, 4)}, r"not \(2, 3, 4\)"),
    ({"query": torch.zeros(0)}, r"not \(0,\)"),
    ({"query": torch.zeros(3, 4, dtype=torch.complex64)}, "complex64"),
    ({"query": torch.zeros(3, 4, dtype=torch.int64)}, "int64"),
    ({"query": [[1.0, 2.0], [3.0]]}, "no array of numbers"),
    ({"query": ["a", "b", "c"]}, "natscope takes floating-point inputs"),
    ({"target": 1.7}, "by its number or its title, not by 1.7"),
    ({"target": True}, "not by True"),
    ({"target": 3}, "no class 3; choose one from 0 to 2"),
    ({"target": -1}, "no class -1"),
    ({"target": "x" * 5000}, "no class 'x{59}…; choose"),
    ({"target": [0]}, r"not by \[0\]"),
    ({"budget": 2.5}, "M must be a whole number, at least 1, not 2.5"),
    ({"budget": 0}, "not 0"),
    ({"budget": -3}, "not -3"),
    ({"budget": True}, "not True"),
    ({"budget": "5"}, "not '5'"),
    ({"budget": None}, "not None"),
    ({"sigma2": -1}, "must be a positive number, not -1"),
    ({"sigma2": 0}, "not 0"),
    ({"sigma2": "x"}, "not 'x'"),
    ({"sigma2": float("nan")}, "not nan"),
    ({"sigma2": float("inf")}, "not inf"),
    ({"sigma2": True}, "not True"),
    ({"sigma2": 10**400}, "must lie between .*, not at 10{50,}…"),
    ({"sigma2": 1e-99}, "must lie between 1e-30 and 1e.30"),
    ({"pool": "x"}, "no pool 'x'; choose one of same-class, all"),
    ({"pool": 5}, "no pool 5"),
    ({"conditioning": None}, "no conditioning set None"),
    ({"method": "x" * 5000}, "no method 'x{59}…; choose one of info_loss"),
    ({"method": ["info_loss"]}, "no method .'info_loss'.; choose"),
    ({"seed": -1}, "seed must be a whole number, 0 or more"),
    ({"seed": 2**70}, "below 2.63, not"),
    ({"seed": 0.5}, "not 0.5"),
]


@pytest.mark.parametrize(("odd", "match"), _ODD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_asked_is_one_sentence(explainer, odd, match):
    with pytest.raises(QueryError, match=match) as caught:
        explainer.explain(**({"query": 0, "budget": 2} | odd))
    assert len(one_sentence(str(caught.value))) < 600


@pytest.mark.parametrize(
    "few", [{"budget": np.int64(2)}, {"sigma2": np.float32(2)}, {"target": np.int64(1)}, {"seed": 2**62}]
)
def test_numbers_of_other_libraries_are_numbers(explainer, few):
    answer = explainer.explain(torch.tensor(0), **({"budget": 2} | few))
    assert len(answer) == 2
    json.dumps(answer.to_dict())


def test_an_answer_says_in_a_line_what_it_is(explainer):
    first, second = explainer.explain(3, budget=2), explainer.explain(_X, "repsim", budget=2)
    assert re.fullmatch(r"Answer\(row 3, predicted '\w+': 2 training examples by InfoLoss, .* nats\)", repr(first))
    assert re.fullmatch(r"Answer\(an input, predicted '\w+': 2 training examples by RepSim\)", repr(second))
    assert repr(explainer) == "Explainer('own', 3 classes, 30 training and 6 test examples)"


def _labels(*odd):
    return torch.randn(30, 3, 4), np.array([*odd, *(np.arange(28) % 3)])


@pytest.mark.parametrize(
    ("given", "kind", "match"),
    [
        ({"x": 3}, QueryError, "no test images here; ask about an input, or about train:0"),
        ({"x": "test:0"}, QueryError, "no test images here"),
        ({"x": "train:99"}, QueryError, "no train image 99"),
        ({"x": None}, QueryError, "A query is"),
        ({"x": (_X, 3)}, QueryError, "no class 3"),
        ({"budget": 2.5}, QueryError, "M must be"),
        ({"method": "x"}, QueryError, "no method 'x'"),
        ({"method": ["x"]}, QueryError, "no method"),
        ({"train_set": _labels(-1, 0)}, DataError, "label -1, which is not from 0 to 2"),
        ({"train_set": _labels(0, 1.5)}, DataError, "labels are whole numbers or words"),
        ({"train_set": _X}, DataError, "set"),
        ({"train_set": None}, DataError, "natscope reads items by number"),
        ({"classes": ["ant", "bee"]}, DataError, "label 2, which is not from 0 to 1"),
        ({"layers": ["none.*"]}, BuildError, "none"),
        ({"layers": 5}, BuildError, "layers= takes"),
        ({"sketch": "countsketch"}, BuildError, "sketch= takes"),
        ({"model": 5}, TypeError, r"takes a torch\.nn\.Module, not int"),
        ({"model": Net}, TypeError, r"takes a torch\.nn\.Module, not type"),
    ],
)
def test_without_a_bundle_too(sets, given, kind, match):
    usual = {"model": Net(), "train_set": sets[0], "x": _X, "budget": 2, "sketch": SketchSpec(dim=16)}
    with pytest.raises(kind, match=match) as caught:
        natscope.attribute(**(usual | given))
    one_sentence(str(caught.value))


class Casting(Net):
    """Is in float64 by its own doing."""

    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x):
        return super().forward(x.double())


def _doubled():
    return Net().double()


def _with_a_buffer():
    net = Net()
    net.register_buffer("scale", torch.ones(3, dtype=torch.float64))
    return net


@pytest.mark.parametrize("make", [_doubled, _with_a_buffer])
def test_float64_is_cast_as_a_build_casts_it(sets, tmp_path, make):
    torch.manual_seed(0)
    net, asked = make(), {"budget": 3, "sketch": SketchSpec(dim=16)}
    own = natscope.attribute(net, sets[0], _X.double(), **asked)
    bundle = natscope.build(net, *sets, out=tmp_path / "own", factory=make, **_FEW)
    built = natscope.open(bundle).explain(_X.double(), budget=3)
    assert [item.train_index for item in own.items] == [item.train_index for item in built.items]
    assert own.nats == pytest.approx(built.nats)
    assert any(tensor.dtype == torch.float64 for tensor in net.state_dict().values())


def _uncopied():
    net = Net().double()
    net.held = (i for i in range(3))
    return net


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Net().bfloat16(), r"bfloat16, and natscope computes in float32; give model\.float"),
        (lambda: Net().half(), r"float16, and natscope computes in float32; give model\.float"),
        (Casting, "fails in Linear|gives other outputs"),
    ],
)
def test_other_numbers_are_refused_in_both(sets, tmp_path, make, match):
    for call in (
        lambda: natscope.attribute(make(), sets[0], _X),
        lambda: natscope.build(make(), *sets, out=tmp_path / "own", **_FEW),
    ):
        with pytest.raises(BuildError, match=match) as caught:
            call()
        one_sentence(str(caught.value))
    with pytest.raises(BuildError, match="cannot be copied; give"):
        natscope.attribute(_uncopied(), sets[0], _X)


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv1d(3, 5, 2), nn.Linear(15, 3)

    def forward(self, x):
        return self.head(self.body(x).tanh().flatten(1))


def test_all_classes_are_asked_about_where_that_takes_less_than_a_minute(sets, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net, asked = Convolved(), {"pool": "all", "conditioning": "train", "budget": 5}
    found = {
        outputs: natscope.open(natscope.build(net, *sets, out=tmp_path / outputs, outputs=outputs, **_FEW)).explain(
            2, **asked
        )
        for outputs in ("own", "all")
    }
    assert [i.train_index for i in found["own"].items] == [i.train_index for i in found["all"].items]
    assert found["own"].nats == pytest.approx(found["all"].nats, rel=1e-3)  # what is stored has fewer digits
    assert len(natscope.attribute(net, sets[0], sets[1][0][2], **asked)) == 5
    monkeypatch.setattr(candidates, "_PATIENCE", 0.0)
    monkeypatch.setattr(candidates, "_SURE", -1.0)
    monkeypatch.setattr(FeatureMap, "_fit", lambda own, *_: setattr(own, "batch_size", 8))
    with pytest.raises(QueryError, match="all 30 training examples under this class would take about 1 min "):
        natscope.attribute(net, sets[0], sets[1][0][2], **asked)
    patient = natscope.open_attributor(tmp_path / "own", patient=True)  # as experiments open it
    answer = patient.attribute(patient.query("test", 2), natscope.Request("info_loss", **asked))
    assert [item.train_index for item in answer.items] == [i.train_index for i in found["all"].items]
