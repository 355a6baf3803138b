"""The options of `natscope precompute` for texts, and of commands that are asked about one."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from natscope.app.cli.values import COUNT, PATH, PLACE

_FIELDS = {"text": "columns"} | {name: name for name in ("label", "vocabulary", "longest", "tokenizer", "test")}


def cuts(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which texts of a table are taken, and how they become tokens."""
    for option in reversed(
        (
            click.option(
                "--text",
                metavar="COLUMN[,COLUMN]",
                help="Column of a table that holds the text, or two; by default text, sentence, a usual pair or the "
                "only other.",
            ),
            click.option(
                "--label",
                metavar="COLUMN",
                help="Column of a table that holds the class; by default label, labels, class or category.",
            ),
            click.option(
                "--test",
                type=PLACE,
                help="Table of the test texts, or a URL; by default one beside it, with test or dev for train "
                "in its name.",
            ),
            click.option("--longest", type=COUNT, default=128, show_default=True, help="Tokens that a text is cut to."),
            click.option(
                "--vocabulary",
                type=COUNT,
                default=10_000,
                show_default=True,
                help="Tokens at most of the vocabulary that is made of the training texts.",
            ),
            click.option(
                "--tokenizer", type=PATH, help="A tokenizer.json that belongs to --weights; one is made otherwise."
            ),
        )
    ):
        command = option(command)
    return command


def are_texts(options: Mapping[str, Any]) -> bool:
    """Return whether the options name a data set of texts."""
    from natscope.precompute.data.text_sources import of_texts

    return options["data"] is None and of_texts(options["dataset"])


def text_spec(options: Mapping[str, Any]) -> Any:
    """Return the `TextSpec` that the options describe.

    Raises:
        BuildError: if they are given for a data set that is none of texts.
    """
    from natscope.core.errors import BuildError
    from natscope.precompute.data.text_sources import TEXT, TextSpec

    usual = TextSpec()
    given: dict[str, Any] = {
        "columns": tuple(part.strip() for part in (options["text"] or "").split(",") if part.strip()),
        "label": options["label"] or "",
        "test": _path(options["test"]),
        "tokenizer": _path(options["tokenizer"]),
    }
    values = given | {f.name: options[f.name] for f in fields(TextSpec) if f.name not in (*given, "seed")}
    if are_texts(options):
        return TextSpec(**values)
    for option, field in _FIELDS.items():
        if values[field] != getattr(usual, field):
            raise BuildError(f"--{option} is for texts, --dataset {TEXT}PATH; leave it out.")
    return usual


def _path(given: Path | str | None) -> Path | str | None:
    return given.absolute() if isinstance(given, Path) else given
