"""Lanes of work, with real processes behind them."""

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from natscope.app import lanes
from natscope.app.jobs import Lane
from natscope.app.worker import OutOfMemory, Stopped, TookTooLong, Worker, WorkerLost
from natscope.core.errors import QueryError
from tests.app import work
from tests.conftest import one_sentence

_MEMORY = 2 * 10**9


@pytest.fixture(scope="module", autouse=True)
def tasks_are_found():
    """Let the processes import the tasks of these tests: they do not look in the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def worker():
    worker = Worker(memory=_MEMORY)
    yield worker
    worker.kill()


@pytest.fixture
def lane(worker):
    return Lane([worker], longest=2, kept=2**20, one_each=True)


def done(job):
    assert job.finished.wait(60), "The job did not end."
    return job


@contextmanager
def busy(lane, tmp_path, session="busy"):
    """Keep the lane's only worker busy until the block ends."""
    gate = tmp_path / "gate"
    job = lane.start("busy", work.until, gate, session=session)
    until(lambda: job.state == "running")
    yield job
    gate.touch()
    done(job)


def until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("It did not come to pass.")


def test_a_process_returns_what_its_task_returns_and_tells_its_progress(worker):
    reported = []
    assert worker.run(work.count, 3, progress=lambda *step: reported.append(step))[0] == 3
    assert reported[0] == ("Counting", 0, 3)


