import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from natscope.core.bundle.format import Bundle
from natscope.core.errors import BuildError, BundleError
from natscope.precompute.engines.local import TRIES, LocalEngine
from natscope.precompute.training import workers as side_by_side
from natscope.precompute.training.result_cache import ResultCache
from tests.tiny import edited, saved


def beat(path):
    """Write to a file for as long as the process lives."""
    while True:
        with Path(path).open("a") as file:
            file.write(".")
        time.sleep(0.05)


def start(path):
    """Do that in a worker as experiments start them."""
    list(LocalEngine(spread=True).map(beat, [path]))


def test_workers_end_with_a_command_that_is_killed(tmp_path):
    path = tmp_path / "beats"
    root = str(Path(__file__).parents[2])  # nothing is imported from the working directory under PYTHONSAFEPATH
    script = f"import sys; sys.path.insert(0, {root!r})\nfrom tests.precompute.test_workers import start"
    script += f"\nstart({str(path)!r})"
    command = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert command.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        command.kill()
        command.wait()
    written = -1
    while written != (now := path.stat().st_size):  # until it has not been written to for a second
        assert time.monotonic() < deadline
        written = now
        time.sleep(1)


def killed_at_first(bundle, marker):
    """Return the process's number, unless nobody has been here before."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def run(bundle, work, things, cache, steps):
    settings = {"workers": 1, "stage": "Working", "progress": lambda stage, done, total: steps.append(done)}
    return side_by_side.side_by_side(bundle, work, things, cache=cache, **settings)


def test_a_worker_that_is_killed_is_replaced(bundle_path, tmp_path):
    things, steps = dict.fromkeys("ab", tmp_path / "marker"), []
    found = run(Bundle(bundle_path), killed_at_first, things, ResultCache(tmp_path / "kept.json"), steps)
    assert found["a"] == found["b"] != os.getpid()
    assert steps == [0, 1, 2]


def classes_of(bundle, thing):
    """Return the labels of the first test images."""
    return bundle.array("test_labels")[:9].tolist()


@pytest.fixture
def opened(tiny_path, tmp_path):
    return Bundle(shutil.copytree(tiny_path, tmp_path / "bundle"))


def test_another_bundle_in_the_place_of_one_is_not_taken_for_it(opened, tmp_path):
    cache, labels = ResultCache(tmp_path / "kept.json"), opened.array("test_labels")
    assert run(opened, classes_of, {"a": 0}, cache, [])["a"] == labels[:9].tolist()
    found = opened.array("test_labels")[::-1].copy()
    saved(opened.path, "test_labels", found)
    with pytest.raises(BundleError, match="was replaced or changed while it was used"):
        run(opened, classes_of, {"b": 0}, cache, [])
    assert "b" not in cache
    now = Bundle(opened.path)
    for manifest, stamp in ((opened.manifest, now.opened_with), (now.manifest, opened.opened_with)):
        with pytest.raises(BundleError, match="was replaced or changed while it was used"):
            side_by_side._Task(str(now.path), manifest, stamp, classes_of)(("b", 0))
    task = side_by_side._Task(str(now.path), now.manifest, now.opened_with, classes_of)
    assert task(("b", 0)) == found[:9].tolist()
    side_by_side._opened.cache_clear()


def test_what_is_added_to_a_bundle_meanwhile_disturbs_nobody(opened, tmp_path):
    edited(opened.path, lambda raw: raw.update(name="Renamed", tuned=None))
    found = run(opened, classes_of, {"a": 0}, ResultCache(tmp_path / "kept.json"), [])
    assert found["a"] == opened.array("test_labels")[:9].tolist()


def test_workers_that_are_killed_again_and_again_are_one_sentence(bundle_path, tmp_path, monkeypatch):
    """Things that were done side by side are done one by one, and each has its own tries."""
    runs, cache = [], ResultCache(tmp_path / "kept.json")

    def dies(engine, task, parts):
        runs.append([name for name, _ in parts.values()])
        if runs[-1] != ["c"]:
            yield next(iter(parts)), 1
        if runs[-1] != ["b"]:
            raise BrokenProcessPool

    monkeypatch.setattr(LocalEngine, "_once", dies)
    with pytest.raises(BuildError, match=r"^Working: .* 5 times"):
        run(Bundle(bundle_path), None, dict.fromkeys("abc"), cache, [])
    assert runs == [["a", "b", "c"], ["b"], *[["c"]] * (TRIES - 1)]
    assert cache.parts() == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    "edited", [[10**30], ["abc"], [], {"a": 1}, None, [1], [["sum", [1, 2]]], ["0" * 16, [3, 4]]], ids=str
)
def test_a_part_of_a_cache_that_was_edited_is_computed_again(tmp_path, edited):
    file = tmp_path / "kept.json"
    cache = ResultCache(file)
    assert (cache.get("first", lambda: [1, 2]), cache.get("second", lambda: [3])) == ([1, 2], [3])
    kept = json.loads(file.read_text())
    assert "first" in ResultCache(file)
    for broken in (edited, [kept["first"][0], edited], kept["second"]):
        file.write_text(json.dumps(kept | {"first": broken}))
        again = ResultCache(file)
        assert "first" not in again
        assert again["second"] == [3]
        assert again.get("first", lambda: [1, 2]) == [1, 2]
