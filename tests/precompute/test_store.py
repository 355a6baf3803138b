"""Folders of strangers that are written into: nothing is written through a link, a pipe or another file's name."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from natscope.core.bundle.format import Bundle, sha256_of
from natscope.core.bundle.verify import check_bundle
from natscope.core.errors import BuildError, BundleError
from natscope.core.methods.artifacts import FACTORS
from natscope.precompute.bundles.opening import faults
from natscope.precompute.bundles.passes import Jacobians
from natscope.precompute.bundles.store import Store
from natscope.precompute.bundles.work import Work
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.train import TrainingSpec, train
from tests.tiny import build_tiny

_METHODS = ("graddot", "trak", "kronfluence")


@pytest.fixture(scope="session")
def bare_path(tmp_path_factory):
    """A small bundle to which methods can be added."""
    path = tmp_path_factory.mktemp("bare") / "bundle"
    build_tiny(path, methods=())
    return path


@pytest.fixture
def path(bare_path, tmp_path):
    return shutil.copytree(bare_path, tmp_path / "bundle")


@pytest.fixture
def victim(tmp_path):
    """A folder of the user's with a file."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "thesis").write_text("mine")
    return folder


def _untouched(victim):
    return [(file.name, file.read_text()) for file in victim.iterdir()] == [("thesis", "mine")]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("margin_features.npy", "thesis"),
        ("trak_features.tmp", "thesis"),
        ("trak_features.npy", "thesis"),
        ("anything", "thesis"),
        ("dangling", "nothing"),
        (FACTORS, ""),
        ("../bundle.adding", ""),
        ("../bundle.lock", "thesis"),
    ],
)
def test_no_method_is_added_through_a_link(path, victim, name, target):
    (path / name).unlink(missing_ok=True)  # of the lock
    (path / name).symlink_to(victim / target)
    with pytest.raises((BundleError, BuildError), match=r"is a link|in the way|cannot be written"):
        build_tiny(path, methods=_METHODS)
    assert _untouched(victim)
    assert Bundle(path).manifest.methods == {}
    assert not (path / "margin_features.npy").is_file() or name == "margin_features.npy"


@pytest.mark.parametrize("name", ["margin_features.npy", "trak_features.tmp", FACTORS, "deep/er/pipe"])
def test_no_method_is_added_where_a_pipe_lies(path, name):
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path / name)
    with pytest.raises(BundleError, match=rf"{name} is a pipe"):
        build_tiny(path, methods=_METHODS)


@pytest.mark.parametrize("name", ["margin_features.npy", "trak_features.npy", "trak_features.tmp"])
def test_a_file_with_a_second_name_is_replaced_and_not_written_into(path, victim, name):
    os.link(victim / "thesis", path / name)
    build_tiny(path, methods=_METHODS)
    assert _untouched(victim)
    assert check_bundle(path) == []


def test_a_shard_is_not_written_into_a_file_with_a_second_name(path, victim, tmp_path):
    """As a stranger's journal would have it."""
    shape, name = (60, 16), "margin_features"
    np.save(tmp_path / "rows.npy", np.zeros(shape, np.float32))
    before = (tmp_path / "rows.npy").read_bytes()
    os.link(tmp_path / "rows.npy", path / f"{name}.npy")
    work = Work(tmp_path / "adding", {}, folder=path)
    work.mark(name, 0)
    store = Store(path, work, lambda stage, done, total: None)
    store.large(name, shape, np.dtype("float32"), lambda part: np.ones((part.stop - part.start, 16)), "Rows")
    assert (tmp_path / "rows.npy").read_bytes() == before
    assert (np.load(path / f"{name}.npy") == 1).all()


@pytest.mark.parametrize("name", ["methods", "journal.json", "settings.json", "margin_features.npy"])
@pytest.mark.parametrize("folder", ["bundle.adding", "new.partial"])
def test_unfinished_work_with_a_link_in_it_is_refused(path, victim, folder, name):
    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if stage == "Checksums":
            raise Stopped

    out = path.with_name(folder).with_suffix("")
    with pytest.raises(Stopped):
        build_tiny(out, stop, methods=_METHODS)
    file = path.with_name(folder) / name
    if file.is_file():
        file.unlink()
    file.symlink_to(victim / ("thesis" if "." in name else ""))
    with pytest.raises(BundleError, match=r"is a link|in the way"):
        build_tiny(out, methods=_METHODS)
    assert _untouched(victim)


