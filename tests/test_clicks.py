"""The benchmark of clicks: what it times is on the page, and a target that is missed fails it."""

import importlib
import io
import mmap
import sys
from concurrent.futures import ThreadPoolExecutor

import click
import numpy as np
import psutil
import pytest

from benchmarks import browser, clicks
from benchmarks.clicks import PAGES, Targets
from benchmarks.served import Served


@pytest.mark.browser
@pytest.mark.timeout(600)
def test_clicks_pages_and_memory_are_measured_and_targets_are_held(bundle_path, monkeypatch):
    lines = []
    monkeypatch.setattr(clicks, "WIDTHS", (1440,))
    monkeypatch.setattr(clicks, "IDLE", 0)
    generous = dict.fromkeys(("closer", "compare", "first", "front"), 1e3) | {"memory": 1e6}
    settings = {"repeats": 1, "memory_clicks": 2, "check": True, "targets": Targets(click=0, shift=-1, **generous)}
    # In another thread, for Playwright may already run in this one.
    with ThreadPoolExecutor(1) as pool, pytest.raises(click.ClickException) as missed:
        pool.submit(clicks.run, lines.append, bundles=bundle_path, **settings).result()
    text = "\n".join(lines)
    for what in ("next image", "closer look", "method", "σ²", "M", "Compare", "Compare: first row"):
        for beside in ("", " beside curves"):
            name = what.replace(":", f"{beside}:") if ":" in what else what + beside
            assert f"\n{name} " in text
    for what in ("all training data given", "all classes"):
        assert f"\n{what}: first answer " in text
    assert "\nfront page beside retraining " in text
    assert "load average" in lines[0]
    said = missed.value.message
    assert [page for page in PAGES if f"/{page} moves by " not in said] == []
    assert all(f"{what}: " in said for what in ("next image", "method", "M", "all classes: next of the class"))
    assert not any(word in said for word in ("closer", "Compare", "first answer", "front page", "Memory", "tracebacks"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere files count as held")
def test_memory_is_what_processes_hold_and_apart_from_it_the_files_that_they_map(tmp_path):
    file, served = tmp_path / "numbers", Served(0, psutil.Process(), io.BytesIO())
    np.ones(2**23).tofile(file)  # 64 MiB
    held, files = served.memory()
    mapped = np.memmap(file, dtype=np.float64, mode="r")
    # New pages, where an allocator might give some that the process holds already.
    own = np.frombuffer(mmap.mmap(-1, mapped.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    own[:] = mapped
    assert mapped.sum() == own.sum()
    more = served.memory()
    assert more[0] - held == pytest.approx(64, abs=24)
    assert more[1] - files == pytest.approx(64, abs=24)


def test_without_playwright_or_a_browser_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(browser, "find_browser", lambda: None)
    importlib.import_module("playwright.sync_api")
    with pytest.raises(click.ClickException, match="Chrome or Chromium: install one"), browser.chromium():
        pass
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(click.ClickException, match="needs Playwright"), browser.chromium():
        pass


def test_a_shift_is_that_of_the_worst_five_seconds():
    class Page:
        def __init__(self, *shifts):
            self.shifts = [{"at": at, "value": value, "moved": name} for at, value, name in shifts]

        def evaluate(self, script, *_):
            return self.shifts if "shifts" in script else None

    def shift(*shifts):
        return browser.Person(Page(*shifts), "").shift()

    assert shift() == (0, "")
    assert shift((100, 0.1, "a"), (900, 0.2, "b"))[0] == pytest.approx(0.3)
    assert shift((100, 0.1, "a"), (1200, 0.2, "b")) == (pytest.approx(0.2), "b")  # a pause of more than a second
    steady = [(900 * step, 0.1, "c") for step in range(10)]
    assert shift(*steady)[0] == pytest.approx(0.6)  # those of 5 s
