import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import safetensors.torch
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from natscope.app.cli.commands import main
from natscope.core.bundle.format import MANIFEST, WEIGHTS, Bundle, find_bundles, sha256_of
from natscope.core.bundle.request import Request
from natscope.core.errors import BuildError, BundleError, DataError
from natscope.core.images import to_input
from natscope.core.index.spec import IndexSpec
from natscope.core.jacobians import jacobian_blocks
from natscope.core.kernels import unpacked
from natscope.core.rows import RowView
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build, prepared
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec, estimated_bytes
from natscope.precompute.data.datasets import DATASETS, load_dataset
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.train import TrainingSpec
from tests.conftest import EACH
from tests.tiny import image_data

_TRAIN, _TEST = 2300, 200  # three shards of training images
_SPEC = BuildSpec(
    name="Small",
    dataset="small",
    model=ModelSpec(widths=(784, 16, 10)),
    training=TrainingSpec(epochs=2),
    sketch=SketchSpec(dim=32),
)
_DiskUsage = namedtuple("_DiskUsage", "total used free")


@pytest.fixture(scope="module", autouse=True)
def data():
    """Register the first images of the embedded data as the data set "small"."""
    embedded = load_dataset("fashion-mnist-quarter")
    small = image_data(
        name="small",
        classes=embedded.classes,
        train_images=embedded.train.images[:_TRAIN],
        train_labels=embedded.train_labels[:_TRAIN],
        test_images=embedded.test.images[:_TEST],
        test_labels=embedded.test_labels[:_TEST],
        mean=embedded.train.mean,
        std=embedded.train.std,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "small", lambda root: small)
        yield small


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The small bundle of a build that nothing interrupted."""
    return build(_SPEC, tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The folder of a build that was killed when all but the last index was there."""
    out = tmp_path_factory.mktemp("unfinished") / "bundle"
    with pytest.raises(_Killed, match=r"^$"):
        build(_SPEC, out, _killer(_GRAMS, 9))
    return out.with_name("bundle.partial")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return build(replace(_SPEC, outputs="all"), tmp_path_factory.mktemp("everything") / "bundle")


def _sums(folder):
    return {file.name: sha256_of(file) for file in folder.iterdir()}


def _own(bundle, label):
    return np.flatnonzero(bundle.array("train_labels") == label)


class _Killed(Exception):
    pass


def _killer(stage, done):
    def progress(*step):
        if step[:2] == (stage, done):
            raise _Killed

    return progress


_CHECKING = "Checking what is there"
_JACOBIANS, _GRAMS = "Jacobians of the training examples", "Grams and indexes, class by class"


# Killed processes


_OPTIONS = ("--dim", "64", "--epochs", "2", "--widths", "784,32,10", "--name", "Killed")


def _start(out):
    command = [sys.executable, "-m", "natscope.app.cli", "precompute", "--out", str(out), *_OPTIONS]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    )


def _journal(out):
    file = out.with_name(out.name + ".partial") / "journal.json"
    return json.loads(file.read_text())["done"] if file.is_file() else {}


def _kill_when(out, reached):
    """Start the command, kill it with SIGKILL once the journal says so, and give the journal that it leaves."""
    process, deadline = _start(out), time.monotonic() + 60
    try:
        while not reached(_journal(out)):
            assert process.poll() is None, "the build ended before the moment to kill it"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
    assert not out.exists()
    return _journal(out)


