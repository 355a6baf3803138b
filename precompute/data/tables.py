"""Tables in files: .tsv as it is, .csv with quotes, .jsonl and .parquet; those of text may be compressed by gzip."""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natscope.core.errors import DataError, FileError
from natscope.core.files import from_json, read_regular, size
from natscope.core.text import few, short
from natscope.core.tokens import LONGEST_TEXT
from natscope.precompute.data.splits import shown

_LARGEST = 2**31  # bytes of a file, and of what it holds if it is compressed
_LISTED = 10  # columns in a sentence
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # how a text in another encoding begins


@dataclass(frozen=True, eq=False)
class Table:
    """A table that was read.

    Args:
        path: its file.
        columns: by title, the value of each row: text where the file holds nothing else.
        lines: what to call each row, such as "line 12".
    """

    path: Path
    columns: Mapping[str, list[Any]]
    lines: list[str]

    def column(self, title: str, option: str) -> list[Any]:
        """Return a column; raises DataError with what there is and the option that names one."""
        if title not in self.columns:
            known = few([repr(short(name)) for name in self.columns], _LISTED)
            raise DataError(f"{shown(self.path)} has no column {title!r}, and {option} names one; it has {known}.")
        return self.columns[title]


def read_table(path: Path) -> Table:
    """Read a table whose columns have titles.

    Args:
        path: the file; its ending says what it is.

    Raises:
        DataError: if it cannot be read, or its rows do not fit its titles.
    """
    kind = format_of(path)
    if kind is None:
        raise DataError(f"{shown(path)} is no table that can be read; name a file of {', '.join(KINDS)}.")
    try:
        content = read_regular(path, _LARGEST, links=True)
    except FileError as error:
        raise DataError(str(error)) from error
    if path.suffix.lower() == ".gz":
        content = _unpacked(path, content)
    titles, rows, lines = KINDS[kind](path, content)
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise DataError(f"{shown(path)} has two columns of the title {short(twice[0])!r}; rename one.")
    if not rows:
        raise DataError(f"{shown(path)} has no rows.")
    return Table(path, dict(zip(titles, map(list, zip(*rows, strict=True)), strict=True)), lines)


def format_of(path: Path) -> str | None:
    """Return the ending that says what kind of table a file is; None if it is none."""
    endings = [ending.lower() for ending in path.suffixes]
    last = endings[-2:-1] if endings[-1:] == [".gz"] and ".parquet" not in endings else endings[-1:]
    return last[0] if last and last[0] in KINDS else None


def decoded(path: Path, content: bytes) -> str:
    """Return a file's text, which is UTF-8, or UTF-16 if it begins with the mark of that.

    Raises:
        DataError: if it is of another encoding, or of several.
    """
    encoding = _MARKS.get(content[:2], "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{shown(path)} is not UTF-8 throughout (line {line:,} is not); save it as UTF-8.") from error


def _unpacked(path: Path, content: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            found = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{shown(path)} is damaged: it is no complete gzip file.") from error
    if len(found) > _LARGEST:
        raise DataError(f"{shown(path)} holds more than {size(_LARGEST)}, the most that is read of such a file.")
    return found


_Parts = tuple[list[str], list[list[Any]], list[str]]  # titles, rows, what to call each


def _separated(path: Path, content: bytes, reader: Callable[[str], Any]) -> _Parts:
    lines, rows = [], []
    for number, row in _rows(path, reader(decoded(path, content))):
        lines.append(f"line {number}")
        rows.append(row)
    if not rows:
        raise DataError(f"{shown(path)} is empty; its first line holds the titles of its columns.")
    titles = [title.strip() for title in rows[0]]
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(titles):
            raise DataError(
                f"{shown(path)} has {len(titles)} columns in its first line and {len(row)} in {line}; each row needs "
                "one value a column."
            )
    return titles, rows[1:], lines[1:]


def _rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    begins = 1
    try:
        for row in reader:
            if row:
                yield begins, row
            begins = reader.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error):
            raise DataError(too_long(path, f"line {begins}")) from error
        raise DataError(f"{shown(path)} is no table from line {begins} on: {error}.") from error


def _tsv(path: Path, content: bytes) -> _Parts:
    """Read a file of GLUE's kind, where quotes are signs like any other."""
    return _separated(
        path, content, lambda text: csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    )


def _csv(path: Path, content: bytes) -> _Parts:
    def reader(text: str) -> Any:
        first = text[: text.find("\n")] if "\n" in text else text
        between = ";" if ";" in first and "," not in first else ","
        return csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)

    return _separated(path, content, reader)


def _jsonl(path: Path, content: bytes) -> _Parts:
    titles: list[str] = []
    rows, lines = [], []
    for number, line in enumerate(decoded(path, content).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = from_json(line)
        except ValueError as error:
            wrong = "holds half a character" if isinstance(error, UnicodeEncodeError) else "is not JSON"
            raise DataError(f"Line {number} of {shown(path)} {wrong}; each line holds one object.") from error
        if not isinstance(found, dict) or not found:
            raise DataError(f"Line {number} of {shown(path)} is no JSON object with a name for each column.")
        titles = titles or list(found)
        if found.keys() != set(titles):
            raise DataError(
                f"Line {number} of {shown(path)} has other names than the first, which has {few(titles, _LISTED)}."
            )
        rows.append([found[title] for title in titles])
        lines.append(f"line {number}")
    return titles, rows, lines


def _parquet(path: Path, content: bytes) -> _Parts:
    import pandas  # type: ignore[import-untyped]

    try:
        found = pandas.read_parquet(io.BytesIO(content))
        columns = [found[title].astype(object).where(found[title].notna(), None).tolist() for title in found.columns]
    except MemoryError:
        raise
    except Exception as error:  # a malformed file can raise nearly anything
        raise DataError(f"{shown(path)} is no parquet file that can be read.") from error
    rows = [list(row) for row in zip(*columns, strict=True)]
    return list(map(str, found.columns)), rows, [f"row {number}" for number in range(len(rows))]


def too_long(path: Path, line: str) -> str:
    """Return the sentence for a text that is too long."""
    return (
        f"{shown(path)}, {line}, holds more than {LONGEST_TEXT:,} characters in one cell; shorten it, or leave it out."
    )


KINDS: dict[str, Callable[[Path, bytes], _Parts]] = {".tsv": _tsv, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
