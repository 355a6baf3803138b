"""Bundles that a stranger made to harm: each is one sentence, in `verify` and in use, and harms no other bundle."""

import errno
import json
import os
import shutil
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from natscope.app.bundles import _read, listed
from natscope.core.bundle import file_checks
from natscope.core.bundle import format as bundles
from natscope.core.bundle.format import MANIFEST, WEIGHTS, Bundle, find_bundles
from natscope.core.bundle.manifest import Manifest, plain_command
from natscope.core.bundle.request import Request
from natscope.core.bundle.schema import SchemaError
from natscope.core.bundle.verify import check_bundle
from natscope.core.errors import BundleError, NatscopeError
from natscope.core.images import ImageInputs
from natscope.core.methods import METHODS
from natscope.precompute.bundles import opening
from natscope.precompute.bundles.opening import faults, open_attributor
from natscope.precompute.training import models
from tests.tiny import CLASSES, TRAIN, edited, recorded_anew, saved


@pytest.fixture
def path(tiny_path, tmp_path):
    return shutil.copytree(tiny_path, tmp_path / "bundle")


def _set(*places):
    """Return a change of a manifest: the last of the places is the value."""
    *keys, last, value = places

    def change(raw):
        for key in keys:
            raw = raw[key]
        raw[last] = value

    return change


def _deep(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def _swap(first, second):
    def change(raw):
        files = raw["files"]
        files[first], files[second] = files[second], files[first]

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_set("name", None), "a wrong value at name"),
        (_set("name", "x" * 5000), "a wrong value at name"),
        (_set("name", "\x1b[2J"), "cannot be printed"),
        (_set("name", "right to left: \u202e"), "cannot be printed"),
        (_set("dataset", "classes", 1, "two\nlines"), "cannot be printed"),
        (_set("dataset", "classes", ["one"]), r"a wrong value at dataset\.classes"),
        (_set("dataset", "classes", ["ant", "bee"]), "does not fit|do not fit"),
        (_set("dataset", "std", [0]), r"a wrong value at dataset\.std"),
        (_set("dataset", "mean", [0.1, 0.2, 0.3]), "other means and deviations"),
        (_set("dataset", "classes", ["a", "a"]), "two classes alike"),
        (_set("model", "widths", [16, 100_000, 100_000, 3]), f"'{WEIGHTS}' is too small"),
        (_set("model", "widths", [16, -6, 3]), r"a wrong value at model\.widths"),
        (_set("model", "widths", [16, 6, 4]), "widths that do not fit"),
        (_set("model", {"architecture": "resnet9", "widths": [1, 4], "bias": False}), "widths that do not fit"),
        (_set("model", "code", "print(1)"), "a wrong value at model"),
        (_set("layout", [[6, 16], [3, 7]]), "another layout"),
        (_set("results", "kernel", "shares", {"weights": 0.9, "biases": 0.9}), "add up to more than 1"),
        (_set("results", "kernel", "shares", {"__class__": 0.9}), "a wrong value"),
        (_set("training", "epochs", "many"), r"a wrong value at training\.epochs"),
        (_set("training", "seed", -1), r"a wrong value at training\.seed"),
        (_set("sketch", "kind", "magic"), "names an unknown sketch"),
        (_set("sketch", "kind", "exact"), "not fit the rest"),
        (_set("sketch", "dim", 2**40), r"a wrong value at sketch\.dim"),
        (_set("sketch", "dim", 17), "a shape or type"),
        (_set("ntk", 1), "a wrong value at ntk"),
        (_set("outputs", "some"), "a wrong value at outputs"),
        (_set("poison", "place", "middle"), r"a wrong value at poison\.place"),
        (_set("poison", "train_indices", 0, 10**9), "poisoned examples"),
        (_set("poison", "base_labels", [0] * 6), "no poisoned example of some class"),
        (lambda raw: raw["poison"].update(train_indices=[], base_labels=[]), "no poisoned example of some class"),
        (_set("poison", "targets", [0, 1]), "patches or targets"),
        (_set("poison", "patterns", [[[1]]] * 3), "patches or targets"),
        (_set("results", "test_accuracy", 1.5), r"a wrong value at results\.test_accuracy"),
        (_set("results", "usual_distances", []), r"a wrong value at results\.usual_distances"),
        (_set("results", "settings", _deep(50)), "settings within settings"),
        (_set("tuned", {"sigma2": {"info_loss": -1.0}}), r"a wrong value at tuned\.sigma2"),
        (_set("command", "natscope precompute; rm -rf /"), "a command"),
        (_set("command", "rm -rf /"), "a command"),
        (_set("versions", {"torch": 2}), "a wrong value at versions"),
        (_set("files", "features", "file", "../../secret.npy"), "a file that"),
        (_set("files", "features", "file", "/dev/zero"), "a file that"),
        (_set("files", "features", "file", 5), "a wrong value at files"),
        (_set("files", "features", "bytes", "x"), "a wrong value at files"),
        (_set("files", "features", "bytes", 10**30), "a wrong value at files"),
        (_set("files", "features", "shape", [60, 2**40]), "not fit the rest"),
        (_set("files", "features", "dtype", "object"), "not fit the rest"),
        (_set("files", "gram_3", {"file": "gram_3.npy", "bytes": 1, "sha256": "0" * 64}), "does not know"),
        (_set("files", "gram_00", {"file": "gram_0.npy", "bytes": 1, "sha256": "0" * 64}), "does not know"),
        (_set("files", "penultimate", "shape", [60, 0]), "records 'penultimate' with a shape"),
        (_set("files", "weights", "shape", [1]), "records 'weights' as an array"),
        (_swap("features", "margin_features"), "under another name"),
        (lambda raw: raw["files"].pop("penultimate"), "records no 'penultimate'"),
        (lambda raw: raw["files"].pop("kronfluence/lambda_matrix.safetensors"), "a part of what Kron"),
        (lambda raw: raw["files"].pop("test_fooled"), "has a backdoor"),
        (lambda raw: raw.pop("results"), r"holds a wrong value"),
    ],
)
def test_a_manifest_with_a_wrong_value_is_one_sentence_everywhere(path, change, fault):
    edited(path, change)
    for opened in (Bundle, check_bundle, faults, open_attributor):
        with pytest.raises(
            BundleError, match=rf"\A[^\n]* its manifest\.json [^\n]*({fault})[^\n]*To fix it, [^\n]*\.\Z"
        ):
            opened(path)