def test_a_build_killed_in_training_in_jacobians_and_in_grams_ends_with_the_same_bytes(tmp_path):
    out, partial = tmp_path / "killed", tmp_path / "killed.partial"
    with pytest.raises(SystemExit, match=r"^0$"):  # the same command, uninterrupted, in this process
        main(["precompute", "--out", str(tmp_path / "whole"), *_OPTIONS])

    left = _kill_when(out, lambda journal: (partial / "training.safetensors").exists())
    assert "weights" not in left

    left = _kill_when(out, lambda journal: len(journal.get("features", [])) >= 3)
    assert 3 <= len(left["features"]) < 15
    trained = (partial / WEIGHTS).stat().st_mtime_ns

    left = _kill_when(out, lambda journal: "index_2" in journal)
    assert left["features"] == list(range(0, 15000, 1000))
    assert "index_9" not in left
    assert (partial / WEIGHTS).stat().st_mtime_ns == trained
    cache = {file.name: file.stat().st_mtime_ns for file in partial.iterdir() if file.stem in left}
    assert {"gram_0.npy", "index_0.faiss", "gram_1.npy", "gram_2.npy", "test_images.npy"} < set(cache)
    assert find_bundles(tmp_path) == [tmp_path / "whole"]

    assert _start(out).wait(120) == 0
    assert _sums(out) == _sums(tmp_path / "whole")
    assert len(_sums(out)) == len(Bundle(out).manifest.files) + 1
    assert not partial.exists()
    for name, when in cache.items():
        if name != "features.npy":  # is opened to go on, even when nothing is missing
            assert (out / name).stat().st_mtime_ns == when, name
    bundle, data = Bundle(out), load_dataset("fashion-mnist-quarter")
    size = sum(file.stat().st_size for file in out.iterdir())
    spec = BuildSpec(model=ModelSpec(widths=(784, 32, 10)), sketch=SketchSpec(dim=64))
    assert size <= estimated_bytes(spec, data, bundle.manifest.layout) <= 2 * size
    for name in ("killed", "whole"):
        shutil.rmtree(tmp_path / name)


# Builds stopped in this process, at every step


def test_a_build_stopped_at_every_step_ends_with_the_same_bytes(whole, tmp_path):
    seen = set()

    def progress(stage, done, total):
        # Each start looks at what the ones before have finished, one file more each time: it is stopped there once.
        step = (stage, 0, 0) if stage == _CHECKING else (stage, done, total)
        if step not in seen:
            seen.add(step)
            raise _Killed

    for _ in range(200):
        try:
            build(_SPEC, tmp_path / "bundle", progress)
        except _Killed:
            assert not (tmp_path / "bundle").exists()
        else:
            break
    assert {stage for stage, _, _ in seen} == {
        _CHECKING,
        "Training",
        "Predictions",
        _JACOBIANS,
        _GRAMS,
        "Gradients of the margins",
        "TRAK: weights of the training examples",
        "TRAK: inverting what the examples have in common",
        "Checksums",
    }
    assert {done for stage, done, _ in seen if stage == _JACOBIANS} == {0, 1000, 2000, _TRAIN}
    assert _sums(tmp_path / "bundle") == _sums(whole.path)


def test_a_build_that_goes_on_does_not_repeat_shards_or_training(whole, tmp_path):
    out, steps = tmp_path / "bundle", []
    with pytest.raises(_Killed, match=r"^$"):
        build(_SPEC, out, _killer(_JACOBIANS, 2000))
    build(_SPEC, out, lambda *step: steps.append(step))
    assert "Training" not in {stage for stage, _, _ in steps}
    assert [done for stage, done, _ in steps if stage == _JACOBIANS] == [2000, _TRAIN]
    assert _sums(out) == _sums(whole.path)


@pytest.mark.parametrize("before", ["unlink", "rename"])
def test_a_build_stopped_while_publishing_is_published_by_the_next(whole, tmp_path, monkeypatch, before):
    out, original = tmp_path / "bundle", getattr(Path, before)

    def stops(path, *arguments, **options):
        if path.name in ("settings.json", "bundle.partial"):
            raise _Killed
        return original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, before, stops)
        with pytest.raises(_Killed, match=r"^$"):
            build(_SPEC, out)
    assert not out.exists()
    steps = []
    build(_SPEC, out, lambda *step: steps.append(step))
    assert steps == []
    assert _sums(out) == _sums(whole.path)


def test_an_unfinished_build_of_other_settings_is_started_anew(tmp_path):
    other = replace(_SPEC, training=TrainingSpec(epochs=2, seed=1))
    for out, spec in ((tmp_path / "first", _SPEC), (tmp_path / "second", other)):
        with pytest.raises(_Killed, match=r"^$"):
            build(spec, out, _killer(_GRAMS, 3))
    (tmp_path / "first.partial" / "leftover").touch()
    steps = []
    build(other, tmp_path / "first", lambda *step: steps.append(step))
    assert steps[0] == ("Training", 0, 2)
    build(other, tmp_path / "second")
    assert _sums(tmp_path / "first") == _sums(tmp_path / "second")


# What is in the way


