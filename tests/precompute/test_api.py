"""A trained network and data of one's own from Python: built, opened, explained, and refused in one sentence."""

import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset

import natscope
from natscope.core.bundle.format import sha256_of
from natscope.core.errors import BuildError, BundleError, DataError, NatscopeError, QueryError
from natscope.core.methods import METHODS
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles import asking
from natscope.precompute.bundles.asking import ask_about_file
from natscope.precompute.bundles.opening import faults, open_attributor
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data import on_disk
from natscope.precompute.data.datasets import first_of_each, of_classes, scaled
from natscope.precompute.data.items import Reading
from natscope.precompute.data.named import with_code
from natscope.precompute.data.own import own_dataset
from natscope.precompute.data.poison import PoisonSpec, poison
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.trusted import ALLOWED, trust
from tests.conftest import module_of_ones_own, one_sentence
from tests.tiny import edited, image_data, saved

_MODULE = """
import functools

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Other(Net):
    def forward(self, x):
        return 2 * super().forward(x)


class Picky(Net):
    def forward(self, x):
        return super().forward(x) @ torch.eye(3)  # which only float32 can


class Louder(Net):
    def forward(self, x):
        return 7 * super().forward(x)


class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


class Vector(Wide):
    def __init__(self):
        super().__init__(5)


class Grey(Wide):
    def __init__(self):
        super().__init__(16)


def transform(picture):
    return torch.from_numpy(np.array(picture.resize((10, 12)))).permute(2, 0, 1).float() / 127.5 - 1


def load(path):
    assert path.suffix == ".raw"
    return np.frombuffer(path.read_bytes(), np.float32).reshape(3, 12, 10)


@functools.wraps(transform)
def wrapped(picture):
    return 2 * transform(picture)


class Holder:
    scale = transform


holder = Holder()
"""
_SHAPE = (3, 12, 10)


class Items(Dataset):
    """Items of a fixed number; `change` makes an item odd."""

    def __init__(self, count, seed, change=lambda row, item: item):
        generator = torch.Generator().manual_seed(seed)
        self.inputs, self.change = torch.randn(count, *_SHAPE, generator=generator), change
        self.labels = torch.randint(0, 3, (count,), generator=generator).tolist()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, row):
        return self.change(row, (self.inputs[row], self.labels[row]))


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    with module_of_ones_own(tmp_path_factory.mktemp("api"), "net_of_the_api", _MODULE) as module:
        yield module


def _frozen(net):
    net.conv.weight.requires_grad_(False)
    return net


_FEW = {"sketch": SketchSpec(dim=64), "methods": ()}


@pytest.fixture(scope="module")
def model(own):
    torch.manual_seed(0)
    return own.Net()


@pytest.fixture(scope="module")
def sets():
    return Items(90, 0), Items(12, 1)