def test_a_process_does_not_look_for_modules_in_the_working_directory(worker, tmp_path, monkeypatch):
    (tmp_path / "app.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    fresh = Worker(memory=_MEMORY)
    try:
        assert str(tmp_path) not in fresh.run(work.search_path)[0]
    finally:
        fresh.kill()


def test_what_a_user_can_mend_comes_back_as_the_same_sentence(worker):
    with pytest.raises(QueryError, match=r"^Not today\.$"):
        worker.run(work.fail, QueryError("Not today."))


def test_any_other_failure_is_one_sentence_without_details(worker):
    with pytest.raises(QueryError, match="the server's log") as caught:
        worker.run(work.fail, KeyError("secret"))
    assert "secret" not in one_sentence(str(caught.value))


def test_a_process_that_takes_too_long_is_ended(tmp_path):
    worker = Worker(memory=_MEMORY)
    with pytest.raises(TookTooLong):
        worker.run(work.until, tmp_path / "never", seconds=0.2)
    assert worker.pid is None


def test_a_process_that_takes_too_much_memory_is_ended():
    worker = Worker(memory=_MEMORY)
    with pytest.raises(OutOfMemory):
        worker.run(work.take, 2 * _MEMORY)
    assert worker.pid is None


def test_a_process_that_was_killed_is_started_again(worker):
    worker.run(work.count, 1)
    with pytest.raises(WorkerLost):
        worker.run(work.kill)
    assert worker.run(work.count, 2)[0] == 2


def test_a_task_that_ignores_being_stopped_is_ended(tmp_path):
    worker = Worker(memory=_MEMORY)
    with pytest.raises(Stopped):
        worker.run(work.deaf, tmp_path / "never", stopped=lambda: True)
    assert worker.pid is None


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    file = tmp_path / "pid"
    child = os.fork()
    if not child:  # a parent that dies without a word while its worker works
        threading.Thread(
            target=Worker(memory=_MEMORY).run, args=(work.note_pid, file, tmp_path / "never"), daemon=True
        ).start()
        until(lambda: file.exists() and file.read_text())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    pid = int(file.read_text())
    until(lambda: not _running(pid))


def test_a_process_whose_server_leaves_its_answer_unread_ends_without_a_word(capfd):
    worker = Worker(memory=_MEMORY)
    connection = worker._started()
    connection.send((work.give, (2,)))
    assert connection.recv() == ("begun", None)
    assert connection.poll(30)
    connection.close()
    assert worker._process.wait(30) == 0
    assert capfd.readouterr() == ("", "")


def _running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_same_key_is_the_same_job(lane, tmp_path):
    with busy(lane, tmp_path) as job:
        assert lane.start("busy", work.count, 1, session="another") is job
    assert job.value() == "done"
    assert lane.start("busy", work.count, 1, session="another") is job
    assert lane.get("busy") is job


def test_a_failed_job_starts_anew(lane):
    job = done(lane.start("a", work.fail, QueryError("No."), session="s"))
    with pytest.raises(QueryError, match=r"^No\.$"):
        job.value()
    assert done(lane.start("a", work.count, 2, session="s")).value() == 2


def test_who_waits_sees_how_many_are_ahead(lane, tmp_path):
    with busy(lane, tmp_path):
        first = lane.start("first", work.count, 1, session="a")
        second = lane.start("second", work.count, 1, session="b")
        assert (lane.ahead(first), lane.ahead(second)) == (1, 2)
        with pytest.raises(QueryError, match="Too many"):
            lane.start("third", work.count, 1, session="c")
    assert done(first).value() == done(second).value() == 1


def test_a_session_has_one_heavy_job(lane, tmp_path):
    with busy(lane, tmp_path, session="s"), pytest.raises(QueryError, match="Another computation of yours"):
        lane.start("another", work.count, 1, session="s")


def test_a_job_that_is_stopped_ends_unless_somebody_else_waits(lane, tmp_path):
    never = tmp_path / "never"
    job = lane.start("a", work.until, never, session="one")
    assert lane.start("a", work.until, never, session="two") is job
    lane.leave(job, "one")
    assert job.live
    lane.leave(job, "two")
    assert done(job).state == "stopped"
    with pytest.raises(QueryError, match="stopped"):
        job.value()


def test_jobs_of_sessions_that_are_gone_are_dropped(worker, tmp_path, monkeypatch):
    monkeypatch.setattr("natscope.app.jobs._GRACE", 0.0)
    here = {"stays", "leaves"}
    lane = Lane([worker], longest=5, kept=2**20, alive=here.__contains__)
    running = lane.start("running", work.until, tmp_path / "never", session="leaves")
    until(lambda: running.state == "running")
    queued = lane.start("queued", work.count, 1, session="leaves")
    wanted = lane.start("wanted", work.count, 5, session="stays")
    here.discard("leaves")
    assert done(wanted).value() == 5
    assert (running.state, queued.state) == ("stopped", "stopped")


def test_a_job_whose_process_was_killed_is_done_again(lane, tmp_path):
    assert done(lane.start("a", work.kill_once, tmp_path / "killed", session="s")).value() == "done"


def test_a_job_that_kills_every_process_ends_in_a_sentence(lane):
    with pytest.raises(QueryError, match="was killed"):
        done(lane.start("a", work.kill, session="s")).value()


def test_a_job_that_needs_too_much_ends_in_a_sentence(lane):
    with pytest.raises(QueryError, match="--memory GB"):
        done(lane.start("a", work.take, 2 * _MEMORY, session="s")).value()
    assert done(lane.start("b", work.count, 1, session="s")).value() == 1


def test_only_so_many_bytes_of_results_are_kept(worker):
    lane = Lane([worker], longest=2, kept=50_000)
    for key in range(10):
        job = done(lane.start(key, work.give, 12_000, session="s"))
        assert job.arguments == ()
    until(lambda: lane.get(0) is None)
    assert lane.get(9).value() == bytes(12_000)


def test_what_is_asked_again_takes_no_more_room_than_once(worker):
    lane = Lane([worker], longest=2, kept=50_000)
    kept = done(lane.start("kept", work.give, 12_000, session="s"))
    for _ in range(20):
        with pytest.raises(QueryError, match="Not today"):
            done(lane.start("fails", work.fail, QueryError("Not today."), session="s")).value()
    assert lane.get("kept") is kept


def test_who_asks_while_a_job_is_being_stopped_gets_a_run_of_its_own(lane, tmp_path):
    gate = tmp_path / "gate"
    first = lane.start("a", work.deaf, gate, session="one")  # it takes its time to stop
    until(lambda: first.state == "running")
    lane.leave(first, "one")
    second = lane.start("a", work.count, 4, session="two")
    assert second is not first
    assert done(second).value() == 4
    assert first.state == "stopped"


def test_who_looks_at_a_job_adopts_it_only_where_its_own_session_is_gone(worker, tmp_path):
    here = {"owner"}
    lane = Lane([worker], longest=2, kept=2**20, one_each=True, alive=lambda session: session in here | {"viewer"})
    job = lane.start("a", work.until, tmp_path / "gate", session="owner")
    lane.adopt(job, "viewer")
    assert job.sessions == {"owner"}
    here.clear()
    lane.adopt(job, "viewer")
    assert job.sessions == {"viewer"}
    (tmp_path / "gate").touch()
    assert done(job).value() == "done"


def test_what_took_too_much_is_not_tried_again_at_once(tmp_path):
    lane = Lane([Worker(memory=_MEMORY)], longest=2, kept=2**20, seconds=0.1)
    job = done(lane.start("a", work.until, tmp_path / "never", session="s"))
    assert lane.start("a", work.until, tmp_path / "never", session="s") is job
    with pytest.raises(QueryError, match="--memory GB"):
        job.value()


def test_the_next_run_of_a_page_leaves_what_the_last_one_still_waits_for(lane, tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "session_id", lambda: "one")
    found, gates = {}, {name: tmp_path / name for name in ("old", "new")}

    def run(name, key):
        def wait():
            with suppress(Exception):
                found[name] = lanes.ask(lane, key, work.until, gates[key])

        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: lane.get(key) is not None and "one" in lane.get(key).sessions)
        return thread

    first = run("first", "old")
    until(lambda: lane.get("old").state == "running")
    threads = [first, run("second", "new"), run("third", "new")]  # the last two ask the same
    gates["old"].touch()
    gates["new"].touch()
    for thread in threads:
        thread.join(60)
    assert found["second"] == found["third"] == "done"
    assert lanes._waiting == {}


def test_a_worker_without_work_gives_back_its_memory_and_starts_again(tmp_path):
    worker = Worker(memory=_MEMORY)
    idle = Lane([worker], longest=2, kept=2**20, idle=0.3)
    assert done(idle.start("a", work.count, 2, session="x")).state == "done"
    until(lambda: worker.pid is None)
    assert done(idle.start("b", work.count, 2, session="x")).state == "done"
    worker.kill()
