"""The wheel, installed in an environment of its own, beside projects whose folders are named like natscope's."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.served import serving
from benchmarks.visitor import Visitor
from tests.conftest import finished

_ROOT = Path(__file__).parents[1]
_TRACKED = ("app", "assets", "core", "natscope", "precompute", "pyproject.toml", "README.md", "LICENSE")
_FILES = (
    "py.typed",
    "app/components/grid.js",
    "app/logo.svg",
    "assets/fashion_mnist/LICENSE",
    "assets/resnet9/cifar10.safetensors",
    "assets/results/backdoor.json",
)
_NETS = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, {width}), nn.ReLU(), nn.Linear({width}, 2))
"""
_SCRIPT = """
import core
import my_model
import natscope
from core.nets import Net
from natscope.core.features import FeatureMap

assert core.__file__.startswith({place!r}), core.__file__
assert issubclass(my_model.Net, Net)
print(FeatureMap(Net(), natscope.SketchSpec(dim=8), ntk=False).model)
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in _TRACKED:
        copy = shutil.copytree if (_ROOT / name).is_dir() else shutil.copy
        copy(_ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*pip, source / "dist", source], check=True, timeout=200)
    return next((source / "dist").glob("natscope-*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel, and this one's libraries; return its folder of programs."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place)
    packages = next(place.glob("lib*/python*/site-packages"))
    # A path in a .pth file brings a folder's libraries without what is installed there for development.
    (packages / "libraries.pth").write_text(str(Path(torch.__file__).parents[1]))
    pip = [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, wheel], check=True, timeout=200)
    assert {file.name for file in packages.iterdir() if "dist-info" not in file.name} == {"libraries.pth", "natscope"}
    return place / "bin"


@pytest.fixture(scope="session")
def projects(tmp_path_factory) -> dict[str, Path]:
    """Two folders of images with a my_model.py, which imports core.nets; there are an app and assets besides."""
    places, rng = {}, np.random.default_rng(0)
    for name, width in (("one", 4), ("two", 5)):
        place = tmp_path_factory.mktemp(name)
        for folder in ("app", "assets", "core", "precompute"):
            (place / folder).mkdir()
            (place / folder / "__init__.py").write_text("")
        (place / "core" / "nets.py").write_text(_NETS.format(width=width))
        (place / "my_model.py").write_text(
            "import app\nimport assets\nfrom core import nets\n\n\nclass Net(nets.Net):\n    pass\n"
        )
        for label in range(2):
            (place / "images" / str(label)).mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(0, 90, (8, 8), dtype=np.uint8) + np.uint8(90 * label)
                Image.fromarray(pixels).save(place / "images" / str(label) / f"{i}.png")
        places[name] = place
    return places


@pytest.fixture(scope="session")
def run(installed, tmp_path_factory):
    """Run a program of the environment in a folder, as in a terminal; return what it printed."""
    configuration = str(tmp_path_factory.mktemp("settings"))
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NATSCOPE"))}

    def run(place, program, *arguments, **environment):
        done = subprocess.run(
            [installed / program, *map(str, arguments)],
            cwd=place,
            env=usual | {"XDG_CONFIG_HOME": configuration} | environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.environment = usual | {"XDG_CONFIG_HOME": configuration}
    return run


@pytest.fixture(scope="session")
def bundles(projects, run, tmp_path_factory) -> Path:
    """A folder of bundles of both projects, of my_model:Net, and of the first one's core.nets:Net."""
    out = tmp_path_factory.mktemp("bundles")
    usual = ("--dataset", "folder:images", "--image-size", 8, "--dim", 8, "--epochs", 2, "--methods", "graddot")
    for title, name, model in (
        ("one", "one", "my_model:Net"),
        ("two", "two", "my_model:Net"),
        ("nets", "one", "core.nets:Net"),
    ):
        run(projects[name], "natscope", "precompute", "--model", model, "--out", out / title, *usual)
    return out


def test_it_brings_one_name_and_all_that_belongs_to_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "natscope",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }
    there = {
        "natscope/py.typed",
        "natscope/app/components/grid.js",
        "natscope/app/logo.svg",
        "natscope/assets/results/backdoor.json",
    }
    there |= {
        "natscope/assets/fashion_mnist/LICENSE",
        "natscope/assets/austen/test.jsonl.gz",
        "natscope/assets/resnet9/cifar10.safetensors",
    }
    assert there <= set(names)
    assert not [name for name in names if any(word in name for word in ("screenshots", "test_", "tests"))]


def test_a_script_imports_natscope_and_its_own_core(projects, run):
    place = projects["one"]
    (place / "script.py").write_text(_SCRIPT.format(place=str(place)))
    for environment in ({}, {"PYTHONPATH": "."}):
        assert "out_features=4" in run(place, "python", "script.py", **environment)


@pytest.mark.parametrize("environment", [{}, {"PYTHONPATH": "."}])
@pytest.mark.parametrize("title", ["one", "nets"])
def test_networks_of_modules_named_like_natscopes_are_attributed(projects, run, bundles, title, environment):
    asked = ("attribute", "--bundle", bundles / title, "--test-index", 1, "--budget", 3, "--json")
    answer = json.loads(run(projects["one"], "natscope", *asked, **environment))
    assert len(answer["items"]) == 3


def test_one_app_serves_the_bundles_of_two_projects_that_name_their_modules_alike(
    projects, run, bundles, installed, tmp_path, monkeypatch
):
    asked = ("--test-index", 1, "--budget", 10, "--sigma2", 1, "--json")
    titles = ("one", "two", "nets", "one")
    known = {t: json.loads(run(tmp_path, "natscope", "attribute", "--bundle", bundles / t, *asked)) for t in titles}
    for name in os.environ.keys() - run.environment.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", run.environment["XDG_CONFIG_HOME"])
    monkeypatch.chdir(tmp_path)

    async def visit(port, title):
        async with Visitor(port, query=f"bundle={title}&q=test%3A0&sigma2=1&m=10") as visitor:
            await visitor.drawn(100)
            return (await visitor.ask(1, 100)).ranking

    with serving(bundles, command=[str(installed / "natscope")]) as served:
        for title in titles:
            assert finished(visit(served.port, title)) == tuple(i["train_index"] for i in known[title]["items"])
