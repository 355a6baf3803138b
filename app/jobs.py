"""Work that takes long and that a visitor can watch, leave, come back to, or stop: one run a key, for all visitors."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import streamlit as st

from core.errors import NatscopeError

Progress = Callable[[str, int, int], None]
_KEPT = 32  # finished jobs whose results are remembered


class Cancelled(Exception):
    """Raised inside a job's work, by its progress function, once somebody has stopped it."""


class Job:
    """One piece of work: what it is doing now, and in the end its result or one sentence on what went wrong."""

    def __init__(self) -> None:
        """Start as waiting."""
        self.state = "running"  # then "done", "failed" or "stopped"
        self.stage, self.steps, self.total = "Waiting for a free worker", 0, 1
        self.result: Any = None
        self.error = ""
        self._stop, self._lock = threading.Event(), threading.Lock()

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return min(self.steps / max(self.total, 1), 1.0)

    def stop(self) -> None:
        """Ask the work to end at its next step."""
        with self._lock:
            self._stop.set()
            self.stage = "Stopping"

    def progress(self, stage: str, done: int, total: int) -> None:
        """Record a step; the work calls this often, for it is also where a stopped job ends.

        Raises:
            Cancelled: if the job was stopped.
        """
        with self._lock:
            if self._stop.is_set():
                raise Cancelled
            self.stage, self.steps, self.total = stage, done, total

    def run(self, work: Callable[[Progress], Any]) -> None:
        """Do the work and keep what came of it."""
        try:
            self.progress("Starting", 0, 1)
            self.result = work(self.progress)
            self.state = "done"
        except Cancelled:
            self.state = "stopped"
        except NatscopeError as error:
            self.error, self.state = str(error), "failed"
        except Exception:
            self.error, self.state = "This could not be computed; the server's log says why.", "failed"
            raise


class Jobs:
    """Jobs by key: the same key is the same job, so a second visitor watches the first one's run."""

    def __init__(self, workers: int = 1) -> None:
        """Start without jobs."""
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="natscope-job")
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Job | None:
        """Give the job of a key, if it was ever started and is still remembered."""
        with self._lock:
            return self._jobs.get(key)

    def start(self, key: Hashable, work: Callable[[Progress], Any]) -> Job:
        """Start the work unless it runs or is done already; a failed or stopped one starts anew.

        Args:
            key: everything that the result depends on.
            work: called with a progress function (stage, done, total) that it must call at every step.
        """
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.state in ("running", "done"):
                self._jobs.move_to_end(key)
                return job
            job = self._jobs[key] = Job()
            finished = [k for k, j in self._jobs.items() if j.state != "running"]
            for old in finished[: max(0, len(self._jobs) - _KEPT)]:
                del self._jobs[old]
        self._pool.submit(job.run, work)
        return job


@st.cache_resource
def jobs() -> Jobs:
    """Give the jobs that all visitors share."""
    return Jobs()
