"""Builds on a real Ray cluster of two nodes on this machine, of which processes, nodes and the driver are killed."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import natscope
from natscope.app.cli.commands import main
from natscope.core.bundle.format import sha256_of
from natscope.core.errors import BuildError
from natscope.precompute.engines import on_ray
from natscope.precompute.engines.local import TRIES, LostError
from natscope.precompute.engines.on_ray import RayEngine
from tests.conftest import module_of_ones_own, one_sentence

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'natscope[ray]'"),
    pytest.mark.filterwarnings("ignore"),
]
_ROOT = Path(__file__).parents[2]
_TOKEN = "0123456789abcdef" * 4
_OPTIONS = (
    "precompute",
    "--dim",
    "64",
    "--epochs",
    "1",
    "--widths",
    "784,32,10",
    "--name",
    "On Ray",
    "--methods",
    "relatif",
)


def _environment(**more):
    found = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    return found | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(_ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_initial_delay_ms": "0",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
        **more,
    }


class Cluster:
    """Two nodes on loopback addresses; each is a process that ends with what it started."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.2", 0))
            self.address = f"127.0.0.2:{free.getsockname()[1]}"
        self.folder, port = folder, self.address.rpartition(":")[2]
        self.configuration = folder / "configuration"  # of a user on the nodes
        self._begun = []
        self.start(
            "--head",
            "--include-dashboard=false",
            "--node-ip-address=127.0.0.2",
            f"--port={port}",
            f"--temp-dir={folder}",
        )
        self.second = self.join()

    def join(self):
        return self.start(f"--address={self.address}", "--node-ip-address=127.0.0.3")

    def start(self, *options):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        command += ["--disable-usage-stats", *options]
        log = (self.folder / f"{len(self._begun)}.log").open("w")
        node = subprocess.Popen(
            command,
            env=_environment(XDG_CONFIG_HOME=str(self.configuration)),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=_ROOT,
        )
        self._begun.append(node)
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (said := Path(log.name).read_text()):
            assert node.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        return node

    def kill(self, node):
        """Kill a node with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def stop(self):
        for node in reversed(self._begun):
            self.kill(node)


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # names of its sockets may have 107 characters
    found = None
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _environment().items():
            patch.setenv(name, value)
        try:
            found = Cluster(folder)
            yield found
        finally:
            if found is not None:
                found.stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def engine(cluster, tmp_path):
    found = RayEngine(cluster.address)
    with contextlib.closing(found):
        found.begin(tmp_path)
        yield found


def place_of(part):
    import ray  # which reads its environment as it is imported

    time.sleep(0.2)
    return ray.util.get_node_ip_address()


def killed_at_first(folder, part):
    """Return the part; the first process that has it kills itself."""
    marker = folder / str(part)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def killed(part):
    os.kill(os.getpid(), signal.SIGKILL)


def slow(folder, part):
    (folder / f"{part}.begun").touch()
    time.sleep(2)
    return part


def unreadable(folder, part):
    with (folder / "tries").open("a") as file:
        file.write(".")
    raise PermissionError(13, "Permission denied")


def threads_of(part):
    return torch.get_num_threads()


def refused(part):
    raise BuildError("A Jacobian is not finite.")


def test_tasks_run_on_both_nodes(engine):
    assert {place for _, place in engine.map(place_of, range(8))} == {"127.0.0.2", "127.0.0.3"}


def test_a_process_that_is_killed_is_replaced(engine, tmp_path):
    assert dict(engine.map(partial(killed_at_first, tmp_path), range(3))) == {part: part for part in range(3)}


def test_what_fails_five_times_is_given_up_and_named(engine, tmp_path):
    with pytest.raises(LostError) as error:
        list(engine.map(killed, [slice(3, 9)]))
    assert (error.value.part, error.value.tries) == (slice(3, 9), TRIES)
    with pytest.raises(LostError) as error:
        list(engine.map(partial(unreadable, tmp_path), ["a"]))
    assert isinstance(error.value.__cause__, PermissionError)
    assert (tmp_path / "tries").read_text() == "." * TRIES
    with pytest.raises(BuildError, match=r"^A Jacobian is not finite\.$"):
        list(engine.map(refused, ["a"]))


def test_a_node_that_is_killed_is_done_without(cluster, engine, tmp_path):
    found = dict[int, int]()
    for part, result in engine.map(partial(slow, tmp_path), range(8)):
        if not found:
            cluster.kill(cluster.second)
        found[part] = result
    assert found == {part: part for part in range(8)}
    cluster.second = cluster.join()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield torch.set_num_threads
    torch.set_num_threads(before)


def test_tasks_for_which_no_node_has_room_are_refused(engine, tmp_path, monkeypatch, threads):
    threads(2)
    with pytest.raises(
        BuildError, match=r"^A task computes with 2 threads .* no node of Ray has more than 1;"
    ) as error:
        engine.begin(tmp_path)
    one_sentence(str(error.value))
    threads(1)
    monkeypatch.setattr(on_ray, "device", lambda: SimpleNamespace(type="cuda"))
    with pytest.raises(BuildError, match=r"^A task takes a GPU and 1 CPUs, and no node of Ray has both;"):
        engine.begin(tmp_path)


def test_two_nodes_of_one_address_are_two(cluster, engine, tmp_path, monkeypatch):
    third, asked = cluster.start(f"--address={cluster.address}", "--node-ip-address=127.0.0.2"), []
    monkeypatch.setattr(RayEngine, "_compare", staticmethod(lambda node, found: asked.append(node)))
    try:
        assert engine.begin(tmp_path).startswith("3 nodes of Ray")
    finally:
        cluster.kill(third)
    assert sorted(asked) == ["127.0.0.2", "127.0.0.2", "127.0.0.3"]


def test_without_an_address_a_ray_of_its_own_is_started(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with contextlib.closing(RayEngine()) as engine:
        assert engine.begin(tmp_path).startswith("1 node of Ray")


def test_without_an_address_what_the_program_has_joined_is_used(engine, tmp_path):
    with contextlib.closing(RayEngine()) as another:
        assert another.begin(tmp_path).startswith("2 nodes of Ray")
    engine.begin(tmp_path)  # still joined


def test_a_process_that_is_used_again_has_the_threads_of_its_task(threads):
    mine = tuple(on_ray.about().items())
    assert [on_ray._run(threads_of, None, mine, count) for count in (1, 2, 1)] == [1, 2, 1]


def test_a_network_of_ones_own_is_made_on_the_nodes_and_trusted_by_none(cluster, tmp_path, monkeypatch, threads):
    threads(1)
    source = "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 3))\n"
    with module_of_ones_own(tmp_path, "net_of_nodes", source) as own:
        inputs, labels = torch.randn(60, 20), torch.arange(60) % 3
        data = (inputs, labels), (inputs[:9], labels[:9])
        made, settings = own.make(), {"factory": own.make, "sketch": natscope.SketchSpec(dim=8), "methods": ()}
        here = natscope.build(made, *data, out=tmp_path / "here", name="own", **settings)
        there = natscope.build(
            made, *data, out=tmp_path / "there", name="own", engine=RayEngine(cluster.address), **settings
        )
    assert _sums(here.path) == _sums(there.path)
    assert not list(cluster.configuration.rglob("trusted.json"))


def test_other_versions_are_said_before_anything_runs(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "versions", lambda: {"natscope": "99", "torch": "1"})
    with contextlib.closing(RayEngine(cluster.address)) as engine, pytest.raises(BuildError) as error:
        engine.begin(tmp_path)
    assert "127.0.0." in str(error.value)
    assert "this machine 99" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_a_node_does_not_see_is_said():
    with pytest.raises(BuildError, match="The node far does not see the bundle's folder"):
        RayEngine._compare("far", {"sees": "no"})


def test_edited_code_of_the_same_version_is_noticed():
    mine = on_ray.about()
    RayEngine._compare("near", mine | {"sees": "yes"})
    with pytest.raises(BuildError, match=r"The node far has code of natscope 0123, and this machine [0-9a-f]{12};"):
        RayEngine._compare("far", mine | {"sees": "yes", "code of natscope": "0123"})


def test_other_vector_instructions_are_noticed():
    with pytest.raises(BuildError, match=r"The node far has vector instructions older, and this machine [A-Z0-9]+;"):
        RayEngine._compare("far", on_ray.about() | {"sees": "yes", "vector instructions": "older"})


def test_a_wrong_token_is_one_sentence(cluster, tmp_path):
    command = [sys.executable, "-m", "natscope.app.cli", *_OPTIONS, "--engine", "ray", "--ray-address", cluster.address]
    command += ["--out", str(tmp_path / "bundle"), "--per-class", "20"]
    found = subprocess.run(
        command, env=_environment(RAY_AUTH_TOKEN="f" * 64), capture_output=True, text=True, cwd=_ROOT, check=False
    )
    assert found.returncode == 2, found.stderr
    assert "No Ray answers at" in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stderr.count("Unauthenticated") == 2  # each is a second in which Ray asks again, and its own line


def test_an_address_where_nothing_listens_is_one_sentence_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "natscope.app.cli", *_OPTIONS, "--check", "--engine", "ray", "--ray-address"]
    found = subprocess.run(
        [*command, f"127.0.0.1:{port}"], env=_environment(), capture_output=True, text=True, cwd=_ROOT, timeout=100
    )
    assert found.returncode == 2
    assert found.stderr.startswith(f"Will not work: No Ray answers at 127.0.0.1:{port}: ")
    assert found.stderr.count("\n") == 1


def test_a_check_says_which_nodes_there_are(cluster, tmp_path):
    command = [sys.executable, "-m", "natscope.app.cli", *_OPTIONS, "--check", "--out", str(tmp_path / "bundle")]
    command += ["--engine", "ray", "--ray-address", cluster.address, "--workers", "2"]
    found = subprocess.run(command, env=_environment(), capture_output=True, text=True, cwd=_ROOT)
    assert found.returncode == 0, found.stderr
    said = " ".join(found.stdout.split())
    assert re.search(r"Engine 2 nodes of Ray, of this machine's versions, .* have [\d.]+ GB or more for tasks", said)
    assert re.search(r"Memory about .*; about [\d.]+ [MG]B for each task on a node", said)
    assert f"--engine ray --ray-address {cluster.address} --workers 2 --out" in found.stdout
    assert not list(tmp_path.iterdir())


def _sums(folder):
    return {file.name: sha256_of(file) for file in folder.iterdir()}


def _begun(out, cluster):
    command = [sys.executable, "-m", "natscope.app.cli", *_OPTIONS, "--out", str(out)]
    command += ["--engine", "ray", "--ray-address", cluster.address]
    return subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, cwd=_ROOT)


def test_a_build_whose_driver_is_killed_ends_with_the_bytes_of_a_local_one(cluster, tmp_path):
    out, journal = tmp_path / "there", tmp_path / "there.partial" / "journal.json"
    driver, deadline = _begun(out, cluster), time.monotonic() + 120
    while not (journal.exists() and len(json.loads(journal.read_text())["done"].get("features", [])) >= 3):
        assert driver.poll() is None, driver.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    assert not out.exists()
    again = _begun(out, cluster)
    _, said = again.communicate(timeout=200)
    assert again.returncode == 0, said.decode()
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*_OPTIONS, "--out", str(tmp_path / "here")])
    assert _sums(out) == _sums(tmp_path / "here")
