"""What an engine is, and the one of a single machine: tasks run in this process, or in several."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from threadpoolctl import threadpool_limits

from natscope.core.device import device
from natscope.core.errors import BuildError

Part = TypeVar("Part")
Result = TypeVar("Result")
TRIES = 5  # how often what does a task may be killed before that is an error
AHEAD = 2  # tasks that are handed over for each that runs
_ON_ACCELERATOR = 4  # processes that share it: each has a context of half a gigabyte there


class LostError(Exception):
    """A part was given up: what did its task was killed again and again, or could not read or write files.

    Args:
        part: the part.
        tries: how often it was tried.
    """

    def __init__(self, part: Any, tries: int) -> None:
        super().__init__(f"{part} was given up after {tries} tries")
        self.part, self.tries = part, tries


class Engine(Protocol):
    """Runs tasks without a state of their own: any may be repeated, in any order, in any process."""

    @property
    def apart(self) -> bool:
        """Whether tasks run in other processes, so that they are pickled and their rows come back in files."""

    def begin(self, folder: Path) -> str:
        """Make sure that tasks can run, and see a folder; return where that is, in words, or raise BuildError."""

    def map(self, task: Callable[[Part], Result], parts: Sequence[Part]) -> Generator[tuple[Part, Result], None, None]:
        """Yield each part with what the task returns for it, in any order.

        Each task computes with as many threads as this process does now.

        Raises:
            LostError: if a part was tried `TRIES` times.
        """

    def close(self) -> None:
        """Give back what `begin` took."""


class LocalEngine:
    """Tasks run on this machine.

    Args:
        workers: how many processes; with one, tasks run in this process.
        spread: start a process even for one worker, since what it does may be killed.
        threads: of each process; as many as this one has when None.
    """

    def __init__(self, workers: int = 1, *, spread: bool = False, threads: int | None = None) -> None:
        self.workers, self.apart, self._threads = workers, spread or workers > 1, threads
        self._pool: ProcessPoolExecutor | None = None

    def begin(self, folder: Path) -> str:
        """Return how many processes there will be: this machine has what it takes."""
        return f"{self.workers} processes of this machine" if self.apart else "this process"

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, task: Callable[[Part], Result], parts: Sequence[Part]) -> Generator[tuple[Part, Result], None, None]:
        """Yield each part with what the task returns for it; processes that are killed are replaced.

        The parts at which any of them may have been killed are done one at a time, so that it is known which it was.

        Raises:
            BuildError: if a process ends by itself, as where a script builds whenever it is imported.
            LostError: if a part was tried `TRIES` times.
        """
        if not self.apart:
            yield from ((part, task(part)) for part in parts)
            return
        waiting, suspects, tries = dict(enumerate(parts)), list[int](), 1
        while waiting:
            try:
                for number, result in self._once(task, {n: waiting[n] for n in suspects[:1] or waiting}):
                    suspects, tries = suspects[1:], 1
                    yield waiting.pop(number), result
            except BrokenProcessPool as error:
                tries += bool(suspects)
                suspects = suspects or list(waiting)[: AHEAD * self.workers]  # parts are handed over in this order
                if tries == TRIES:
                    raise LostError(waiting[suspects[0]], TRIES) from error

    def _once(
        self, task: Callable[[Part], Result], parts: dict[int, Part]
    ) -> Generator[tuple[int, Result], None, None]:
        pool, left = self._processes(), list(reversed(parts.items()))
        running: dict[Future, int] = {}
        try:
            while left or running:
                while left and len(running) < AHEAD * self.workers:
                    number, part = left.pop()
                    running[pool.submit(task, part)] = number
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BaseException as error:
            processes, broken = list((pool._processes or {}).values()), isinstance(error, BrokenProcessPool)
            pool.shutdown(wait=broken, cancel_futures=True)  # a broken one has ended its processes
            self._pool = None
            for process in () if broken else processes:
                process.terminate()
            if broken and (code := max((process.exitcode or 0 for process in processes), default=0)) > 0:  # no signal
                raise BuildError(
                    f"A worker process ended by itself with code {code}, most often because the script that builds "
                    'lacks `if __name__ == "__main__":`, so that each worker that imports it runs it again; put what '
                    "the script does below that line."
                ) from error
            raise

    def _processes(self) -> ProcessPoolExecutor:
        """Return the processes, which go on from one `map` to the next."""
        if self._pool is None:
            most = self.workers if device().type == "cpu" else min(self.workers, _ON_ACCELERATOR)
            begin = (self._threads or torch.get_num_threads(),)
            _track()
            self._pool = ProcessPoolExecutor(most, multiprocessing.get_context("spawn"), _prepare, begin)
        return self._pool


def _track() -> None:
    """Start the process in which multiprocessing counts semaphores, so that a hangup ends it last.

    A terminal that is closed ends every process of a command. Where this one removes its semaphores before it ends,
    that process has to be there still; of its own it ignores other signals alone.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or threading.current_thread() is not threading.main_thread():  # the only one that may ignore it
        return
    if callable(handler := signal.getsignal(hangup)):
        signal.signal(hangup, signal.SIG_IGN)
        try:
            resource_tracker.ensure_running()
        finally:
            signal.signal(hangup, handler)


def threads_of(engine: Engine | None) -> int | None:
    """Return the threads that a build computes with: one for each of many workers, unless $OMP_NUM_THREADS says more.

    None stands for as many as this process has.
    """
    return 1 if engine is not None and engine.apart and "OMP_NUM_THREADS" not in os.environ else None


def _prepare(threads: int) -> None:
    """Let a worker use some threads, and end with the process that started it, however that ends."""
    limit_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def limit_threads(threads: int) -> None:
    """Compute with so many threads in this process from now on, in all libraries."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries that are loaded later
    torch.set_num_threads(threads)
    threadpool_limits(threads, "blas")


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
