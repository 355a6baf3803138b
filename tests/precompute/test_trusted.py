"""Opening a bundle runs no code that its owner has not trusted, whatever its manifest names."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from natscope.app.cli.commands import main, natscope
from natscope.core.bundle.format import MANIFEST, WEIGHTS, Bundle
from natscope.core.errors import BuildError, BundleError, NatscopeError
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles import background
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.folders import FolderSpec
from natscope.precompute.paths import configuration
from natscope.precompute.training.models import ModelSpec, build_model
from natscope.precompute.training.removal import identity_of
from natscope.precompute.training.retrain import retrain
from natscope.precompute.training.train import TrainingSpec
from natscope.precompute.training.trusted import ALLOWED, allow, find, trust
from tests.conftest import one_sentence

_ROOT = Path(__file__).parents[2]
_NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
"""
_PAYLOAD = "from pathlib import Path\nPath({marker!r}).touch()\n" + _NET


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network of the user's and a bundle that was built with it there."""
    place, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    (place / "net_of_hers.py").write_text(_NET)
    for label in range(2):
        (place / "images" / str(label)).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 90, (8, 8), dtype=np.uint8) + np.uint8(90 * label)
            Image.fromarray(pixels).save(place / "images" / str(label) / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        build(_spec("net_of_hers:Net"), place / "bundles" / "hers")
    yield place
    sys.modules.pop("net_of_hers", None)


def _spec(architecture):
    return BuildSpec(
        "Hers",
        "folder:images",
        folder=FolderSpec(8),
        model=ModelSpec(architecture, None),
        training=TrainingSpec(epochs=1, batch_size=8),
        sketch=SketchSpec(dim=16),
        methods=(),
    )


@pytest.fixture(autouse=True)
def afresh(monkeypatch, tmp_path_factory):
    """Nothing of the modules that a test makes stays, and the search path is as it was."""
    before, path, finders = set(sys.modules), list(sys.path), list(sys.meta_path)
    monkeypatch.setenv(ALLOWED, "")
    sys.modules.pop("net_of_hers", None)
    yield
    assert (sys.path, sys.meta_path) == (path, finders)
    for name in set(sys.modules) - before:
        where = [getattr(sys.modules[name], "__file__", None), *getattr(sys.modules[name], "__path__", ())]
        if any(str(place).startswith(str(tmp_path_factory.getbasetemp())) for place in where):
            del sys.modules[name]


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """Another user of this machine, who has trusted nothing."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of a stranger"))


@pytest.fixture
def marker(tmp_path):
    """A file that is there once a payload has run."""
    return tmp_path / "it ran"


def _forged(place, folder, architecture):
    """Copy the bundle to a folder and let it name another network."""
    shutil.copytree(place / "bundles" / "hers", folder)
    values = json.loads((folder / MANIFEST).read_text())
    values["model"]["architecture"] = architecture
    (folder / MANIFEST).write_text(json.dumps(values))
    return folder


def _payload(file, marker):
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(_PAYLOAD.format(marker=str(marker)))


def _refuses(bundle, marker, message):
    before = set(sys.modules)
    with pytest.raises(NatscopeError, match=message) as caught:
        open_attributor(bundle)
    with pytest.raises(NatscopeError, match=message):
        retrain(Bundle(bundle), np.zeros(0, dtype=np.int64))
    assert not marker.exists()
    assert set(sys.modules) == before
    assert "\n" not in str(caught.value)


def _run(capsys, *arguments):
    with pytest.raises(SystemExit, match=r"^\d+$") as exited:
        main([str(a) for a in arguments])
    return exited.value.code, *capsys.readouterr()


# What a stranger's bundle may name


@pytest.mark.parametrize(("working", "name"), [("evil", "payload"), (".", "evil.payload")])
def test_a_payload_in_the_bundles_own_folder_never_runs(place, tmp_path, marker, monkeypatch, working, name):
    bundle = _forged(place, tmp_path / "evil", f"{name}:Net")
    _payload(bundle / "payload.py", marker)
    monkeypatch.chdir(tmp_path / working)
    _refuses(bundle, marker, rf"evil wants to run .* module {name},")
    allow([name])
    _refuses(bundle, marker, rf"module {name} lies in the bundle .*evil,")
    with pytest.raises(BuildError, match="lies in the bundle"):
        trust(f"{name}:Net")


def test_a_payload_in_a_bundle_beside_never_runs(place, tmp_path, marker, monkeypatch):
    bundle = _forged(place, tmp_path / "first", "second.payload:Net")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / MANIFEST).write_text("{}")
    _payload(tmp_path / "second" / "payload.py", marker)
    monkeypatch.chdir(tmp_path)
    allow(["second.payload", "linked"])
    _refuses(bundle, marker, r"module second\.payload lies in the bundle .*second,")
    (tmp_path / "linked.py").symlink_to(tmp_path / "second" / "payload.py")
    _refuses(_forged(place, tmp_path / "third", "linked:Net"), marker, "module linked lies in")


def test_a_package_in_a_bundle_never_runs(place, tmp_path, marker, monkeypatch):
    bundle = _forged(place, tmp_path / "evil", "evil.inner:Net")
    _payload(bundle / "__init__.py", marker)
    _payload(bundle / "inner.py", marker)
    monkeypatch.chdir(tmp_path)
    allow(["evil.inner"])
    _refuses(bundle, marker, "module evil lies in the bundle .*evil,")


@pytest.mark.parametrize("name", ["torch.distributed.run:main", "numpy.f2py:main", "pytest:main", "setuptools:setup"])
def test_what_is_installed_is_not_called(place, tmp_path, marker, name):
    module = name.partition(":")[0]
    _refuses(
        _forged(place, tmp_path / "evil", name),
        marker,
        rf"(bundle .*evil|network {name}) wants to run .* module {module}, .*`--allow-code {name}`",
    )


@pytest.mark.parametrize(
    "name",
    ["http.server:test", "os:abort", "natscope.core.cache:BoundedCache", "natscope.app.cli.commands:main"],
)
def test_what_is_pythons_or_natscopes_is_not_called_even_when_it_is_allowed(place, tmp_path, marker, name):
    allow([name])
    _refuses(_forged(place, tmp_path / "evil", name), marker, "of Python or natscope")


def test_a_forged_bundle_is_not_taken_for_the_one_that_is_being_built(place, tmp_path, marker, monkeypatch):
    monkeypatch.chdir(place)
    _payload(tmp_path / "payload.py", marker)
    monkeypatch.syspath_prepend(tmp_path)
    forged = _forged(place, tmp_path / "forged", "payload:Net")
    with pytest.raises(BundleError, match="other settings"):
        build(replace(_spec("net_of_hers:Net"), methods=("graddot",)), forged)
    assert not marker.exists()
    sys.path.remove(str(tmp_path))


# What the user has trusted


def test_a_bundle_that_was_built_here_opens_from_anywhere(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(place / "bundles" / "hers", tmp_path / "copy")
    assert open_attributor(copy).query("test", 0)
    assert Path(sys.modules["net_of_hers"].__file__) == place / "net_of_hers.py"


def test_an_edited_module_stays_trusted(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edited_net.py").write_text(_NET)
    trust("edited_net:Net")
    (tmp_path / "edited_net.py").write_text(_NET + "\n# edited\n")
    assert build_model(ModelSpec("edited_net:Net", None), seed=0)


def test_a_bundle_that_is_there_already_is_trusted_again_by_the_same_command(place, stranger, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(BundleError, match="you have not trusted"):
        open_attributor(place / "bundles" / "hers")
    build(_spec("net_of_hers:Net"), place / "bundles" / "hers")
    assert open_attributor(place / "bundles" / "hers")


def test_trust_is_of_one_factory(place, tmp_path, marker, monkeypatch):
    monkeypatch.chdir(place)
    _refuses(_forged(place, tmp_path / "other", "net_of_hers:other"), marker, "have not trusted")


def test_another_file_of_the_same_name_is_not_trusted(place, tmp_path, marker, monkeypatch):
    (tmp_path / "hers").mkdir()
    (tmp_path / "hers" / "moved_net.py").write_text(_NET)
    monkeypatch.chdir(tmp_path / "hers")
    trust("moved_net:Net")
    bundle = _forged(place, tmp_path / "bundle", "moved_net:Net")
    _payload(tmp_path / "theirs" / "moved_net.py", marker)
    monkeypatch.chdir(tmp_path / "theirs")
    assert open_attributor(bundle)
    del sys.modules["moved_net"]
    (tmp_path / "hers" / "moved_net.py").unlink()
    _refuses(bundle, marker, r"module moved_net, .* no longer at .*hers/moved_net\.py;")


def test_a_bundle_finds_its_own_among_modules_of_one_name(place, tmp_path, monkeypatch):
    bundles = {}
    for name, width in (("one", 4), ("two", 5), ("three", 6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same_name.py").write_text(
            _NET.replace("64, 4", f"64, {width}").replace("(4,", f"({width},")
        )
        (tmp_path / name / "images").symlink_to(place / "images")
        monkeypatch.chdir(tmp_path / name)
        bundles[name] = build(_spec("same_name:Net"), tmp_path / name / "bundle")
        sys.modules.pop("same_name", None)
    monkeypatch.chdir(place)
    logits = {}
    for name in ("two", "one", "three", "one", "two"):
        attributor = open_attributor(bundles[name].path)
        logits.setdefault(name, []).append(attributor.query("test", 0).probabilities)
        assert attributor.features.model[1].out_features == {"one": 4, "two": 5, "three": 6}[name]
    for again in logits.values():
        np.testing.assert_array_equal(again[0], again[-1])
    assert retrain(bundles["two"], np.zeros(0, dtype=np.int64))


def test_an_edited_module_is_not_mistaken_for_one_of_the_same_name(place, tmp_path, monkeypatch):
    bundles = {}
    for name, activation in (("one", "none"), ("two", "tanh")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "twin_net.py").write_text(_NET.replace("ReLU()", f"GELU({activation!r})"))
        (tmp_path / name / "images").symlink_to(place / "images")
        monkeypatch.chdir(tmp_path / name)
        bundles[name] = build(_spec("twin_net:Net"), tmp_path / name / "bundle").path
    monkeypatch.chdir(place)
    before = open_attributor(bundles["one"]).query("test", 0).probabilities
    with (tmp_path / "one" / "twin_net.py").open("a") as file:
        file.write("# a comment\n")
    for folder in (place, tmp_path / "two"):
        monkeypatch.chdir(folder)
        np.testing.assert_array_equal(open_attributor(bundles["one"]).query("test", 0).probabilities, before)
    (tmp_path / "one" / "twin_net.py").unlink()
    with pytest.raises(BundleError, match=r"no longer at .*one/twin_net\.py"):
        open_attributor(bundles["one"])


def test_an_edited_copy_takes_nothing_from_the_project_that_is_as_it_was(place, tmp_path, monkeypatch):
    folders, bundles = [tmp_path / name for name in ("one", "two")], {}
    for folder in folders:
        folder.mkdir()
        (folder / "copied_net.py").write_text(_NET)
        (folder / "images").symlink_to(place / "images")
        monkeypatch.chdir(folder)
        bundles[folder] = build(_spec("copied_net:Net"), folder / "bundle")
    assert identity_of(bundles[folders[0]]) == identity_of(bundles[folders[1]])
    with (folders[0] / "copied_net.py").open("a") as file:
        file.write("# edited\n")
    monkeypatch.chdir(place)
    assert find("copied_net:Net", bundles[folders[1]]).folder == folders[1]
    (folders[1] / "copied_net.py").write_text(_NET + "# otherwise\n")
    assert len({identity_of(bundle) for bundle in bundles.values()}) == 1  # both get the module edited last: copies
    monkeypatch.chdir(folders[0])
    assert find("copied_net:Net", bundles[folders[1]]).folder == folders[0]


def test_what_is_measured_of_a_training_is_of_its_code_too(place, tmp_path, monkeypatch):
    known = set()
    for name, factor in (("one", 1), ("two", 8)):
        (tmp_path / name).mkdir()
        scaled = "\n    def forward(self, x):\n        z = super().forward(x)\n"
        scaled += f"        return z if self.training else z / {factor}\n"
        (tmp_path / name / "cooled_net.py").write_text(_NET + scaled)
        (tmp_path / name / "images").symlink_to(place / "images")
        monkeypatch.chdir(tmp_path / name)
        bundle = build(_spec("cooled_net:Net"), tmp_path / name / "bundle")
        known.add(identity_of(bundle))
    assert len(known) == 2


def test_none_of_several_modules_of_one_name_is_taken_for_that_of_a_bundle_from_elsewhere(place, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "many_net.py").write_text(f"{_NET}\n# {name}\n")
        monkeypatch.chdir(tmp_path / name)
        trust("many_net:Net")
    bundle = _forged(place, tmp_path / "bundle", "many_net:Net")
    monkeypatch.chdir(place)
    with pytest.raises(BundleError, match=r"several modules called many_net .*two") as caught:
        open_attributor(bundle)
    one_sentence(str(caught.value))
    monkeypatch.chdir(tmp_path / "one")
    assert open_attributor(bundle)


def test_code_of_a_bundle_that_lies_beside_a_module_never_runs(place, tmp_path, marker, monkeypatch):
    net = "try:\n    import beside_it\nexcept ImportError:\n    pass\n" + _NET
    (tmp_path / "trying_net.py").write_text(net)
    shutil.copytree(place / "bundles" / "hers", tmp_path / "beside_it")
    _payload(tmp_path / "beside_it" / "__init__.py", marker)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path), *sys.path])
        trust("trying_net:Net")
        assert build_model(ModelSpec("trying_net:Net", None), seed=0)
    assert not marker.exists()
    assert "beside_it" not in sys.modules


def test_code_of_a_bundle_to_which_pythons_path_leads_never_runs(place, tmp_path, marker, monkeypatch):
    """As in a script or notebook beside which somebody put the bundle, or that was started in it."""
    (tmp_path / "hers").mkdir()
    attempts = ("around_it", "inside_it", "around_it.deeper")
    net = "".join(f"try:\n    import {name}\nexcept ImportError:\n    pass\n" for name in attempts) + _NET
    (tmp_path / "hers" / "optional_net.py").write_text(net)
    bundle = shutil.copytree(place / "bundles" / "hers", tmp_path / "around_it")
    _payload(bundle / "inside_it.py", marker)
    _payload(bundle / "deeper.py", marker)
    monkeypatch.chdir(tmp_path / "hers")
    trust("optional_net:Net")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path), str(bundle), *sys.path])
        assert build_model(ModelSpec("optional_net:Net", None), seed=0)
    assert not marker.exists()


@pytest.mark.parametrize("library", ["torch", "numpy", "trak"])
def test_a_file_named_like_a_library_of_natscopes_takes_it_from_nobody(place, tmp_path, library, marker, monkeypatch):
    _payload(tmp_path / f"{library}.py", marker)
    (tmp_path / "crowded_net.py").write_text(f"import {library}\n" + _NET)
    monkeypatch.chdir(tmp_path)
    trust("crowded_net:Net")
    here = sys.modules.get(library)
    assert build_model(ModelSpec("crowded_net:Net", None), seed=0)
    assert not marker.exists()
    assert here is None or sys.modules[library] is here


def test_what_two_projects_import_from_beside_them_is_each_ones_own(place, tmp_path, monkeypatch):
    factories = {}
    for name, width in (("one", 4), ("two", 5)):
        folder = tmp_path / name
        (folder / "their_nets").mkdir(parents=True)
        (folder / "their_nets" / "__init__.py").write_text("")
        (folder / "their_nets" / "sizes.py").write_text(f"WIDTH = {width}\n")
        (folder / "helpers.py").write_text("from their_nets.sizes import WIDTH\n")
        net = _NET.replace("64, 4", "64, helpers.WIDTH").replace("(4,", "(helpers.WIDTH,")
        (folder / "same_project.py").write_text("import helpers\n" + net)
        monkeypatch.chdir(folder)
        trust("same_project:Net")
        factories[name] = find("same_project:Net")
    monkeypatch.chdir(place)
    for name in ("one", "two", "one", "two"):
        with factories[name].importable():
            network = importlib.import_module("same_project").Net()
        assert network[1].out_features == {"one": 4, "two": 5}[name]
    mine = ModuleType("helpers")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "helpers", mine)
        with factories["two"].importable():
            assert importlib.import_module("helpers").WIDTH == 5
        assert sys.modules["helpers"] is mine


_LAZY = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {first}
        self.a, self.b = nn.Linear(64, helper.WIDTH), nn.Linear(helper.WIDTH, 2)

    def forward(self, x):
        {then}
        return self.b(helper.act(self.a(x.flatten(1))))
"""
_HELPER = """
import torch

WIDTH = 4


def act(h):
    import scale_of_it

    return scale_of_it.SCALE * torch.{act}(h)
"""


@pytest.mark.parametrize(
    ("statement", "architecture"),
    [("import helper", "lazy_net:Net"), ("from . import helper", "their_nets.lazy_net:Net")],
)
@pytest.mark.parametrize("searched", [False, True])
def test_what_a_project_imports_while_it_runs_is_its_own(
    place, tmp_path, monkeypatch, statement, architecture, searched
):
    bundles, alone = {}, {}
    for name, act in (("one", "relu"), ("two", "sin"), ("three", "cos")):
        folder = tmp_path / name
        package = folder.joinpath(*architecture.split(".")[:-1])
        package.mkdir(parents=True)
        (package / "lazy_net.py").write_text(_LAZY.format(first=statement, then=statement))
        (package / "helper.py").write_text(_HELPER.format(act=act))
        (folder / "scale_of_it.py").write_text(f"SCALE = {len(name)}\n")
        (folder / "images").symlink_to(place / "images")
        script = (
            "from natscope.precompute.bundles.opening import open_attributor\nfrom pathlib import Path\n"
            f"found = open_attributor(Path({str(folder / 'bundle')!r})).query('test', 0).probabilities\n"
            "print(*map(float.hex, found))"
        )
        monkeypatch.chdir(folder)
        bundles[name] = build(_spec(architecture), folder / "bundle").path
        run = subprocess.run([sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, check=True)
        alone[name] = [float.fromhex(number) for number in run.stdout.split()]
    monkeypatch.chdir(place)
    with monkeypatch.context() as patch:
        if searched:  # as in a script of the first project's
            patch.syspath_prepend(tmp_path / "one")
        opened = {name: open_attributor(path) for name, path in bundles.items()}
        for name in ("one", "two", "three", "one"):
            found = opened[name].query("test", 0).probabilities
            np.testing.assert_allclose(found, alone[name], rtol=1e-6)
    assert len({tuple(found) for found in alone.values()}) == 3


def test_an_import_that_cannot_be_told_apart_fails(place, tmp_path, monkeypatch):
    """Nothing tells whose `import_module` runs, so a name of two projects leads to neither's module."""
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "dynamic_net.py").write_text(
            "import importlib\n"
            + _LAZY.format(first="import told_apart as helper", then="helper = importlib.import_module('told_apart')")
        )
        (folder / "told_apart.py").write_text("WIDTH = 4\nact = lambda h: h\n")
        (folder / "images").symlink_to(place / "images")
        monkeypatch.chdir(folder)
        if name == "one":
            opened = open_attributor(build(_spec("dynamic_net:Net"), folder / "bundle").path)
            assert opened.query("test", 0)
    with pytest.raises(BuildError, match="No module named 'told_apart'"):
        build(_spec("dynamic_net:Net"), folder / "bundle")
    with pytest.raises(ModuleNotFoundError, match="told_apart"):
        opened.query("test", 0)


def test_an_edited_project_is_imported_again(place, tmp_path, monkeypatch):
    (tmp_path / "images").symlink_to(place / "images")
    monkeypatch.chdir(tmp_path)
    for act in ("relu", "sin"):
        (tmp_path / "edited_net.py").write_text(_LAZY.format(first="import helper", then="import helper"))
        (tmp_path / "helper.py").write_text(f"import torch\n\nWIDTH, act = 4, torch.{act}\n")
        opened = open_attributor(build(_spec("edited_net:Net"), tmp_path / act).path)
        assert opened.query("test", 0)


def test_dotted_names_and_what_lies_beside_a_module(place, tmp_path, marker, monkeypatch):
    (tmp_path / "plain" / "inner").mkdir(parents=True)
    (tmp_path / "beside_it.py").write_text("WIDTH = 4\n")
    (tmp_path / "also_beside.py").write_text("from torch import nn\n")
    net = _NET.replace("super()", "import also_beside\n        super()").replace("64, 4", "64, beside_it.WIDTH")
    (tmp_path / "plain" / "inner" / "net.py").write_text("import beside_it\n" + net)
    _payload(tmp_path / "packed" / "__init__.py", marker)
    (tmp_path / "packed" / "net.py").write_text("from packed import nn\n" + _NET)
    monkeypatch.chdir(tmp_path)
    for name in ("plain.inner.net:Net", "packed.net:Net"):
        trust(name)
    monkeypatch.chdir(place)
    assert build_model(ModelSpec("plain.inner.net:Net", None), seed=0)
    assert find("packed.net:Net").file == tmp_path / "packed" / "net.py"
    assert not marker.exists()
    assert build_model(ModelSpec("packed.net:Net", None), seed=0)
    assert marker.exists()


def test_only_python_source_is_imported(tmp_path, monkeypatch):
    (tmp_path / f"compiled{EXTENSION_SUFFIXES[0]}").write_bytes(b"")
    (tmp_path / "bytes_only.pyc").write_bytes(b"")
    (tmp_path / "only_a_folder").mkdir()
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("zipped.py", _NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "some.zip")])
    for name in ("compiled", "bytes_only", "zipped"):
        with pytest.raises(BuildError, match=f"module {name} is not a Python source"):
            trust(f"{name}:Net")
    for name in ("only_a_folder", "only_a_folder.inner", "nowhere_at_all"):
        with pytest.raises(BuildError, match=f"no module {name} here"):
            trust(f"{name}:Net")
    monkeypatch.undo()


