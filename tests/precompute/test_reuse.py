"""Jacobians that are taken from another bundle: the same numbers, and only what depends on a label is computed."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import natscope
from natscope.core.errors import BuildError, BundleError
from natscope.core.features import FeatureMap
from natscope.core.images import StoredInputs
from natscope.core.ragged import PaddedRuns
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles import passes, reuse
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.opening import faults
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.bundles.store import PROBED
from natscope.precompute.data.folders import FolderSpec
from natscope.precompute.training.models import ModelSpec
from tests.conftest import module_of_ones_own, one_sentence

_MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))
"""
_COUNT = 300  # rows; a batch has 64


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    with module_of_ones_own(tmp_path_factory.mktemp("reuse"), "net_of_reuse", _MODULE) as module:
        yield module


@pytest.fixture(scope="module")
def model(own):
    torch.manual_seed(0)
    return own.Net()


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(_COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def computed(monkeypatch):
    """Return the list of how many rows were computed, by measurement."""
    seen, features = [], FeatureMap.features

    def counted(self, rows, targets, *, measurement="logit"):
        seen.append((measurement, len(rows)))
        return features(self, rows, targets, measurement=measurement)

    monkeypatch.setattr(FeatureMap, "features", counted)
    return seen


def _rows(computed, measurement):
    """Return the rows computed but for the few that tell the width."""
    return sum(count for kind, count in computed if kind == measurement and count > PROBED)


def _labels(*changed):
    labels = torch.arange(_COUNT) % 3
    for row in changed:
        labels[row] = (labels[row] + 1) % 3
    return labels


_SETTINGS = {"sketch": SketchSpec(dim=32), "methods": ["relatif", "trak"], "outputs": "all"}


def _built(model, inputs, labels, out, **changes):
    return natscope.build(model, (inputs, labels), (inputs[:9], labels[:9]), out=out, **(_SETTINGS | changes))


def _sums(bundle):
    return {name: record.sha256 for name, record in bundle.manifest.files.items()}


def test_relabelling_an_image_computes_its_batch_alone(model, inputs, tmp_path, computed):
    _built(model, inputs, _labels(), tmp_path / "old")
    fresh = _built(model, inputs, _labels(100), tmp_path / "fresh")
    computed.clear()
    again = _built(model, inputs, _labels(100), tmp_path / "again", reuse=tmp_path / "old")
    assert _sums(again) == _sums(fresh)
    assert (_rows(computed, "logit"), _rows(computed, "margin")) == (64, 64)
    assert again.manifest.results["reused"]["rows"] == _COUNT - 64
    assert faults(again.path) == []


def test_an_image_that_moves_to_another_class_of_a_folder_computes_its_batch_alone(own, model, tmp_path, computed):
    random = np.random.default_rng(0)
    for part, count in (("train", 70), ("test", 2)):
        for name in "abc":
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for row in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{row:02}.png")
    torch.save(model.state_dict(), tmp_path / "net.pt")
    spec = BuildSpec(
        dataset=f"folder:{tmp_path / 'photos'}",
        folder=FolderSpec(8),
        model=ModelSpec("net_of_reuse:Net", None),
        weights=tmp_path / "net.pt",
        sketch=SketchSpec(dim=32),
        methods=(),
    )
    build(spec, tmp_path / "old")
    (tmp_path / "photos/train/a/05.png").rename(tmp_path / "photos/train/c/05a.png")
    fresh = build(spec, tmp_path / "fresh")
    computed.clear()
    again = build(spec, tmp_path / "again", reuse=tmp_path / "old")
    assert _sums(again) == _sums(fresh)
    assert _rows(computed, "logit") == 64
    assert again.manifest.results["reused"]["rows"] == 210 - 64


def test_twins_with_two_labels_are_both_known(model, inputs, tmp_path, computed):
    twins = torch.cat([inputs[:150], inputs[:150]])
    labels = torch.cat([torch.zeros(150, dtype=torch.int64), torch.ones(150, dtype=torch.int64)])
    titles = {"classes": ["a", "b", "c"], "outputs": "own", "methods": []}
    _built(model, twins, labels, tmp_path / "old", **titles)
    computed.clear()
    found = [*range(64, 128), *range(64), *range(128, 300)]
    again = _built(model, twins[found], labels[found], tmp_path / "again", **titles, reuse=tmp_path / "old")
    assert (_rows(computed, "logit"), again.manifest.results["reused"]["rows"]) == (0, 300)


def test_rows_of_a_short_batch_are_computed_again_in_a_full_one(model, inputs, tmp_path, computed):
    _built(model, inputs, _labels(), tmp_path / "old", methods=[])  # the last batch has 44
    found = [*range(256, 300), *range(256)]
    computed.clear()
    again = _built(
        model, inputs[found], _labels()[found], tmp_path / "again", methods=[], outputs="own", reuse=tmp_path / "old"
    )
    own = _rows(computed, "logit")
    assert again.manifest.results["reused"]["rows"] == _COUNT - own
    assert own == 64 + 44


def test_one_label_of_a_large_batch_is_told_as_it_is(own, tmp_path, computed):
    net, inputs = own.Flat(), torch.randn(1003, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1003) % 3
    other = labels.clone()
    other[5] = 0
    few = {"methods": [], "outputs": "own"}
    _built(net, inputs, labels, tmp_path / "old", **few)
    fresh = _built(net, inputs, other, tmp_path / "fresh", **few)
    computed.clear()
    again = _built(net, inputs, other, tmp_path / "again", **few, reuse=tmp_path / "old")
    assert (_rows(computed, "logit"), again.manifest.results["reused"]["rows"]) == (1000, 3)
    assert _sums(again) == _sums(fresh)


def test_rows_in_full_precision_are_taken_in_it(own, tmp_path, computed):
    net, inputs = own.Flat(), torch.randn(1003, 6, generator=torch.Generator().manual_seed(0))
    few = {"methods": [], "outputs": "own", "sketch": SketchSpec("exact")}
    _built(net, inputs, torch.arange(1003) % 3, tmp_path / "old", **few)
    computed.clear()
    again = _built(net, inputs, torch.arange(1003) % 3, tmp_path / "again", **few, reuse=tmp_path / "old")
    assert again.array("features").dtype == np.float32
    assert (_rows(computed, "logit"), again.manifest.results["reused"]["rows"]) == (0, 1003)


def test_what_was_rounded_is_computed_where_full_precision_is_needed(model, inputs, tmp_path, computed, monkeypatch):
    few = {"methods": [], "outputs": "own"}
    _built(model, inputs, _labels(), tmp_path / "old", **few)

    def coarse(rows):
        raise passes.CoarseError

    monkeypatch.setattr(passes, "half", coarse)
    computed.clear()
    again = _built(model, inputs, _labels(), tmp_path / "again", **few, reuse=tmp_path / "old")
    assert (_rows(computed, "logit"), again.manifest.results["reused"]["rows"]) == (_COUNT, 0)


def test_the_bundle_to_take_from_is_looked_at_whatever_is_there(model, inputs, tmp_path):
    few = {"methods": [], "outputs": "own"}
    old = _built(model, inputs, _labels(), tmp_path / "old", **few)
    with pytest.raises(BundleError, match=r"There is no bundle at .*nowhere"):
        _built(model, inputs, _labels(), tmp_path / "old", **few, reuse=tmp_path / "nowhere")
    with pytest.raises(BuildError, match=r"reuse= takes a bundle or its folder, not 5"):
        _built(model, inputs, _labels(), tmp_path / "old", **few, reuse=5)
    again = _built(model, inputs, _labels(5), tmp_path / "again", **few, reuse=old)
    assert again.manifest.results["reused"] == {"bundle": old.identity, "rows": _COUNT - 64}


def _changed(model):
    other = type(model)()
    other.load_state_dict({name: 2 * tensor for name, tensor in model.state_dict().items()})
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sketch": SketchSpec(dim=16)}, "its sketch differs"),
        ({"ntk": True}, "its ntk differs"),
        ({"layers": ["head.*"]}, "its layers differs"),
        ({"model": _changed}, "its weights differs"),
    ],
)
def test_another_kernel_has_nothing_to_take(model, inputs, tmp_path, change, message):
    few = {"methods": [], "outputs": "own"}
    _built(model, inputs, _labels(), tmp_path / "old", **few)
    other = change.pop("model", lambda model: model)(model)
    with pytest.raises(BuildError, match=f"Nothing of .*old can be reused: {message}") as caught:
        _built(other, inputs, _labels(), tmp_path / "never", **(few | change), reuse=tmp_path / "old")
    one_sentence(str(caught.value))
    assert not (tmp_path / "never").exists()


