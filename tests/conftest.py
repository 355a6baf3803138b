"""Fixtures that several tests share: real bundles of the embedded data, the data available, a browser."""

import ast
import asyncio
import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import filelock
import pytest
import torch

from natscope import assets
from natscope.core.bundle.attributor import Attributor
from natscope.core.methods import METHODS
from natscope.core.methods.artifacts import EkfacSpec
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.experiments import tuning
from natscope.precompute.experiments.result import TUNED
from natscope.precompute.training.train import TrainingSpec
from natscope.precompute.training.trusted import ALLOWED
from tests.browser import LAUNCH_FLAGS, find_browser
from tests.tiny import build_tiny

_DATA = Path(os.environ.get("NATSCOPE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


EACH = 600  # training images of a class in the bundles that most tests use
_SLOW = {"browser", "bundle_path", "poisoned_path", "shared_data"}  # fixtures that start a browser, build or train
_BUILDING = {
    "artifacts",
    "build",
    "fuzz",
    "milvus",
    "own_model",
    "store",
    "tenth_method",
    "trusted",
    "wheel",
}  # files of tests


def pytest_collection_modifyitems(items) -> None:
    """Mark as slow what needs a browser or a bundle built from scratch: `make check` leaves it out.

    Files with slow tests come first, so that no worker is left alone with one at the end.
    """
    slow = set()
    for item in items:
        if _SLOW & set(item.fixturenames) or item.path.stem.removeprefix("test_") in _BUILDING:
            item.add_marker(pytest.mark.slow)
            slow.add(item.path)
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def own_configuration(tmp_path_factory) -> Iterator[None]:
    """No test reads or writes what the user of this machine trusts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        patch.delenv(ALLOWED, raising=False)
        yield


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    """The embedded bundle with fewer images and a narrower sketch: real in everything else, and built in seconds."""
    spec = BuildSpec(
        per_class=EACH,
        training=TrainingSpec(epochs=6),
        sketch=SketchSpec(dim=512),
        methods=tuple(METHODS),
        ekfac=EkfacSpec(covariance_directions=5000, lambda_directions=300),
    )
    return _built_once(spec, "fashion-mnist", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory) -> Path:
    """Noise in three classes, with the parts of every method and a backdoor: built in seconds, copied in no time."""
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    build_tiny(path)
    return path


@pytest.fixture(scope="session")
def poisoned_path(tmp_path_factory) -> Path:
    """The embedded data with a backdoor, trained just long enough to learn it."""
    spec = BuildSpec(
        name="Fashion-MNIST with a backdoor",
        per_class=EACH,
        poison=PoisonSpec(rate=0.0333),
        training=TrainingSpec(epochs=16),
        sketch=SketchSpec(dim=512),
    )
    return _built_once(spec, "fashion-mnist-poisoned", tmp_path_factory, sigma2="backdoor")


def _built_once(spec: BuildSpec, name: str, tmp_path_factory, *, sigma2: str = "") -> Path:
    """Return a bundle of this run, which all of pytest-xdist's workers share; the first to ask builds it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"built-{name}"
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        if not build(spec, folder / name).manifest.tuned and sigma2:
            result = assets.path("results", TUNED[sigma2])
            tuning.record(folder / name, tuning.read(result), result.name)
    return folder / name


@pytest.fixture(scope="session")
def poisoned(poisoned_path) -> Attributor:
    return open_attributor(poisoned_path)


@pytest.fixture(scope="session")
def attributor(bundle_path) -> Attributor:
    return open_attributor(bundle_path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The larger data sets; tests that need them skip where they are missing, unless NATSCOPE_REQUIRE_DATA is set."""
    if not _DATA.is_dir():
        if os.environ.get("NATSCOPE_REQUIRE_DATA"):
            pytest.fail(f"NATSCOPE_REQUIRE_DATA is set and there is no data at {_DATA}.")
        pytest.skip(f"needs the larger data sets; name their folder in NATSCOPE_TEST_DATA (now {_DATA})")
    return _DATA


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        pytest.fail("The browser tests need Chrome or Chromium: run `make test`, which finds or installs one.")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(LAUNCH_FLAGS))
        yield opened
        opened.close()


def syntax_of(file):
    """Return the syntax tree of a file; Python 3.11 fails now and then while another thread parses, too."""
    for _ in range(9):
        with contextlib.suppress(SystemError):
            return ast.parse(file.read_text(encoding="utf-8"))
    return ast.parse(file.read_text(encoding="utf-8"))


@contextlib.contextmanager
def module_of_ones_own(folder: Path, name: str, source: str) -> Iterator[ModuleType]:
    """Write a module into a folder, which is the working directory for a while, and import it from there."""
    (folder / f"{name}.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield importlib.import_module(name)
    sys.modules.pop(name, None)


def one_sentence(text: str) -> str:
    """Return what is told to a user, once it is one sentence on one line; click ends some with "?" or ")"."""
    assert text.strip().count("\n") == 0, text
    assert text.rstrip()[-1] in ".?)", text
    assert "Traceback" not in text
    return text.strip()


def finished(coroutine):
    """Return what a coroutine does; Playwright keeps a loop running in this thread, where asyncio.run refuses."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@pytest.fixture(autouse=True)
def own_main():
    """Undo what others leave behind: AppTest a script that is gone as __main__, which new processes would try to run,
    and natscope's commands the safe path, with which they would not find the tests."""
    main, safe = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    yield
    sys.modules["__main__"] = main
    if safe is None:
        os.environ.pop("PYTHONSAFEPATH", None)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def with_package(
    tmp_path_factory: pytest.TempPathFactory, name: str, code: str, entries: str, *, timeout: float = 200
) -> Callable[..., str]:
    """Return what runs Python in a folder of its own, with a module installed, and returns what is printed.

    Args:
        tmp_path_factory: of pytest.
        name: of the module and its package.
        code: of the module.
        entries: what its entry_points.txt holds.
        timeout: seconds of one run.
    """
    installed, place = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("place")
    (installed / f"{name}.py").write_text(code)
    about = installed / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(entries)
    environment = os.environ | {"PYTHONPATH": str(installed), "NATSCOPE_HOME": str(place), "NATSCOPE_BUNDLES": "bundle"}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