@pytest.fixture(scope="module")
def bundle(own, model, sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "own"
    settings = {"classes": ["ant", "<b>bee", "cat"], "transform": own.transform, "methods": ["graddot"]}
    return natscope.build(model.train(), *sets, out=out, **(_FEW | settings))


@pytest.fixture(scope="module")
def explainer(bundle):
    return natscope.open(bundle.path)


def test_a_bundle_holds_the_inputs_and_pictures_of_them(bundle, model, sets):
    assert model.training
    np.testing.assert_array_equal(bundle.array("train_inputs"), sets[0].inputs.numpy())
    np.testing.assert_array_equal(bundle.array("test_labels"), sets[1].labels)
    assert bundle.examples("train").images.shape == (90, 12, 10, 3)
    assert bundle.classes == ("ant", "<b>bee", "cat")
    assert bundle.sources("train")[3] == "row 3"
    assert bundle.manifest.dataset["transform"] == "net_of_the_api:transform"
    with torch.no_grad():
        logits = model.eval()(sets[1].inputs)
    np.testing.assert_allclose(bundle.array("test_logits"), logits, rtol=1e-4, atol=1e-5)
    assert faults(bundle.path) == []


def _build(model, sets, out, **changes):
    return natscope.build(model, *sets, out=out, **(_FEW | changes))


class _Killed(Exception):
    pass


@pytest.mark.parametrize("moment", [("Inputs", 40), ("Jacobians of the training examples", 0)])
def test_a_build_that_was_killed_ends_with_the_same_bytes(model, sets, tmp_path, moment, monkeypatch):
    monkeypatch.setattr("natscope.core.features.SHARD", 40)
    whole = _build(model, sets, tmp_path / "own")
    whole.path.rename(tmp_path / "whole")

    def kill(*step):
        if step[:2] == moment:
            raise _Killed

    with pytest.raises(_Killed, match=r"^$"):
        _build(model, sets, tmp_path / "own", progress=kill)
    again = _build(model, sets, tmp_path / "own")
    sums = [{f.name: sha256_of(f) for f in path.iterdir()} for path in (tmp_path / "whole", again.path)]
    assert sums[0] == sums[1]


def test_the_same_call_opens_the_bundle_and_other_data_are_refused(bundle, own, model, sets):
    settings = _FEW | {"classes": bundle.classes, "transform": own.transform}
    assert natscope.build(model, *sets, out=bundle.path, **settings).identity == bundle.identity
    changed = Items(90, 0, lambda row, item: (item[0] + (row == 50), item[1]))
    with pytest.raises(BundleError, match="other settings"):
        natscope.build(model, changed, sets[1], out=bundle.path, **settings)


def test_an_item_of_the_test_set_is_asked_about_as_its_number_is(explainer, sets):
    by_number, by_text = explainer.explain(3, budget=4), explainer.explain("test:3", budget=4)
    item, alone, batch = (explainer.explain(q, budget=4) for q in (sets[1][3], sets[1][3][0], sets[1].inputs[3:4]))
    assert by_number.items == by_text.items == item.items == alone.items == batch.items
    assert item.query.label == sets[1].labels[3]
    assert item.query.example.images[0].tolist() == by_number.query.example.images[0].tolist()
    train = explainer.explain("train:7", budget=3)
    assert 7 not in [i.train_index for i in train.items]
    assert train.query.source == "row 7"
    with pytest.raises(QueryError, match="no class 'dog'"):
        explainer.explain(3, target="dog")


def test_an_answer_is_a_table_json_and_pictures(explainer):
    answer = explainer.explain(3, budget=4, target="<b>bee")
    table = answer.to_pandas()
    assert table["label_name"].tolist() == ["<b>bee"] * 4
    assert table["source"].tolist() == [item.source for item in answer.items]
    assert answer.items[-1].nats == answer.nats > 0
    assert json.loads(json.dumps(answer.to_dict()))["target_name"] == "<b>bee"
    shown = answer._repr_html_()
    assert "<b>bee" not in shown
    assert shown.count("data:image/png;base64,") == 5
    assert "row " in shown
    assert "90 training and 12 test" in repr(explainer)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if set(m.files) <= {"margin_features"}])
def test_without_a_bundle_the_picks_are_the_same(explainer, model, sets, method):
    asked = sets[1].inputs[5]
    model.train()
    found = natscope.attribute(model, sets[0], asked, method=method, budget=5, sketch=SketchSpec(dim=64))
    kept = explainer.explain(asked, method, 5)
    assert model.training
    assert [i.train_index for i in found.items] == [i.train_index for i in kept.items]
    assert found.attribution.sigma2 == kept.attribution.sigma2
    assert found.nats == pytest.approx(kept.nats)
    assert found.classes == ("0", "1", "2")


def test_without_a_bundle_any_network_serves(sets):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 2))
    inputs, labels = torch.randn(40, 6), torch.arange(40) % 2
    answer = natscope.attribute(net, (inputs, labels), (inputs[3], 1), budget=3, pool="all", classes=["a", "b"])
    assert answer.query.label == 1
    assert len(answer) == 3
    with pytest.raises(QueryError, match=r"build a bundle with natscope\.build") as caught:
        natscope.attribute(net, (inputs, labels), inputs[3], method=next(m for m in METHODS if METHODS[m].ekfac))
    one_sentence(str(caught.value))


