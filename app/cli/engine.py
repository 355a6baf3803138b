"""The options that say where the passes of a build run."""

import shlex
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from natscope.app.cli.values import COUNT


def on_engine(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of an engine, and what they describe as `engine`."""

    @wraps(command)
    def wrapped(*given: Any, engine: str, ray_address: str | None, workers: int | None, **options: Any) -> Any:
        return command(*given, engine=engine_of(engine, ray_address, workers), **options)

    for option in (
        click.option(
            "--workers",
            type=COUNT,
            help="Processes that go over the examples, one thread each unless OMP_NUM_THREADS says more; 1 within this "
            "process, with --engine ray as many as the cluster has room for.",
        ),
        click.option(
            "--ray-address",
            metavar="HOST:PORT",
            help="The cluster's head, for --engine ray; without it, a Ray of this machine alone.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Where Jacobians and predictions are computed: on this machine, or on a Ray cluster.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def engine_of(engine: str, ray_address: str | None, workers: int | None) -> Any:
    """Return the engine that options describe; raises BuildError if they contradict each other."""
    from natscope.core.errors import BuildError
    from natscope.precompute.engines.local import LocalEngine

    if engine == "ray":
        from natscope.precompute.engines.on_ray import RayEngine

        return RayEngine(ray_address, workers)
    if ray_address is not None:
        raise BuildError("--ray-address is for --engine ray; give that, too.")
    return LocalEngine(workers or 1)


def flags_of(engine: Any) -> str:
    """Return the options that describe an engine, each after a space; none for the usual one."""
    address, workers = getattr(engine, "address", None), getattr(engine, "workers", None)
    ray = hasattr(engine, "address")
    found = (" --engine ray" if ray else "") + (f" --ray-address {shlex.quote(address)}" if address else "")
    return found + (f" --workers {workers}" if workers is not None and (ray or workers > 1) else "")
