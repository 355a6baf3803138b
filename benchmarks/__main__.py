"""Run the benchmarks and print their tables: `python -m benchmarks [NAME [OPTIONS]] …`, all of them without a name."""

import functools
import platform
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import (
    audit,
    clicks,
    cold,
    convolutions,
    coreset,
    ekfac,
    indexes,
    load,
    loss_weights,
    methods,
    parameterisations,
    precision,
    rankings,
    ratios,
    retraining,
    scale,
    search,
    selection,
    sketches,
)
from natscope.core.index.spec import KINDS
from natscope.precompute.bundles.demo import FIRST, POISONED
from natscope.precompute.paths import home

BENCHMARKS = {
    "sketches": sketches.run,
    "selection": selection.run,
    "coreset": coreset.run,
    "methods": methods.run,
    "ekfac": ekfac.run,
    "audit": audit.run,
    "convolutions": convolutions.run,
    "search": search.run,
    "indexes": indexes.run,
    "scale": scale.run,
    "cold": cold.run,
    "retraining": retraining.run,
    "load": load.run,
    "clicks": clicks.run,
    "rankings": rankings.run,
    "precision": precision.run,
    "parameterisations": parameterisations.run,
    "loss_weights": loss_weights.run,
}
BUNDLE = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group(chain=True, invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Run the named benchmarks, or all; each prints a table of figures and their ratios."""
    click.echo(
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )
    if context.invoked_subcommand is None:
        for name in BENCHMARKS:
            _run(name)


def _run(name: str, **options: Any) -> None:
    click.echo(f"\n== {name}")
    BENCHMARKS[name](click.echo, **options)


@main.command("sketches")
@click.option("--bundle", type=BUNDLE, help="Measure the errors of this network alone.")
def _sketches(bundle: Path | None) -> None:
    """Compare sketches with dense projections (error) and with traker's CPU path (speed)."""
    _run("sketches", bundle=bundle)


@main.command("search")
@click.option("--sizes", default=",".join(map(str, search.SIZES)), show_default=True, help="N, with commas.")
@click.option("--indexes", default=",".join(search.INDEXES), show_default=True, help="Kinds of index, with commas.")
@click.option("--out", type=click.Path(path_type=Path), default=search.OUT, help="JSON file to write.")
def _search(sizes: str, indexes: str, out: Path) -> None:
    """Time the search of one class for its largest inner products."""
    _run("search", sizes=tuple(int(n) for n in sizes.split(",")), indexes=tuple(indexes.split(",")), out=out)


@main.command("scale")
@click.option("--sizes", default=",".join(map(str, scale.SIZES)), show_default=True, help="N, with commas.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def _scale(sizes: str, out: Path | None) -> None:
    """Measure how the cost of an index grows, over rows that are computed when they are asked for."""
    _run("scale", sizes=tuple(int(n) for n in sizes.split(",")), out=out)


@main.command("indexes")
@click.option("--bundle", type=BUNDLE, help="The bundle; the demo's by default.")
@click.option("--pools", default=",".join(map(str, indexes.POOLS)), show_default=True, help="N, with commas.")
@click.option("--indexes", "kinds", default=",".join(KINDS), show_default=True, help="Kinds of index, with commas.")
@click.option("--asked", default="", help="Rows that exact indexes are requested without a check, with commas.")
def _indexes(bundle: Path | None, pools: str, kinds: str, asked: str) -> None:
    """Compare what each index finds on a bundle's features with the exact selection."""
    sizes, limits = (tuple(int(n) for n in text.split(",") if n) for text in (pools, asked))
    _run("indexes", bundle=bundle or _demo(), pools=sizes, indexes=tuple(kinds.split(",")), asked=limits)


@main.command("cold")
@click.option("--bundle", type=BUNDLE, help="The bundle.")
def _cold(bundle: Path | None) -> None:
    """Time the first answer of a bundle whose files are not in memory."""
    _run("cold", bundle=bundle)


@main.command("rankings")
@click.option("--bundle", type=BUNDLE, help="The bundle; the demo's by default.")
@click.option("--record", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write.")
@click.option("--against", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="One that was written.")
@click.option("--within", type=click.FloatRange(0), default=1e-9, show_default=True, help="Of each number.")
def _rankings(bundle: Path | None, **options: Any) -> None:
    """Record what every method answers on a bundle, or fail where it differs from what was recorded."""
    _run("rankings", bundle=bundle or _demo(), **options)


@main.command("precision")
@click.option("--bundle", type=BUNDLE, help="The bundle; the demo's by default.")
@click.option("--queries", type=click.IntRange(1), default=40, show_default=True, help="Test images.")
def _precision(bundle: Path | None, queries: int) -> None:
    """Compare answers from stored features with answers from float32."""
    _run("precision", bundle=bundle or _demo(), queries=queries)


@main.command("parameterisations")
@click.option("--bundle", type=BUNDLE, help="A poisoned bundle; the demo's by default.")
def _parameterisations(bundle: Path | None) -> None:
    """Show what the kernel is made of, and how well each parameterisation finds planted images."""
    _run("parameterisations", bundle=bundle)


@main.command("loss_weights")
@click.option("--bundle", type=BUNDLE, help="A poisoned bundle with TRAK; the demo's by default.")
@click.option("--queries", type=click.IntRange(1), default=100, show_default=True, help="Test images.")
def _loss_weights(bundle: Path | None, queries: int) -> None:
    """Show what TRAK and GradDot owe to how well the network fits planted images."""
    _run("loss_weights", bundle=bundle or _demo(POISONED), queries=queries)


@main.command("ratios")
@click.option("--folder", type=click.Path(path_type=Path), default="build/ratios", help="Where work is kept.")
@click.option("--queries", type=click.IntRange(1), default=10, show_default=True, help="Held-out test images.")
@click.option("--budget", type=click.IntRange(1), default=50, show_default=True, help="Images removed.")
def _ratios(folder: Path, queries: int, budget: int) -> None:
    """Tune small networks of three kinds, and show the best σ² as a multiple of the kernel's scale (an hour)."""
    folder.mkdir(parents=True, exist_ok=True)
    click.echo("\n== ratios")
    ratios.run(click.echo, folder, queries=queries, budget=budget)


@main.command("load")
@click.option("--bundle", type=BUNDLE, help="The bundle; the demo's by default.")
@click.option("--distinct", type=click.IntRange(0), default=25, show_default=True, help="Visitors of unseen images.")
@click.option("--popular", type=click.IntRange(0), default=50, show_default=True, help="Visitors of 20 images.")
@click.option("--heavy", type=click.IntRange(0), default=0, show_default=True, help="Visitors of heavy links besides.")
@click.option("--leave", is_flag=True, help="Visitors of heavy links leave before they are answered.")
@click.option("--warm", type=click.IntRange(0, 200), default=40, show_default=True, help="Clicks beforehand.")
@click.option("--seconds", type=click.FloatRange(1), default=60, show_default=True, help="Of each group.")
@click.option("--timeout", type=click.FloatRange(1), default=60, show_default=True, help="Of a click, in seconds.")
@click.option("--checked", type=click.IntRange(0), default=20, show_default=True, help="Answers compared with ours.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of images and pauses.")
@click.option("--p95", type=click.FloatRange(0), help="Fail if 95 of 100 clicks take longer, in seconds.")
@click.option("--errors", type=click.IntRange(0), help="Fail if there are more.")
@click.option("--growth", type=click.FloatRange(0), help="Fail if memory grows more in the second half, in MiB.")
def _load(bundle: Path | None, p95: float | None, errors: int | None, growth: float | None, **options: Any) -> None:
    """Let many visitors click at once, and say how long each waits."""
    _run("load", bundle=bundle or _demo(), load=load.Load(**options), targets=load.Targets(p95, errors, growth))


@main.command("clicks")
@click.option("--bundles", type=BUNDLE, help="A bundle or a folder of bundles; the demo's by default.")
@click.option("--repeats", type=click.IntRange(1, 20), default=5, show_default=True, help="Of each click, per bundle.")
@click.option("--memory-clicks", type=click.IntRange(1), default=300, show_default=True, help="Before memory is read.")
@click.option("--check", is_flag=True, help="Fail if a target is missed.")
def _clicks(**options: Any) -> None:
    """Click in a real browser, and say how long each page takes, how far it moves by itself, and the memory."""
    _run("clicks", **options)


def _demo(name: str = FIRST) -> Path | None:
    found = home() / "bundles" / name
    return found if found.is_dir() else None


for _name, _benchmark in BENCHMARKS.items():
    if _name not in main.commands:
        about = sys.modules[_benchmark.__module__].__doc__
        main.command(_name, help=about)(functools.partial(_run, _name))

if __name__ == "__main__":
    main()
