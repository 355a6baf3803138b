"""A network and a folder of one's own, from files to attributions, interrupted and not."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from natscope.app.cli.commands import main
from natscope.core.bundle.format import WEIGHTS, sha256_of
from natscope.core.errors import BuildError, BundleError
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.folders import FolderSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.retrain import retrain
from natscope.precompute.training.train import TrainingSpec

_NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.batch = nn.BatchNorm2d(8)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.batch(self.conv(x)))
        return self.head(self.drop(self.norm(x)).amax((2, 3)))
"""
_JACOBIANS = "Jacobians of the training examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with a module and a folder of images, of which one is broken."""
    place = tmp_path_factory.mktemp("own")
    (place / "their_net.py").write_text(_NET)
    rng = np.random.default_rng(0)
    for part, count in (("train", 100), ("test", 20)):
        for label, name in enumerate(("night & <b>day", "sun set")):
            folder = place / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count // 2):
                pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[..., 0] += np.uint8(120 * label)
                Image.fromarray(pixels).save(folder / f"{i:04}.png", compress_level=0)
    (place / "images" / "train" / "sun set" / "broken.png").write_text("no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr("natscope.core.features.SHARD", 40)
        yield place
    sys.modules.pop("their_net", None)


@pytest.fixture(scope="module")
def spec(place):
    return BuildSpec(
        name="Own",
        dataset="folder:images",
        folder=FolderSpec(8, skip_broken=True),
        model=ModelSpec("their_net:Net", None),
        training=TrainingSpec(epochs=3, batch_size=10, augment=True, precision="bfloat16"),
        sketch=SketchSpec(dim=48),
    )


@pytest.fixture(scope="module")
def whole(place, spec):
    """The bundle of a build that nothing interrupted."""
    return build(spec, place / "whole")


def _sums(folder):
    return {file.name: sha256_of(file) for file in folder.iterdir()}


class _Killed(Exception):
    pass


@pytest.mark.parametrize("moment", [("Training", 1), ("Training", 3), (_JACOBIANS, 40)])
def test_a_build_killed_in_training_or_in_jacobians_ends_with_the_same_bytes(whole, spec, tmp_path, moment):
    def kill(*step):
        if step[:2] == moment:
            raise _Killed

    with pytest.raises(_Killed, match=r"^$"):
        build(spec, tmp_path / "bundle", kill)
    torch.rand(5)
    build(spec, tmp_path / "bundle")
    assert _sums(tmp_path / "bundle") == _sums(whole.path)


def test_the_bundle_tells_what_was_skipped_and_what_goes_through_torch_func(whole, place):
    results, manifest = whole.manifest.results, whole.manifest
    assert results["skipped"][0].startswith("train/sun set/broken.png: ")
    assert results["by_torch_func"] == ["InstanceNorm2d 'norm' (2 parameters)"]
    assert results["test_accuracy"] >= 0.9
    assert whole.classes == ("night & <b>day", "sun set")
    assert whole.examples("train").images.shape == (100, 8, 8, 3)
    assert str(place) not in manifest.to_json()
    assert manifest.model == {"architecture": "their_net:Net", "widths": None, "bias": False}
    assert len(results["settings"]["model"]["source"]) == 64


def test_training_again_without_some_images_is_the_same_training(whole):
    again = retrain(whole, np.zeros(0, dtype=np.int64)).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.weights().items())
    without = retrain(whole, np.arange(20)).state_dict()
    assert not torch.equal(without["head.weight"], again["head.weight"])


def test_weights_of_the_bundle_load_into_another(whole, spec, place, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.weights().items()}}, tmp_path / "w.pt")
    loaded = build(replace(spec, weights=tmp_path / "w.pt"), tmp_path / "bundle")
    np.testing.assert_array_equal(loaded.array("features"), whole.array("features"))
    other = build(replace(spec, weights=tmp_path / "w.pt", scaling=((0.0,) * 3, (1.0,) * 3)), tmp_path / "other")
    assert other.manifest.dataset["std"] == [1.0] * 3
    assert not np.array_equal(other.array("test_logits"), whole.array("test_logits"))
    with pytest.raises(BuildError, match="loaded, not trained here"):
        retrain(loaded, np.zeros(0, dtype=np.int64))


def test_outputs_that_run_away_on_some_images_are_said(whole, spec, tmp_path):
    weights = {name: tensor.clone() for name, tensor in whole.weights().items()}
    weights["head.weight"] *= 1e38
    weights["norm.weight"] *= 1e4
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(BuildError, match="their_net:Net are not finite"):
        build(replace(spec, weights=tmp_path / "w.pt"), tmp_path / "bundle")


