"""A process of its own that does one task at a time, within a memory limit: `python -m natscope.app.worker`.

A task is a module's function whose first argument is a progress function (stage, done, total); it is called often,
because a stopped task ends there. Arguments and results are pickled: both ends are natscope's own.
"""

import math
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from natscope.core.errors import NatscopeError, QueryError, out_of_memory
from natscope.core.progress import Progress, silent
from natscope.precompute.training.projects import complaint

_LOOK = 0.05  # seconds between two looks at a running task
_EVERY = 0.1  # seconds between two reports of progress
_GRACE = 2.0  # seconds for a stopped task to end by itself
_NICE = 10
_START = 120.0  # seconds for a process to start and load what the task needs
_PARENT = 1.0  # seconds between two checks whether the parent still runs


class Stopped(Exception):
    """The task was stopped before it was done."""


class TookTooLong(Exception):
    """The task took longer than allowed."""


class WorkerLost(Exception):
    """The process ended in the middle of the task: it was killed, or a library crashed."""


class OutOfMemory(Exception):
    """The task needs more memory than the process may take."""


class Worker:
    """One process, started when it is first needed and again whenever it is gone; use it from one thread at a time."""

    def __init__(self, *, memory: int, threads: int = 1, low_priority: bool = False) -> None:
        """Start nothing yet.

        Args:
            memory: bytes of memory that the process may take, beyond files that it maps; enforced only on Linux.
            threads: how many threads its numerical libraries use.
            low_priority: whether it yields to other processes.
        """
        self._memory, self._threads, self._low_priority = memory, threads, low_priority
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs, else None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def run(
        self,
        task: Callable[..., Any],
        *arguments: Any,
        progress: Progress = silent,
        stopped: Callable[[], bool] = lambda: False,
        seconds: float | None = None,
    ) -> tuple[Any, int]:
        """Return what `task(progress, *arguments)` returns in the process, and the result's size in bytes.

        Args:
            task: a function of a module.
            arguments: what it is called with, after its progress function.
            progress: called with the task's reports.
            stopped: returns whether the task should end early; called many times a second.
            seconds: how long it may take once it has begun; after that the process is killed.

        Raises:
            NatscopeError: what the task raised, or a sentence that points to the log.
            Stopped, TookTooLong, WorkerLost, OutOfMemory: as their names say.
        """
        connection = self._started()
        began, allowed, asked = time.monotonic(), _START, 0.0
        try:
            connection.send((task, arguments))
            while True:
                if connection.poll(_LOOK):
                    data = connection.recv_bytes()
                    kind, value = ForkingPickler.loads(data)
                    if kind == "begun":
                        began, allowed = time.monotonic(), math.inf if seconds is None else seconds
                    elif kind == "progress":
                        progress(*value)
                    else:
                        return self._outcome(kind, value), len(data)
                now = time.monotonic()
                if now - began > allowed:
                    self.kill()
                    raise TookTooLong
                if not asked and stopped():
                    asked = now
                    connection.send("stop")
                if asked and now - asked > _GRACE:
                    self.kill()
                    raise Stopped
        except (EOFError, OSError) as error:
            self.kill()
            raise Stopped if asked else WorkerLost from error
        except (Stopped, TookTooLong, OutOfMemory, NatscopeError):
            raise
        except BaseException:  # if `progress` raises, a task is left running
            self.kill()
            raise

    def kill(self) -> None:
        """End the process at once."""
        process, connection, self._process, self._connection = self._process, self._connection, None, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()

    def _outcome(self, kind: str, value: Any) -> Any:
        if kind == "done":
            return value
        if kind == "stopped":
            raise Stopped
        if kind == "memory":
            self.kill()  # most of its memory is caches
            raise OutOfMemory
        raise value

    def _started(self) -> Connection:
        if self._connection is not None and self.pid is not None:
            return self._connection
        self.kill()
        mine, its = socket.socketpair()
        # -P: a module of this name in the working directory is not natscope's.
        settings = (its.fileno(), self._memory, _NICE if self._low_priority else 0)
        command = [sys.executable, "-P", "-m", "natscope.app.worker", *map(str, settings)]
        threads = {name: str(self._threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        with its:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
                env=os.environ | threads,
                start_new_session=True,  # Ctrl-C in the terminal is for the server
            )
        self._connection = Connection(mine.detach())
        return self._connection


def main(handle: int, memory: int, niceness: int) -> None:
    """Run tasks as they come, until the other end of the connection is gone."""
    connection = Connection(handle)
    sys.stdout = sys.stderr  # what libraries print belongs in the log
    if hasattr(os, "nice"):
        os.nice(niceness)
    _limit(memory)
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            message = connection.recv()
        except (EOFError, ConnectionResetError):  # the server has ended, and may have left an answer unread
            return
        if message == "stop":  # for a task that has finished meanwhile
            continue
        task, arguments = message
        connection.send(("begun", None))
        outcome = _done(task, arguments, connection)
        try:
            connection.send(outcome)
        except OSError:
            return


def _done(task: Callable[..., Any], arguments: tuple[Any, ...], connection: Connection) -> tuple[str, Any]:
    last_sent = 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last_sent
        try:
            stopped = connection.poll() and connection.recv() == "stop"
            if not stopped and time.monotonic() - last_sent > _EVERY:
                last_sent = time.monotonic()
                connection.send(("progress", (stage, done, total)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            os._exit(1)  # nobody waits for it any more
        if stopped:
            raise Stopped

    try:
        return "done", task(progress, *arguments)
    except Stopped:
        return "stopped", None
    except NatscopeError as error:
        return "failed", error
    except BaseException as error:
        if out_of_memory(error):
            return "memory", None
        if (sentence := complaint(error)) is not None:
            return "failed", QueryError(sentence)
        if not isinstance(error, Exception):
            raise
        traceback.print_exc()
        return "failed", QueryError("This could not be computed; the server's log says why.")


def _limit(memory: int) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def end_with_parent(parent: int) -> None:
    """End this process once the process that started it, of this id, is gone."""
    while os.getppid() == parent:
        time.sleep(_PARENT)
    os._exit(1)


if __name__ == "__main__":
    from natscope.app.worker import main as run  # under its own name, so that errors pickle the same at both ends

    run(*map(int, sys.argv[1:]))