@pytest.mark.parametrize("there", ["import sys\nsys.exit(3)", "class Stop(BaseException): pass\nraise Stop(3)"])
@pytest.mark.parametrize("inside", [False, True])
def test_code_that_would_end_the_session_is_one_sentence(tmp_path, monkeypatch, there, inside):
    text = f"def net():\n    {there.replace(chr(10), chr(10) + '    ')}\n" if inside else there
    (tmp_path / "it_exits.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    trust("it_exits:net")
    with pytest.raises(BuildError, match=r"(module it_exits fails|it_exits:net\(\) failed).*(SystemExit|Stop): 3"):
        build_model(ModelSpec("it_exits:net", None), seed=0)
    (tmp_path / "it_exits.py").write_text("raise KeyboardInterrupt")
    sys.modules.pop("it_exits", None)
    with pytest.raises(KeyboardInterrupt):
        build_model(ModelSpec("it_exits:net", None), seed=0)


def test_what_failing_code_says_is_no_command_to_a_terminal(tmp_path, monkeypatch):
    (tmp_path / "it_shouts.py").write_text("raise ValueError('\\x1b[2J' + 'x' * 10_000)")
    monkeypatch.chdir(tmp_path)
    trust("it_shouts:net")
    with pytest.raises(BuildError, match=r"module it_shouts fails .*ValueError: ") as caught:
        build_model(ModelSpec("it_shouts:net", None), seed=0)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


# The record
_NUL = r'{"trusted": [{"architecture": "net_of_hers:Net", "file": "a", "folder": "a\u0000", "digests": []}]}'


def test_the_record_is_the_users_alone_and_loses_nothing(tmp_path, stranger, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"many_{i}" for i in range(8)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(_NET)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(trust, [f"{name}:Net" for name in names]))
    assert configuration().stat().st_mode & 0o777 == 0o700
    entries = json.loads((configuration() / "trusted.json").read_text())["trusted"]
    assert sorted(entry["architecture"] for entry in entries) == [f"{name}:Net" for name in names]
    assert entries[0].keys() == {"architecture", "file", "folder", "digests"}
    trust("many_0:Net")
    trust("many_0:Net")
    assert len(json.loads((configuration() / "trusted.json").read_text())["trusted"]) == 8


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"trusted": 3}', '{"trusted": [{"file": 3}]}', "[" * 5000, "\udcff", _NUL]
)
def test_a_damaged_record_is_one_sentence(place, stranger, text, monkeypatch):
    monkeypatch.chdir(place)
    configuration().mkdir(parents=True)
    (configuration() / "trusted.json").write_bytes(text.encode(errors="surrogateescape"))
    for call in (lambda: open_attributor(place / "bundles" / "hers"), lambda: trust("net_of_hers:Net")):
        with pytest.raises(NatscopeError, match=r"trusted\.json, is damaged"):
            call()
    allow(["net_of_hers"])
    assert open_attributor(place / "bundles" / "hers")


