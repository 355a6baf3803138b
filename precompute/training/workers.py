"""The same work for many items in parallel processes, cached one by one, so that a stopped run can resume."""

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from natscope.core.bundle.file_checks import stamp
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.manifest import Manifest
from natscope.core.device import device
from natscope.core.errors import BuildError, BundleError
from natscope.core.progress import Progress
from natscope.precompute.training.result_cache import ResultCache

Thing = TypeVar("Thing")
_ON_ACCELERATOR = 4  # processes that share it: each has a context of half a gigabyte there
_TRIES = 3  # how often processes may be killed, with nothing finished in between, before that is an error


def side_by_side(
    bundle: Bundle,
    work: Callable[[Bundle, Thing], Any],
    things: Mapping[str, Thing],
    *,
    cache: ResultCache,
    workers: int,
    stage: str,
    progress: Progress,
) -> dict[str, Any]:
    """Do work for each item, in one single-threaded process per worker; what is in the cache is not done again.

    Args:
        bundle: opened again in every process.
        work: a module's function that returns JSON-able values for the bundle and an item.
        things: the items, by the names under which their results are cached.
        cache: where finished results are kept.
        workers: how many processes, fewer if they share an accelerator.
        stage: what is being done, for `progress`.
        progress: called after each item; it may raise to stop.

    Returns:
        The results by name.

    Raises:
        BuildError: if processes are killed again and again; a single one that is killed is replaced.
        BundleError: if another bundle takes the place of this one.
    """
    tries = _TRIES

    def keep(name: str, value: Any) -> None:
        nonlocal tries
        tries = _TRIES
        cache.get(name, lambda: value)
        progress(stage, sum(name in cache for name in things), len(things))

    progress(stage, sum(name in cache for name in things), len(things))
    while waiting := {name: thing for name, thing in things.items() if name not in cache}:
        try:
            _run(bundle, work, waiting, workers, keep)
        except BrokenProcessPool as error:
            tries -= 1
            if not tries:
                raise BuildError(
                    f"{stage}: the system ended the processes that do this, {_TRIES} times in a row, most often for "
                    "lack of memory; what is finished is kept, so free some and run the same command again."
                ) from error
    return {name: cache[name] for name in things}


def _run(
    bundle: Bundle,
    work: Callable[[Bundle, Thing], Any],
    things: Mapping[str, Thing],
    workers: int,
    keep: Callable[[str, Any], None],
) -> None:
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    if device().type != "cpu":
        workers = min(workers, _ON_ACCELERATOR)
    with ProcessPoolExecutor(min(workers, len(things)), mp_context=context, initializer=_prepare) as pool:
        expected = _Expected(str(bundle.path), bundle.manifest, bundle.opened_with)
        tasks = {pool.submit(_do, expected, work, thing): name for name, thing in things.items()}
        try:
            for task in as_completed(tasks):
                keep(tasks[task], task.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise


@dataclass(frozen=True)
class _Expected:
    """The bundle that is meant, and the state of its files: another may take its place."""

    path: str
    manifest: Manifest
    stamp: str


def _do(expected: _Expected, work: Callable[[Bundle, Thing], Any], thing: Thing) -> Any:
    bundle = _opened(expected.path)
    same = bundle.manifest.extends(expected.manifest)
    result = work(bundle, thing) if same else None
    if not same or stamp(bundle.path, expected.manifest.files.values()) != expected.stamp:
        raise BundleError(
            f"The bundle {expected.path} was replaced or changed while it was used; run the same command again."
        )
    return result


@functools.lru_cache(maxsize=1)
def _opened(path: str) -> Bundle:
    return Bundle(Path(path))


def _prepare() -> None:
    """Let a worker use one thread, and end with the process that started it, however that ends."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
