"""Run the benchmarks and print their tables: `python -m benchmarks [NAME] …`, all of them without a name."""

import platform

import click
import numpy as np
import torch

from benchmarks import audit, convolutions, ekfac, methods, selection, sketches

BENCHMARKS = {
    "sketches": sketches.run,
    "selection": selection.run,
    "methods": methods.run,
    "ekfac": ekfac.run,
    "audit": audit.run,
    "convolutions": convolutions.run,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
def main(names: tuple[str, ...]) -> None:
    """Run the named benchmarks, or all; each prints a table of figures and their ratios."""
    click.echo(
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )
    for name in names or BENCHMARKS:
        click.echo(f"\n== {name}")
        BENCHMARKS[name](click.echo)


if __name__ == "__main__":
    main()