@pytest.mark.parametrize("where", ["a file", "x" * 5000])
def test_a_record_that_cannot_be_written_is_one_sentence(place, tmp_path, where, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / where))
    monkeypatch.chdir(place)
    with pytest.raises(BuildError, match=r"net_of_hers:Net cannot be recorded|What code you trust cannot"):
        trust("net_of_hers:Net")


def test_networks_of_natscopes_own_record_nothing(stranger):
    trust("mlp")
    assert not configuration().exists()


# The command line


def test_a_copy_is_refused_at_another_users_until_she_allows_its_code(place, tmp_path, stranger, monkeypatch, capsys):
    copy = shutil.copytree(place / "bundles" / "hers", tmp_path / "copy")
    monkeypatch.chdir(place)
    attribute = ("attribute", "--bundle", copy, "--test-index", 0, "--budget", 2)
    for options in ((), ("--allow-code", "net_of_hers:Other")):
        code, out, err = _run(capsys, *attribute, *options)
        assert (code, out) == (2, "")
        assert f"{copy} wants to run " in one_sentence(err)
        assert "`--allow-code net_of_hers:Net`" in err
    code, out, _ = _run(capsys, "verify", "--bundle", copy)
    assert (code, "is whole" in out, "network was not tried" in out) == (0, True, True)
    assert "net_of_hers" not in sys.modules
    assert _run(capsys, *attribute, "--allow-code", "elsewhere", "--allow-code", "net_of_hers:Net")[0] == 0
    assert os.environ[ALLOWED] == "net_of_hers:Other,elsewhere,net_of_hers:Net"
    assert not configuration().exists()
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("net_of_hers")
    code, _, err = _run(capsys, *attribute, "--allow-code", "net_of_hers")
    assert (code, "no module net_of_hers here" in err) == (2, True)


