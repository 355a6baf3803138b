"""The file of every candidate's score: a line for each training image, a column for each query."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from natscope.app import escape, rankings
from natscope.app.cli.progress import say
from natscope.core.errors import QueryError
from natscope.core.files import replacing
from natscope.core.progress import Progress
from natscope.core.scratch import temporary_folder

_ROWS = 1000  # of a table that are written at once


def write_scores(
    attributor: Any, count: int, request: Any, file: Path, each: Callable[[Callable[..., None]], Iterator[Any]]
) -> None:
    """Write the scores of every training image (N, Q) for some queries; one column at a time is in memory.

    Args:
        attributor: of the bundle.
        count: how many queries, Q.
        request: the method and its settings.
        file: .npy or .csv.
        each: calls a function with the place of each, the query and what shows progress, in any order, and yields the
            queries in theirs.

    Raises:
        QueryError: if the file cannot be written, or a query has no answer.
    """
    images, sources = len(attributor.train_labels), attributor.bundle.sources("train")
    candidates = np.zeros(images, dtype=bool)
    with ExitStack() as stack:
        with _writing(file):
            whole = stack.enter_context(replacing(file))
            folder = stack.enter_context(temporary_folder())
            array = whole if file.suffix == ".npy" else Path(folder) / "scores.npy"
            stream = stack.enter_context(array.open("xb"))
            about = {"descr": "<f8", "fortran_order": True, "shape": (images, count)}
            np.lib.format.write_array_header_1_0(stream, about)
            begin = stream.tell()

        def fill(column: int, query: Any, progress: Progress) -> None:
            rows, scores = attributor.score_each(query, request, progress)
            values = np.full(images, np.nan, dtype="<f8")
            values[rows], candidates[rows] = scores, True
            with _writing(file):
                stream.seek(begin + column * values.nbytes)
                stream.write(values.data)

        titles = [rankings.title(query) for query in each(fill)]
        with _writing(file):
            stream.close()
            if array != whole:
                _tabulate(array, whole, titles, attributor.train_labels, sources)
            stack.close()  # which gives the file its name
    say(
        f"Written: {file}, {images:,} training examples × {count:,} queries by {request.method}; "
        f"{int(candidates.sum()):,} of the examples are candidates of a query.",
        err=True,
    )


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Turn what the system says while a file is written into one sentence."""
    try:
        yield
    except OSError as error:
        raise QueryError(f"The scores cannot be written to {file}: {error.strerror or error}.") from error


def _tabulate(array: Path, table: Path, titles: list[str], labels: np.ndarray, sources: Sequence[str]) -> None:
    """Write scores that lie in an array (N, Q) as a table."""
    scores, columns = np.load(array, mmap_mode="r"), ("train_index", "source", "label", *titles)
    head = escape.table(columns, ())
    with table.open("x", encoding="utf-8", newline="") as file:
        file.write(head)
        for start in range(0, len(scores), _ROWS):
            block = scores[start : start + _ROWS].tolist()
            cells = (
                [row, sources[row], labels[row], *("" if value != value else value for value in values)]
                for row, values in enumerate(block, start)
            )
            file.write(escape.table(columns, cells)[len(head) :])