def _places(value, *keys):
    """Yield the path to every value of a manifest."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, within in inside:
        yield (*keys, key)
        yield from _places(within, *keys, key)


def test_half_a_surrogate_pair_is_one_sentence_wherever_it_stands(path):
    raw = json.loads((path / MANIFEST).read_text())
    places = list(_places(raw))
    assert len(places) > 300
    for place in places:
        changed = json.loads(json.dumps(raw))
        _set(*place, "\ud800")(changed)
        with pytest.raises(SchemaError, match="is not JSON that can be read"):
            Manifest.from_json(json.dumps(changed))
    edited(path, lambda raw: raw["files"].update({"\ud800": "x"}))
    with pytest.raises(BundleError, match="is not JSON that can be read"):
        Bundle(path)
    assert listed(path).title == f"{path.name} (damaged)"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, "is not JSON"),
        ('{"schema": 1, "schema": 1}', "names something twice"),
        ('{"schema": NaN}', "a number that is not"),
        ('{"schema": 1e999}', "a number that is not"),
        ('{"schema": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"schema": "1"}', "a wrong value"),
    ],
)
def test_json_that_other_readers_take_is_refused(path, text, fault):
    (path / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=rf"its manifest\.json (holds |names )?{fault}"):
        Bundle(path)


@pytest.mark.parametrize("place", [("junk",), ("training", "junk"), ("methods", "trak", "junk"), ("versions", "junk")])
def test_a_manifest_of_many_values_is_refused_before_they_are_looked_at(path, place, monkeypatch):
    edited(path, _set(*place, [0] * 300_001))
    monkeypatch.setattr("natscope.core.bundle.manifest.json.loads", None)
    with pytest.raises(BundleError, match=r"manifest\.json .* 300,000 "):
        Bundle(path)


@pytest.mark.parametrize("place", [("methods", "trak", "junk"), ("results", "settings", "junk")])
def test_settings_without_end_are_refused(path, place):
    edited(path, _set(*place, [[0]] * 10_000))
    with pytest.raises(BundleError, match="too many settings"):
        Bundle(path)


def test_an_unknown_setting_is_refused_before_the_others_are_looked_at(path, monkeypatch):
    edited(path, lambda raw: raw.update(junk=[0] * 100_000))
    monkeypatch.setattr("natscope.core.bundle.schema._convert", None)
    with pytest.raises(BundleError, match="does not know"):
        Bundle(path)


def test_a_name_in_a_manifest_is_never_told(path):
    edited(path, _set("model", "[x](http://x) - at `$.<b>`", 1))
    with pytest.raises(BundleError, match=r"at model\. "):
        Bundle(path)


def test_a_manifest_too_large_is_not_read(path):
    os.truncate(path / MANIFEST, 2**40)
    with pytest.raises(BundleError, match=r"manifest\.json .* 4 MB"):
        Bundle(path)


def _become(path, kind, monkeypatch):
    """Replace a file by something else."""
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.with_name("elsewhere").write_bytes(content)
        path.symlink_to("elsewhere")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path.name)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "device", "socket"])
@pytest.mark.parametrize(
    "name", [MANIFEST, "features.npy", WEIGHTS, "index_0.faiss", "kronfluence/lambda_matrix.safetensors"]
)
def test_what_is_no_regular_file_is_one_sentence_at_once(path, name, kind, monkeypatch):
    _become(path / name, kind, monkeypatch)
    with pytest.raises(BundleError, match=rf"{name}'? is .*not a regular file"):
        Bundle(path)
    if name == MANIFEST:
        assert listed(path).title == "bundle (damaged)"
    else:
        (fault,) = faults(path)
        assert fault.startswith(f"'{name}' is not a regular file")


def test_a_folder_of_factors_that_is_a_link_is_not_followed(path, tmp_path):
    (path / "kronfluence").rename(tmp_path / "elsewhere")
    (path / "kronfluence").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"'kronfluence/.*' is not in"):
        Bundle(path)
    assert len(faults(path)) == 7


def _with(name, change):
    def damage(path):
        array = np.load(path / f"{name}.npy")
        saved(path, name, change(array.copy()))

    return damage


def _place(value, *where):
    def change(array):
        array[where or (0,) * array.ndim] = value
        return array

    return change


def _weights(change, file=WEIGHTS, name="weights"):
    def damage(path):
        tensors = safetensors.torch.load_file(path / file)
        (path / file).write_bytes(safetensors.torch.save(change(tensors)))
        recorded_anew(path, name)

    return damage


def _factors(kind, change):
    file = f"kronfluence/{kind}.safetensors"
    return _weights(change, file, file)


def _other_rows(path):
    data = bytearray((path / "index_1.faiss").read_bytes())
    data[-1] ^= 1
    (path / "index_1.faiss").write_bytes(data)
    recorded_anew(path, "index_1")


def _all(tensors, change):
    return {name: change(tensor) for name, tensor in tensors.items()}


_NOT_FINITE = "not finite"
_OTHER_TYPE = "numbers of a type"
_OF_OTHERS = "factors are not those"
_CONSISTENT = {
    "the largest number in a Gram": (_with("gram_0", _place(1.7e308)), "follow from the features"),
    "features too large for float32": (_with("trak_features", lambda a: a.astype(np.float32) + 3e38), _NOT_FINITE),
    "units too large for float32": (_with("penultimate", lambda a: a.astype(np.float64) + 1e300), _NOT_FINITE),
    "another number in a Gram": (_with("gram_1", _place(0.5, 5)), "follow from the features"),
    "features": (_with("features", _place(np.nan)), _NOT_FINITE),
    "margin_features": (_with("margin_features", _place(np.inf, -1, -1)), _NOT_FINITE),
    "trak_features": (_with("trak_features", _place(np.nan)), _NOT_FINITE),
    "trak_out_to_loss": (_with("trak_out_to_loss", _place(np.nan)), _NOT_FINITE),
    "penultimate": (_with("penultimate", _place(-np.inf)), _NOT_FINITE),
    "train_logits": (_with("train_logits", _place(np.nan)), _NOT_FINITE),
    "gram": (_with("gram_2", _place(np.nan)), _NOT_FINITE),
    "weights": (_weights(lambda t: {k: v * torch.nan for k, v in t.items()}), _NOT_FINITE),
    "images without a header": (lambda path: _headless(path), "recorded shape and type"),
    "labels too large": (_with("train_labels", _place(CLASSES)), "labels of no class"),
    "labels below zero": (_with("test_labels", _place(-1)), "labels of no class"),
    "no truth values": (lambda path: _no_truth(path), _NOT_FINITE),
    "labels moved": (_with("train_labels", _place(1, 0)), "has another shape"),
    "gram's shape": (_with("gram_0", lambda a: a[:-1]), "has another shape"),
    "backdoor": (lambda path: edited(path, lambda raw: raw["poison"]["base_labels"].reverse()), "the backdoor"),
    "index": (_other_rows, "is not an index"),
    "other weights": (_weights(lambda t: {k: -v for k, v in t.items()}), "give the outputs"),
    "huge weights": (_weights(lambda t: {k: v * 1e30 for k, v in t.items()}), "give the outputs"),
    "weights of other layers": (_weights(lambda t: {f"x{k}": v for k, v in t.items()}), "do not fit the network"),
    "weights of other shapes": (_weights(lambda t: {k: v.T.contiguous() for k, v in t.items()}), "do not fit"),
    "factors": (_factors("lambda_matrix", lambda t: {k: v.T.contiguous() for k, v in t.items()}), _OF_OTHERS),
    "factors of others": (_factors("gradient_eigenvalues", lambda t: {}), _OF_OTHERS),
    "numbers of eight bits": (_weights(lambda t: t | {"x": torch.zeros(3).to(torch.float8_e4m3fn)}), _OTHER_TYPE),
    "numbers of 64 bits": (_weights(lambda t: {k: v.double() * 1e300 for k, v in t.items()}), _OTHER_TYPE),
    "complex counts": (
        _factors("num_lambda_processed", lambda t: _all(t, lambda v: v.to(torch.complex64))),
        _OTHER_TYPE,
    ),
    "counts of 32 bits": (_factors("num_lambda_processed", lambda t: _all(t, lambda v: v.int())), _OF_OTHERS),
    "no examples": (_factors("num_lambda_processed", lambda t: _all(t, torch.zeros_like)), _OF_OTHERS),
    "minus one example": (_factors("num_lambda_processed", lambda t: _all(t, lambda v: -1 + 0 * v)), _OF_OTHERS),
    "no curvature": (_factors("lambda_matrix", lambda t: _all(t, torch.zeros_like)), _OF_OTHERS),
    "hardly any curvature": (_factors("lambda_matrix", lambda t: _all(t, lambda v: 1e-44 + 0 * v)), _OF_OTHERS),
    "curvature below zero": (_factors("lambda_matrix", lambda t: _all(t, torch.neg)), _OF_OTHERS),
    "huge eigenvectors": (_factors("gradient_eigenvectors", lambda t: _all(t, lambda v: 3e38 + 0 * v)), _OF_OTHERS),
    "eigenvectors of zero": (_factors("activation_eigenvectors", lambda t: _all(t, torch.zeros_like)), _OF_OTHERS),
    "eigenvectors of another length": (
        _factors("activation_eigenvectors", lambda t: _all(t, lambda v: 2 * v)),
        _OF_OTHERS,
    ),
    "penultimate's width": (_with("penultimate", lambda a: a[:, :-1]), "give the outputs"),
}


def _headless(path):
    data = (path / "test_images.npy").read_bytes()
    (path / "test_images.npy").write_bytes(data.replace(b"'descr'", b"'DESCR'"))
    recorded_anew(path, "test_images")


def _no_truth(path):
    data = bytearray((path / "test_fooled.npy").read_bytes())
    data[-1] = 7
    (path / "test_fooled.npy").write_bytes(data)
    recorded_anew(path, "test_fooled")


@pytest.mark.parametrize("case", _CONSISTENT)
def test_values_that_cannot_be_used_are_found_though_their_checksum_is_right(path, case):
    damage, fault = _CONSISTENT[case]
    damage(path)
    (found,) = faults(path)
    assert fault in found
    assert "\n" not in found
    if case in ("no truth values",):  # no method reads them
        return
    with pytest.raises(NatscopeError, match=fault) as caught:
        _attributed(path)
    assert str(caught.value).count("The bundle") <= 1


def _attributed(path):
    attributor = open_attributor(path)
    for name, method in METHODS.items():
        for target in range(CLASSES if name != "kronfluence" else 1):
            attributor.attribute(attributor.query("test", 1), Request(method.name, target=target, budget=3))


def test_a_class_without_images_has_no_index_that_is_read(path):
    labels = np.zeros(CLASSES * TRAIN, dtype=np.int64)
    saved(path, "train_labels", labels)

    def change(raw):
        raw["poison"] = None
        for name in ("gram_0", "gram_1", "gram_2"):
            del raw["files"][name]

    edited(path, change)
    assert any("class without images" in fault or "is not an index" in fault for fault in faults(path))


def test_what_else_is_in_a_folder_of_factors_is_not_copied(path):
    os.mkfifo(path / "kronfluence" / "covariance.safetensors")
    (path / "kronfluence" / "factor_arguments.json").write_text('{"strategy": "diagonal"}')
    recorded_anew(path, "kronfluence/factor_arguments.json")
    (fault,) = faults(path)
    assert fault.startswith("'kronfluence/covariance.safetensors' is a pipe")
    attributor = open_attributor(path)
    attributor.attribute(attributor.query("test", 0), Request("kronfluence"))


def test_a_bad_bundle_leaves_the_others(tiny_path, tmp_path):
    for name in ("good", "wrong", "pipe"):
        shutil.copytree(tiny_path, tmp_path / name)
    edited(tmp_path / "wrong", _set("name", None))
    (tmp_path / "pipe" / MANIFEST).unlink()
    os.mkfifo(tmp_path / "pipe" / MANIFEST)
    for name in ("new\nline", os.fsdecode(b"no text \xff"), "hidden.partial"):
        shutil.copytree(tiny_path, tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("good")
    found = find_bundles(tmp_path)
    assert [path.name for path in found] == ["good", "link", "pipe", "wrong"]
    assert [listed(path).title for path in found] == ["Tiny", "Tiny", "pipe (damaged)", "wrong (damaged)"]


def test_a_list_of_many_bundles_reads_each_once_until_it_changes(tiny_path, tmp_path, monkeypatch):
    for number in range(80):  # more than are kept open
        shutil.copytree(tiny_path, tmp_path / f"{number:02}", copy_function=os.link)
    (tmp_path / "03" / MANIFEST).unlink()
    (tmp_path / "03" / MANIFEST).write_text("{")
    monkeypatch.setattr("natscope.core.bundle.file_checks._TICK", 0)
    read = []
    monkeypatch.setattr("natscope.app.bundles._read", lambda path: read.append(path.name) or _read(path))

    def titles():
        read.clear()
        return [listed(path).title for path in find_bundles(tmp_path)]

    first = titles()
    assert first == [*["Tiny"] * 3, "03 (damaged)", *["Tiny"] * 76]
    assert read == [f"{number:02}" for number in range(80)]
    assert titles() == first
    assert read == []
    (tmp_path / "07" / "features.npy").unlink()
    assert titles()[7] == "07 (damaged)"
    assert read == ["07"]
    assert listed(tmp_path / "07").poisoned
    shutil.copy(tiny_path / MANIFEST, tmp_path / "03")
    assert titles()[3] == "Tiny"
    assert read == ["03"]


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "no/such/../folder"])
def test_a_place_where_no_bundle_can_be_is_one_sentence(tmp_path, name):
    assert find_bundles(tmp_path / name) == []
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle(tmp_path / name)


def test_a_files_bytes_are_read_once_and_again_when_it_changes(path, monkeypatch):
    read, through = [], file_checks._read_through
    monkeypatch.setattr(file_checks, "_TICK", 0)
    monkeypatch.setattr(
        file_checks, "_read_through", lambda file, *rest: read.append(rest[0].name) or through(file, *rest)
    )
    for _ in range(3):
        Bundle(path).array("features")
    assert read == ["features.npy"]
    file, before = path / "features.npy", (path / "features.npy").stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    with file.open("r+b") as handle:
        handle.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had been written
    with pytest.raises(BundleError, match=r"'features\.npy' .* checksum"):
        Bundle(path).array("features")
    assert read == ["features.npy"] * 2


def test_a_file_dated_in_the_future_is_read_once_too(path, monkeypatch):
    read, parsed, through, parse = [], [], file_checks._read_through, Manifest.from_json
    later = time.time_ns() + 10**18
    for file in (path / "features.npy", path / MANIFEST):
        os.utime(file, ns=(later, later))
    monkeypatch.setattr(file_checks.time, "time_ns", lambda: path.joinpath(MANIFEST).stat().st_ctime_ns + 10**9)
    monkeypatch.setattr(file_checks, "_read_through", lambda *all: read.append(all[1].name) or through(*all))
    monkeypatch.setattr(Manifest, "from_json", lambda text: parsed.append(text) or parse(text))
    for _ in range(3):
        Bundle(path).array("features")
    assert (read, len(parsed)) == (["features.npy"], 1)


def test_a_file_that_changed_a_moment_ago_is_read_again(path, monkeypatch):
    read, through = [], file_checks._read_through
    monkeypatch.setattr(file_checks.time, "time_ns", lambda: (path / "features.npy").stat().st_ctime_ns + 10)
    monkeypatch.setattr(file_checks, "_read_through", lambda *all: read.append(all[1].name) or through(*all))
    for _ in range(2):
        Bundle(path).array("features")
    assert read == ["features.npy"] * 2


@pytest.mark.parametrize("name", ["features.npy", MANIFEST])
def test_what_the_system_refuses_is_no_damage(path, monkeypatch, name):
    """A lack of file descriptors, or a disk that fails, is no reason to delete a bundle."""
    opening = os.open

    def refuse(file, *rest):
        if str(file).endswith(name):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opening(file, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BundleError, match="Too many open files") as raised:
        Bundle(path).array("features")
    assert "delete" not in str(raised.value)


class _Read(Exception):
    pass


@pytest.mark.parametrize("header", [b"", None])
def test_weights_larger_than_they_can_be_are_not_read_through(path, monkeypatch, header):
    """A sparse file takes no room on a disk and hours to read."""
    file, size = path / "model.safetensors", 2**41
    if header is None:  # one tensor that fills it
        size = 8 + 2**41
        text = json.dumps({"a": {"dtype": "F32", "shape": [2**39 - 32], "data_offsets": [0, 2**41 - 128]}})
        header = (128).to_bytes(8, "little") + text.ljust(128).encode()
        file.write_bytes(header)
    os.truncate(file, size)
    edited(path, lambda raw: raw["files"]["weights"].update(bytes=size))
    bundle = Bundle(path)
    monkeypatch.setattr(file_checks, "hashlib", SimpleNamespace(sha256=lambda: SimpleNamespace(update=_raising(_Read))))
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        bundle.weights()
    monkeypatch.setattr(file_checks, "machine_memory", lambda: np.inf)
    if header == b"":
        with pytest.raises(BundleError, match=r"model\.safetensors"):
            bundle.weights()


def _raising(error):
    def fail(*arguments, **settings):
        raise error

    return fail


@pytest.mark.parametrize(
    "lacking",
    [
        "safetensors.torch.load_file",
        "natscope.core.files.os.open",
        "natscope.core.bundle.format.Manifest.from_json",
        "natscope.core.bundle.file_checks._usable",
        "numpy.lib.format.read_array_header_1_0",
        "numpy.memmap",
        "natscope.core.bundle.format.InnerProductIndex.load",
        "torch.nn.Module.load_state_dict",
        "natscope.core.bundle.format.Bundle.inputs",
    ],
)
def test_a_lack_of_memory_is_no_damage_and_passes(path, monkeypatch, lacking):
    def use():
        open_attributor(path).bundle.index("index_0")

    monkeypatch.setattr(file_checks, "_TICK", 0)
    for error in (MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), RuntimeError("std::bad_alloc")):
        with monkeypatch.context() as patch:
            patch.setattr(lacking, _raising(error))
            with pytest.raises(type(error)):
                use()
    use()


@pytest.mark.parametrize("kind", ["-", "a**", "(lambda:", "[-", "(1,", "{-"])
@pytest.mark.parametrize("length", [9000, 600, 360, 290])
def test_a_header_that_pythons_parser_has_no_memory_for_is_damage(path, kind, length):
    header = (kind * length)[:length].encode() + b"\n"
    file = path / "features.npy"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + file.read_bytes()[128:])
    recorded_anew(path, "features")
    with pytest.raises(BundleError, match=r"'features\.npy' .* shape and type"):
        Bundle(path).array("features")


def test_a_manifest_is_read_once_as_long_as_it_is_the_same(path, monkeypatch):
    read, parse = [], Manifest.from_json
    monkeypatch.setattr(file_checks, "_TICK", 0)
    monkeypatch.setattr(Manifest, "from_json", lambda text: read.append(text) or parse(text))
    assert Bundle(path).identity == Bundle(path).identity
    edited(path, _set("name", "Another"))
    assert Bundle(path).manifest.name == "Another"
    assert len(read) == 2


@pytest.mark.parametrize(
    ("command", "is_plain"),
    [
        ("natscope precompute", True),
        ("natscope precompute --name 'Two words; $(id)' --dim 64", True),
        ("natscope precompute --name Two words; id", False),
        ("natscope precompute --name $(id)", False),
        ("natscope precompute --name '", False),
        ("natscope precompute --name 'two\nlines'", False),
        ("natscope app", False),
        ("sudo natscope precompute", False),
    ],
)
def test_a_command_is_natscopes_own_and_no_shell_reads_more_into_it(command, is_plain):
    assert plain_command(command) == is_plain


def test_a_strangers_command_is_told_to_nobody(path):
    edited(path, _set("command", "natscope precompute --model evil:net"))
    (path / "features.npy").unlink()
    with pytest.raises(BundleError) as caught:
        Bundle(path)
    assert "evil" not in str(caught.value)


def test_a_manifest_that_could_not_be_read_again_is_not_written(path):
    manifest = Bundle(path).manifest
    before = (path / MANIFEST).read_bytes()
    wrong = Manifest(**{**{f: getattr(manifest, f) for f in manifest.__dataclass_fields__}, "name": "x" * 301})
    with pytest.raises(BundleError, match=r"recorded: .* at name\."):
        bundles.write_manifest(path, wrong)
    assert (path / MANIFEST).read_bytes() == before
    with pytest.raises(SchemaError, match="wrong value at name"):
        Manifest.from_json(json.dumps(json.loads(wrong.to_json())))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: (path / WEIGHTS).write_bytes(bytes((path / WEIGHTS).stat().st_size)), "is not a file of weights"),
        (_weights(lambda t: {f"x{k}": v for k, v in t.items()}), "do not fit the network"),
        (_weights(lambda t: {k: v.T.contiguous() for k, v in t.items()}), "do not fit the network"),
    ],
)
def test_no_memory_is_taken_for_a_network_before_its_weights_were_looked_at(path, monkeypatch, damage, fault):
    monkeypatch.setattr(models, "build_model", _raising(AssertionError))
    damage(path)
    with pytest.raises(BundleError, match=fault):
        open_attributor(path)


def test_features_before_the_last_layer_have_its_width_where_they_are_not_compared(path, monkeypatch):
    saved(path, "penultimate", np.load(path / "penultimate.npy")[:, :-1])
    first = opening._first
    monkeypatch.setattr(opening, "_first", lambda *of: first(*of)[: 1 if of[1] == "test" else 0])
    with pytest.raises(BundleError, match="give the outputs"):
        open_attributor(path)


@pytest.mark.parametrize(
    ("layer", "side", "tests", "trained"),
    [
        (torch.nn.Conv2d(1, 1, 1), 128, 4, 4),
        (torch.nn.Conv2d(1, 1, 1), 129, 3, 3),
        (torch.nn.Conv2d(1, 1, 1), 224, 1, 1),
        (torch.nn.Conv2d(1, 1, 1), 257, 1, 0),
        (torch.nn.Conv2d(1, 1, 1), 1024, 1, 0),
        (torch.nn.Linear(1, 1), 1024, 4, 4),
    ],
)
def test_large_images_that_a_network_convolves_are_not_all_tried(layer, side, tests, trained):
    images = np.zeros((5, side, side), np.uint8)
    attributor = SimpleNamespace(
        bundle=SimpleNamespace(inputs=lambda split: ImageInputs(images, (0.5,), (0.5,))),
        features=SimpleNamespace(model=layer),
    )
    assert [len(opening._first(attributor, split)) for split in ("test", "train")] == [tests, trained]


def test_sources_are_those_of_the_data_and_a_bundle_without_them_counts_its_own(path):
    bundle = Bundle(path)
    assert bundle.sources("train")[:2] == ("train row 0", "train row 1")
    edited(path, lambda raw: [raw["files"].pop(f"{split}_sources") for split in ("train", "test")])
    assert Bundle(path).sources("test") == bundle.sources("test")
    assert check_bundle(path) == []


@pytest.mark.parametrize("wrong", [lambda count: b"one\ntwo", lambda count: b"x" * 5000 + b"\n" * (count - 1)])
def test_sources_that_are_no_line_for_each_image_are_a_fault(path, wrong):
    saved(path, "train_sources", np.frombuffer(wrong(len(Bundle(path).array("train_labels"))), np.uint8))
    (fault,) = check_bundle(path)
    assert "'train_sources.npy' does not have a line of text for each example" in fault
    with pytest.raises(BundleError, match="a line of text for each"):
        Bundle(path).sources("train")


def test_sources_that_are_no_text_are_shown_all_the_same(path):
    count = len(Bundle(path).array("test_labels"))
    saved(path, "test_sources", np.frombuffer(b"\n".join([b"\xff\xfe"] * count), np.uint8))
    assert set(Bundle(path).sources("test")) == {"\ufffd\ufffd"}