def test_a_picture_or_file_becomes_an_input_by_the_transform(explainer, own, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    wanted = explainer.explain(own.transform(picture), budget=3)
    assert explainer.explain(picture, budget=3).items == wanted.items
    assert explainer.explain(tmp_path / "a.png", budget=3).items == wanted.items
    (tmp_path / "b.png").write_text("no picture")
    for query in (tmp_path / "b.png", tmp_path / "none.png", np.zeros((4, 4), np.float32), "test:99", 99, "x", True):
        with pytest.raises(QueryError) as caught:
            explainer.explain(query)
        one_sentence(str(caught.value))
    with pytest.raises(QueryError, match="finite"):
        explainer.explain(torch.full(_SHAPE, torch.nan))


def test_pixels_cannot_be_asked_about_where_no_code_makes_inputs_of_them(model, sets, tmp_path):
    explainer = natscope.open(_build(model, sets, tmp_path / "own"))
    picture = Image.new("RGB", (20, 20))
    picture.save(tmp_path / "a.png")
    for query in (picture, tmp_path / "a.png", np.zeros((12, 10, 3), np.uint8)):
        with pytest.raises(QueryError, match="transform="):
            explainer.explain(query)
    with pytest.raises(QueryError, match="transform="):
        explainer.attributor.given(np.zeros((12, 10, 3), np.uint8))


def test_a_title_that_looks_like_a_folder_names_none(model, sets, tmp_path):
    assert _build(model, sets, tmp_path / "own", name="folder:x").manifest.name == "folder:x"


def test_folders_from_python_are_read_as_those_of_a_command(own, model, sets, tmp_path):
    for part, items in zip(("train", "test"), sets, strict=True):
        for row, (values, label) in enumerate(items):
            (tmp_path / part / "abc"[label]).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / "abc"[label] / f"{row:03}.raw").write_bytes(values.numpy().tobytes())
    for hidden in ("__MACOSX/a", "a/.cache", "a/__MACOSX"):
        (tmp_path / "train" / hidden).mkdir(parents=True)
        (tmp_path / "train" / hidden / "000.raw").write_bytes(b"")
    (tmp_path / "train" / "a" / ".hidden.raw").write_bytes(b"")
    folders = tmp_path / "train", tmp_path / "test"
    bundle = _build(model, folders, tmp_path / "own", load=own.load)
    assert (bundle.classes, len(bundle.sources("train"))) == (("a", "b", "c"), 90)
    (tmp_path / "train" / "A").mkdir()
    with pytest.raises(DataError, match=r"The classes A and a of .* differ in nothing but upper and lower case"):
        _build(model, folders, tmp_path / "other", load=own.load)


def test_a_file_of_any_kind_is_loaded_by_the_users_own_function(own, model, sets, tmp_path):
    for part, items in zip(("train", "test"), sets, strict=True):
        for row, (values, label) in enumerate(items):
            (tmp_path / part / "abc"[label]).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / "abc"[label] / f"{row:03}.raw").write_bytes(values.numpy().tobytes())
    folders = tmp_path / "train", tmp_path / "test"
    bundle = _build(model, folders, tmp_path / "own", load=own.load)
    assert bundle.classes == ("a", "b", "c")
    assert bundle.sources("test")[0].startswith("a/0")
    file = next((tmp_path / "test" / "b").iterdir())
    explainer = natscope.open(bundle)
    asked = explainer.explain(file, budget=3)
    row = bundle.sources("test").index(f"b/{file.name}")
    assert asked.items == explainer.explain(row, budget=3).items
    table = [pandas.DataFrame({"file": sorted((tmp_path / p).rglob("*.raw")), "y": "a"}) for p in ("train", "test")]
    for part in table:
        part["y"] = [file.parent.name for file in part["file"]]
    other = _build(model, table, tmp_path / "table", load=own.load, columns=("file", "y"))
    np.testing.assert_array_equal(other.array("features"), bundle.array("features"))


@pytest.mark.parametrize("name", ["shell", "Popen", "print"])
def test_what_a_trusted_module_imported_is_not_run(own, bundle, tmp_path, monkeypatch, name):
    monkeypatch.setattr(own, name, {"shell": os.system, "Popen": subprocess.Popen, "print": print}[name], raising=False)
    path = shutil.copytree(bundle.path, tmp_path / "forged")
    edited(path, lambda raw: raw["dataset"].update(load=f"net_of_the_api:{name}"))
    monkeypatch.setenv(ALLOWED, "net_of_the_api")
    with pytest.raises(NatscopeError, match="was imported into that module"):
        ask_about_file(open_attributor(path), b"x", "a.raw")


