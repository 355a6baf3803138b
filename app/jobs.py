"""Work for worker processes, in lanes: a bounded queue, one run per key for all visitors, dropped when nobody waits."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from natscope.app.worker import OutOfMemory, Stopped, TookTooLong, Worker, WorkerLost
from natscope.core.errors import NatscopeError, QueryError

_LOOK = 1.0  # seconds between two checks whether anybody still waits
_GRACE = 10.0  # seconds without a session before a job is dropped: reloading a page starts another session
_TRIES = 2
_HOPELESS = 300.0  # seconds before a job that took too much may be tried again
_OVERHEAD = 4000  # bytes of a job without its result
_TOO_MUCH = (
    "This takes longer, or more memory, than a worker of this server may take; `natscope app --memory GB` allows more "
    "memory."
)


class Job:
    """One piece of work: what it is doing now, and finally its result or error."""

    def __init__(self, key: Hashable, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Start as queued.

        Args:
            key: everything that the result depends on.
            task: a module's function, called with a progress function and the arguments in a worker process.
            arguments: the task's arguments; dropped when it ends.
        """
        self.key, self.task, self.arguments = key, task, arguments
        self.state = "queued"  # then "running", perhaps "stopping", and "done", "failed" or "stopped"
        self.stage, self.steps, self.total = "", 0, 1
        self.result: Any = None
        self.size = _OVERHEAD  # bytes
        self.error: NatscopeError | None = None
        self.hopeless_until = 0.0
        self.sessions: set[str] = set()  # those that wait for it
        self.missed: float | None = None  # when all of these were first found gone
        self.finished = threading.Event()

    @property
    def live(self) -> bool:
        """Whether it is queued or running."""
        return self.state in ("queued", "running")

    @property
    def again(self) -> bool:
        """Whether asking once more makes sense: it failed or was stopped, and did not just take too much."""
        return self.state in ("failed", "stopped") and time.monotonic() >= self.hopeless_until

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        return min(self.steps / max(self.total, 1), 1.0)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Record a step."""
        self.stage, self.steps, self.total = stage, done, total

    def end(self, state: str, result: Any = None, size: int = 0, error: NatscopeError | None = None) -> None:
        """Record how it ended."""
        self.state, self.result, self.error = state, result, error
        self.size += size
        self.arguments = ()
        self.finished.set()

    def value(self) -> Any:
        """Return the result of a finished job.

        Raises:
            NatscopeError: if it failed, or was stopped.
        """
        if self.error is not None:
            raise self.error
        if self.state != "done":
            raise QueryError("This was stopped before it was done; ask again.")
        return self.result


class Lane:
    """Worker processes behind one queue; a second request for the same key joins the first one's run."""

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        longest: int,
        kept: int,
        one_each: bool = False,
        seconds: float | None = None,
        too_much: str = "",
        tries: int = _TRIES,
        idle: float | None = None,
        alive: Callable[[str], bool] = lambda session: True,
    ) -> None:
        """Start one thread per worker; their processes start when they are needed.

        Args:
            workers: at least one.
            longest: how many jobs may wait.
            kept: how many bytes of results are remembered.
            one_each: whether a session may have only one live job.
            seconds: how long a job may take.
            too_much: the sentence for one that takes longer, or more memory than a worker may take.
            tries: how often a task is tried whose process was lost, or had no memory left beside its caches.
            idle: seconds after which a worker without work ends its process, and with it gives back its memory.
            alive: returns whether a session still exists; the jobs of a session that is gone are dropped.
        """
        self._longest, self._kept, self._one_each = longest, kept, one_each
        self._seconds, self._too_much, self._alive = seconds, too_much or _TOO_MUCH, alive
        self._tries, self._idle = tries, idle
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        self._queue: list[Job] = []
        self._busy, self._held = 0, 0  # workers, and bytes of the finished jobs that are remembered
        self._changed = threading.Condition(threading.RLock())
        for worker in workers:
            threading.Thread(target=self._work, args=(worker,), daemon=True, name="natscope-lane").start()

    def get(self, key: Hashable) -> Job | None:
        """Return the job of a key, if it was started and is still remembered."""
        with self._changed:
            return self._jobs.get(key)

    def start(self, key: Hashable, task: Callable[..., Any], *arguments: Any, session: str) -> Job:
        """Start a job, or join the one of this key; a failed or stopped one starts again.

        Args:
            key: everything that the result depends on.
            task: a module's function, see `Job`.
            arguments: the task's arguments.
            session: who waits for it.

        Raises:
            QueryError: if too many jobs wait, or the session has another under way and may have only one.
        """
        with self._changed:
            job = self._jobs.get(key)
            if job is None or job.again:
                self._check_room(session)
                self._held -= job.size if job else 0
                job = self._jobs[key] = Job(key, task, arguments)
                self._queue.append(job)
                self._changed.notify()
            self._jobs.move_to_end(key)
            if job.live:
                job.sessions.add(session)
            return job

    def adopt(self, job: Job, session: str) -> None:
        """Wait for a live job whose own sessions are all gone, such as one from before a page was reloaded."""
        with self._changed:
            if job.live and not self._awaited(job):
                job.sessions, job.missed = {session}, None

    def leave(self, job: Job, session: str) -> None:
        """Wait no longer: a job that nobody else waits for is dropped, or stops at its next step."""
        with self._changed:
            job.sessions.discard(session)
            if not job.sessions:
                self._drop(job)

    def of(self, session: str) -> Job | None:
        """Return a live job that a session waits for, if there is one."""
        with self._changed:
            return next((job for job in self._jobs.values() if job.live and session in job.sessions), None)

    def ahead(self, job: Job) -> int:
        """Return how many jobs will finish before a queued one starts, including running ones."""
        with self._changed:
            return self._busy + self._queue.index(job) if job in self._queue else 0

    def _check_room(self, session: str) -> None:
        self._drop_forsaken()
        if self._one_each and any(job.live and session in job.sessions for job in self._jobs.values()):
            raise QueryError("Another computation of yours is under way; wait until it is done, or stop it.")
        if len(self._queue) >= self._longest:
            raise QueryError("Too many computations are waiting; try again in a minute.")

    def _awaited(self, job: Job) -> bool:
        return any(map(self._alive, job.sessions))

    def _forsaken(self, job: Job) -> bool:
        now = time.monotonic()
        if self._awaited(job):
            job.missed = None
            return False
        job.missed = now if job.missed is None else job.missed
        return not job.sessions or now - job.missed > _GRACE

    def _drop(self, job: Job) -> None:
        """Keep others from joining a job; if it is running, its worker stops it."""
        if self._jobs.get(job.key) is job and job.live:
            del self._jobs[job.key]
        if job in self._queue:
            self._queue.remove(job)
            job.end("stopped")
        elif job.state == "running":
            job.state = "stopping"

    def _drop_forsaken(self) -> None:
        for job in list(filter(self._forsaken, self._queue)):
            self._drop(job)

    def _forget(self) -> None:
        """Drop the oldest results beyond the limit."""
        while self._held > self._kept:
            key = next(key for key, job in self._jobs.items() if not job.live)
            self._held -= self._jobs.pop(key).size

    def _work(self, worker: Worker) -> None:
        while True:
            with self._changed:
                self._drop_forsaken()
                while not self._queue:
                    if not self._changed.wait(self._idle):
                        worker.kill()
                    self._drop_forsaken()
                job = self._queue.pop(0)
                job.state, job.stage = "running", "Starting"
                self._busy += 1
            state, result, size, error = self._done(worker, job)
            with self._changed:
                self._busy -= 1
                job.end(state, result, size, error)
                if self._jobs.get(job.key) is job:
                    self._held += job.size
                self._forget()

    def _done(self, worker: Worker, job: Job) -> tuple[str, Any, int, NatscopeError | None]:
        looked = time.monotonic()

        def stopped() -> bool:
            nonlocal looked
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                with self._changed:
                    self._drop_forsaken()
                    if self._forsaken(job):
                        self._drop(job)
            return job.state == "stopping"

        for last in (False,) * (self._tries - 1) + (True,):
            try:
                found, size = worker.run(
                    job.task, *job.arguments, progress=job.progress, stopped=stopped, seconds=self._seconds
                )
                return "done", found, size, None
            except Stopped:
                return "stopped", None, 0, None
            except TookTooLong:
                return self._hopeless(job)
            except OutOfMemory:
                if last:
                    return self._hopeless(job)
            except WorkerLost:
                if last:
                    return _failed(QueryError("The process that computed this was killed; ask again."))
            except NatscopeError as error:
                return _failed(error)
            except Exception as error:  # something cannot be pickled, or no process can be started
                return _failed(QueryError(f"This could not be computed: {type(error).__name__}."))
        raise AssertionError

    def _hopeless(self, job: Job) -> tuple[str, Any, int, NatscopeError | None]:
        job.hopeless_until = time.monotonic() + _HOPELESS
        return _failed(QueryError(self._too_much))


def _failed(error: NatscopeError) -> tuple[str, Any, int, NatscopeError | None]:
    return "failed", None, 0, error