def test_unfinished_work_with_a_second_name_of_a_file_is_refused(path, victim):
    """What a library goes on with there would be written into the user's file."""
    place = path.with_name("bundle.adding")
    Work(place, {"bundle": Bundle(path).identity}, folder=path)
    (place / "methods").mkdir()
    os.link(victim / "thesis", place / "methods" / "factors.json")
    with pytest.raises(BundleError, match=r"factors\.json is a file with a second name"):
        build_tiny(path, methods=("kronfluence",))
    assert _untouched(victim)


@pytest.mark.parametrize(
    "journal",
    [
        "[" * 50_000,
        "[]",
        '{"done": [], "files": {}}',
        '{"done": {"margin_features": 1e999}, "files": {}}',
        '{"done": {"margin_features": -5}, "files": {}}',
        '{"done": {"margin_features": [-5, 1e999, [], "0"]}, "files": {}}',
        '{"done": {"margin_features": [0, 99999999]}, "files": {}}',
        '{"done": {"margin_features": 99999999}, "files": {}}',
        '{"done": {"margin_features": [0]}, "files": {"margin_features": ["/dev/zero", ""]}}',
        '{"done": {"margin_features": [0]}, "files": {"margin_features": ["../../x", ""]}}',
        '{"done": {"margin_features": [0]}, "files": {"margin_features": [5, null]}}',
    ],
)
def test_a_strangers_journal_does_no_harm(path, journal):
    place = path.with_name("bundle.adding")
    Work(place, {"bundle": Bundle(path).identity}, folder=path)
    (place / "journal.json").write_text(journal)
    build_tiny(path, methods=("graddot",))
    assert faults(path) == []


def test_a_journal_does_not_lead_out_of_the_folder(path, tmp_path):
    folder = tmp_path / "adding"
    Work(folder, {}, folder=path)
    files = {"a": ["../victim/thesis", "0"], "b": ["features.npy", "0"]}
    (folder / "journal.json").write_text(json.dumps({"done": {"a": [0], "b": [0]}, "files": files}))
    assert not Work(folder, {}, folder=path).done


@pytest.mark.parametrize("name", ["settings.json", "journal.json"])
def test_unfinished_work_with_a_pipe_in_it_is_refused_at_once(path, name):
    place = path.with_name("bundle.adding")
    Work(place, {"bundle": Bundle(path).identity}, folder=path)
    (place / name).unlink(missing_ok=True)
    os.mkfifo(place / name)
    with pytest.raises(BundleError, match=r"is a pipe|in the way"):
        build_tiny(path, methods=("graddot",))


def test_a_disk_that_fills_up_while_factors_are_fitted_is_one_sentence(path, monkeypatch):
    def fail(*arguments, **settings):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("kronfluence.factor.eigen.save_file", fail)
        with pytest.raises(BuildError, match=r"cannot be written: .*No space left"):
            build_tiny(path, methods=("kronfluence",))
    build_tiny(path, methods=("kronfluence",))
    assert check_bundle(path) == []


def test_what_is_no_file_and_not_recorded_is_a_fault(path, victim):
    (path / "margin_features.npy").symlink_to(victim / "thesis")
    (path / "kept").mkdir()
    os.mkfifo(path / "kept" / "pipe")
    (path / "notes.txt").write_text("Of no harm.")
    link, pipe = faults(path)
    assert link.startswith("'margin_features.npy' is a link")
    assert pipe.startswith("'kept/pipe' is a pipe")


def test_kept_results_and_checkpoints_that_are_pipes_are_not_waited_for(tmp_path):
    for name in ("kept.json", "training.safetensors"):
        os.mkfifo(tmp_path / name)
    assert ResultCache(tmp_path / "kept.json").parts() == {}
    images, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    model, recipe = build_model(ModelSpec(widths=(16, 3)), seed=0), TrainingSpec(epochs=1, batch_size=4)
    with pytest.raises(BuildError, match=r"training\.safetensors is damaged"):
        train(model, images, labels, recipe, checkpoint=tmp_path / "training.safetensors")


class _Stopped(Exception):
    pass


def _stop(stage, done, total):
    if stage == "Checksums":
        raise _Stopped


@pytest.fixture(scope="session")
def unfinished_path(tmp_path_factory):
    """A build without methods that was stopped before its manifest."""
    path = tmp_path_factory.mktemp("unfinished") / "new"
    with pytest.raises(_Stopped):
        build_tiny(path, _stop, methods=())
    return path.with_name("new.partial")


