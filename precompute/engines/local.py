"""What an engine is, and the one of a single machine: tasks run in this process, or in several."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from threadpoolctl import threadpool_limits

from natscope.core.device import device

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
        self._others: set[Any] = set()

    def begin(self, folder: Path) -> str:
        """Return how many processes there will be: this machine has what it takes."""
        return f"{self.workers} processes of this machine" if self.apart else "this process"

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, task: Callable[[Part], Result], parts: Sequence[Part]) -> Generator[tuple[Part, Result], None, None]:
        """Yield each part with what the task returns for it; processes that are killed are replaced."""
        if not self.apart:
            yield from ((part, task(part)) for part in parts)
            return
        waiting, tries = dict(enumerate(parts)), TRIES
        while waiting:
            try:
                for number, result in self._once(task, waiting):
                    tries = TRIES
                    yield waiting.pop(number), result
            except BrokenProcessPool as error:
                tries -= 1
                if not tries:
                    raise LostError(next(iter(waiting.values())), TRIES) from error

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
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
            self._pool = None
            raise

    def _processes(self) -> ProcessPoolExecutor:
        """Return the processes, which go on from one `map` to the next."""
        if self._pool is None:
            most = self.workers if device().type == "cpu" else min(self.workers, _ON_ACCELERATOR)
            self._others, spawn = set(multiprocessing.active_children()), multiprocessing.get_context("spawn")
            begin = (self._threads or torch.get_num_threads(),)
            self._pool = ProcessPoolExecutor(most, spawn, _prepare, begin)
        return self._pool


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