def test_a_strangers_file_name_reaches_no_code(bundle, monkeypatch):
    seen = []
    monkeypatch.setattr(asking, "function_of", lambda *given: lambda file: seen.append(file.name) or 1 / 0)
    monkeypatch.setitem(bundle.manifest.dataset, "load", "net_of_the_api:load")
    for name in ("a.x;echo PWNED >&2;", "a.\x00", "a." + "x" * 300, "a.raw"):
        with pytest.raises(QueryError):
            ask_about_file(SimpleNamespace(bundle=bundle), b"x", name)
    assert seen == ["file", "file", "file", "file.raw"]


def test_code_of_a_bundle_runs_only_if_it_is_trusted(bundle, tmp_path, monkeypatch):
    picture = Image.new("RGB", (20, 20))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv(ALLOWED, "net_of_the_api:Net")
    explainer = natscope.open(bundle)
    with pytest.raises(BundleError, match="--allow-code net_of_the_api:transform"):
        explainer.explain(picture)
    monkeypatch.setenv(ALLOWED, "net_of_the_api")
    assert len(natscope.open(bundle).explain(picture, budget=2)) == 2


class _Split:
    """A split of Hugging Face `datasets`, as far as natscope looks at it."""

    column_names = ("image", "label")

    class _Label:
        names = ("ant", "bee", "cat")

    features = {"image": None, "label": _Label()}  # noqa: RUF012

    def __init__(self, count):
        random = np.random.default_rng(count)
        pixels = random.integers(0, 255, (count, 20, 16, 3), dtype=np.uint8)
        self.rows = [{"image": Image.fromarray(p), "label": i % 3} for i, p in enumerate(pixels)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


def test_a_split_of_hugging_face_is_transformed(own, model, tmp_path):
    bundle = _build(model, (_Split(30), _Split(6)), tmp_path / "own", transform="net_of_the_api:transform")
    assert bundle.classes == ("ant", "bee", "cat")
    wanted = own.transform(_Split(30)[4]["image"])
    np.testing.assert_array_equal(bundle.array("train_inputs")[4], wanted)


def test_pictures_of_uint8_take_the_usual_way(own, tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (30, 4, 4), dtype=np.uint8), np.arange(30) % 3
    sets = (images, labels), (images[:6], labels[:6])
    net = own.Grey()
    bundle = _build(net, sets, tmp_path / "own", mean=[0.5], std=[0.25])
    assert not bundle.has("train_inputs")
    np.testing.assert_array_equal(bundle.examples("train").images, images)
    explainer = natscope.open(bundle)
    picture = explainer.explain((images[2], 2), budget=3)
    assert picture.items == explainer.explain(2, budget=3).items
    assert picture.query.label == 2
    scaled = (images[2][None] / 255 - 0.5) / 0.25
    found = explainer.explain(scaled, budget=3).items
    assert [item.train_index for item in found] == [item.train_index for item in picture.items]
    as_tensors = [(torch.from_numpy(x)[:, None], torch.from_numpy(y)) for x, y in sets]
    again = _build(net, as_tensors, tmp_path / "tensors", mean=[0.5], std=[0.25])
    np.testing.assert_array_equal(again.array("features"), bundle.array("features"))
    with pytest.raises(DataError, match=r"by mean and std, .* or by transform"):
        _build(net, sets, tmp_path / "unscaled")


def test_sources_and_classes_of_a_torchvision_folder_are_kept(model, tmp_path):
    items = Items(30, 0)
    items.samples = [(f"{tmp_path}/images/{'xyz'[y]}/{row}.png", y) for row, y in enumerate(items.labels)]
    items.root, items.classes = f"{tmp_path}/images", ["x", "y", "z"]
    bundle = _build(model, (Subset(items, range(5, 30)), Items(6, 1)), tmp_path / "own")
    assert bundle.classes == ("x", "y", "z")
    assert bundle.sources("train")[0] == f"{'xyz'[items.labels[5]]}/5.png"


class _NoLength:
    def __getitem__(self, row):
        return torch.zeros(_SHAPE), 0


class _Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(_SHAPE), 0


def _odd(change):
    return lambda: Items(20, 0, lambda row, item: change(*item) if row == 7 else item)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (_NoLength, "has no length"),
        (_Stream, "only be read from its beginning"),
        (lambda: 5, "is of type int"),
        (lambda: "nowhere", "no folder nowhere"),
        (lambda: Items(0, 0), "is empty"),
        (lambda: (np.zeros((0, *_SHAPE), np.float32), np.zeros(0, int)), "is empty"),
        (_odd(lambda x, y: (x[:, 1:], y)), r"Item 7 of the training set is float32 of shape \(3, 11, 10\)"),
        (_odd(lambda x, y: (x * np.nan, y)), "Item 7 .* not finite"),
        (_odd(lambda x, y: (x.double() * 1e300, y)), "Item 7 .* not finite"),
        (_odd(lambda x, y: (x, 3)), "Item 7 .* label 3, which is not from 0 to 2"),
        (_odd(lambda x, y: (x, -1)), "Item 7 .* label -1"),
        (_odd(lambda x, y: (x, 0.5)), "Item 7 .* whole numbers or words"),
        (_odd(lambda x, y: (x, "ant")), "Some labels are words"),
        (_odd(lambda x, y: x), "Item 7 .* form"),
        (_odd(lambda x, y: (x.long(), y)), "Item 7 .* int64"),
        (_odd(lambda x, y: ("text", y)), "Item 7 "),
        (lambda: Items(20, 0, lambda row, item: 1 / 0), "Item 0 .* ZeroDivisionError"),
        (lambda: Items(20, 0, lambda row, item: (torch.randn(_SHAPE), 0)), "another each time"),
        (lambda: (np.zeros((5, *_SHAPE), np.float32), np.zeros(4, int)), "has labels of shape"),
        (lambda: (np.zeros(5, np.float32), np.zeros(5, int)), "one number an item"),
        (lambda: (np.full((5, *_SHAPE), np.inf, np.float32), np.zeros(5, int)), "Item 0 .* not finite"),
        (lambda: (np.zeros((5, 4), np.float32), np.zeros(5, int)), "give both one form"),
        (
            lambda: pandas.DataFrame({"file": ["a.png"]}),
            "has no column path; it has file: rename one",
        ),
        (lambda: pandas.DataFrame({"path": ["a.png"], "label": ["x"]}), "transform makes it of a picture"),
    ],
)
def test_odd_data_are_refused_in_one_sentence(model, tmp_path, make, match):
    with pytest.raises(DataError, match=match) as caught:
        _build(model, (make(), Items(6, 1)), tmp_path / "own", classes=["a", "b", "c"])
    one_sentence(str(caught.value))
    assert not (tmp_path / "own").exists()


