"""Run the benchmarks and print their tables: `python -m benchmarks [NAME] …`, all of them without a name."""

import functools
import platform
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks import audit, cold, convolutions, coreset, ekfac, methods, retraining, search, selection, sketches
from core.index_spec import KINDS

BENCHMARKS = {
    "sketches": sketches.run,
    "selection": selection.run,
    "coreset": coreset.run,
    "methods": methods.run,
    "ekfac": ekfac.run,
    "audit": audit.run,
    "convolutions": convolutions.run,
    "search": search.run,
    "cold": cold.run,
    "retraining": retraining.run,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--sizes", default=",".join(map(str, search.SIZES)), show_default=True, help="Of search: N, with commas.")
@click.option("--indexes", default=",".join(KINDS), show_default=True, help="Of search: kinds of index, with commas.")
@click.option("--out", type=click.Path(path_type=Path), default=search.OUT, help="Of search: JSON file to write.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="Of cold: the bundle.")
def main(names: tuple[str, ...], sizes: str, indexes: str, out: Path, bundle: Path | None) -> None:
    """Run the named benchmarks, or all; each prints a table of figures and their ratios."""
    found = BENCHMARKS | {
        "search": functools.partial(
            search.run, sizes=tuple(int(n) for n in sizes.split(",")), indexes=tuple(indexes.split(",")), out=out
        ),
        "cold": functools.partial(cold.run, bundle=bundle),
    }
    click.echo(
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )
    for name in names or BENCHMARKS:
        click.echo(f"\n== {name}")
        found[name](click.echo)


if __name__ == "__main__":
    main()
