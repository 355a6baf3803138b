"""Output of the command line: lines, and progress bars."""

import os
import re
import sys
from typing import Any, Self, TextIO

import click

from natscope.app import escape

_SECRET = re.compile(r"(:/{0,2})[^\s/@:]+:[^\s/@]+@")  # user and password in what may be meant as a URL
_LONG = re.compile(r"(\S{40})\S{400,}(\S{20})")


def abandon(*streams: TextIO) -> None:
    """Send to nowhere what is left of streams that nothing reads now: it is flushed at exit, which would fail."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(line: object, *, err: bool = False) -> None:
    """Write a line to stdout or stderr; control characters are escaped.

    On stderr very long words are cut, and passwords hidden, which a mistyped URL may hold.
    """
    text = escape.terminal(str(line))
    click.echo(_LONG.sub(r"\1…\2", _SECRET.sub(r"\1…@", text)) if err else text, err=err)


class Bars:
    """Progress bars on stderr, one per stage, with the time left."""

    def __init__(self, unit: str = "it", *, leave: bool = True) -> None:
        """Show nothing yet.

        Args:
            unit: what is counted.
            leave: whether a bar stays on the terminal when its stage is over.
        """
        self._unit, self._leave, self._stage = unit, leave, ""
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how much of a stage is done."""
        from tqdm import tqdm  # takes a moment to load, and --help needs none

        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(
                desc=escape.terminal(stage),
                total=total,
                initial=done,  # what another stage came between was not done just now
                unit=self._unit,
                unit_scale=True,
                file=sys.stderr,
                leave=self._leave,
                dynamic_ncols=True,
                disable=None,  # silent where stderr is not a terminal
            )
        self._bar.update(done - self._bar.n)

    def tell(self, line: str) -> None:
        """Write a line to stderr, between bars."""
        self.close()
        say(f"natscope: {line}", err=True)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bar, so that something else can be written; the next step of its stage opens it again."""
        if self._bar is not None:
            self._bar.close()
            self._bar, self._stage = None, ""
