"""The options of the commands that serve the app."""

from collections.abc import Callable
from typing import Any

import click

from natscope.app.cli.values import GIGABYTES


def listens(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the app is served."""
    far = "Name or address to listen at; beyond localhost, whoever reaches it can use the app."
    names = "Also answer to this name, such as a proxy's; can be repeated."
    folder = "Serve every page under this path, for a proxy that forwards it."
    port = click.IntRange(1, 65535)
    for add in (
        click.option("--no-browser", is_flag=True, help="Do not open a browser."),
        click.option("--base-path", "path", default="", metavar="PATH", help=folder),
        click.option("--allowed-host", "allowed", multiple=True, metavar="NAME", help=names),
        click.option("--port", type=port, default=8501, show_default=True, help="Port of the app."),
        click.option("--host", default="localhost", show_default=True, help=far),
    ):
        command = add(command)
    return command


def workers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the worker processes behind the app."""
    for option in (
        click.option(
            "--memory",
            type=GIGABYTES,
            help="GB of memory that each worker process may take; 4, or a third of a smaller machine's.",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1, 64),
            help="Worker processes for long computations, and as many for clicks; 1.",
        ),
    ):
        command = option(command)
    return command
