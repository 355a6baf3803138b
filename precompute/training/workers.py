"""The same work for many items in parallel processes, cached one by one, so that a stopped run can resume."""

import functools
from collections.abc import Callable, Mapping
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from natscope.core.bundle.file_checks import stamp
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.manifest import Manifest
from natscope.core.errors import BuildError, BundleError
from natscope.core.progress import Progress
from natscope.precompute.engines.local import LocalEngine, LostError
from natscope.precompute.training.result_cache import ResultCache

Thing = TypeVar("Thing")


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
    progress(stage, sum(name in cache for name in things), len(things))
    waiting = [(name, thing) for name, thing in things.items() if name not in cache]
    task = _Task(str(bundle.path), bundle.manifest, bundle.opened_with, work)
    engine = LocalEngine(workers, spread=True, threads=1)
    try:
        with closing(engine), closing(engine.map(task, waiting)) as done:
            for (name, _), value in done:
                cache.get(name, partial(copy, value))
                progress(stage, sum(name in cache for name in things), len(things))
    except LostError as error:
        raise BuildError(
            f"{stage}: the system ended the processes that do this, {error.tries} times in a row, most often for lack "
            "of memory; what is finished is kept, so free some and run the same command again."
        ) from error
    return {name: cache[name] for name in things}


@dataclass(frozen=True)
class _Task(Generic[Thing]):
    """Work on the bundle that is meant, with the state of its files: another may take its place."""

    path: str
    manifest: Manifest
    stamp: str
    work: Callable[[Bundle, Thing], Any]

    def __call__(self, named: tuple[str, Thing]) -> Any:
        bundle = _opened(self.path)
        same = bundle.manifest.extends(self.manifest)
        result = self.work(bundle, named[1]) if same else None
        if not same or stamp(bundle.path, self.manifest.files.values()) != self.stamp:
            raise BundleError(
                f"The bundle {self.path} was replaced or changed while it was used; run the same command again."
            )
        return result


@functools.lru_cache(maxsize=1)
def _opened(path: str) -> Bundle:
    return Bundle(Path(path))