@pytest.mark.parametrize("content", ["thesis.tex", "settings.json"])
@pytest.mark.parametrize("text", ["{}", "no JSON", '{"editor.tabSize": 4}', "[]"])
def test_a_strangers_folder_in_the_place_of_the_work_is_refused_and_kept(tmp_path, content, text):
    partial = tmp_path / "bundle.partial"
    partial.mkdir()
    (partial / content).write_text(text)
    with pytest.raises(BundleError, match=f"{partial} is in the way"):
        build(_SPEC, tmp_path / "bundle")
    assert (partial / content).read_text() == text
    assert not (tmp_path / "bundle").exists()


def test_a_file_in_the_place_of_the_work_is_refused_and_kept(tmp_path):
    (tmp_path / "bundle.partial").write_text("mine")
    with pytest.raises(BundleError, match=r"bundle\.partial is in the way"):
        build(_SPEC, tmp_path / "bundle")
    assert (tmp_path / "bundle.partial").read_text() == "mine"


def test_an_empty_folder_in_the_place_of_the_work_is_used(whole, tmp_path):
    (tmp_path / "bundle.partial").mkdir()
    assert build(_SPEC, tmp_path / "bundle").identity == whole.identity


def test_a_strangers_folder_or_file_in_the_place_of_the_bundle_is_refused_and_kept(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    for thing in (folder / "thesis.tex", file):
        thing.write_text("mine")
    with pytest.raises(BundleError, match=f"{folder} is in the way and is not a bundle"):
        build(_SPEC, folder)
    with pytest.raises(BundleError, match=f"{file} is in the way"):
        build(_SPEC, file)
    assert (folder / "thesis.tex").read_text() == file.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=f"{tmp_path}/file/bundle cannot be written"):
        build(_SPEC, tmp_path / "file" / "bundle")


def test_the_second_of_two_builds_says_so(whole, tmp_path):
    out = tmp_path / "bundle"
    with filelock.FileLock(tmp_path / "bundle.lock"):
        with pytest.raises(BundleError, match=f"Another natscope is building {out}"):
            build(_SPEC, out)
        assert sorted(tmp_path.iterdir()) == [tmp_path / "bundle.lock"]
    assert build(_SPEC, out).identity == whole.identity


def test_a_bundle_of_the_same_settings_is_opened_and_one_of_others_refused(whole):
    before, steps = {file: file.stat().st_mtime_ns for file in whole.path.iterdir()}, []
    assert build(_SPEC, whole.path, lambda *step: steps.append(step)).identity == whole.identity
    assert steps == []
    assert build(replace(_SPEC, name="Other"), whole.path).identity == whole.identity
    for other, told in (
        (replace(_SPEC, ntk=False), "ntk is False, and was not set"),
        (replace(_SPEC, outputs="all"), "outputs is all, and was own"),
        (replace(_SPEC, sketch=SketchSpec(dim=33)), r"sketch\.dim is 33, and was 32"),
        (replace(_SPEC, training=TrainingSpec(epochs=3)), r"training\.epochs is 3, and was 2"),
    ):
        with pytest.raises(BundleError, match=rf"^{whole.path} .* other settings: {told}; choose"):
            build(other, whole.path)
    assert {file: file.stat().st_mtime_ns for file in whole.path.iterdir()} == before


def test_another_title_and_number_of_threads_go_on_where_a_build_was(whole, tmp_path):
    out, steps, threads = tmp_path / "bundle", [], torch.get_num_threads()
    with pytest.raises(_Killed, match=r"^$"):
        build(_SPEC, out, _killer(_GRAMS, 3))
    torch.set_num_threads(threads + 1)
    try:
        again = build(replace(_SPEC, name="Other"), out, lambda *step: steps.append(step), tell=pytest.fail)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert "Training" not in {stage for stage, _, _ in steps}
    assert (again.manifest.name, again.manifest.versions) == ("Other", whole.manifest.versions)
    first, second = _sums(whole.path), _sums(out)
    assert {name for name in first if first[name] != second[name]} == {MANIFEST}