def test_one_class_and_classes_that_do_not_fit_are_refused(model, tmp_path):
    one = Items(9, 0, lambda row, item: (item[0], 0))
    for classes, match in ((None, "one class alone"), (["a", "a", "b"], "same title"), ([], "no classes")):
        with pytest.raises(DataError, match=match):
            _build(model, (one, one), tmp_path / "own", classes=classes)
    far = Items(9, 0, lambda row, item: (item[0], 10**9))
    with pytest.raises(DataError, match="largest label is 1000000000, and natscope takes labels from 0 to 9,999"):
        _build(model, (far, one), tmp_path / "own", classes=None)
    with pytest.raises(BuildError, match="3 outputs and the data set 2 classes"):
        _build(model, (one, one), tmp_path / "own", classes=["a", "b"])


@pytest.mark.parametrize(
    ("make", "factory", "match"),
    [
        (lambda own: own.Wide(360), None, r"Wide\(\) failed.*pass factory="),
        (lambda own: own.Net(), "net_of_the_api:Other", "other outputs with the same weights"),
        (lambda own: own.Picky().double(), "net_of_the_api:Louder", "other outputs with the same weights"),
        (lambda own: own.Net(), "net_of_the_api:Vector", "only one of them has 'conv.weight'"),
        (lambda own: own.Wide(360), "net_of_the_api:Vector", r"'head.weight' is \(3, 5\) in it, and \(3, 360\)"),
        (lambda own: own.Net(), "net_of_the_api:nothing", "has no 'nothing'"),
        (lambda own: _frozen(own.Net()), "net_of_the_api:Net", "'conv.weight' is frozen in yours and not in it"),
        (lambda own: own.Net(), lambda: None, "within another function|top of the module"),
        (lambda own: nn.Sequential(nn.Flatten(), nn.Linear(360, 3)), None, "cannot be made again without its layers"),
        (lambda own: nn.DataParallel(own.Net()), None, r"its \.module"),
        (lambda own: own.Net().half(), None, r"float16.*model\.float\(\)"),
        (lambda own: torch.jit.script(own.Vector()), None, "TorchScript"),
        (lambda own: type("Net", (own.Net,), {"__module__": "__main__"})(), None, "notebook or script"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_network_that_cannot_be_made_again_is_refused_with_what_to_pass(own, sets, tmp_path, make, factory, match):
    with pytest.raises(BuildError, match=match) as caught:
        _build(make(own), sets, tmp_path / "own", factory=factory)
    one_sentence(str(caught.value))


def test_a_function_that_loads_is_another_setting_than_one_that_transforms(own):
    data, name = own_dataset(Items(9, 0), None, Reading(classes=["a", "b", "c"])), "net_of_the_api:transform"
    trust(name)
    settings = [BuildSpec(data=with_code(data, *names)).settings() for names in ((name, ""), ("", name))]
    assert settings[0] != settings[1]


@pytest.mark.parametrize("ntk", ["no", 1, np.array([1, 2])])
def test_a_strange_ntk_is_refused(model, sets, tmp_path, ntk):
    with pytest.raises(BuildError, match="ntk= takes True, False or None"):
        _build(model, sets, tmp_path / "own", ntk=ntk)


def test_a_function_under_the_name_of_another_is_refused(own, sets, tmp_path):
    with pytest.raises(BuildError, match="transform= is another function than what net_of_the_api calls transform"):
        _build(own.Net(), sets, tmp_path / "own", transform=own.wrapped)


def test_a_transform_that_makes_other_inputs_than_the_data_has_is_refused(own, tmp_path):
    inputs, labels = torch.randn(9, 3, 8, 8), torch.arange(9) % 3
    with pytest.raises(DataError, match=r"\(3, 12, 10\) of a picture, and the inputs are float32 of shape \(3, 8, 8\)"):
        _build(own.Net(), ((inputs, labels), (inputs, labels)), tmp_path / "own", transform=own.transform)


def test_functions_that_another_process_cannot_find_are_refused(own, model, sets, tmp_path):
    for transform in (lambda picture: picture, own.holder):
        with pytest.raises(BuildError, match=r"top of the module|no name to find it by"):
            _build(model, sets, tmp_path / "own", transform=transform)
    with pytest.raises(TypeError, match="not int"):
        natscope.build(5, *sets, out=tmp_path / "own")


def _other_shape(path):
    saved(path, "test_inputs", np.zeros((12, 3, 12, 9), np.float32))


def _one_axis(path):
    saved(path, "train_inputs", np.zeros(90, np.float32))


def _not_finite(path):
    inputs = np.load(path / "train_inputs.npy")
    inputs[4, 0, 0, 0] = np.nan
    saved(path, "train_inputs", inputs)


def _doubles(path):
    saved(path, "train_inputs", np.load(path / "train_inputs.npy").astype(np.float64))


def _one_split(path):
    edited(path, lambda raw: raw["files"].pop("test_inputs"))


def _own_network(path):
    edited(path, lambda raw: raw["model"].update(architecture="resnet9", widths=[3, 3]))


def _trained(path):
    recipe = {"epochs": 1, "batch_size": 5, "learning_rate": 0.1, "decay_epochs": 1, "momentum": 0.9}
    edited(path, lambda raw: raw.update(training=recipe | {"weight_decay": 0.0, "seed": 0}))


def _odd_name(path):
    edited(path, lambda raw: raw["dataset"].update(transform="net_of_the_api:transform; rm"))


@pytest.mark.parametrize(
    "damage",
    [_other_shape, _one_axis, _not_finite, _doubles, _one_split, _own_network, _trained, _odd_name],
)
def test_a_strangers_inputs_are_checked(bundle, tmp_path, damage):
    shutil.copytree(bundle.path, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(NatscopeError) as caught:
        _checked(tmp_path / "copy")
    one_sentence(str(caught.value))
    with pytest.raises(NatscopeError):
        natscope.open(tmp_path / "copy").explain(0)


def _checked(path):
    """Raise the first fault of a bundle, whether opening it raises or reports it."""
    for fault in faults(path):
        raise NatscopeError(fault)


def test_a_method_that_is_missing_is_added_by_the_same_call(model, sets, tmp_path):
    bundle = _build(model, sets, tmp_path / "own")
    name = next(m for m in METHODS if METHODS[m].files == ("margin_features",))
    with pytest.raises(QueryError, match=r"natscope\.build adds it"):
        natscope.open(bundle).explain(0, name)
    _build(model, sets, tmp_path / "own", methods=[name])
    assert len(natscope.open(tmp_path / "own").explain(0, name, 3)) == 3


def test_large_inputs_wait_in_a_file_and_give_the_same_bytes(model, sets, tmp_path, monkeypatch):
    def full(descriptor, start, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    small = _build(model, sets, tmp_path / "own")
    small.path.rename(tmp_path / "small")
    monkeypatch.setattr(on_disk, "LARGEST_IN_MEMORY", 0)
    large = _build(model, sets, tmp_path / "own")
    sums = [{f.name: sha256_of(f) for f in path.iterdir()} for path in (tmp_path / "small", large.path)]
    assert sums[0] == sums[1]
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match=r"The inputs take .* name another folder in NATSCOPE_HOME") as caught:
        _build(model, sets, tmp_path / "other")
    one_sentence(str(caught.value))


class _Lazy:
    """Rows that are made when they are read."""

    shape = (20, 5)

    def __init__(self, change=lambda rows: rows):
        self.change = change

    def __len__(self):
        return 20

    def __getitem__(self, rows):
        numbers = np.arange(20)[rows][..., None]
        return self.change((np.sin(numbers + np.arange(5))).astype(np.float32))


def _lazily(train, **changes):
    images, labels = np.zeros((20, 2, 3), np.uint8), np.arange(20) % 3
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    inputs = (train, changes.pop("test_inputs", _Lazy()))
    return image_data("lazy", ("a", "b", "c"), **(arrays | {"mean": (0.5,), "std": (1.0,), "inputs": inputs} | changes))


def test_rows_that_are_read_when_they_are_needed_can_be_chosen_from_and_built(own, tmp_path):
    data = _lazily(_Lazy())
    chosen = of_classes(first_of_each(data, 4), (2, 0))
    np.testing.assert_array_equal(chosen.train.inputs[:2], _Lazy()[np.array([0, 2])])
    assert chosen.train_labels[:2].tolist() == [1, 0]
    safetensors.torch.save_file(own.Vector().state_dict(), tmp_path / "w.safetensors")
    spec = natscope.BuildSpec(
        "Lazy",
        "lazy",
        data,
        model=ModelSpec("net_of_the_api:Vector", None),
        weights=tmp_path / "w.safetensors",
        per_class=5,
        **_FEW,
    )
    bundle = natscope.build(spec, tmp_path / "own")
    np.testing.assert_array_equal(bundle.array("train_inputs"), _Lazy()[np.arange(15)])
    for odd in (replace(spec, weights=None), replace(spec, model=ModelSpec())):
        with pytest.raises(BuildError, match="trained network of your own"):
            natscope.build(odd, tmp_path / "odd")
    not_a_number = np.float32(np.nan)
    changes = (lambda rows: rows * not_a_number, lambda rows: rows.astype(np.float64), lambda rows: rows[:, :4])
    for number, change in enumerate(changes):
        with pytest.raises((DataError, BuildError)) as caught:
            natscope.build(replace(spec, data=_lazily(_Lazy(change))), tmp_path / f"odd {number}")
        one_sentence(str(caught.value))
    with pytest.warns(UserWarning, match="is begun again: the data have changed"), pytest.raises(BuildError):
        natscope.build(replace(spec, data=_lazily(_Lazy(changes[2]))), tmp_path / "odd 1")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: _lazily(_Lazy(), test_inputs=None), "one of its parts alone"),
        (lambda: _lazily(np.zeros((19, 5), np.float32)), "other numbers of inputs"),
        (lambda: _lazily(np.zeros((20, 4), np.float32)), "different shapes"),
        (lambda: _lazily(np.zeros(20, np.float32)), "different shapes"),
        (lambda: scaled(_lazily(_Lazy()), (0.5,), (1.0,)), "no pixels to scale"),
        (lambda: poison(_lazily(_Lazy()), PoisonSpec(rate=0.5)), "planted in pixels"),
    ],
)
def test_inputs_that_do_not_fit_and_what_is_done_to_pixels_alone_are_refused(call, match):
    with pytest.raises(DataError, match=match) as caught:
        call()
    one_sentence(str(caught.value))
