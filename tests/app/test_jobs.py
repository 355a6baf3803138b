import threading
import time

import pytest

from app.jobs import Jobs
from core.errors import QueryError


@pytest.fixture
def jobs():
    return Jobs()


def wait(job):
    for _ in range(500):
        if job.state != "running":
            return job
        time.sleep(0.01)
    pytest.fail("The job did not end.")


def test_a_job_ends_with_its_result(jobs):
    def work(progress):
        progress("Counting", 1, 4)
        return 42

    job = wait(jobs.start("a", work))
    assert (job.state, job.result, job.stage, job.share) == ("done", 42, "Counting", 0.25)
    assert jobs.get("a") is job
    assert jobs.get("b") is None


def test_the_same_key_is_the_same_job(jobs):
    release = threading.Event()
    first = jobs.start("a", lambda progress: release.wait(10))
    assert jobs.start("a", lambda progress: 1 / 0) is first
    release.set()
    assert wait(first).state == "done"
    assert jobs.start("a", lambda progress: 1 / 0) is first


def test_a_stopped_job_ends_at_its_next_step_and_can_start_anew(jobs):
    begun = threading.Event()

    def forever(progress):
        while True:
            progress("On and on", 0, 1)
            begun.set()
            time.sleep(0.005)

    job = jobs.start("a", forever)
    assert begun.wait(10)
    job.stop()
    assert wait(job).state == "stopped"
    assert job.stage == "Stopping"
    assert wait(jobs.start("a", lambda progress: "again")).result == "again"


def test_an_error_for_the_user_is_kept_as_its_sentence(jobs):
    def work(progress):
        raise QueryError("There is no such image.")

    assert (wait(jobs.start("a", work)).state, jobs.get("a").error) == ("failed", "There is no such image.")


def test_any_other_error_is_one_sentence_without_details(jobs):
    job = wait(jobs.start("a", lambda progress: {}["missing"]))
    assert job.state == "failed"
    assert job.error == "This could not be computed; the server's log says why."


def test_only_so_many_results_are_kept(jobs):
    for key in range(40):
        wait(jobs.start(key, lambda progress, key=key: key))
    assert jobs.get(0) is None
    assert jobs.get(39).result == 39
