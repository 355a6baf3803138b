"""The option that says where networks run, on every command that computes."""

import os

import click


def _choose(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    if name is not None:
        os.environ["NATSCOPE_DEVICE"] = name  # which child processes inherit


on_device = click.option(
    "--device",
    metavar="NAME",
    expose_value=False,
    callback=_choose,
    help="Where networks run: cpu, cuda or cuda:1, for example; $NATSCOPE_DEVICE by default, else cpu.",
)
