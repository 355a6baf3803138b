"""Bundles whose network takes no images: what pages show of them, and what can be uploaded."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

import natscope
from natscope.app import launch
from natscope.app.bundles import FILES, Served
from natscope.app.cli.commands import main
from natscope.app.selected import SELECTED, Selected
from natscope.app.serve import BUNDLES
from natscope.app.views import telling
from natscope.core.bundle.format import read_manifest
from natscope.core.errors import BundleError, NatscopeError, QueryError
from natscope.core.sketches import SketchSpec
from tests.conftest import module_of_ones_own, one_sentence

_MAIN = Path(__file__).parents[2] / "app" / "main.py"
_MODULE = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def transform(picture):
    return torch.from_numpy(np.array(picture.resize((10, 12)))).permute(2, 0, 1).float() / 127.5 - 1
"""


_ask = Served._ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle with a transform, and one without."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(60, 3, 12, 10, generator=generator), torch.arange(60) % 3
    with module_of_ones_own(folder, "net_of_inputs", _MODULE) as own:
        sets = (inputs, labels), (inputs[:9] + 0.1, labels[:9])
        for name, transform in (("with", own.transform), ("without", None)):
            settings = {"classes": ["ant", "bee", "cat"], "sketch": SketchSpec(dim=32), "methods": ()}
            natscope.build(own.Net(), *sets, out=folder / "b" / name, transform=transform, **settings)
        yield folder


@pytest.fixture(scope="module")
def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _page(monkeypatch, served, state=None, **link):
    monkeypatch.setenv(BUNDLES, str(served))
    page = AppTest.from_file(str(_MAIN), default_timeout=60)
    page.query_params.update({"q": "test:0"} | link)
    for key, value in (state or {}).items():
        page.session_state[key] = value
    page.run()
    assert [error.message for error in page.exception] == []
    return page


def test_pages_show_a_bundle_of_inputs(folder, monkeypatch):
    page = _page(monkeypatch, folder / "b" / "without")
    assert not page.error
    assert not page.warning


def test_the_page_says_why_nothing_can_be_uploaded(folder, monkeypatch):
    page = _page(monkeypatch, folder / "b" / "without", {"source": "image"})
    (said,) = [info.value for info in page.info if "transform=" in info.value]
    one_sentence(said)
    assert not page.get("file_uploader")
    page = _page(monkeypatch, folder / "b" / "with", {"source": "image"})
    assert not [info for info in page.info if "transform=" in info.value]


def test_an_uploaded_file_is_asked_about_by_the_bundles_own_code(folder, monkeypatch, picture):
    digest = hashlib.sha256(picture).hexdigest()
    kept = {FILES: {digest: (picture, "a.png")}}
    page = _page(monkeypatch, folder / "b" / "with", kept, q=f"file:{digest}")
    assert "out of distribution" in page.warning[0].value  # the picture is noise
    assert page.query_params["q"] == f"file:{digest}"
    page = _page(monkeypatch, folder / "b" / "with", q=f"file:{digest}")
    assert any("upload it again" in warning.value for warning in page.warning)
    page = _page(monkeypatch, folder / "b" / "with", {FILES: {"x": (b"none", "a.png")}}, q="file:x")
    assert page.warning


def test_a_refused_file_is_named_and_not_kept(folder, monkeypatch, picture):
    page = _page(monkeypatch, folder / "b" / "with", {"source": "image"})
    page.file_uploader(key="file").upload("b*a*d.png", b"none", "image/png").run()
    (said,) = [error.value for error in page.error]
    assert one_sentence(said).startswith(r"b\*a\*d.png\: The file is ")
    assert FILES not in page.session_state
    assert page.query_params["q"] == "test:0"
    page.file_uploader(key="file").upload("good.png", picture, "image/png").run()
    assert not page.error
    digest = hashlib.sha256(picture).hexdigest()
    assert list(page.session_state[FILES]) == [digest]
    assert page.query_params["q"] == f"file:{digest}"


def test_a_file_that_the_bundles_own_code_refuses_is_not_kept(folder, monkeypatch, picture):
    def refuse(*given):
        raise QueryError("Its code cannot use this file.")

    monkeypatch.setattr(
        Served, "_ask", lambda self, what, *given: refuse() if what == "file" else _ask(self, what, *given)
    )
    page = _page(monkeypatch, folder / "b" / "with", {"source": "image"})
    page.file_uploader(key="file").upload("a.png", picture, "image/png").run()
    assert [error.value for error in page.error] == [r"a.png\: Its code cannot use this file."]
    assert FILES not in page.session_state


def test_a_file_on_the_command_line_goes_the_same_way(folder, picture, capsys, tmp_path):
    (tmp_path / "a.png").write_bytes(picture)
    asked = ("attribute", "--bundle", str(folder / "b" / "with"), "--image", str(tmp_path / "a.png"), "--json")
    with pytest.raises(SystemExit) as caught:
        main(list(asked))
    assert not caught.value.code
    found = json.loads(capsys.readouterr().out)
    wanted = natscope.open(folder / "b" / "with").explain(tmp_path / "a.png", budget=10)
    assert [i["train_index"] for i in found["items"]] == [i.train_index for i in wanted.items]
    with pytest.raises(SystemExit) as caught:
        main([word.replace("with", "without") if word.endswith("with") else word for word in asked])
    assert caught.value.code == 2
    assert "transform=" in one_sentence(capsys.readouterr().err)


