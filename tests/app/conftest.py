"""A served app for browser tests: each module gives a fixture `server` with its address."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from natscope.app import lanes
from natscope.app.jobs import Lane
from natscope.app.modalities import packed
from natscope.app.worker import Stopped
from natscope.core.images import Images

_ROOT = Path(__file__).parents[2]
_DESKTOP = {"viewport": {"width": 1400, "height": 1000}, "reduced_motion": "reduce"}
# On an address with a folder, Streamlit's own page looks for its server in that folder first, and expects the 404.
_PAGES = "explain|backdoor|coreset|paper|attribute|compare|counterfactual|curves|results|methods"
_PROBE = re.compile(rf"/({_PAGES})/_stcore/(health|host-config)$")


@contextmanager
def serving(bundles, log, *options, path="", folder=_ROOT):
    """Serve bundles under a path, in a process of its own that is started in a folder, and give the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "natscope.app.cli",
        "app",
        "--bundles",
        bundles,
        "--port",
        str(port),
        "--no-browser",
    ]
    command += ["--base-path", path, *options]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(f"http://localhost:{port}{path}/_stcore/health", process, log)
            yield f"http://localhost:{port}{path}"
        finally:
            process.terminate()
            process.wait(20)


def _wait_until_healthy(address, process, log):
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None:
                break
            time.sleep(0.2)
    pytest.fail(f"The server did not start:\n{log.read_text()}")


class Here:
    """Does tasks in the test's own process, where methods and functions can be replaced."""

    def run(self, task, *arguments, progress, stopped, seconds):
        def tell(*step):
            if stopped():
                raise Stopped
            progress(*step)

        return task(tell, *arguments), 0


@pytest.fixture
def here(monkeypatch):
    """Let the app work in this process, with lanes that nobody has used."""
    own = lanes.Lanes(*(Lane([Here()], longest=20, kept=2**20, seconds=60.0) for _ in range(4)))
    monkeypatch.setattr(lanes, "shared", lambda: own)


@pytest.fixture
def visit(browser, server):
    """Return a function that opens an address as a new visitor; at the end, nothing may have gone wrong for any."""
    contexts, problems = [], []

    def open_page(address="/", **settings):
        context = browser.new_context(**(_DESKTOP | settings))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: _note_console(message, problems))
        page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        page.on("response", lambda response: _note_response(response, problems))
        page.on("request", lambda request: _note_request(request, server, problems))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(server + address.removeprefix(server))
        return page

    yield open_page
    pages = [page for context in contexts for page in context.pages]
    shown = [text for page in pages for text in page.get_by_test_id("stException").all_inner_texts()]
    for context in contexts:
        context.close()
    assert problems == []
    assert shown == []


def _note_console(message, problems):
    if message.type == "error" and not _PROBE.search(message.location["url"]):
        problems.append(f"console: {message.text}")


def _note_response(response, problems):
    if response.status >= 400 and not _PROBE.search(response.url):
        problems.append(f"{response.status} {response.url}")


def _note_request(request, server, problems):
    if not request.url.startswith((f"{server}/", "data:", "blob:")):
        problems.append(f"foreign request: {request.url}")


def pack_image(image):
    """Return the query of a link that holds an image, (H, W) or (H, W, 3) uint8."""
    return packed(Images(image[None], (0.0,), (1.0,)))
