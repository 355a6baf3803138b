import json
import os
import pickle
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natscope.core.bundle import format as bundles
from natscope.core.bundle.format import (
    MANIFEST,
    WEIGHTS,
    Bundle,
    Manifest,
    find_bundles,
    read_manifest,
    sha256_of,
    write_atomically,
)
from natscope.core.bundle.manifest import SCHEMA
from natscope.core.bundle.verify import check_bundle
from natscope.core.errors import BundleError
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.datasets import DATASETS, load_dataset
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec
from tests.conftest import one_sentence
from tests.tiny import image_data

_COMMAND = "natscope precompute --dataset tiny"


def _tiny_data():
    """Return 20 training and 3 test images a class of the embedded data."""
    data = load_dataset("fashion-mnist-quarter")
    train, test = (
        np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(10)])
        for labels, count in ((data.train_labels, 20), (data.test_labels, 3))
    )
    return image_data(
        "tiny",
        data.classes,
        data.train.images[train],
        data.train_labels[train],
        data.test.images[test],
        data.test_labels[test],
        data.train.mean,
        data.train.std,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return two tiny bundles, of sketch seed 0 and 1."""
    folder, data = tmp_path_factory.mktemp("tiny"), _tiny_data()
    spec = BuildSpec(
        name="Tiny",
        dataset="tiny",
        model=ModelSpec(widths=(784, 16, 10)),
        training=TrainingSpec(epochs=1),
        sketch=SketchSpec(dim=32),
        command=_COMMAND,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "tiny", lambda root: data)
        build(spec, folder / "zero")
        build(replace(spec, sketch=SketchSpec(dim=32, seed=1)), folder / "one")
    return folder


@pytest.fixture
def path(built, tmp_path):
    return shutil.copytree(built / "zero", tmp_path / "zero")


def _flip(file, place=-1):
    """Change one byte and keep the size."""
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)


def _record_anew(path, name):
    """Let the manifest record a file as it is now, as a stranger who hands out a bundle would."""
    manifest = Manifest.from_json((path / MANIFEST).read_text())
    record = manifest.files[name]
    file = path / record.file
    with file.open("ab") as handle:
        handle.write(bytes(max(0, record.bytes - file.stat().st_size)))  # a size that shows at once finds nothing here
    files = manifest.files | {name: replace(record, bytes=file.stat().st_size, sha256=sha256_of(file))}
    (path / MANIFEST).write_text(replace(manifest, files=files).to_json())


def _damaged(path, file):
    return rf"{path} is damaged: '{file}' [^']*\. To fix it, "


class _Exploding:
    """Opens a file when it is unpickled: the trace shows that somebody did."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def test_a_manifest_survives_its_json(path):
    text = (path / MANIFEST).read_text()
    manifest = Manifest.from_json(text)
    assert manifest.to_json() == text
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert (manifest.schema, manifest.name, manifest.command) == (SCHEMA, "Tiny", _COMMAND)
    assert manifest.layout == ((16, 784), (10, 16))
    assert manifest.files["features"].shape == (200, 32)
    assert manifest.files["weights"].shape is None
    biased = replace(manifest, layout=None, model=manifest.model | {"bias": True})
    assert biased.to_json() != text
    assert Manifest.from_json(biased.to_json()).layout is None


def test_the_manifest_records_every_file_and_nothing_else(path):
    records = Bundle(path).manifest.files.values()
    assert {r.file for r in records} == {p.name for p in path.iterdir()} - {MANIFEST}
    for record in records:
        assert (path / record.file).stat().st_size == record.bytes
        assert sha256_of(path / record.file) == record.sha256
    assert check_bundle(path) == []


def test_an_open_bundle_gives_its_settings_arrays_weights_and_indexes(path):
    bundle, data = Bundle(path), _tiny_data()
    assert bundle.classes == data.classes
    assert bundle.sketch_spec == SketchSpec(dim=32)
    np.testing.assert_array_equal(bundle.examples("train").images, data.train.images)
    np.testing.assert_array_equal(bundle.array("test_labels"), data.test_labels)
    assert {name: tuple(t.shape) for name, t in bundle.weights().items()} == {
        "1.weight": (16, 784),
        "3.weight": (10, 16),
    }
    assert len(bundle.index("index_3")) == 20
    assert bundle.has("gram_9")
    assert not bundle.has("gram_10")


def test_arrays_are_read_only_memory_maps(path):
    bundle = Bundle(path)
    for name, record in bundle.manifest.files.items():
        if record.file.endswith(".npy"):
            array = bundle.array(name)
            assert isinstance(array, np.memmap)
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_no_file_of_a_bundle_needs_pickle(path):
    kinds = set()
    for file in path.iterdir():
        kinds.add(file.suffix)
        assert not file.read_bytes().startswith(b"\x80"), file.name  # how every pickle since protocol 2 begins
        if file.suffix == ".npy":
            assert not np.load(file, allow_pickle=False).dtype.hasobject
    assert kinds == {".npy", ".faiss", ".safetensors", ".json"}


def test_the_identity_is_that_of_the_contents(built, path):
    first = Bundle(built / "zero").identity
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert Bundle(path).identity == first
    assert Bundle(built / "one").identity != first


def test_a_folder_that_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    missing = tmp_path / "missing"
    (tmp_path / "file").touch()
    for path in (missing, tmp_path / "file"):
        message = rf" {path}; `natscope precompute --out {path}`"
        with pytest.raises(BundleError, match=message):
            Bundle(path)
        with pytest.raises(BundleError, match=message):
            check_bundle(path)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    message = rf"^{tmp_path} is not a bundle: .*manifest\.json {{}}.*; `natscope precompute "
    with pytest.raises(BundleError, match=message.format("is missing")):
        Bundle(tmp_path)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(BundleError, match=message.format("is a folder")):
        check_bundle(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no JSON {",
        b"[]",
        b"1",
        b"null",
        b"{}",
        b"\xff\xfe\x00not UTF-8",
        json.dumps({"schema": SCHEMA}).encode(),
        json.dumps({"schema": SCHEMA, "files": []}).encode(),
        json.dumps({"schema": SCHEMA, "files": {"features": {}}, "layout": None}).encode(),
        json.dumps({"schema": SCHEMA, "files": {}, "layout": [1]}).encode(),
        json.dumps({"schema": SCHEMA, "files": {}, "layout": None, "unknown": 1}).encode(),
    ],
)
@pytest.mark.parametrize("opened", [Bundle, check_bundle])
def test_a_manifest_that_is_none_is_named(tmp_path, text, opened):
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=rf"{tmp_path} is damaged: .*manifest\.json [^`]+\. To fix it, "):
        opened(tmp_path)


