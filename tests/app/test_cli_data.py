"""`natscope precompute --data`, `--transform` and `--load`: a user's own data and functions."""

import json
import random
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import natscope
from natscope.app.cli.commands import main
from natscope.core.bundle.format import Bundle
from natscope.core.features import FeatureMap
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.asking import ask_about_file
from natscope.precompute.bundles.opening import faults, open_attributor
from natscope.precompute.bundles.store import PROBED
from natscope.precompute.data.named import made_by
from tests.conftest import module_of_ones_own, one_sentence
from tests.tiny import edited

_MODULE = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3 * 6 * 5, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.relu(self.first(x.flatten(1))))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)).mean((2, 3)))


def transform(picture):
    pixels = np.asarray(picture.resize((5, 6)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def load(path):
    return np.frombuffer(path.read_bytes(), np.float32).reshape(3, 6, 5)


def sets():
    inputs, labels = torch.randn(40, 3, 6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    return TensorDataset(inputs[:30], labels[:30]), TensorDataset(inputs[30:], labels[30:])


def make():
    return sets()


def named():
    return *sets(), ["ant", "bee"]


def divided():
    whole = sets()[0]
    return torch.utils.data.random_split(whole, [20, 10])


def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
    return (pixels[:30], np.arange(30) % 2), (pixels[30:], np.arange(10) % 2)


def alone():
    return sets()[0]


def holed():
    return sets()[0], None


def broken():
    raise OSError("no disk")


def bytes_of(picture):
    return np.asarray(picture.resize((5, 6)))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the module, weights and pictures, which is the working directory."""
    folder = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            (folder / "photos" / part / name).mkdir(parents=True)
            (folder / "raw" / part / name).mkdir(parents=True)
            for row in range(count):
                pixels = random.integers(0, 256, (9, 7, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / part / name / f"{row}.png")
                values = random.normal(label, 1, (3, 6, 5)).astype(np.float32)
                (folder / "raw" / part / name / f"{row}.raw").write_bytes(values.tobytes())
    with module_of_ones_own(folder, "own_of_cli", _MODULE) as own:
        torch.manual_seed(0)
        torch.save(own.Net().state_dict(), folder / "net.pt")
        yield folder
    for name in ("folder", "lazy_of_cli", "beside"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(place, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit, match=r"^\d+$") as exited:
            main(["precompute", *map(str, arguments)])
        return exited.value.code, *capsys.readouterr()

    return call


_NET = ("--model", "own_of_cli:Net", "--weights", "net.pt", "--dim", 64, "--methods", "repsim")


def _sums(bundle):
    left_out = {"weights"}
    return {name: record.sha256 for name, record in bundle.manifest.files.items() if name not in left_out}


@pytest.mark.parametrize("function", ["make", "named"])
def test_data_that_a_function_gives_are_those_of_natscope_build(run, place, tmp_path, function):
    import own_of_cli

    code, out, _ = run("--data", f"own_of_cli:{function}", *_NET, "--out", tmp_path / "cli")
    assert (code, out.startswith("Built")) == (0, True)
    net = own_of_cli.Net()
    net.load_state_dict(torch.load(place / "net.pt"))
    found = getattr(own_of_cli, function)()
    settings = {"sketch": SketchSpec(dim=64), "methods": ["repsim"], "classes": found[2] if len(found) > 2 else None}
    python = natscope.build(net, *found[:2], out=tmp_path / "python", **settings)
    bundle = Bundle(tmp_path / "cli")
    assert _sums(bundle) == _sums(python)
    assert bundle.classes == (("ant", "bee") if function == "named" else ("0", "1"))
    assert bundle.manifest.command.startswith(f"natscope precompute --data own_of_cli:{function} --model")
    assert faults(bundle.path) == []
    assert run("--data", f"own_of_cli:{function}", *_NET, "--out", tmp_path / "cli")[1].startswith("Already there")


def test_a_random_division_is_the_same_each_time(run, tmp_path):
    assert run("--data", "own_of_cli:divided", *_NET, "--out", tmp_path / "a")[0] == 0
    torch.manual_seed(7)
    assert run("--data", "own_of_cli:divided", *_NET, "--out", tmp_path / "a")[1].startswith("Already there")


def test_pictures_of_uint8_are_scaled_and_may_train_a_network(run, tmp_path):
    scaling = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    options = ("--data", "own_of_cli:pictures", *scaling, "--epochs", 1, "--dim", 16, "--methods", "repsim")
    assert run(*options, "--out", tmp_path / "a")[0] == 0
    bundle = Bundle(tmp_path / "a")
    assert (list(bundle.manifest.dataset["mean"]), list(bundle.manifest.dataset["std"])) == ([0.5] * 3, [0.25] * 3)
    code, _, err = run("--config", tmp_path / "a", "--data", "own_of_cli:pictures", "--out", tmp_path / "b")
    assert (code, f"The settings are those of {tmp_path / 'a'}." in err) == (0, True)
    assert _sums(Bundle(tmp_path / "b")) == _sums(bundle)
    code, _, err = run(*options[:2], "--epochs", 1, "--out", tmp_path / "c")
    assert (code, "by mean and std, in units" in one_sentence(err)) == (2, True)


@pytest.fixture(scope="module")
def folder_bundle(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("folder") / "own"
    options = ("--dataset", "folder:photos", "--transform", "own_of_cli:transform", *map(str, _NET), "--out", str(out))
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["precompute", *options])
    return Bundle(out)


def test_pictures_of_a_folder_become_inputs_by_the_users_function(folder_bundle, place):
    import own_of_cli

    file = "train/dog/3.png"
    row = folder_bundle.sources("train").index(file)
    wanted = own_of_cli.transform(Image.open(place / "photos" / file))
    np.testing.assert_array_equal(folder_bundle.array("train_inputs")[row], wanted)
    assert folder_bundle.classes == ("cat", "dog")
    assert folder_bundle.manifest.dataset["transform"] == "own_of_cli:transform"
    asked = ask_about_file(open_attributor(folder_bundle.path), (place / "photos" / file).read_bytes(), "3.png")
    np.testing.assert_array_equal(asked.example.stored[0], wanted)


def test_the_folder_is_watched_and_its_settings_replay(run, folder_bundle, place, tmp_path):
    again = ("--transform", "own_of_cli:transform", "--model", "own_of_cli:Net", "--weights", "net.pt")
    code, _, err = run("--config", folder_bundle.path, *again, "--out", tmp_path / "b")
    assert (code, f"The settings are those of {folder_bundle.path}." in err) == (0, True)
    assert _sums(Bundle(tmp_path / "b")) == _sums(folder_bundle)
    other = shutil.copytree(place / "photos", tmp_path / "photos")
    (other / "train/cat/0.png").write_bytes((other / "train/dog/0.png").read_bytes())
    options = ("--dataset", f"folder:{other}", "--transform", "own_of_cli:transform", *_NET)
    code, _, err = run(*options, "--out", folder_bundle.path)
    assert (code, "other settings" in one_sentence(err)) == (2, True)


def test_orientation_is_that_of_the_folder_for_uploads_too(run, place, tmp_path):
    exif, pixels = Image.Exif(), np.zeros((12, 10, 3), np.uint8)
    exif[274], pixels[:6] = 3, 255  # upside down
    photos = shutil.copytree(place / "photos", tmp_path / "photos")
    Image.fromarray(pixels).save(photos / "train/cat/0.png", exif=exif)
    for orientation, bright in (("upright", 5), ("stored", 0)):
        out = tmp_path / orientation
        options = ("--dataset", f"folder:{photos}", "--orientation", orientation, "--transform", "own_of_cli:transform")
        assert run(*options, *_NET, "--out", out)[0] == 0
        stored = Bundle(out).array("train_inputs")[0]
        assert stored[:, bright].min() > 0.9 > -0.9 > stored[:, 5 - bright].max()
        asked = ask_about_file(open_attributor(out), (photos / "train/cat/0.png").read_bytes(), "0.png")
        np.testing.assert_array_equal(asked.example.stored[0], stored)


def test_files_of_any_kind_are_loaded_by_the_users_function(run, place, tmp_path):
    assert run("--dataset", "folder:raw", "--load", "own_of_cli:load", *_NET, "--out", tmp_path / "a")[0] == 0
    bundle = Bundle(tmp_path / "a")
    assert bundle.sources("test")[0] == "test/cat/0.raw"
    stored = np.frombuffer((place / "raw/test/cat/0.raw").read_bytes(), np.float32).reshape(3, 6, 5)
    np.testing.assert_array_equal(bundle.array("test_inputs")[0], stored)


def test_broken_files_are_named_or_left_out(run, place, tmp_path):
    photos = shutil.copytree(place / "photos", tmp_path / "photos")
    (photos / "train/cat/7.png").write_bytes(b"")
    options = ("--dataset", f"folder:{photos}", "--transform", "own_of_cli:transform", *_NET, "--out", tmp_path / "a")
    code, _, err = run(*options)
    assert code == 2
    assert re.search(r"train/cat/7\.png, cannot be read: .*; go on without .* --skip-broken\.", one_sentence(err))
    code, out, _ = run(*options, "--skip-broken")
    assert (code, "train/cat/7.png: The file is empty" in out) == (0, True)
    assert len(Bundle(tmp_path / "a").array("train_labels")) == 15


@pytest.mark.parametrize(
    "data", [("--data", "own_of_cli:make"), ("--dataset", "folder:photos", "--transform", "own_of_cli:transform")]
)
def test_a_dry_run_tells_what_will_be_built(run, tmp_path, data):
    code, out, err = run("--check", *data, *_NET)
    assert (code, err) == (0, "")
    assert "inputs of shape (3, 6, 5); 2 classes" in " ".join(out.split())
    assert (
        " ".join(out.split()).rstrip().endswith(f"Ready: natscope precompute {' '.join(data)} {_line()} --out FOLDER")
    )
    assert not any(tmp_path.iterdir())


def _line():
    return "--model own_of_cli:Net --weights net.pt --dim 64 --methods repsim"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "own_of_cli:make", "--dataset", "cifar10"), "--data and --dataset name two data sets; give one"),
        (("--data", "own_of_cli:make", "--dataset", "fashion-mnist-quarter"), "name two data sets"),
        (
            ("--data", "own_of_cli:alone"),
            r"own_of_cli:alone\(\) gave a TensorDataset; it returns \(train_set, test_set",
        ),
        (("--data", "own_of_cli:holed"), r"own_of_cli:holed\(\) gave 2 values; it returns"),
        (("--data", "own_of_cli:broken"), r"own_of_cli:broken\(\) failed: OSError: no disk"),
        (("--data", "own_of_cli:nothing"), "has no 'nothing'; it has transform, load"),
        (("--data", "nowhere_of_cli:make"), "no module nowhere_of_cli"),
        (("--data", "make"), "natscope: --data takes module.path:function of your own, such as my_data:function"),
        (
            ("--data", "os:getcwd"),
            "os is a module of Python or natscope; --data takes module.path:function",
        ),
        (
            ("--dataset", "folder:photos", "--load", "read"),
            "--load .load= in Python. takes module.path:func",
        ),
        (("--dataset", "folder:photos", "--transform", "os:stat"), "--transform .transform= in Python. takes module"),
        (("--transform", "own_of_cli:transform"), "--transform reads files; name a folder by --dataset folder:PATH"),
        (("--dataset", "folder:photos", "--load", "own_of_cli:load", "--image-size", 9), "leave out --image-size"),
        (("--dataset", "folder:photos", "--transform", "own_of_cli:bytes_of"), "uint8; let --transform give"),
        (("--dataset", "folder:photos", "--transform", "own_of_cli:load"), "cannot be transformed"),
    ],
)
def test_what_contradicts_or_fails_is_one_sentence(run, tmp_path, options, message):
    code, out, err = run(*options, *_NET, "--out", tmp_path / "never")
    assert (code, out) == (2, "")
    assert re.search(message, one_sentence(err)), err
    assert not (tmp_path / "never").exists()


def test_inputs_need_a_trained_network(run, tmp_path):
    for option in ((), ("--check",)):
        code, _, err = run("--data", "own_of_cli:make", *option, "--out", tmp_path / "never")
        assert (code, "need a trained network of your own" in one_sentence(err)) == (2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "evil:make"}, "What gives the data of .* is code, .*: --data evil:make"),
        ({"folder": {"transform": "evil:make"}}, "What makes inputs of .* is code, .*: --transform evil:make"),
        ({"load": "evil:make"}, "What reads files of .* is code, .*: --load evil:make"),
    ],
)
def test_a_file_of_settings_runs_no_code(run, tiny_path, tmp_path, change, message):
    path = shutil.copytree(tiny_path, tmp_path / "forged")
    edited(path, lambda raw: raw["results"]["settings"].update(change))
    code, out, err = run("--config", path, "--out", tmp_path / "never")
    assert (code, out) == (2, "")
    assert re.search(message, one_sentence(err)), err


def test_what_was_recorded_names_the_functions(run, tmp_path):
    options = ("--data", "own_of_cli:make", "--transform", "own_of_cli:transform", *_NET)
    assert run(*options, "--out", tmp_path / "a")[0] == 0
    settings = json.loads((tmp_path / "a" / "manifest.json").read_text())["results"]["settings"]
    assert (settings["data"], settings["transform"]) == ("own_of_cli:make", "own_of_cli:transform")
    assert settings["code"].keys() == {"own_of_cli:transform"}
    code, _, err = run("--config", tmp_path / "a", *options[:6], "--weights", "net.pt", "--out", tmp_path / "b")
    assert (code, f"The settings are those of {tmp_path / 'a'}." in err) == (0, True)
    code, _, err = run("--config", tmp_path / "a", "--model", "own_of_cli:Net", "--out", tmp_path / "c")
    named = "--data own_of_cli:make --transform own_of_cli:transform, and its weights by --weights."
    assert f"is code, which runs only if you name it: {named}" in one_sentence(err)


def test_a_correction_of_labels_reuses_the_rest(run, place, tmp_path, monkeypatch):
    import own_of_cli

    torch.save(own_of_cli.Conv().state_dict(), tmp_path / "conv.pt")
    photos = shutil.copytree(place / "photos", tmp_path / "photos")
    for name, other in (("cat", 0), ("dog", 100)):
        for row in range(8, 40):
            Image.new("RGB", (9, 7), (row, other, 200 - row)).save(photos / "train" / name / f"{row}.png")
    options = ("--dataset", f"folder:{photos}", "--transform", "own_of_cli:transform", "--model", "own_of_cli:Conv")
    options += ("--weights", tmp_path / "conv.pt", "--dim", 64, "--methods", "repsim")
    assert run(*options, "--out", tmp_path / "old")[0] == 0
    (photos / "train/cat/9.png").rename(photos / "train/dog/-.png")  # the last cat becomes the first dog: row 39 of 80
    assert run(*options, "--out", tmp_path / "fresh")[0] == 0
    seen, features = [], FeatureMap.features
    monkeypatch.setattr(
        FeatureMap, "features", lambda self, rows, *rest, **given: seen.append(len(rows)) or features(self, rows, *rest)
    )
    code, out, _ = run(*options, "--reuse", tmp_path / "old", "--out", tmp_path / "a")
    assert (code, "Reused     the Jacobians of 16 training examples" in out) == (0, True)
    assert sum(count for count in seen if count > PROBED) == 64
    assert _sums(Bundle(tmp_path / "a")) == _sums(Bundle(tmp_path / "fresh"))
    code, _, err = run(*options, "--dim", 32, "--reuse", tmp_path / "old", "--out", tmp_path / "c")
    assert (code, "can be reused: its sketch differs." in one_sentence(err)) == (2, True)
    (photos / "train/dog/39.png").rename(photos / "train/cat/39.png")
    code, out, _ = run(*options, "--reuse", tmp_path / "old", "--out", tmp_path / "b")
    assert (code, "Reused     none: every batch differs" in out) == (0, True)


def test_the_bundle_to_take_from_is_looked_at_before_anything_is_built(run, folder_bundle, tmp_path):
    options = ("--dataset", "folder:photos", "--transform", "own_of_cli:transform", *_NET)
    for others in (("--check",), ("--out", folder_bundle.path), ("--check", "--out", folder_bundle.path)):
        code, _, err = run(*options, *others, "--reuse", tmp_path / "nowhere")
        assert (code, "There is no bundle at" in one_sentence(err)) == (2, True)
    code, out, _ = run(*options, "--check", "--reuse", folder_bundle.path)
    assert code == 0
    assert f"--reuse {folder_bundle.path} --out FOLDER" in " ".join(out.split())
    assert "Reused" in out


def test_a_module_called_folder_is_no_folder(run, place, tmp_path):
    (place / "folder.py").write_text("from own_of_cli import sets\n\n\ndef make():\n    return sets()\n")
    for option in (("--check",), ("--out", tmp_path / "a")):
        code, _, err = run("--data", "folder:make", *_NET, *option)
        assert (code, err) == (0, "")
    assert Bundle(tmp_path / "a").manifest.results["settings"]["data"] == "folder:make"


@pytest.mark.parametrize(
    "option",
    [
        ("--image-size", 16),
        ("--skip-broken",),
        ("--test-share", 0.5),
        ("--test-folder", "val"),
        ("--missing-classes",),
        ("--orientation", "stored"),
        ("--by-content",),
    ],
)
def test_options_for_folders_are_refused_where_no_folder_is_read(run, tmp_path, option):
    for data in (("--data", "own_of_cli:make"), ("--dataset", "cifar10")):
        code, out, err = run(*data, *option, *_NET, "--out", tmp_path / "never")
        assert (code, out) == (2, "")
        assert f"{option[0]} is for a folder of images, --dataset folder:PATH; leave it out" in one_sentence(err)


def test_a_function_for_data_leaves_random_numbers_alone_and_imports_its_neighbours(run, place, tmp_path):
    (place / "beside.py").write_text("shift = 1\n")
    code = "import random\n\nimport numpy\nimport torch\nfrom own_of_cli import sets\n\n\ndef make():\n"
    code += (
        "    import beside\n\n    torch.set_default_dtype(torch.float64)\n    random.random(), numpy.random.rand()\n"
    )
    (place / "lazy_of_cli.py").write_text(code + "    return sets()\n")
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    wanted = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    found = made_by("lazy_of_cli:make")
    assert len(found.train_labels) == 30
    assert (random.random(), np.random.rand()) == wanted  # noqa: NPY002
    assert torch.get_default_dtype() == torch.float32


def _raw(tmp_path, broken=(), count=60):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "raw" / part / name
            folder.mkdir(parents=True)
            for row in range(count):
                values = np.random.default_rng(row).normal(size=(3, 6, 5)).astype(np.float32)
                (folder / f"{row:03}.raw").write_bytes(b"no" if row in broken else values.tobytes())
    return "--dataset", f"folder:{tmp_path / 'raw'}", "--load", "own_of_cli:load"


def test_a_dry_run_reads_the_files_that_it_tried(run, tmp_path, monkeypatch):
    monkeypatch.setattr("natscope.precompute.bundles.check._SAMPLED", 24)
    options = _raw(tmp_path, broken={row for row in range(60) if row % 3 == 1})
    code, out, err = run("--check", *options, "--skip-broken", *_NET)
    assert (code, err) == (0, "")
    assert "Ready: " in out
    assert "24 of 240 files were read" in " ".join(out.split())


def test_whatever_a_load_raises_files_can_be_left_out(run, tmp_path):
    options = _raw(tmp_path, broken={3}, count=6)
    code, _, err = run(*options, *_NET, "--out", tmp_path / "a")
    assert code == 2
    assert re.search(
        r"003\.raw, cannot be loaded: .*; go on without such files with --skip-broken\.", one_sentence(err)
    )
    assert run(*options, "--skip-broken", *_NET, "--out", tmp_path / "a")[0] == 0


def test_what_gave_pixels_is_named(run, tmp_path):
    options = ("--data", "own_of_cli:pictures", "--mean", "0,0,0", "--std", "1,1,1", "--load", "own_of_cli:load")
    code, _, err = run(*options, "--out", tmp_path / "never")
    assert (code, "By load, inputs are pixels of uint8" in one_sentence(err)) == (2, True)
