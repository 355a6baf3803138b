"""The files of a bundle while it is written: each complete or absent, filled shard by shard, recorded in a journal."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from natscope.core.bundle.file_checks import whole_header
from natscope.core.bundle.format import write_atomically
from natscope.core.bundle.manifest import FileRecord
from natscope.core.errors import BuildError, FileError
from natscope.core.features import shards
from natscope.core.files import create, opened
from natscope.core.progress import Progress
from natscope.precompute.bundles.passes import GROUP, Class, CoarseError, Gram, Jacobians, Rows, Written, half, stored
from natscope.precompute.bundles.work import SHARDS, Work
from natscope.precompute.engines.local import Engine, LocalEngine, LostError

PROBED = 8  # rows that tell the width of features, and by which they measure how many to compute at a time
Form = tuple[tuple[int, ...], np.dtype]  # shape and type of an array


class Store:
    """Writes arrays, indexes and files into a folder and remembers a record of each."""

    def __init__(self, folder: Path, work: Work, progress: Progress, engine: Engine | None = None) -> None:
        """Start without records.

        Args:
            folder: where the files go.
            work: the journal; what it marks as done is read, not written again.
            progress: called with a stage's name, steps done and in all.
            engine: where passes run; in this process when None.
        """
        self.folder, self.work, self.progress, self.engine = folder, work, progress, engine or LocalEngine()
        self._records: dict[str, FileRecord] = {}

    def small(self, name: str, values: np.ndarray | Callable[[], np.ndarray]) -> None:
        """Write an array at once."""
        file = self.folder / f"{name}.npy"
        if not self.work.finished(name):
            array = np.ascontiguousarray(values() if callable(values) else values)
            temporary = file.with_suffix(".tmp")
            with create(temporary) as handle:
                np.save(handle, array, allow_pickle=False)
            temporary.replace(file)
            self.work.mark(name, file=file)
        self.record(name, file, np.load(file, mmap_mode="r", allow_pickle=False))

    def large(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, shard: Callable[[slice], np.ndarray], stage: str
    ) -> np.ndarray:
        """Fill an array shard by shard in this process."""
        return self.fill({name: (shape, dtype)}, lambda part: {name: shard(part)}, stage, LocalEngine())[name]

    def fill(
        self, forms: Mapping[str, Form], task: Callable[[slice], Rows], stage: str, engine: Engine | None = None
    ) -> dict[str, np.ndarray]:
        """Fill arrays of as many rows, in one pass; a shard is in the journal only once it is on disk.

        Args:
            forms: shape and type of each array.
            task: returns some rows of each.
            stage: for the progress.
            engine: where the task runs; the store's when None.

        Raises:
            BuildError: if a shard was given up.
        """
        engine = engine or self.engine
        files = {name: self.folder / f"{name}.npy" for name in forms}
        parts = max((list(shards(*form)) for form in forms.values()), key=len)
        fits = all(_holds(files[name], *form) for name, form in forms.items())
        done = set.intersection(*(self.work.done.get(name, set()) for name in forms)) if fits else set()
        if len(done) >= len(parts) and not all(map(self.work.finished, forms)):
            done = set()
        if not done:
            for name, file in files.items():
                self.work.begin(name)  # what is there has another form
                create(file).close()
        left, mode = [part for part in parts if part.start not in done], "r+" if done else "w+"
        arrays: dict[str, np.ndarray] = {
            name: np.lib.format.open_memmap(files[name], mode if left else "r", dtype, None if done else shape)
            for name, (shape, dtype) in forms.items()
        }
        # A disk that fills up later would kill the process in the middle of a write.
        for file in files.values() if left and hasattr(os, "posix_fallocate") else ():
            with file.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        self._rows_of(task, left, stage, engine, arrays, files)
        for name, array in arrays.items():
            self.record(name, files[name], array)
        return arrays

    def _rows_of(
        self,
        task: Callable[[slice], Rows],
        left: list[slice],
        stage: str,
        engine: Engine,
        arrays: dict[str, np.ndarray],
        files: dict[str, Path],
    ) -> None:
        first = next(iter(arrays.values()))
        filled, missing = len(first) - sum(part.stop - part.start for part in left), len(left)
        self.progress(stage, filled, len(first))
        folder = "-".join((*arrays, str(first.dtype)))
        for part, rows in self.rows(task, left, stage, engine, folder, tuple(arrays)):
            filled, missing = filled + part.stop - part.start, missing - 1
            for name, array in arrays.items():
                array[part] = rows[name]
                array.flush()  # type: ignore[attr-defined]
                self.work.mark(name, part.start, None if missing else files[name])
            self.progress(stage, filled, len(first))

    def rows(
        self,
        task: Callable[[slice], Rows],
        parts: Sequence[slice],
        stage: str,
        engine: Engine,
        folder: str,
        names: tuple[str, ...],
    ) -> Iterator[tuple[slice, Rows]]:
        """Yield what a task returns for some rows, in any order; files in which it came are then removed.

        Args:
            task: returns some rows of each array.
            parts: the rows.
            stage: for the sentence of an error.
            engine: where it runs.
            folder: of such files, if it runs in other processes.
            names: of the arrays.

        Raises:
            BuildError: if a part was given up.
        """
        written = Written(task, self.work.path / SHARDS / folder, names)
        try:
            if not engine.apart:
                yield from engine.map(task, parts)
                return
            with closing(engine.map(written, parts)) as found:
                for part, files in found:
                    yield part, {name: written.read(file) for name, file in files.items()}
                    for file in files.values():
                        (written.folder / file).unlink(missing_ok=True)
        except LostError as error:
            raise given_up(stage, f"rows {error.part.start:,} to {error.part.stop - 1:,}", error) from error

    def gram(self, task: Gram, count: int) -> np.ndarray:
        """Return the sum (K, K) that a task returns for N = `count` rows: group by group, and added in their order."""
        parts = [slice(start, min(start + GROUP, count)) for start in range(0, count, GROUP)]
        total, waiting, following = np.zeros(()), dict[int, np.ndarray](), 0
        for part, found in self.rows(task, parts, "Grams of all classes", self.engine, task.name, ("gram",)):
            waiting[part.start] = found["gram"]
            while following in waiting:
                total, following = total + waiting.pop(following), following + GROUP
        return total

    def features(self, task: Jacobians, shape: tuple[int, int], stage: str, *, halve: bool) -> np.ndarray:
        """Fill an array of features shard by shard, as float16 if that is precise enough, else float32; see `halved`.

        Args:
            task: returns some rows.
            shape: (N, K).
            stage: for the progress.
            halve: whether to try float16.

        Raises:
            BuildError: if a feature is not finite.
        """
        small, large = ((shape, np.dtype(kind)) for kind in ("float16", "float32"))
        # An interrupted build that has some rows in float32 found float16 too coarse.
        coarse = bool(self.work.done.get(task.name)) and _holds(self.folder / f"{task.name}.npy", *large)
        if halve and not coarse:
            with contextlib.suppress(CoarseError):
                return self.fill({task.name: small}, replace(task, half=True), stage)[task.name]
        return self.fill({task.name: large}, task, stage)[task.name]

    def classes(self, task: Class, labels: Mapping[int, tuple[str, ...]], stage: str) -> None:
        """Write the Gram and the index of classes.

        Args:
            task: writes those of one class.
            labels: the classes that have examples, and what each has: "gram", "index".
            stage: for the progress.

        Raises:
            BuildError: if a class was given up.
        """
        ends = {"gram": "npy", "index": "faiss"}
        names = {label: [f"{kind}_{label}.{ends[kind]}" for kind in kinds] for label, kinds in labels.items()}
        left = [label for label, files in names.items() if not all(self.work.finished(Path(f).stem) for f in files)]
        self.progress(stage, len(names) - len(left), len(names))
        try:
            with closing(self.engine.map(task, [(label, labels[label]) for label in left])) as found:
                for count, ((label, _), _) in enumerate(found, len(names) - len(left) + 1):
                    for file in names[label]:
                        self.work.mark(Path(file).stem, file=self.folder / file)
                    self.progress(stage, count, len(names))
        except LostError as error:
            raise given_up(stage, f"class {error.part[0]}", error) from error
        for path in (self.folder / file for files in names.values() for file in files):
            self.record(path.stem, path, None if path.suffix == ".faiss" else stored(self.folder, path.stem))

    def file(self, file_name: str, content: Callable[[], bytes], *, name: str = "") -> None:
        """Write a file of any kind; its name may hold a folder, and is its logical name too if that is empty."""
        file, name = self.folder / file_name, name or file_name
        if not self.work.finished(name):
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, content())
            self.work.mark(name, file=file)
        self.record(name, file)

    def record(self, name: str, file: Path, array: np.ndarray | None = None) -> None:
        """Record a file in the folder under its logical name."""
        shape, dtype = (None, None) if array is None else (array.shape, str(array.dtype))
        relative = file.relative_to(self.folder).as_posix()
        self._records[name] = FileRecord(relative, file.stat().st_size, "", shape, dtype)

    def checked_records(self) -> dict[str, FileRecord]:
        """Return the records of all files, with their checksums."""
        files = {}
        for count, (name, record) in enumerate(sorted(self._records.items())):
            self.progress("Checksums", count, len(self._records))
            files[name] = replace(record, sha256=self.work.digest(name))
        self.progress("Checksums", len(files), len(files))
        return files


def given_up(stage: str, part: str, error: LostError) -> BuildError:
    """Return the error that ends a build: what it did for a part failed again and again."""
    cause = error.__cause__
    why = "its process was ended by the system, most often for lack of memory"
    if isinstance(cause, OSError):
        why = f"{cause.strerror or cause}"
    return BuildError(
        f"{stage}: {part} failed {error.tries} times ({why}); what is finished is kept, so run the same command again "
        "when that is fixed."
    )


def halved(rows: np.ndarray) -> np.ndarray:
    """Return feature vectors (n, K) as float16 if that is precise enough (`half`), else all as they are."""
    try:
        return half(rows)
    except CoarseError:
        return rows


def _holds(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Return whether a file is an array of this form, whatever its values, that has no other name."""
    try:
        with opened(file) as handle:
            return whole_header(handle) == (shape, False, dtype) and os.fstat(handle.fileno()).st_nlink == 1
    except (FileError, ValueError):
        return False