@pytest.mark.parametrize("name", ["", "a b", "../up", "a:b:c", "a,b", "\x1b[2J", "x" * 400])
def test_a_name_that_is_no_modules_is_one_sentence(name, capsys, tmp_path):
    code, out, err = _run(capsys, "attribute", "--bundle", tmp_path, "--allow-code", name)
    assert (code, out) == (2, "")
    assert err.startswith("natscope: --allow-code takes ")
    assert err.rstrip("\n").isprintable()


@pytest.mark.parametrize("command", ["app", "attribute", "demo", "evaluate", "tune"])
def test_every_command_that_opens_bundles_has_the_option(command):
    assert any("--allow-code" in parameter.opts for parameter in natscope.commands[command].params)


# The working directory


@pytest.fixture
def shadowed(tmp_path, marker):
    """A working directory whose files are named like modules that natscope and Python import."""
    for name in ("filelock", "torch", "pickle", "socket", "multiprocessing", "click", "core", "precompute"):
        _payload(tmp_path / "shadowed" / f"{name}.py", marker)
    return tmp_path / "shadowed"


def test_the_background_process_ignores_the_working_directory(shadowed, marker, tmp_path, monkeypatch):
    started = []

    def popen(command, **_):
        started.append(command)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(subprocess, "Popen", popen)
    background.start(tmp_path / "bundles").join()
    monkeypatch.undo()
    (tmp_path / "bundles").touch()  # no folder, so that it ends as soon as it has imported everything
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    done = subprocess.run(started[0], cwd=shadowed, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr, marker.exists()) == (0, "", False)