@pytest.mark.parametrize(("change", "asked"), [({"training": TrainingSpec(epochs=3)}, 1), ({}, 999)])
def test_work_that_does_not_go_on_says_nothing_of_threads(tmp_path, change, asked):
    out, threads = tmp_path / "bundle", torch.get_num_threads()
    with pytest.raises(_Killed, match=r"^$"):
        build(_SPEC, out, _killer(_GRAMS, 3))
    file = tmp_path / "bundle.partial" / "settings.json"
    begun = json.loads(file.read_text())
    begun["versions"]["threads"] = str(asked)
    file.write_text(json.dumps(begun))
    torch.set_num_threads(2)
    try:
        found = build(replace(_SPEC, **change), out)
    finally:
        torch.set_num_threads(threads)
    assert found.manifest.versions["threads"] == "2"


@pytest.mark.parametrize(
    ("versions", "change", "told"),
    [
        ({"natscope": "0.0.1"}, {}, r"natscope is \d\S*, and was 0\.0\.1"),
        ({}, {"training": TrainingSpec(epochs=3)}, r"training\.epochs is 3, and was \d+"),
    ],
)
def test_work_of_another_version_or_of_other_settings_is_not_lost_in_silence(tmp_path, versions, change, told):
    out, said = tmp_path / "bundle", []
    with pytest.raises(_Killed, match=r"^$"):
        build(_SPEC, out, _killer(_GRAMS, 3))
    file = tmp_path / "bundle.partial" / "settings.json"
    begun = json.loads(file.read_text())
    file.write_text(json.dumps(begun | {"versions": begun["versions"] | versions}))
    with pytest.raises(_Killed, match=r"^$"):
        build(replace(_SPEC, **change), out, _killer("Training", 1), tell=said.append)
    (sentence,) = said
    assert re.fullmatch(rf"The unfinished build {out}\.partial is begun again: {told}\.", sentence)


# The disk


def test_too_little_disk_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _DiskUsage(10**12, 10**12 - 123_000_000, 123_000_000))
    spec = replace(_SPEC, dataset="fashion-mnist-quarter")
    with pytest.raises(BuildError, match=rf"about \d{{3}} MB .* only 123 MB .* {tmp_path};"):
        build(spec, tmp_path / "bundle", lambda *step: steps.append(step))
    assert steps == []


def test_what_an_unfinished_build_has_written_counts_as_room(whole, tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    with pytest.raises(_Killed, match=r"^$"):
        build(_SPEC, out, _killer(_GRAMS, 10))
    needed = estimated_bytes(_SPEC, DATASETS["small"](tmp_path), whole.manifest.layout)
    present = sum(file.stat().st_size for file in (tmp_path / "bundle.partial").iterdir())
    free = needed - present
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _DiskUsage(10**12, 0, free - 1))
    with pytest.raises(BuildError, match="are free"):
        build(_SPEC, out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _DiskUsage(10**12, 0, free))
    assert build(_SPEC, out).identity == whole.identity


def test_the_estimate_of_the_embedded_bundle_is_close(bundle_path):
    size = sum(file.stat().st_size for file in bundle_path.iterdir())
    spec = BuildSpec(per_class=EACH, sketch=SketchSpec(dim=512), methods=("graddot", "trak"))
    data, _ = prepared(spec, load_dataset(spec.dataset))
    estimate = estimated_bytes(spec, data, Bundle(bundle_path).manifest.layout)
    assert size <= estimate <= 2 * size


@pytest.mark.parametrize(
    "changes",
    [
        {"sketch": SketchSpec("exact")},
        {"model": ModelSpec(widths=(784, 1200, 10))},
        {"model": ModelSpec(widths=(784, 16, 10), bias=True)},
    ],
)
def test_the_estimate_is_never_too_low(data, tmp_path, changes):
    model, weights = changes.get("model", _SPEC.model), tmp_path / "weights.safetensors"
    safetensors.torch.save_file(build_model(model, seed=0).state_dict(), weights)
    spec = replace(_SPEC, weights=weights, **changes)
    bundle = build(spec, tmp_path / "bundle")
    size = sum(file.stat().st_size for file in bundle.path.iterdir())
    assert size <= estimated_bytes(spec, data, bundle.manifest.layout) <= 3 * size


def test_the_estimate_counts_the_features_of_every_output(data, everything):
    size = sum(file.stat().st_size for file in everything.path.iterdir())
    assert size <= estimated_bytes(replace(_SPEC, outputs="all"), data, everything.manifest.layout) <= 2 * size


# Weights from a file


