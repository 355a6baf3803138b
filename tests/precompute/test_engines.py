"""Where the passes of a build run changes none of its bytes, and what is killed is done again."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import natscope
from natscope.app.cli.commands import main
from natscope.core import features
from natscope.core.bundle.format import Bundle, sha256_of
from natscope.core.errors import BuildError
from natscope.precompute.bundles import store
from natscope.precompute.bundles.passes import Gram, Jacobians, Trained, Written
from natscope.precompute.bundles.store import Store
from natscope.precompute.bundles.work import Work
from natscope.precompute.engines.local import TRIES, LocalEngine, LostError
from natscope.precompute.paths import configuration
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.trusted import ALLOWED, trust
from tests.conftest import module_of_ones_own, one_sentence
from tests.tiny import build_tiny


def process_of(part):
    return os.getpid()


def killed_at_first(folder, part):
    """Return the process's number, unless nobody has been here before."""
    marker = folder / str(part)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def killed(part):
    if part == slice(5, 7):
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def slow_or_killed(part):
    """Return the part after a while; "killer" kills its process while others are at work."""
    if part == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    return part


def refused(part):
    raise BuildError("A Jacobian is not finite.")


def sums(bundle):
    return {record.file: sha256_of(bundle.path / record.file) for record in bundle.manifest.files.values()}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_tasks_run_in_this_process_or_in_several():
    assert list(LocalEngine().map(process_of, "abc")) == [(part, os.getpid()) for part in "abc"]
    with closing(LocalEngine(2)) as engine:
        found = dict(engine.map(process_of, "abc"))
        assert found.keys() == set("abc")
        assert os.getpid() not in found.values()
        again = dict(engine.map(partial(process_of), "abcdef"))
        assert len({*found.values(), *again.values()}) <= 2
    assert not multiprocessing.active_children()


def test_tasks_run_in_several_processes_whichever_thread_asks():
    before = signal.signal(signal.SIGHUP, lambda *_: None)  # as another program has it, or natscope's commands
    try:
        with ThreadPoolExecutor() as pool, closing(LocalEngine(2)) as engine:
            assert pool.submit(lambda: dict(engine.map(process_of, "abc"))).result().keys() == set("abc")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_is_killed_is_replaced(tmp_path):
    found = dict(LocalEngine(2).map(partial(killed_at_first, tmp_path), [1, 2, 3]))
    assert found.keys() == {1, 2, 3}


def test_what_is_killed_again_and_again_ends_the_build_with_a_sentence_that_names_it(tmp_path):
    filled = Store(tmp_path, Work(tmp_path / "work", {}, folder=tmp_path), lambda *_: None, LocalEngine(spread=True))
    with pytest.raises(
        BuildError, match=rf"^Jacobians: rows 5 to 6 failed {TRIES} times \(its process was ended"
    ) as error:
        list(filled.rows(killed, [slice(5, 7)], "Jacobians", filled.engine, "features", ("features",)))
    assert isinstance(error.value.__cause__, LostError)


def test_what_kills_its_process_is_named_and_not_what_was_done_beside_it():
    with pytest.raises(LostError) as error:
        list(LocalEngine(2).map(slow_or_killed, ["innocent", "killer", "c", "d"]))
    assert (error.value.part, error.value.tries) == ("killer", TRIES)


def test_an_error_ends_the_processes_of_its_own_engine_alone():
    with closing(LocalEngine(2)) as engine, closing(LocalEngine(2)) as another:
        list(engine.map(process_of, "ab"))
        other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        other.start()
        before = {process for _, process in another.map(process_of, "ab")}
        with pytest.raises(BuildError, match="not finite"):
            list(engine.map(refused, "ab"))
        other.join(0.5)
        assert other.is_alive()
        assert before & {process for _, process in another.map(process_of, "ab")}
        other.kill()
        other.join()
    assert not multiprocessing.active_children()


def test_a_script_that_builds_whenever_it_is_imported_is_told_what_it_lacks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from natscope.precompute.engines.local import LocalEngine\nprint(list(LocalEngine(2).map(str, [1, 2, 3])))\n"
    )
    command = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 1
    assert found.stdout == ""
    last = one_sentence(found.stderr.splitlines()[-1])
    assert last.startswith("natscope.core.errors.BuildError: A worker process ended by itself with code 1, most often")
    assert "put what the script does below that line" in last


