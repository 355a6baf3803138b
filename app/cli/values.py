"""What the options of `natscope` take: possible paths, and whole numbers that fit."""

import errno
import math
import os
from pathlib import Path
from typing import Any

import click


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


PATH = _Path(path_type=Path)
WHOLE, COUNT = _Whole(0, 10**9), _Whole(1, 10**9)
GIGABYTES = _Finite(1, 10**6)
SEED = _Whole(0, 2**63 - 1)  # what torch takes