def test_neither_the_command_nor_processes_that_it_starts_look_there(shadowed, marker, tmp_path):
    """As `evaluate` starts workers, from a script like the one that is installed."""
    script = tmp_path / "bin" / "natscope"
    script.parent.mkdir()
    script.write_text(
        "from natscope.app.cli.commands import main\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        main(['--version'])\n"
        "    except SystemExit:\n"
        "        import multiprocessing\n"
        "        process = multiprocessing.get_context('spawn').Process(target=print, args=('it works',))\n"
        "        process.start()\n"
        "        process.join()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [sys.executable, script], cwd=shadowed, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr, marker.exists()) == (0, "", False)
    assert done.stdout.endswith("it works\n")


@pytest.mark.parametrize(
    "style", [b"text.usetex: True\nbackend: module://not_there\nfont.size: 77\n", b"\xff\xfe no text", None]
)
def test_figures_are_drawn_as_if_no_style_lay_in_the_working_directory(tmp_path, style):
    if style is None:
        os.mkfifo(tmp_path / "matplotlibrc")
    else:
        (tmp_path / "matplotlibrc").write_bytes(style)
    code = (
        "from natscope.app.figures.chart import Bars, Axis\n"
        "from natscope.app.figures.in_files import chart_file\n"
        "import matplotlib\n"
        "chart_file(Bars(['a'], [1], Axis(), ['#000000']), kind='png')\n"
        "print(matplotlib.rcParams['text.usetex'], matplotlib.rcParams['font.size'])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False 8.5\n", "")


def test_an_open_network_goes_on_with_the_code_that_it_came_from(place, tmp_path, monkeypatch):
    (tmp_path / "images").symlink_to(place / "images")
    monkeypatch.chdir(tmp_path)
    found = []
    for act in ("relu", "sin"):
        (tmp_path / "open_net.py").write_text(_LAZY.format(first="import helper", then="import helper"))
        (tmp_path / "helper.py").write_text(f"import torch\n\nWIDTH, act = 4, torch.{act}\n")
        found.append(open_attributor(build(_spec("open_net:Net"), tmp_path / act).path))
        if act == "relu":
            before = found[0].query("test", 0).probabilities
    np.testing.assert_array_equal(found[0].query("test", 0).probabilities, before)
    assert not np.array_equal(found[1].query("test", 0).probabilities, before)


@pytest.mark.parametrize(
    "text",
    [
        "import kept",
        "from kept import WIDTH",
        "try:\n    from .kept import WIDTH\nexcept ImportError:\n    from kept import WIDTH",
        "try:\n    from . import kept\nexcept ImportError:\n    import kept",
        "from parts import *",
        "from parts.kept import *",
        "import parts.kept as other",
        "from parts import kept",
        "def later():\n    from parts.inner import kept",
        "if True:\n    from parts.relative import x",
        "import parts.upward.deep",
    ],
)
def test_an_edited_helper_is_noticed_however_it_is_imported(place, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many_ways.py").write_text(f"{text}\n{_NET}")
    for folder in ("parts", "parts/inner", "parts/upward"):
        (tmp_path / folder).mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("__all__ = ['kept']\n")
    (tmp_path / "parts" / "relative.py").write_text("from .kept import WIDTH as x\n")
    (tmp_path / "parts" / "upward" / "deep.py").write_text("from ..kept import WIDTH\nfrom .... import nothing\n")
    helpers = [tmp_path / "kept.py", tmp_path / "parts" / "kept.py", tmp_path / "parts" / "inner" / "kept.py"]
    for helper in helpers:
        helper.write_text("WIDTH = 4\n")
    trust("many_ways:Net")
    before = find("many_ways:Net").digest
    (tmp_path / "unrelated.py").write_text("WIDTH = 4\n")
    assert find("many_ways:Net").digest == before
    for helper in helpers:
        helper.write_text("WIDTH = 5\n")
    assert find("many_ways:Net").digest != before


_ELSEWHERE = """
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from blocks import RATE
"""


@pytest.fixture(params=["blocks", "common.blocks"])
def with_paths(place, tmp_path, monkeypatch, request):
    """Two projects whose module, of the same name, finds a helper of the same name by a path that it adds itself."""
    built = {}
    for rate in (0.0, 0.9):  # so that their outputs differ in training alone
        project = tmp_path / str(rate)
        helper = (project / "lib").joinpath(*request.param.split(".")).with_suffix(".py")
        helper.parent.mkdir(parents=True)
        (project / "images").symlink_to(place / "images")
        text = _ELSEWHERE.replace("from blocks", f"from {request.param}")
        (project / "path_net.py").write_text(text + _NET.replace("nn.ReLU()", "nn.ReLU(), nn.Dropout(RATE)"))
        helper.write_text(f"RATE = {rate}  # of {tmp_path.name}\n")
        monkeypatch.chdir(project)
        built[rate] = build(_spec("path_net:Net"), project / "bundle").path
    return built


def test_a_helper_on_a_path_that_the_code_adds_is_its_projects_own(with_paths):
    before = list(sys.path)
    for rate in (0.0, 0.9, 0.0):
        bundle = Bundle(with_paths[rate])
        again = retrain(bundle, np.zeros(0, dtype=np.int64)).state_dict()
        stored = safetensors.torch.load_file(bundle.path / WEIGHTS)
        assert all(torch.equal(again[name], stored[name]) for name in stored), rate
    assert sys.path == before


def test_an_edited_helper_on_such_a_path_is_noticed(with_paths):
    bundle, helper = Bundle(with_paths[0.9]), next((with_paths[0.9].parent / "lib").rglob("blocks.py"))
    before = identity_of(bundle)
    helper.write_text("RATE = 0.5\n")
    assert identity_of(bundle) != before
    with pytest.raises(BuildError, match="was edited since the bundle"):
        retrain(bundle, np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("here/_lib", "from sys import path\npath.insert(0, FOLDER)\nimport odd_helper"),
        ("here/my-lib", "import sys as s\ns.path.insert(0, FOLDER)\nfrom odd_helper import *"),
        ("here/photos/deep/lib", "import sys\nsys.path.insert(0, FOLDER)\nimport odd_helper"),
        ("far/away", "import sys\nsys.path.insert(0, FOLDER)\nimport odd_helper"),
        ("here", "import importlib\nodd_helper = importlib.import_module('odd_' + 'helper')"),
        ("far", "import site\nsite.addsitedir(FOLDER)\nimport odd_helper"),
        (
            "far",
            "import os, sys\nsys.path += os.environ['ODD_PLACE'].split(':')\nodd_helper = __import__('odd_helper')",
        ),
        (
            "far",
            "import importlib.util as u\nspec = u.spec_from_file_location('odd_helper', FOLDER + '/odd_helper.py')\n"
            "import sys\nodd_helper = sys.modules['odd_helper'] = u.module_from_spec(spec)\n"
            "spec.loader.exec_module(odd_helper)",
        ),
        ("far", "import runpy\nRATE = runpy.run_path(FOLDER + '/odd_helper.py')['RATE']"),
        ("far", "exec(open(FOLDER + '/odd_helper.py').read())"),
    ],
)
def test_an_edited_helper_is_noticed_wherever_the_code_found_it(place, tmp_path, monkeypatch, folder, text):
    project, lib = tmp_path / "here", tmp_path / folder
    lib.mkdir(parents=True)
    project.mkdir(exist_ok=True)
    for label in range(210):
        (project / "photos" / f"class_{label}" / "of").mkdir(parents=True)
    (lib / "odd_helper.py").write_text("RATE = 0.1\n")
    monkeypatch.setenv("ODD_PLACE", str(lib))
    monkeypatch.setattr("sys.path", [*sys.path])
    net = _NET.replace("nn.ReLU()", "nn.ReLU(), nn.Dropout(RATE)")
    text += "" if any(word in text for word in ("RATE", "*", "exec(")) else "\nRATE = odd_helper.RATE"
    (project / "odd_net.py").write_text(f"FOLDER = {str(lib)!r}\n{text}\n{net}")
    (project / "images").symlink_to(place / "images")
    monkeypatch.chdir(project)
    bundle = build(_spec("odd_net:Net"), tmp_path / "bundle")
    nothing = np.zeros(0, dtype=np.int64)
    weights = retrain(bundle, nothing).state_dict()
    stored = safetensors.torch.load_file(bundle.path / WEIGHTS)
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    (lib / "odd_helper.py").write_text("RATE = 0.95\n")  # of another size, or a .pyc of this second would be taken
    for name in ("odd_net", "odd_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # as in a process that begins now
    monkeypatch.setattr("natscope.precompute.training.projects._projects", {})
    with pytest.raises(BuildError, match=r"was edited since the bundle|does not train as it did"):
        retrain(bundle, nothing)


def test_a_network_changes_nothing_for_others(place, tmp_path, monkeypatch):
    (tmp_path / "changing_net.py").write_text(
        "import numpy, torch\n"
        + _NET.replace(
            "super()",
            "torch.set_default_dtype(torch.float64)\n        numpy.seterr(all='raise')\n        "
            "torch.set_grad_enabled(False)\n        torch.set_float32_matmul_precision('medium')\n        "
            "numpy.random.seed(1)\n        super()",
        )
    )
    monkeypatch.chdir(tmp_path)
    trust("changing_net:Net")

    def settings():
        drawn = np.random.get_state()[1].tolist()  # noqa: NPY002
        return (
            torch.get_default_dtype(),
            np.geterr(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            drawn,
        )

    before = settings()
    model = build_model(ModelSpec("changing_net:Net", None), seed=0)
    assert settings() == before
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_thread_of_a_factory_may_import_what_is_no_projects(place, tmp_path, monkeypatch):
    (tmp_path / "threaded_net.py").write_text(
        "import threading\n\n\ndef work():\n    import numpy\n\n"
        + _NET.replace(
            "super()",
            "thread = threading.Thread(target=work)\n        thread.start()\n        thread.join(20)\n"
            "        assert not thread.is_alive()\n        super()",
        )
    )
    monkeypatch.chdir(tmp_path)
    trust("threaded_net:Net")
    assert build_model(ModelSpec("threaded_net:Net", None), seed=0)


def test_a_module_with_the_name_of_a_library_is_its_projects_alone(place, tmp_path, monkeypatch):
    """Whether the library was loaded before or not."""
    importlib.import_module("jinja2")
    for name, library in (("loaded", "jinja2"), ("new", "cloudpickle_of_no_use")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{library}.py").write_text("WIDTH = 4\n")
        (folder / f"net_{name}.py").write_text(f"import {library}\n" + _NET.replace("64, 4", f"64, {library}.WIDTH"))
        monkeypatch.chdir(folder)
        trust(f"net_{name}:Net")
        before = sys.modules.get(library)
        assert build_model(ModelSpec(f"net_{name}:Net", None), seed=0)
        assert sys.modules.get(library) is before or name == "new"


@pytest.mark.parametrize("raised", ["SystemExit(0)", "StopIteration", "RuntimeError('')", "KeyError('x')"])
def test_a_network_that_fails_in_the_middle_of_a_build_is_one_sentence(place, tmp_path, monkeypatch, raised):
    net = _NET + (
        "\n    def forward(self, x):\n        if len(x) > 8:  # all training images\n"
        f"            raise {raised}\n        return super().forward(x)\n"
    )
    (tmp_path / "failing_net.py").write_text(net)
    (tmp_path / "images").symlink_to(place / "images")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BuildError, match="failing_net:Net") as caught:
        build(_spec("failing_net:Net"), tmp_path / "bundle")
    one_sentence(str(caught.value))


def test_a_network_that_fails_while_a_method_is_added_is_one_sentence(place, tmp_path, monkeypatch):
    net = (
        "from pathlib import Path\n"
        + _NET
        + (
            f"\n    def forward(self, x):\n        if Path({str(tmp_path / 'fail')!r}).exists():\n"
            "            raise RuntimeError('no')\n        return super().forward(x)\n"
        )
    )
    (tmp_path / "later_failing_net.py").write_text(net)
    (tmp_path / "images").symlink_to(place / "images")
    monkeypatch.chdir(tmp_path)
    spec = _spec("later_failing_net:Net")
    build(spec, tmp_path / "bundle")
    (tmp_path / "fail").touch()
    with pytest.raises(BuildError, match="later_failing_net:Net") as caught:
        build(replace(spec, methods=("graddot",)), tmp_path / "bundle")
    one_sentence(str(caught.value))


@pytest.fixture(scope="module")
def moody(place, tmp_path_factory):
    """A folder with a bundle whose network fails when the environment says so."""
    folder = tmp_path_factory.mktemp("moody")
    (folder / "images").symlink_to(place / "images")
    (folder / "moody_net.py").write_text(
        "import os\n\n\nclass Wordless(BaseException):\n    def __str__(self):\n        raise ValueError\n"
        + _NET
        + "\n    calls = 0\n\n    def forward(self, x):\n        Net.calls += 1\n"
        + "        if Net.calls == int(os.environ.get('FAILS_AT', 0)):\n            raise eval(os.environ['RAISES'])\n"
        + "        return super().forward(x)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build(_spec("moody_net:Net"), folder / "bundle")
    return folder


@pytest.mark.parametrize("raised", ["ValueError('an odd image')", "Wordless()", "SystemExit(3)"])
@pytest.mark.parametrize("command", ["attribute", "verify"])
def test_a_network_that_fails_after_its_bundle_was_opened_is_one_sentence(moody, monkeypatch, capsys, raised, command):
    monkeypatch.chdir(moody)
    query, codes = ["--test-index", "1", "--budget", "2"] if command == "attribute" else [], []
    for call in range(1, 9):
        monkeypatch.setenv("FAILS_AT", str(call))
        monkeypatch.setenv("RAISES", raised)
        with (moody / "moody_net.py").open("a") as file:
            file.write("#\n")  # imported again, it counts from the start
        code, out, err = _run(capsys, command, "--bundle", moody / "bundle", *query)
        if code:
            assert "moody_net:Net" in out + err or "natscope's own fails" in out + err
            one_sentence(err if command == "attribute" else f"{out}{err}")
        codes.append(code)
    assert codes[:3] == [{"attribute": 2, "verify": 1}[command]] * 3