@pytest.fixture
def edited(place):
    """A function that edits the user's module as long as the test runs."""

    def edit(old, new):
        sys.modules.pop("their_net", None)
        (place / "their_net.py").write_text(_NET.replace(old, new))
        # Python takes compiled code for current by the second and the size, which two edits may share.
        shutil.rmtree(place / "__pycache__", ignore_errors=True)

    yield edit
    edit("", "")


def test_a_bundle_whose_module_was_edited_or_is_gone_is_one_sentence(whole, place, spec, edited):
    assert open_attributor(whole.path).query("test", 0)
    edited("torch.relu", "torch.tanh")
    with pytest.raises(BundleError, match="outputs have changed"):
        open_attributor(whole.path)
    with pytest.raises(BundleError, match="other settings"):
        build(spec, whole.path)
    edited("head = nn.Linear(8, 2)", "head = nn.Linear(8, 3)")
    with pytest.raises(Exception, match="do not fit the network"):
        open_attributor(whole.path)
    sys.modules.pop("their_net", None)
    (place / "their_net.py").unlink()
    with pytest.raises(BundleError, match=r"module their_net, .* no longer at "):
        open_attributor(whole.path)


def _run(capsys, *arguments):
    with pytest.raises(SystemExit, match=r"^\d+$") as exited:
        main([str(a) for a in arguments])
    return exited.value.code, *capsys.readouterr()


_OPTIONS = (
    "--dataset",
    "folder:images",
    "--image-size",
    "8",
    "--model",
    "their_net:Net",
    "--epochs",
    "2",
    "--dim",
    "32",
)


def test_the_command_line_checks_builds_and_attributes(place, tmp_path, capsys):
    out = tmp_path / "bundle"
    code, said, err = _run(capsys, "precompute", "--check", *_OPTIONS, "--out", out)
    assert (code, said) == (2, "")
    assert err.startswith("Will not work: 1 of 121 images")
    assert "train/sun set/broken.png: " in err

    code, said, err = _run(capsys, "precompute", "--check", *_OPTIONS, "--out", out, "--skip-broken")
    assert (code, err) == (0, "")
    assert re.search(r"by torch\.func, .*InstanceNorm2d 'norm' \(2 parameters\)", said)
    *_, ready = said.splitlines()
    assert ready.startswith("Ready: natscope precompute ")
    assert sorted(ready.split()[3:]) == sorted((*_OPTIONS, "--skip-broken", "--out", str(out)))
    assert not out.exists()

    code, said, err = _run(capsys, "precompute", *_OPTIONS, "--out", out, "--skip-broken")
    assert code == 0
    assert said.startswith(f"Built: {out} (")
    assert re.search(r"\nLayers +by torch\.func, .*InstanceNorm2d 'norm' \(2 parameters\)\n", said)
    assert re.search(r"\nSkipped +1 files .*\n           train/sun set/broken\.png: ", said)

    code, said, _ = _run(capsys, "attribute", "--bundle", out, "--test-index", "3", "--budget", "4", "--json")
    answer = json.loads(said)
    assert code == 0
    assert answer["target_name"] == "night & <b>day"
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4]
    file = place / "images" / "test" / "night & <b>day" / "0003.png"
    code, said, _ = _run(capsys, "attribute", "--bundle", out, "--image", file, "--budget", "4", "--json")
    assert [item["train_index"] for item in json.loads(said)["items"]] == [i["train_index"] for i in answer["items"]]


def test_weights_from_the_command_line_are_scaled_as_told(whole, place, tmp_path, capsys):
    options = (*_OPTIONS, "--skip-broken", "--weights", whole.path / WEIGHTS)
    code, said, _ = _run(capsys, "precompute", "--check", *options, "--mean", "0,0,0", "--std", "1,1,1")
    assert code == 0
    assert re.search(r"Weights +loaded, .* 20 test images", said)
    assert "mean 0, 0, 0 and deviation 1, 1, 1" in " ".join(said.split())
    for arguments, sentence in (
        (("--mean", "0"), "--mean and --std go together"),
        (("--mean", "0", "--std", "1"), "Images of 3 channels"),
        (("--mean", "0,0,x", "--std", "1,1,1"), "--mean and --std take"),
        (("--mean", "0,0,0", "--std", "1,1,0"), "--mean takes finite"),
    ):
        code, _, err = _run(capsys, "precompute", "--check", *options, *arguments)
        assert code == 2
        assert err.startswith(f"Will not work: {sentence}")