def test_a_build_in_several_processes_has_the_bytes_of_one_in_this_process(tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(features, "SHARD", 16)  # so that there are several shards
    monkeypatch.setattr(store, "GROUP", 32)
    here = build_tiny(tmp_path / "here", outputs="all")
    there = build_tiny(tmp_path / "there", outputs="all", engine=LocalEngine(2))
    assert sums(here) == sums(there)
    assert len(here.array("features")) == 60


def test_methods_are_added_by_several_processes(tmp_path, one_thread):
    whole = build_tiny(tmp_path / "whole", methods=("graddot",))
    bare = build_tiny(tmp_path / "bare", methods=())
    added = build_tiny(bare.path, methods=("graddot",), engine=LocalEngine(2))
    assert sha256_of(added.path / "margin_features.npy") == sha256_of(whole.path / "margin_features.npy")
    assert not list(added.path.rglob("*shards*"))


_NET = "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 3))\n"


def test_a_network_of_ones_own_is_made_in_each_process(tmp_path, one_thread):
    with module_of_ones_own(tmp_path, "net_of_engines", _NET) as own:
        inputs, labels = torch.randn(60, 20), torch.arange(60) % 3
        data = (inputs, labels), (inputs[:9], labels[:9])
        made, settings = own.make(), {"factory": own.make, "sketch": natscope.SketchSpec(dim=8), "methods": ()}
        here = natscope.build(made, *data, out=tmp_path / "here", name="own", **settings)
        there = natscope.build(made, *data, out=tmp_path / "there", name="own", engine=LocalEngine(2), **settings)
    assert sums(here) == sums(there)


@pytest.fixture
def passes_of_ones_own(tmp_path):
    """Passes over a network of one's own, which was trusted where they began, and the file of its code."""
    with module_of_ones_own(tmp_path, "net_of_passes", _NET) as own:
        natscope.build(
            own.make(),
            (torch.randn(60, 20), torch.arange(60) % 3),
            (torch.randn(9, 20), torch.arange(9) % 3),
            out=tmp_path / "bundle",
            factory=own.make,
            sketch=natscope.SketchSpec(dim=8),
            methods=(),
        )
        bundle = Bundle(tmp_path / "bundle")
        network = ModelSpec.from_dict(bundle.manifest.model)
        yield Trained(bundle.path, network, bundle.modality.name, bundle.manifest.dataset), Path(own.__file__)


def test_a_process_without_trust_runs_the_code_that_a_build_began_with_and_records_nothing(
    passes_of_ones_own, tmp_path, monkeypatch
):
    trained, _ = passes_of_ones_own
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))  # as on another machine
    monkeypatch.setenv(ALLOWED, "")
    assert trained.open().inputs("train")[slice(0, 2)].shape == (2, 20)
    assert os.environ[ALLOWED] == "net_of_passes:make"
    assert not configuration().exists()


def test_code_that_is_trusted_already_is_allowed_nothing_more(passes_of_ones_own, monkeypatch):
    monkeypatch.setenv(ALLOWED, "")
    passes_of_ones_own[0].open()
    assert os.environ[ALLOWED] == ""


@pytest.mark.parametrize("trusted", [True, False])
def test_other_code_than_a_build_began_with_is_refused(passes_of_ones_own, tmp_path, monkeypatch, trusted):
    trained, file = passes_of_ones_own
    file.write_text(_NET.replace("Flatten()", "Flatten(), torch.nn.ReLU()"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    monkeypatch.setenv(ALLOWED, "")
    if trusted:
        trust("net_of_passes:make")
    with pytest.raises(BuildError, match=r"^The module net_of_passes \(.*net_of_passes\.py on .*\), or one") as error:
        trained.open()
    one_sentence(str(error.value))
    assert os.environ[ALLOWED] == ""


def test_what_was_opened_is_forgotten(passes_of_ones_own):
    with closing(passes_of_ones_own[0]) as trained:
        opened = weakref.ref(trained.open())
        assert trained.open().inputs("train") is opened().inputs("train")
    gc.collect()
    assert opened() is None


class Rows(Jacobians):
    """Rows of ones, of which each call is counted."""

    calls = 0

    def _shard(self, part):
        Rows.calls += 1
        return np.full((part.stop - part.start, 4), part.start, np.float32)


def test_a_shard_that_was_written_is_taken_and_one_that_is_damaged_made_again(tmp_path):
    task = Written(Rows("features", None, None), tmp_path, ("features",))
    Rows.calls, part = 0, slice(3, 5)
    names = task(part)
    assert task(part) == names
    assert Rows.calls == 1
    assert task.read(names["features"]).tolist() == [[3.0] * 4] * 2
    file = tmp_path / names["features"]
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(BuildError, match="was changed while it was used"):
        task.read(names["features"])
    assert task(part) == names
    assert Rows.calls == 2
    assert task.read(names["features"]).tolist() == [[3.0] * 4] * 2


class Backwards(LocalEngine):
    """Finishes the last part first."""

    def map(self, task, parts):
        return super().map(task, list(reversed(parts)))


def test_the_order_in_which_parts_end_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 16)
    monkeypatch.setattr(store, "GROUP", 16)
    rows = np.random.default_rng(0).normal(size=(60, 8))
    np.save(tmp_path / "rows.npy", rows)
    totals = []
    for name, engine in (("a", LocalEngine()), ("b", Backwards())):
        (tmp_path / name).mkdir()
        filled = Store(tmp_path / name, Work(tmp_path / name, {}), lambda *_: None, engine)
        array = filled.features(Rows("features", None, None), (60, 4), "", halve=True)
        assert array[:, 0].tolist() == [start for start in range(0, 60, 16) for _ in range(min(16, 60 - start))]
        totals.append(filled.gram(Gram(tmp_path, "rows"), 60))
    np.testing.assert_array_equal(*totals)
    np.testing.assert_allclose(totals[0], rows.T @ rows, rtol=1e-12)


def test_the_options_of_an_engine_are_no_settings_of_a_bundle(tmp_path, capsys):
    settings = ["precompute", "--per-class", "20", "--epochs", "1", "--dim", "8", "--methods", "repsim"]
    for name, options in (("one", ["--engine", "local"]), ("two", ["--workers", "2"])):
        with pytest.raises(SystemExit, match=r"^0$"):
            main([*settings, "--name", "Same", "--out", str(tmp_path / name), *options])
    one, two = (Bundle(tmp_path / name).manifest for name in ("one", "two"))
    assert replace(one, versions={}, files={}, results={}) == replace(two, versions={}, files={}, results={})
    assert "--workers" not in two.command
    with pytest.raises(SystemExit, match=r"^2$"):
        main([*settings, "--out", str(tmp_path / "no"), "--ray-address", "localhost:1"])
    assert "--ray-address is for --engine ray" in capsys.readouterr().err