def test_damage_and_other_versions_are_not_taken_over(model, inputs, tmp_path, monkeypatch):
    few = {"methods": [], "outputs": "own"}
    _built(model, inputs, _labels(), tmp_path / "old", **few)
    shutil.copytree(tmp_path / "old", tmp_path / "bad")
    file = tmp_path / "bad" / "features.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(BuildError, match=r"features\.npy is damaged"):
        _built(model, inputs, _labels(5), tmp_path / "never", **few, reuse=tmp_path / "bad")
    found = natscope.precompute.bundles.reuse.versions() | {"torch": "0.1"}
    monkeypatch.setattr("natscope.precompute.bundles.reuse.versions", lambda: found)
    with pytest.raises(BuildError, match="it was built with another torch"):
        _built(model, inputs, _labels(5), tmp_path / "never", **few, reuse=tmp_path / "old")
    found = found | {"torch": natscope.precompute.bundles.spec.versions()["torch"], "threads": "77"}
    with pytest.raises(BuildError, match=r"it was built with \d+ threads, not 77, which OMP_NUM_THREADS sets"):
        _built(model, inputs, _labels(5), tmp_path / "never", **few, reuse=tmp_path / "old")


def test_a_network_that_is_trained_has_nothing_to_take(tmp_path):
    with pytest.raises(BuildError, match=r"trained on other labels is another network; give the weights of one"):
        build(BuildSpec(per_class=5), tmp_path / "never", reuse=tmp_path / "old")