def test_another_schema_is_refused_with_both_numbers(path):
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"schema": SCHEMA + 1}))
    with pytest.raises(BundleError, match=rf"{path} .*schema {SCHEMA + 1}.*schema {SCHEMA}:"):
        Bundle(path)


@pytest.mark.parametrize("file", ["features.npy", "index_0.faiss", WEIGHTS])
def test_a_truncated_file_is_found_on_opening(path, file):
    size = (path / file).stat().st_size
    os.truncate(path / file, size - 1)
    with pytest.raises(BundleError, match=_damaged(path, file)):
        Bundle(path)
    (fault,) = check_bundle(path)
    assert re.match(rf"'{file}' .*{size - 1:,} bytes .*{size:,} ", fault)


@pytest.mark.parametrize("file", ["gram_4.npy", "index_0.faiss", WEIGHTS])
def test_a_missing_file_is_found_on_opening(path, file):
    (path / file).unlink()
    with pytest.raises(BundleError, match=_damaged(path, file)):
        Bundle(path)
    assert check_bundle(path) == [f"'{file}' is missing."]


def test_every_fault_gets_its_sentence(path):
    size = (path / WEIGHTS).stat().st_size
    _flip(path / "features.npy")
    _flip(path / "gram_2.npy", place=200)
    (path / "test_logits.npy").unlink()
    with (path / WEIGHTS).open("ab") as file:
        file.write(b"more")
    expected = [
        r"'features\.npy' .*checksum",
        r"'gram_2\.npy' .*checksum",
        rf"'{WEIGHTS}' .*{size + 4:,} bytes .*{size:,} ",
        r"'test_logits\.npy' is missing",
    ]
    for fault, pattern in zip(sorted(check_bundle(path)), expected, strict=True):
        assert re.match(pattern, one_sentence(fault))


def test_a_changed_byte_in_any_file_is_found(path):
    for record in Bundle(path).manifest.files.values():
        _flip(path / record.file)
        (fault,) = check_bundle(path)
        assert re.match(rf"'{record.file}' .*checksum", fault)
        _flip(path / record.file)
    assert check_bundle(path) == []


def test_checking_tells_how_far_it_is(path):
    steps = []
    check_bundle(path, lambda *step: steps.append(step))
    records = Bundle(path).manifest.files.values()
    total = sum(r.bytes for r in records)
    assert [done for done, _ in steps] == list(np.cumsum([r.bytes for r in records]))
    assert {of for _, of in steps} == {total}


def _object_array(trace):
    array = np.empty(1, dtype=object)
    array[0] = _Exploding(trace)
    return array


@pytest.mark.parametrize("kind", ["pickle", "object array", "zip"])
def test_an_array_swapped_for_something_that_runs_code_is_refused_and_never_unpickled(path, tmp_path, kind):
    trace, file = tmp_path / "trace", path / "train_labels.npy"
    with file.open("wb") as handle:
        if kind == "pickle":
            pickle.dump(_Exploding(trace), handle)
        elif kind == "object array":
            np.save(handle, _object_array(trace), allow_pickle=True)
        else:
            np.savez(handle, _object_array(trace))
    _record_anew(path, "train_labels")
    with pytest.raises(BundleError, match=_damaged(path, r"train_labels\.npy")):
        Bundle(path).array("train_labels")
    assert [fault.split()[0] for fault in check_bundle(path)] == ["'train_labels.npy'"]
    assert not trace.exists()
    if kind == "pickle":  # the trap works: whoever unpickles it leaves the trace
        pickle.loads(file.read_bytes()).close()
        assert trace.exists()