@pytest.fixture
def unfinished(unfinished_path, tmp_path):
    return shutil.copytree(unfinished_path, tmp_path / "new.partial")


def _forge(work, name, file, folder=None):
    """Let the journal say that a file is the finished one of a name."""
    found = json.loads((work / "journal.json").read_text())
    found["files"][name] = [file, sha256_of((folder or work) / file)]
    found["done"][name] = found["done"].get(name, [0])
    (work / "journal.json").write_text(json.dumps(found))


def _sums(path):
    return {file.name: sha256_of(file) for file in path.iterdir() if file.is_file()}


@pytest.mark.parametrize("name", ["train_labels", "train_images", "train_logits", "penultimate", "gram_0"])
@pytest.mark.parametrize("bytes_more", [-8, 8])
def test_an_unfinished_array_that_is_cut_off_is_made_again(unfinished, bare_path, name, bytes_more):
    file = unfinished / f"{name}.npy"
    content = file.read_bytes()
    file.write_bytes(content[:bytes_more] if bytes_more < 0 else content + bytes(bytes_more))
    _forge(unfinished, name, file.name)
    assert _sums(build_tiny(unfinished.with_name("new"), methods=()).path) == _sums(bare_path)


@pytest.mark.parametrize(
    ("name", "file", "other"),
    [
        ("train_labels", "train_labels.npy", "test_labels.npy"),
        ("train_logits", "train_logits.npy", "settings.json"),
        ("index_0", "index_0.faiss", "gram_0.npy"),
        ("weights", "model.safetensors", "features.npy"),
    ],
)
def test_an_unfinished_file_recorded_under_another_name_is_made_again(unfinished, bare_path, name, file, other):
    (unfinished / file).unlink()
    _forge(unfinished, name, other)
    assert _sums(build_tiny(unfinished.with_name("new"), methods=()).path) == _sums(bare_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("gram_0", np.zeros((3, 2))),
        ("weights", b"garbage"),
        ("weights", safetensors.torch.save({"a": torch.zeros(3)})),
    ],
    ids=["no triangle", "no weights", "other weights"],
)
def test_unfinished_work_that_does_not_fit_is_one_sentence(unfinished, name, array):
    file = unfinished / ("model.safetensors" if name == "weights" else f"{name}.npy")
    if isinstance(array, bytes):
        file.write_bytes(array)
    else:
        np.save(file, array)
    _forge(unfinished, name, file.name)
    with pytest.raises(BuildError, match=r"new\.partial is damaged"):
        build_tiny(unfinished.with_name("new"), methods=())
    shutil.rmtree(unfinished)
    assert faults(build_tiny(unfinished.with_name("new"), methods=()).path) == []


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train_logits", np.zeros((6, 3), np.float32)),
        ("train_logits", np.zeros((60, 2), np.float32)),
        ("penultimate", np.zeros(60, np.float32)),
        ("penultimate", np.zeros((60, 5), np.float32)),
        ("features", np.zeros((60, 5), np.float16)),
    ],
    ids=["few rows", "few classes", "one dimension", "few units", "few features"],
)
def test_an_unfinished_array_of_another_shape_is_made_again(unfinished, bare_path, name, array):
    file = unfinished / f"{name}.npy"
    np.save(file, array)
    _forge(unfinished, name, file.name)
    assert _sums(build_tiny(unfinished.with_name("new"), methods=()).path) == _sums(bare_path)


@pytest.mark.parametrize(
    ("error", "resumed"), [(ValueError("a bug"), False), (RuntimeError("not enough memory: 9 bytes"), True)]
)
def test_only_what_files_may_have_raised_is_said_of_unfinished_work(unfinished, monkeypatch, error, resumed):
    def fail(*arguments, **settings):
        raise error

    if not resumed:
        shutil.rmtree(unfinished)
    monkeypatch.setattr("natscope.precompute.bundles.build.distances", fail)
    with pytest.raises(type(error), match=str(error)):
        build_tiny(unfinished.with_name("new"), methods=())


def _adding(path):
    place = path.with_name("bundle.adding")
    Work(place, {"bundle": Bundle(path).identity}, folder=path)
    (place / "journal.json").write_text('{"done": {}, "files": {}}')
    return place