def test_the_same_numbers_in_another_shape_are_other_inputs(model, inputs, tmp_path):
    labels = torch.arange(_COUNT) % 3
    few = {"sketch": SketchSpec(dim=64), "methods": (), "classes": ["a", "b", "c"]}
    data = (inputs, labels), (inputs[:6], labels[:6])
    old = natscope.build(model, *data, out=tmp_path / "old", **few)
    wide = inputs.reshape(_COUNT, 3, 4, 16)
    with pytest.raises(BuildError, match="its network takes other inputs"):
        natscope.build(model, (wide, labels), (wide[:6], labels[:6]), out=tmp_path / "new", reuse=old, **few)


class Series:
    """Two series of vectors, which differ in the last of them."""

    shape = (2, 3, 4)

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return 2

    def __getitem__(self, rows):
        values = torch.zeros(self.shape)
        values[1, 2, 3] = 1
        return values[rows]


@pytest.mark.parametrize("at_once", [1, 30, 10**6])
def test_inputs_are_told_apart_by_what_they_hold_whichever_are_read_with_them(monkeypatch, at_once):
    monkeypatch.setattr(reuse, "_AT_ONCE", at_once)
    runs = PaddedRuns(np.array([1, 2, 1, 2, 3, 4, 5, 6, 1, 2], np.int32), np.array([0, 2, 5, 8, 10]))
    first, second, third, again = reuse._digests(runs)
    assert first == again
    assert len({first, second, third}) == 3
    first, second = reuse._digests(Series(np.array([3, 3])))
    assert first != second
    images = torch.arange(36.0).reshape(3, 3, 2, 2).numpy()[[0, 1, 2, 0]]
    first, second, third, again = reuse._digests(StoredInputs(images))
    assert first == again
    assert len({first, second, third}) == 3