def test_loaded_weights_give_the_features_of_the_trained_ones(whole, tmp_path):
    weights = tmp_path / "weights.safetensors"
    shutil.copy(whole.path / WEIGHTS, weights)
    steps = []
    loaded = build(replace(_SPEC, weights=weights), tmp_path / "bundle", lambda *step: steps.append(step))
    assert "Training" not in {stage for stage, _, _ in steps}
    assert loaded.manifest.training == {"weights": sha256_of(weights)}
    first, second = _sums(whole.path), _sums(loaded.path)
    assert {name for name in first if first[name] != second[name]} == {MANIFEST}
    assert set(first) == set(second)


def test_weights_are_known_by_their_content_not_by_their_name(whole, tmp_path):
    for name in ("first", "second"):
        shutil.copy(whole.path / WEIGHTS, tmp_path / name)
    build(replace(_SPEC, weights=tmp_path / "first"), tmp_path / "bundle")
    build(replace(_SPEC, weights=tmp_path / "second"), tmp_path / "bundle")
    safetensors.torch.save_file(build_model(_SPEC.model, seed=9).state_dict(), tmp_path / "second")
    with pytest.raises(BundleError, match="other settings"):
        build(replace(_SPEC, weights=tmp_path / "second"), tmp_path / "bundle")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_each_time(tmp_path, value):
    tensors = build_model(_SPEC.model, seed=0).state_dict()
    tensors["3.weight"][4, 5] = value
    safetensors.torch.save_file(tensors, tmp_path / "weights")
    for _ in range(2):
        with pytest.raises(BuildError, match="hold values"):
            build(replace(_SPEC, weights=tmp_path / "weights"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def _other_widths(file):
    safetensors.torch.save_file(build_model(ModelSpec(widths=(784, 17, 10)), seed=0).state_dict(), file)


def _other_names(file):
    safetensors.torch.save_file({"weight": torch.zeros(10, 784)}, file)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_other_widths, r"mlp 784-16-10: .*'1\.weight' is 16 × 784, .* 17 × 784"),
        (_other_names, r"no '1\.weight' \(and 1 more\), but 'weight'; .* --widths and --bias"),
        (lambda file: file.write_bytes(b""), "weights is neither a safetensors file"),
        (lambda file: file.write_text("weights"), "weights is neither a safetensors file"),
        (lambda file: file.mkdir(), "no file .*/weights"),
        (lambda file: None, "no file .*/weights"),
    ],
)
def test_weights_that_cannot_be_loaded_are_refused(tmp_path, write, message):
    write(tmp_path / "weights")
    with pytest.raises(BuildError, match=message):
        build(replace(_SPEC, weights=tmp_path / "weights"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# Settings that make no sense


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": ModelSpec(widths=(783, 10))}, BuildError, "784 pixels; .* 784"),
        ({"model": ModelSpec(widths=(784, 9))}, BuildError, "9 outputs .* 10 classes"),
        ({"model": ModelSpec(widths=(784,))}, BuildError, "^Widths must be"),
        ({"model": ModelSpec("transformer")}, BuildError, "architecture 'transformer'"),
        ({"dataset": "cats"}, DataError, "data set 'cats'"),
        ({"name": "x" * 301}, BuildError, r"manifest\.json .* at name\.$"),
        ({"name": "two\nlines"}, BuildError, r"manifest\.json .* cannot be printed"),
        ({"training": TrainingSpec(learning_rate=-1.0)}, BuildError, "learning rate must be"),
        ({"training": TrainingSpec(learning_rate=1e9)}, BuildError, "smaller learning rate"),
        ({"sketch": SketchSpec("magic")}, BuildError, "sketch 'magic'"),
        ({"sketch": SketchSpec(dim=0)}, BuildError, "dimension, not 0"),
        ({"sketch": SketchSpec("tensorsketch", 33)}, BuildError, "^TensorSketch"),
        ({"sketch": SketchSpec("exact"), "outputs": "all"}, BuildError, "^The exact kernel"),
        (
            {"sketch": SketchSpec("exact"), "model": ModelSpec(widths=(784, 16, 10), bias=True)},
            BuildError,
            "^The exact kernel",
        ),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(tmp_path, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        build(replace(_SPEC, **changes), tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


# What is in a bundle


def test_a_bundle_holds_the_data_set_and_what_the_network_makes_of_it(whole, data):
    for split in ("train", "test"):
        np.testing.assert_array_equal(whole.array(f"{split}_images"), getattr(data, split).images)
        np.testing.assert_array_equal(whole.array(f"{split}_labels"), getattr(data, f"{split}_labels"))
    model = build_model(_SPEC.model, seed=5)
    model.load_state_dict(whole.weights())
    with torch.no_grad():
        hidden = model[:3](to_input(data.train.images, mean=data.train.mean, std=data.train.std))
        np.testing.assert_allclose(whole.array("penultimate"), hidden, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(whole.array("train_logits"), model[3](hidden), rtol=1e-4, atol=1e-4)
    results = whole.manifest.results
    for split in ("train", "test"):
        hits = whole.array(f"{split}_logits").argmax(1) == whole.array(f"{split}_labels")
        assert results[f"{split}_accuracy"] == hits.mean()
    assert results["test_accuracy"] > 0.5


def test_usual_distances_are_what_nearly_all_test_images_keep_to(whole, data):
    model = build_model(_SPEC.model, seed=0)
    model.load_state_dict(whole.weights())

    def hidden(images):
        with torch.no_grad():
            values = model[:3](to_input(images, mean=data.train.mean, std=data.train.std)).double().numpy()
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    def pixels(images):
        return images.reshape(len(images), -1) / 255

    for form, usual in zip((pixels, hidden), whole.manifest.results["usual_distances"], strict=True):
        members = form(data.train.images)
        nearest = [np.linalg.norm(members - image, axis=1).min() for image in form(data.test.images)]
        assert usual == pytest.approx(np.quantile(nearest, 0.995), rel=1e-3)


def test_grams_are_the_inner_products_of_features(whole):
    for label in range(10):
        own = whole.array("features")[_own(whole, label)].astype(np.float64)
        assert whole.array(f"gram_{label}").dtype == np.float64
        gram = unpacked(whole.array(f"gram_{label}"))
        np.testing.assert_allclose(gram, own @ own.T, rtol=1e-12, atol=1e-12 * np.abs(gram).max())
        assert len(whole.index(f"index_{label}")) == len(own)


def test_indexes_find_the_largest_inner_product_of_their_class(whole):
    for label in (0, 9):
        own = whole.array("features")[_own(whole, label)]
        vector = own[3].astype(np.float64)
        row, product = whole.index(f"index_{label}").largest_square(vector, own, excluded=[3])
        products = own.astype(np.float64) @ vector
        products[3] = 0
        assert row == np.argmax(products**2)
        assert product == pytest.approx(products[row])


def test_all_outputs_hold_every_logits_features_and_their_products(everything, whole):
    own = everything.array("features")
    np.testing.assert_array_equal(own, whole.array("features"))
    for label in range(10):
        features = everything.array(f"features_all_{label}")
        assert features.shape == own.shape
        rows = _own(everything, label)
        np.testing.assert_allclose(features[rows], own[rows], rtol=2e-3, atol=1e-6)
        others = np.setdiff1d(np.arange(_TRAIN), rows)
        assert not np.allclose(features[others], own[others])
        gram, double = everything.array(f"train_gram_{label}"), features.astype(np.float64)
        np.testing.assert_allclose(gram, double.T @ double, rtol=1e-10, atol=1e-10 * np.abs(gram).max())
    assert set(everything.manifest.files) - set(whole.manifest.files) == {
        f"{name}_{label}" for name in ("features_all", "train_gram") for label in range(10)
    }


@pytest.mark.parametrize("ntk", [True, False])
def test_the_exact_kernel_is_that_of_formed_jacobians(tmp_path, data, ntk):
    bundle = build(replace(_SPEC, sketch=SketchSpec("exact"), ntk=ntk), tmp_path / "bundle")
    attributor = open_attributor(bundle.path)
    for method in ("info_loss", "info_gain", "relatif"):
        assert len(attributor.attribute(attributor.query("test", 0), Request(method, 1.0, 3)).items) == 3
    assert not any(name.startswith("index") for name in bundle.manifest.files)
    assert bundle.array("features").shape == (_TRAIN, 784 + 16 + 16 + 10)
    model = build_model(_SPEC.model, seed=0)
    model.load_state_dict(bundle.weights())
    for label in (1, 6):
        rows = _own(bundle, label)[:8]
        images = to_input(data.train.images[rows], mean=data.train.mean, std=data.train.std).double()
        targets = torch.full((8,), label)
        formed = [b.form().flatten(1) for b in jacobian_blocks(model.double().eval(), images, targets, ntk=ntk)]
        jacobian = torch.cat(formed, dim=1).numpy()
        gram = unpacked(bundle.array(f"gram_{label}"))
        assert jacobian.shape == (8, 784 * 16 + 16 * 10)
        np.testing.assert_allclose(gram[:8, :8], jacobian @ jacobian.T, rtol=1e-5, atol=1e-5 * gram.max())


def test_a_class_without_images_has_no_gram_and_no_index(tmp_path, data, monkeypatch):
    kept = data.train_labels != 7
    changes = {"train": data.train[kept], "train_labels": data.train_labels[kept], "train_sources": ()}
    monkeypatch.setitem(DATASETS, "small", lambda root: replace(data, **changes))
    bundle = build(_SPEC, tmp_path / "bundle")
    assert not bundle.has("gram_7")
    assert not bundle.has("index_7")
    assert bundle.has("gram_8")


def test_a_bundle_tells_its_settings_and_versions(whole):
    manifest = whole.manifest
    assert manifest.training == TrainingSpec(epochs=2).to_dict()
    assert manifest.model == ModelSpec(widths=(784, 16, 10)).to_dict()
    assert manifest.sketch == {"kind": "countsketch", "dim": 32, "seed": 0}
    assert manifest.dataset["name"] == "small"
    assert manifest.versions["torch"] == importlib.metadata.version("torch")
    assert re.fullmatch(r"\d+", manifest.versions["threads"])
    assert manifest.results["settings"] == _SPEC.settings()
    assert str(whole.path) not in manifest.to_json()


def test_nothing_but_the_bundle_and_its_lock_is_left(whole):
    assert {file.name for file in whole.path.parent.iterdir()} == {"bundle", "bundle.lock"}
    assert {file.suffix for file in whole.path.iterdir()} == {".npy", ".faiss", ".safetensors", ".json"}


def test_the_embedded_bundle_reaches_the_accuracy_that_is_promised(tmp_path):
    bundle = build(BuildSpec(sketch=SketchSpec(dim=16), methods=()), tmp_path / "bundle")
    assert bundle.manifest.results["test_accuracy"] >= 0.86


# Indexes


def _indexed(kind):
    """Two classes of 1,500 images, enough for an index that is not flat."""
    return replace(
        _SPEC,
        name="Indexed",
        dataset="fashion-mnist-quarter",
        classes=(0, 1),
        model=ModelSpec(widths=(784, 16, 2)),
        index=IndexSpec(kind),
    )


def test_a_flat_index_is_no_setting_as_in_bundles_of_before(tmp_path):
    spec = replace(_SPEC, index=IndexSpec("flat", seed=3))
    assert "index" not in spec.settings()
    bundle = build(spec, tmp_path / "bundle")
    assert "index" not in json.loads((bundle.path / MANIFEST).read_text())
    assert bundle.index_spec == IndexSpec("flat")
    assert build(_SPEC, bundle.path).identity == bundle.identity  # where the choice is natscope's, it serves


def test_the_exact_kernel_records_no_index():
    assert "index" not in replace(_SPEC, sketch=SketchSpec("exact")).settings()


@pytest.mark.parametrize("kind", ["auto", "ivf", "ivfpq", "ivfrabitq", "hnsw"])
def test_a_build_with_an_index_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path, kind):
    spec = _indexed(kind)
    assert spec.settings()["index"] == IndexSpec(kind).to_dict()
    bundle = build(spec, tmp_path / "whole")
    with pytest.raises(_Killed):
        build(spec, tmp_path / "killed", _killer(_GRAMS, 1))
    left = _journal(tmp_path / "killed")
    assert "index_0" in left
    assert "index_1" not in left
    build(spec, tmp_path / "killed")
    assert _sums(tmp_path / "killed") == _sums(bundle.path)
    assert bundle.index_spec == spec.index
    assert bundle.index("index_1").kind == ("sq8" if kind == "auto" else kind)
    assert build(spec, tmp_path / "whole").identity == bundle.identity
    with pytest.raises(BundleError, match="other settings"):
        build(replace(spec, index=IndexSpec("flat")), tmp_path / "whole")


def test_the_exact_kernel_has_nothing_to_index(tmp_path):
    spec = replace(_SPEC, sketch=SketchSpec("exact"), index=IndexSpec("ivf"))
    with pytest.raises(BuildError, match=r"exact kernel .* index; .*--sketch"):
        build(spec, tmp_path / "bundle")


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"IwFl" + data[4:-9] + b"truncated"]
)
def test_a_damaged_index_of_lists_is_one_sentence(tmp_path, damage):
    bundle = build(_indexed("ivf"), tmp_path / "bundle")
    file = bundle.path / "index_0.faiss"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BundleError, match=r"is damaged: 'index_0\.faiss' .*To fix it, "):
        Bundle(bundle.path).index("index_0")


def test_a_class_is_searched_without_being_loaded(tmp_path):
    bundle = build(_indexed("ivf"), tmp_path / "bundle")
    request = Request("info_gain_approx", 1.0, 5)
    attributor = open_attributor(bundle.path)
    query = attributor.query("test", 0)
    answer = attributor.attribute(query, request)
    assert isinstance(attributor.candidates(answer.target, "same-class", "none", print)[0].pool.features, RowView)
    assert (answer.index, answer.to_dict(query, bundle.classes)["index"]) == ("ivf", "ivf")
    assert attributor.attribute(query, replace(request, method="info_gain")).index is None
    assert attributor.attribute(query, replace(request, pool="all")).index is None


def test_an_index_is_opened_once_for_many_queries(tmp_path, monkeypatch):
    path = build(_indexed("auto"), tmp_path / "bundle").path
    opened, real = [], Bundle.index
    monkeypatch.setattr(Bundle, "index", lambda self, name: opened.append(name) or real(self, name))
    attributor = open_attributor(path)
    query = attributor.query("test", 0)
    answers = [attributor.attribute(query, Request("info_gain_approx", sigma2, 5)) for sigma2 in (1.0, 10.0)]
    assert opened == [f"index_{query.predicted}"]
    assert [answer.index for answer in answers] == ["sq8", "sq8"]


def test_every_library_gets_the_threads_that_the_manifest_names(tmp_path):
    """The bits of a matrix product depend on them."""
    found = []

    def look(stage, done, total):
        if stage == _GRAMS:
            found.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
            raise _Killed

    with threadpool_limits(torch.get_num_threads() + 1, "blas"), pytest.raises(_Killed, match=r"^$"):
        build(_SPEC, tmp_path / "bundle", look)
    assert set(found) == {torch.get_num_threads()}


# An unfinished bundle that is damaged, as after a crash of the machine


@pytest.mark.parametrize(
    "name",
    [
        "journal.json",
        "model.safetensors",
        "train_images.npy",
        "train_logits.npy",
        "features.npy",
        "gram_0.npy",
        "index_0.faiss",
    ],
)
def test_what_is_damaged_in_an_unfinished_bundle_is_made_again(whole, unfinished, tmp_path, name):
    for number, damage in enumerate(
        (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: bytes(len(data)))
    ):
        out = tmp_path / str(number)
        shutil.copytree(unfinished, tmp_path / f"{number}.partial")
        file = tmp_path / f"{number}.partial" / name
        file.write_bytes(damage(file.read_bytes()))
        build(_SPEC, out)
        assert _sums(out) == _sums(whole.path)
    shutil.copytree(unfinished, tmp_path / "gone.partial")
    (tmp_path / "gone.partial" / name).unlink()
    assert build(_SPEC, tmp_path / "gone").identity == whole.identity


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b""])
def test_an_array_that_was_not_filled_and_is_cut_off_is_begun_again(whole, tmp_path, damage):
    out = tmp_path / "bundle"
    with pytest.raises(_Killed, match=r"^$"):
        build(_SPEC, out, _killer(_JACOBIANS, 2000))
    assert _journal(out)["features"] == [0, 1000]
    file = tmp_path / "bundle.partial" / "features.npy"
    file.write_bytes(damage(file.read_bytes()))
    build(_SPEC, out)
    assert _sums(out) == _sums(whole.path)