@pytest.mark.parametrize("there", [True, False])
def test_no_method_is_added_with_the_checksum_of_another_file(path, there):
    place = _adding(path)
    for name in ("trak_features", "trak_out_to_loss", "margin_features"):
        _forge(place, name, "features.npy", path)
        if there:
            shutil.copy(path / "features.npy", path / f"{name}.npy")
    build_tiny(path, methods=("trak",))
    assert faults(path) == []


def test_an_added_array_that_does_not_fit_is_one_sentence(path):
    place = _adding(path)
    for name in ("trak_features", "trak_out_to_loss"):
        np.save(path / f"{name}.npy", np.zeros((7, 3), np.float32))
        _forge(place, name, f"{name}.npy", path)
    with pytest.raises(BuildError, match=r"bundle\.adding is damaged"):
        build_tiny(path, methods=("trak",))
    assert check_bundle(path) == []


def test_a_file_that_changes_before_it_is_recorded_is_not_recorded(path):
    def change(stage, done, total):
        if stage == "Checksums":
            np.save(path / "trak_features.npy", np.zeros((60, 16), np.float32))

    with pytest.raises(BuildError, match=r"bundle\.adding is damaged"):
        build_tiny(path, change, methods=("trak",))
    assert check_bundle(path) == []
    assert Bundle(path).manifest.methods == {}


class _Interrupted(Exception):
    pass


@dataclass(frozen=True)
class Known(Jacobians):
    """Jacobians that are there already."""

    rows: Callable = None

    def _shard(self, part):
        return self.rows(part)


def _features(folder, rows, *, stop=None, halve=True, computed=None):
    """Store rows as features, and fail at a shard; where each that is computed begins is appended to a list."""

    def shard(part):
        if part.start == stop:
            raise _Interrupted
        if computed is not None:
            computed.append(part.start)
        return rows[part]

    folder.mkdir(exist_ok=True)
    task = Known("features", None, None, rows=shard)
    return Store(folder, Work(folder, {}), lambda *_: None).features(task, rows.shape, "", halve=halve)


@pytest.mark.parametrize(
    ("scale", "halve", "dtype"),
    [
        (1.0, True, np.float16),
        (1.0, False, np.float32),
        (1e5, True, np.float32),
        (1e-7, True, np.float32),
        (0.0, True, np.float16),
    ],
)
def test_features_are_stored_as_float16_where_that_holds_them_and_as_float32_elsewhere(tmp_path, scale, halve, dtype):
    rows = np.random.default_rng(0).normal(size=(2_500, 8)).astype(np.float32)
    rows[2_100:] *= scale
    whole = _features(tmp_path / "whole", rows, halve=halve)
    assert whole.dtype == dtype
    error = np.linalg.norm(whole.astype(np.float64) - rows, axis=1)
    assert (error <= 2.0**-11 * np.linalg.norm(rows, axis=1)).all()
    for stop in (1_000, 2_000):
        with pytest.raises(_Interrupted):
            _features(tmp_path / "stopped", rows, stop=stop, halve=halve)
    _features(tmp_path / "stopped", rows, halve=halve)
    again = []
    _features(tmp_path / "stopped", rows, halve=halve, computed=again)
    assert again == []
    assert sha256_of(tmp_path / "stopped" / "features.npy") == sha256_of(tmp_path / "whole" / "features.npy")


def test_features_in_float32_go_on_where_they_were_stopped(tmp_path):
    rows, computed = 1e5 * np.random.default_rng(0).normal(size=(2_500, 8)).astype(np.float32), []
    for stop in (1_000, 2_000, None):
        with nullcontext() if stop is None else pytest.raises(_Interrupted):
            _features(tmp_path / "stopped", rows, stop=stop, computed=computed)
    assert computed == [0, 0, 1_000, 2_000]  # once more for the attempt in float16


def test_work_in_another_form_is_begun_again(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2_500, 8)).astype(np.float32)
    for stop, halve in ((2_000, True), (0, False)):  # the second begins the file again, and stops at once
        with pytest.raises(_Interrupted):
            _features(tmp_path / "stopped", rows, stop=stop, halve=halve)
    _features(tmp_path / "stopped", rows, halve=False)
    _features(tmp_path / "whole", rows, halve=False)
    assert sha256_of(tmp_path / "stopped" / "features.npy") == sha256_of(tmp_path / "whole" / "features.npy")


def test_features_that_are_not_finite_end_the_build(tmp_path):
    rows = np.ones((5, 8), dtype=np.float32)
    rows[3, 2] = np.inf
    with pytest.raises(BuildError, match="A Jacobian is not finite"):
        _features(tmp_path / "work", rows)
