"""Work for worker processes, in lanes: a bounded queue, one run a key for all visitors, dropped when nobody waits."""

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from app.worker import OutOfMemory, Stopped, TookTooLong, Worker, WorkerLost
from core.errors import NatscopeError, QueryError

_LOOK = 1.0  # seconds between two looks whether anybody still waits
_GRACE = 10.0  # seconds without any session before a job is dropped: whoever reloads a page comes back as another one
_TRIES = 2  # of a task whose process was lost, or had no memory left beside its caches
_LIVE = ("queued", "running")
_TOO_MUCH = (
    "This takes longer, or more memory, than a worker of this server may take; `natscope app --memory GB` allows more "
    "memory."
)


class Job:
    """One piece of work: what it is doing now, and in the end its result or what went wrong."""

    def __init__(self, key: Hashable, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Start as queued.

        Args:
            key: everything that the result depends on.
            task: a module's function, called with a progress function and the arguments in a worker process.
            arguments: of the task.
        """
        self.key, self.task, self.arguments = key, task, arguments
        self.state = "queued"  # then "running", and "done", "failed" or "stopped"
        self.stage, self.steps, self.total = "", 0, 1
        self.result: Any = None
        self.error: NatscopeError | None = None
        self.sessions: set[str] = set()  # that wait for it
        self.seen = time.monotonic()  # when one of these was last there
        self.finished = threading.Event()

    @property
    def live(self) -> bool:
        """Whether it is queued or running."""
        return self.state in _LIVE

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return min(self.steps / max(self.total, 1), 1.0)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Record a step."""
        self.stage, self.steps, self.total = stage, done, total

    def value(self) -> Any:
        """Return the result of a finished job.

        Raises:
            NatscopeError: if it failed, or was stopped by somebody else.
        """
        if self.error is not None:
            raise self.error
        if self.state != "done":
            raise QueryError("This was stopped before it was done; ask again.")
        return self.result


class Lane:
    """Worker processes behind one queue; a second asker of the same key joins the first one's run."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        longest: int,
        kept: int,
        one_each: bool = False,
        seconds: float | None = None,
        too_much: str = "",
        alive: Callable[[str], bool] = lambda session: True,
    ) -> None:
        """Start a thread a worker; their processes start when they are needed.

        Args:
            workers: at least one.
            longest: how many jobs may wait.
            kept: how many finished jobs are remembered.
            one_each: whether a session may have one live job only.
            seconds: that a job may take.
            too_much: the sentence for one that takes longer, or more memory than a worker may take.
            alive: whether a session is still there; the jobs of one that is gone are dropped.
        """
        self._longest, self._kept, self._one_each = longest, kept, one_each
        self._seconds, self._too_much, self._alive = seconds, too_much or _TOO_MUCH, alive
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        self._queue: list[Job] = []
        self._changed = threading.Condition()
        for worker in workers:
            threading.Thread(target=self._work, args=(worker,), daemon=True, name="natscope-lane").start()

    def get(self, key: Hashable) -> Job | None:
        """Return the job of a key, if it was ever started and is still remembered."""
        with self._changed:
            return self._jobs.get(key)

    def start(self, key: Hashable, task: Callable[..., Any], *arguments: Any, session: str) -> Job:
        """Start a job, or join the one of this key; a failed or stopped one starts anew.

        Args:
            key: everything that the result depends on.
            task: a module's function, see `Job`.
            arguments: of the task.
            session: who waits for it.

        Raises:
            QueryError: if too many jobs wait, or the session has another one under way where one each is allowed.
        """
        with self._changed:
            job = self._jobs.get(key)
            if job is None or job.state in ("failed", "stopped"):
                self._check_room(session)
                job = self._jobs[key] = Job(key, task, arguments)
                self._queue.append(job)
                self._changed.notify()
            self._jobs.move_to_end(key)
            if job.live:
                job.sessions.add(session)
            self._forget()
            return job

    def join(self, job: Job, session: str) -> None:
        """Wait for a job that another session started."""
        with self._changed:
            if job.live:
                job.sessions.add(session)

    def leave(self, job: Job, session: str) -> None:
        """Wait no longer: a job that nobody else waits for is dropped, or stops at its next step."""
        with self._changed:
            job.sessions.discard(session)
            if not job.sessions and job in self._queue:
                self._queue.remove(job)
                self._end(job, "stopped")

    def ahead(self, job: Job) -> int:
        """Return how many jobs will be done before a queued one starts, those that run among them."""
        with self._changed:
            running = sum(other.state == "running" for other in self._jobs.values())
            return running + self._queue.index(job) if job in self._queue else 0

    def _check_room(self, session: str) -> None:
        self._drop_forsaken()
        if self._one_each and any(job.live and session in job.sessions for job in self._jobs.values()):
            raise QueryError(
                "Another computation of yours is under way; wait until it is done, or stop it where you started it."
            )
        if len(self._queue) >= self._longest:
            raise QueryError("Too many computations are waiting; try again in a minute.")

    def _drop_forsaken(self) -> None:
        for job in [job for job in self._queue if self._forsaken(job)]:
            self._queue.remove(job)
            self._end(job, "stopped")

    def _forsaken(self, job: Job) -> bool:
        if any(self._alive(session) for session in tuple(job.sessions)):
            job.seen = time.monotonic()
            return False
        return not job.sessions or time.monotonic() - job.seen > _GRACE

    def _forget(self) -> None:
        finished = (key for key, job in self._jobs.items() if not job.live)  # the oldest first
        for key in list(itertools.islice(finished, max(0, len(self._jobs) - self._kept))):
            del self._jobs[key]

    def _end(self, job: Job, state: str) -> None:
        job.state = state
        job.finished.set()

    def _work(self, worker: Worker) -> None:
        while True:
            with self._changed:
                self._drop_forsaken()
                while not self._queue:
                    self._changed.wait()
                    self._drop_forsaken()
                job = self._queue.pop(0)
                job.state, job.stage = "running", "Starting"
            job.error, job.result = self._done(worker, job)
            with self._changed:
                state = "failed" if job.error else "done"
                if isinstance(job.error, _StoppedError):
                    job.error, state = None, "stopped"
                self._end(job, state)

    def _done(self, worker: Worker, job: Job) -> tuple[NatscopeError | None, Any]:
        looked = time.monotonic()

        def stopped() -> bool:
            nonlocal looked
            if job.sessions and time.monotonic() - looked < _LOOK:
                return False
            looked = time.monotonic()
            return self._forsaken(job)

        for attempt in itertools.count(1):
            try:
                found = worker.run(
                    job.task, *job.arguments, progress=job.progress, stopped=stopped, seconds=self._seconds
                )
                return None, found
            except Stopped:
                return _StoppedError(), None
            except TookTooLong:
                return QueryError(self._too_much), None
            except OutOfMemory:
                if attempt == _TRIES:
                    return QueryError(self._too_much), None
            except WorkerLost:
                if attempt == _TRIES:
                    return QueryError("The process that computed this was ended from outside; ask again."), None
            except NatscopeError as error:
                return error, None
            except Exception as error:  # what cannot be pickled, or a system that starts no process
                return QueryError(f"This could not be computed: {type(error).__name__}."), None
        raise AssertionError


class _StoppedError(NatscopeError):
    """The job was stopped."""
