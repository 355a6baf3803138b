"""Output of the command line: lines, and progress bars."""

import re
import sys
from typing import Any

import click

from natscope.app import escape
from natscope.core.progress import Progress

_LONG = re.compile(r"(\S{40})\S{400,}(\S{20})")


def say(line: object, *, err: bool = False) -> None:
    """Write a line to stdout or stderr; control characters are escaped, and on stderr very long words are cut."""
    text = escape.terminal(str(line))
    click.echo(_LONG.sub(r"\1…\2", text) if err else text, err=err)


class Bars:
    """Progress bars on stderr, one per stage, with the time left."""

    def __init__(self, unit: str = "it") -> None:
        self._unit, self._stage = unit, ""
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how much of a stage is done."""
        from tqdm import tqdm  # takes a moment to load, and --help needs none

        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = tqdm(
                desc=escape.terminal(stage),
                total=total,
                unit=self._unit,
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
                disable=None,  # silent where stderr is not a terminal
            )
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
