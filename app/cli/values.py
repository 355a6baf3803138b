"""What the options of `natscope` take: possible paths, and whole numbers that fit."""

import errno
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import click

_RANGE = re.compile(r"(-?[0-9]{1,40})(?:\s*-\s*([0-9]{1,40}))?")
_SHOWN = 40  # characters of what is no number


class _Path(click.Path):
    """A path that can exist, whether or not anything is there."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            os.lstat(value or "\0")
        except ValueError:  # a null character, or another that no file name can hold
            self.fail("no file or folder can have this name.", param, ctx)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail("this name is longer than a file's or folder's can be.", param, ctx)
        return super().convert(value, param, ctx)


class _Place(_Path):
    """Such a path, or a URL, which stays as it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from natscope.precompute.data.remote import url_in

        return value if isinstance(value, str) and url_in(value)[1] else super().convert(value, param, ctx)


class _Whole(click.IntRange):
    """A whole number from `least` up, and small enough for the libraries that use it."""

    name = "integer"

    def __init__(self, least: int, most: int) -> None:
        super().__init__(least)
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = super().convert(value, param, ctx)
        if number > self._most:
            self.fail(f"{number} is too large; {self._most:,} is the most.", param, ctx)
        return number


class _Finite(click.FloatRange):
    """A number from `min` to `max`, but not NaN, which passes click's comparisons."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class _Indices(click.ParamType):
    """Numbers of images: 0,5,10-20 becomes ranges, in that order; whether there are such images is known later."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[range, ...]:
        found = []
        for part in map(str.strip, str(value).split(",")):
            if (match := _RANGE.fullmatch(part)) is None:
                self.fail(f"{part[:_SHOWN]!r} is neither a number nor a range; write 0,5,10-20.", param, ctx)
            first = int(match[1])
            last = first if match[2] is None else int(match[2])
            if last < first:
                self.fail(f"{part} ends before it begins; write {last}-{first}.", param, ctx)
            found.append(range(first, last + 1))
        return tuple(found)


PATH, PLACE = _Path(path_type=Path), _Place(path_type=Path)
WHOLE, COUNT = _Whole(0, 10**9), _Whole(1, 10**9)
GIGABYTES = _Finite(1, 10**6)
_LONGEST = 200  # bytes of a name, to which temporary files add some
SEED = _Whole(0, 2**63 - 1)  # what torch takes
INDICES = _Indices()


def check_writable(file: Path, option: str) -> None:
    """Make a file's folder, and find out before anything is computed whether the file can be written.

    Raises:
        OSError: if it cannot be.
        QueryError: if a folder is there, the file would lie in a bundle, or its name cannot be printed.
    """
    from natscope.core.bundle.format import MANIFEST, WEIGHTS
    from natscope.core.errors import QueryError
    from natscope.core.text import plain

    if not plain(file.name):
        raise QueryError(f"The name of the file for {option} holds characters that cannot be printed; choose another.")
    for folder in file.absolute().parents:
        if (folder / MANIFEST).is_file() and os.path.lexists(folder / WEIGHTS):
            raise QueryError(
                f"{file} would lie in a bundle, whose files are its own; name a file elsewhere by {option}."
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise QueryError(f"{file} is a folder, and {option} writes a file of this name; choose another.")
    if len(os.fsencode(file.name)) > _LONGEST:
        raise QueryError(f"The name of the file for {option} is too long; choose one of at most {_LONGEST} bytes.")
    tempfile.TemporaryFile(dir=file.parent).close()
