"""The file of every candidate's score: a line for each training image, a column for each query."""

from collections.abc import Callable, Iterator
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
    images = len(attributor.train_labels)
    candidates = np.zeros(images, dtype=bool)
    try:
        with replacing(file) as whole, temporary_folder() as folder:
            array = whole if file.suffix == ".npy" else Path(folder) / "scores.npy"
            with array.open("xb") as stream:
                about = {"descr": "<f8", "fortran_order": True, "shape": (images, count)}
                np.lib.format.write_array_header_1_0(stream, about)
                begin = stream.tell()

                def fill(column: int, query: Any, progress: Progress) -> None:
                    rows, scores = attributor.score_each(query, request, progress)
                    values = np.full(images, np.nan, dtype="<f8")
                    values[rows], candidates[rows] = scores, True
                    stream.seek(begin + column * values.nbytes)
                    stream.write(values.data)

                titles = [rankings.title(query) for query in each(fill)]
            if array != whole:
                _tabulate(array, whole, titles, attributor)
    except OSError as error:
        raise QueryError(f"The scores cannot be written to {file}: {error.strerror or error}.") from error
    say(
        f"Written: {file}, {images:,} training images × {count:,} queries by {request.method}; "
        f"{int(candidates.sum()):,} of the images are candidates of a query.",
        err=True,
    )


def _tabulate(array: Path, table: Path, titles: list[str], attributor: Any) -> None:
    """Write scores that lie in an array (N, Q) as a table."""
    labels, sources = attributor.train_labels, attributor.bundle.sources("train")
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