@pytest.mark.parametrize(
    "array", [np.zeros(200, np.int32), np.zeros((200, 1), np.int64), np.zeros(199, np.int64), np.zeros(200, ">i8")]
)
def test_an_array_of_another_shape_or_type_than_recorded_is_refused(path, array):
    np.save(path / "train_labels.npy", array)
    _record_anew(path, "train_labels")
    with pytest.raises(BundleError, match=_damaged(path, r"train_labels\.npy")):
        Bundle(path).array("train_labels")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 127), st.integers(0, 255), min_size=1, max_size=4))
def test_any_damage_to_an_arrays_header_is_one_sentence(built, tmp_path, changes):
    path = tmp_path / "damaged"
    if not path.exists():
        shutil.copytree(built / "zero", path)
    data = bytearray((built / "zero" / "train_labels.npy").read_bytes())
    for place, value in changes.items():
        data[place] = value
    (path / "train_labels.npy").write_bytes(data)
    try:
        array = Bundle(path).array("train_labels")
    except BundleError as error:
        message = str(error)
    else:  # opening does not read every byte: `check_bundle` does
        assert (array.shape, array.dtype) == ((200,), np.int64)
        return
    assert re.search(_damaged(path, r"train_labels\.npy"), message)


@pytest.mark.parametrize("damage", [lambda data: b"\xff" * len(data), lambda data: data[:8] + b"\0" * (len(data) - 8)])
def test_damaged_weights_are_named(path, damage):
    (path / WEIGHTS).write_bytes(damage((path / WEIGHTS).read_bytes()))
    with pytest.raises(BundleError, match=_damaged(path, WEIGHTS)):
        Bundle(path).weights()


def test_weights_come_as_they_were_trained(path):
    stored = safetensors.torch.load_file(path / WEIGHTS)
    weights = Bundle(path).weights()
    assert set(weights) == set(stored)
    assert all((weights[name] == stored[name]).all() for name in stored)


@pytest.mark.parametrize("place", [0, 5, 9, 33, 40, -1])
def test_a_damaged_index_is_named_before_faiss_reads_it(path, place):
    _flip(path / "index_0.faiss", place)
    with pytest.raises(BundleError, match=_damaged(path, r"index_0\.faiss")):
        Bundle(path).index("index_0")


def test_a_file_that_is_no_index_is_named_even_if_it_was_recorded(path):
    (path / "index_0.faiss").write_bytes(b"This is no index at all.")
    _record_anew(path, "index_0")
    with pytest.raises(BundleError, match=_damaged(path, r"index_0\.faiss")):
        Bundle(path).index("index_0")


@pytest.mark.parametrize("name", ["gram_10", "features_all_0", "../secret"])
def test_what_a_bundle_does_not_hold_is_named_with_the_command(path, name):
    message = f"{path} holds no '{name}';"
    with pytest.raises(BundleError, match=message):
        Bundle(path).array(name)
    with pytest.raises(BundleError, match=message):
        Bundle(path).index(name)


def test_bundles_are_found_by_name_and_unfinished_ones_are_not(built, tmp_path):
    for name in ("beta", "alpha", "gamma.partial"):
        (tmp_path / name).mkdir()
        shutil.copy(built / "zero" / MANIFEST, tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert find_bundles(tmp_path) == [tmp_path / "alpha", tmp_path / "beta"]
    assert find_bundles(tmp_path / "beta") == [tmp_path / "beta"]
    assert find_bundles(tmp_path / "empty") == []
    assert find_bundles(tmp_path / "missing") == []


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, b"first")
    write_atomically(file, b"second, longer")
    write_atomically(file, b"third")
    assert file.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_fills_up_while_writing_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(file, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_bytes() == b"old"
    write_atomically(file, b"new" * 1000)
    assert file.read_bytes() == b"new" * 1000
    assert list(tmp_path.iterdir()) == [file]


def test_two_writers_of_one_file_never_share_a_temporary_one(tmp_path, monkeypatch):
    names, replace_ = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: names.append(self.name) or replace_(self, target))
    for data in (b"one", b"two"):
        write_atomically(tmp_path / "file", data)
    assert len(set(names)) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_manifest_is_read_without_a_look_at_the_files(path, monkeypatch):
    monkeypatch.setattr(bundles, "size_fault", lambda *_: pytest.fail("looked at a file"))
    assert read_manifest(path).name
    (path / MANIFEST).write_text("{")
    with pytest.raises(BundleError, match="is damaged: its manifest"):
        read_manifest(path)
