"""Files to download: equal ones are made once, one session never holds up the others, and a refusal is a sentence."""

import ast
import logging
import pickle
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from natscope.app import bundles, downloads, lanes
from natscope.app.figures.sheets import ranking_file
from natscope.app.jobs import Lane
from natscope.app.serve import THREADS, _in_one_line
from natscope.core.bundle.request import Attribution, Item, QueryExample, Request
from natscope.core.errors import QueryError
from natscope.core.images import Images
from natscope.core.methods import METHODS
from tests.app.conftest import Here
from tests.conftest import syntax_of

_VIEWS = sorted((Path(bundles.__file__).parent / "views").glob("*.py"))
_drawn, _gate = [], threading.Event()


def slow(text):
    _drawn.append(text)
    assert _gate.wait(60)
    return text


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """Draw in this process; a figure is there when the gate is open."""
    own = lanes.Lanes(*(Lane([Here()], longest=20, kept=2**20, seconds=60.0) for _ in range(4)))
    monkeypatch.setattr(lanes, "shared", lambda: own)
    _drawn.clear()
    _gate.clear()
    yield own.figures
    _gate.set()


@pytest.fixture
def button(monkeypatch):
    """Return a function that draws a button as a session, and gives what Streamlit calls in a thread of its own."""
    made = []
    monkeypatch.setattr(downloads.st, "download_button", lambda label, make, *_, **__: made.append(make))

    def draw(owner, text):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lanes, "session_id", lambda: owner)
            downloads.offer("PNG", lambda: downloads.draw(slow, text), "a.png", "image/png", key="a")
        return made[-1]

    return draw


class Download(threading.Thread):
    """A request for a file, in a thread as Streamlit's are."""

    def __init__(self, make):
        super().__init__(daemon=True)
        self.make, self.found = make, None
        self.start()

    def run(self):
        try:
            self.found = self.make()
        except QueryError as error:
            self.found = str(error)


def answers(requests):
    for request in requests:
        request.join(60)
    return [request.found for request in requests]


def until(condition):
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("It did not come to pass.")


def test_equal_figures_are_drawn_once_whoever_asks(button):
    requests = [Download(button(owner, "a")) for owner in ("one", "two", "one")]
    until(lambda: downloads._waiting.total() == 3)
    _gate.set()
    assert answers(requests) == ["a"] * 3
    assert button("three", "a")() == "a"
    assert _drawn == ["a"]


def test_one_session_waits_for_few_figures_and_holds_up_nobody(button):
    flood = [Download(button("one", f"{number}")) for number in range(100)]
    until(lambda: sum(request.found is not None for request in flood) == 97)
    other = Download(button("two", "a"))
    until(lambda: downloads._waiting["two"] == 1)
    _gate.set()
    assert answers([other]) == ["a"]
    reported = answers(flood)
    assert sum("Too many figures" in each for each in reported) == 97
    assert not downloads._waiting


def test_some_threads_are_left_for_tables_however_many_sessions_ask(button):
    flood = [Download(button(f"{number}", "a")) for number in range(100)]
    # All others are refused: one that came only when a figure is drawn would find room.
    until(lambda: sum(request.found is None for request in flood) == THREADS // 2)
    _gate.set()
    assert answers(flood).count("a") == THREADS // 2


def test_a_figure_belongs_to_the_session_that_was_offered_it(button, figures):
    request = Download(button("one", "a"))
    until(lambda: _drawn)
    assert [job.sessions for job in figures._jobs.values()] == [{"one"}]
    _gate.set()
    answers([request])


def test_no_request_waits_for_ever(button, monkeypatch):
    monkeypatch.setattr(downloads, "_PATIENCE", 0.01)
    with pytest.raises(QueryError, match="not drawn in time"):
        button("one", "a")()
    assert not downloads._waiting


def test_the_log_says_in_a_line_why_there_is_no_file(caplog):
    log = logging.getLogger("test")
    log.addFilter(_in_one_line)
    try:
        raise RuntimeError("Callable execution failed") from QueryError("Too many\x1b.")
    except RuntimeError:
        log.exception("Error executing deferred callable")
    try:
        raise RuntimeError("Something else")
    except RuntimeError:
        log.exception("Error executing deferred callable")
    first, second = caplog.records
    assert first.getMessage() == r"No file to download: Too many\x1b."
    assert first.exc_info is None
    assert second.exc_info is not None


@pytest.mark.parametrize("file", _VIEWS, ids=lambda file: file.name)
def test_every_page_offers_files_in_this_way(file):
    assert "download_button" not in {
        found.attr for found in ast.walk(syntax_of(file)) if isinstance(found, ast.Attribute)
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_ranking_of_every_method_reaches_the_process_that_draws_it(method):
    images = Images(np.zeros((1, 4, 4), np.uint8), (0.0,), (1.0,))
    query = QueryExample(images, np.array([0.9, 0.1]), np.zeros(3), "test", 0, 0, ood=0.5)
    item = Item(rank=1, train_index=3, label=0, score=0.5, nats=None, sign=1, variance=1.0)
    answer = Attribution(Request(method), 1.0, 0, 10, (item,), None, redundancy=0.0, seconds=0.1)
    sent = ForkingPickler.dumps((ranking_file, query, images, answer, ("coat", "shirt")))
    function, *arguments = pickle.loads(sent)  # safe: made on the line above
    assert function(*arguments, kind="PNG").startswith(b"\x89PNG")