def test_a_command_says_that_it_cannot_build_again_what_was_built_from_python(folder, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["precompute", "--config", str(folder / "b" / "with"), "--out", str(tmp_path / "again")])
    assert caught.value.code == 2
    assert "was built from Python" in one_sentence(capsys.readouterr().err)


def test_the_app_is_served_beside_a_notebook_and_ends_with_its_session(folder):
    with natscope.launch(folder / "b") as session:
        with urllib.request.urlopen(session.url) as page:
            assert page.status == 200
        assert session.running
        assert session.url in session._repr_html_()
        assert session.selected is None
        with pytest.raises(QueryError, match=r"is in use.*another with port="):
            natscope.launch(folder / "b", port=int(session.url.rpartition(":")[2]))
    assert not session.running
    assert "closed" in repr(session)
    session.close()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"bundle": "nothing"}, "There is no bundle in nothing"),
        ({"bundle": 5}, "serves a bundle, its folder or a folder of bundles, not 5"),
        ({"port": 80000}, "port= takes a whole number from 1 to 65535, not 80000"),
        ({"port": "x"}, "not 'x'"),
        ({"port": 0}, "not 0"),
        ({"port": 8501.0}, "not 8501.0"),
        ({"port": True}, "not True"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(folder, given, match):
    with pytest.raises(NatscopeError, match=match) as caught:
        natscope.launch(**({"bundle": folder / "b"} | given))
    one_sentence(str(caught.value))
    if given.get("bundle") == 5:
        with pytest.raises(BundleError, match=r"natscope\.open takes a bundle or its folder, not 5"):
            natscope.open(5)


_PATIENCE = 120  # seconds, on a machine that does much else
_SCRIPT = """
import os, signal, sys, time

import natscope

signal.signal(signal.SIGINT, signal.default_int_handler)  # which what runs the tests may have had ignored
session = natscope.launch(sys.argv[1])
try:
    print(session.url, flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print(session.running, flush=True)
    time.sleep(600)  # as a notebook goes on after a cell
"""


@pytest.fixture
def script(folder):
    """A script that serves the app and prints its address."""
    root = str(Path(__file__).parents[2])
    command, options = [sys.executable, "-c", _SCRIPT, str(folder / "b")], {"text": True, "start_new_session": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, **options) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_cell_leaves_the_app_and_the_end_of_its_process_ends_it(script, end):
    process, url = script
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, and a notebook
    assert process.stdout.readline() == "True\n"
    assert _serves(url)
    process.send_signal(end)
    process.wait(_PATIENCE)
    began = time.monotonic()
    while _serves(url):
        assert time.monotonic() - began < _PATIENCE
        time.sleep(0.1)


def _serves(url):
    """Return whether an app answers, however slowly; one that has ended refuses at once."""
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as page:
            return page.status == 200
    except OSError:
        return False


def test_an_interrupt_while_it_starts_leaves_nothing(folder, monkeypatch):
    started = []
    own = subprocess.Popen

    def popen(*given, **options):
        started.append(own(*given, **options))
        return started[-1]

    def interrupted(url):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.subprocess, "Popen", popen)
    monkeypatch.setattr(launch, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        natscope.launch(folder / "b")
    assert [process.poll() is None for process in started] == [False]


def test_what_is_looked_at_is_told_to_the_notebook_alone(folder, monkeypatch, tmp_path):
    file = tmp_path / "selected.json"
    _page(monkeypatch, folder / "b", q="train:4", method="repsim")
    assert not file.exists()
    monkeypatch.setenv(SELECTED, str(file))
    _page(monkeypatch, folder / "b", q="train:4", method="repsim", bundle="without")
    found = Selected.read(file)
    assert (found.bundle, found.query, found.settings["method"], found.tags) == ("without", "train:4", "repsim", {})
    identity = read_manifest(folder / "b" / "without").identity
    tags = {"tags": {identity: {"train:4": "odd\ttest:3", "test:1": "interesting"}, "other": {"train:1": "x"}}}
    page = _page(monkeypatch, folder / "b", tags, q="test:2", bundle="without")
    assert Selected.read(file).tags == {"train:4": "odd", "test:1": "interesting"}
    assert natscope.open(folder / "b" / "without").explain(Selected.read(file).query, budget=2).query.index == 2
    page.button(key="tag_query_button").click().run()
    page.pills(key="tag_query_test:2_1").set_value("duplicate").run()
    assert Selected.read(file).tags == {"train:4": "odd", "test:1": "interesting", "test:2": "duplicate"}
    monkeypatch.setenv(SELECTED, str(tmp_path / "no" / "folder.json"))
    _page(monkeypatch, folder / "b", q="test:2")


def test_a_part_that_is_redrawn_alone_tells_what_changed(folder, monkeypatch, tmp_path):
    monkeypatch.setenv(SELECTED, str(tmp_path / "selected.json"))
    monkeypatch.setattr(telling, "tell", lambda *told: st.session_state.__setitem__("told", told))  # whole pages do it
    _page(monkeypatch, folder / "b", q="train:4", method="repsim", bundle="without", m="7")
    assert Selected.read(tmp_path / "selected.json").settings["m"] == "7"


@pytest.mark.parametrize("query", ["image:eJxj", "file:0a", "test:-1", "", "test:1 "])
def test_an_upload_stays_with_the_visitor(query):
    assert Selected.of("explain", {"q": query}, {}).query is None
