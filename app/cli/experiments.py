"""The commands that measure: experiments of the paper, and the choice of sigma2."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from natscope.app.cli.device import on_device
from natscope.app.cli.precompute import method_names
from natscope.app.cli.progress import Bars, say
from natscope.app.cli.trust import allow_code
from natscope.app.cli.values import COUNT, PATH, SEED, check_writable

conditioning_option = click.option(
    "--conditioning",
    type=click.Choice(["train", "pool"]),
    help="What methods that condition on data condition on: all training data, by default, or the pool.",
)


@click.command()
@click.argument("experiment")
@click.option("--bundle", type=PATH, required=True, help="The bundle, or a folder of bundles to average over.")
@click.option("--out", type=PATH, required=True, help="JSON file to write; figures and tables are written beside it.")
@click.option("--queries", type=COUNT, help="Test examples; each experiment has its usual number.")
@click.option(
    "--budget", type=COUNT, help="Size M of the largest subset, or the number of halves; each has its usual one."
)
@click.option("--methods", help="Names of methods, separated by commas, for an experiment that compares them.")
@conditioning_option
@click.option("--repeats", type=COUNT, help="How often to answer for each bundle, with other seeds; once by default.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the choice of test examples.")
@allow_code
@on_device
def evaluate(
    experiment: str,
    bundle: Path,
    out: Path,
    queries: int | None,
    budget: int | None,
    methods: str | None,
    conditioning: str | None,
    repeats: int | None,
    seed: int,
) -> None:
    """Run EXPERIMENT: relative-information, backdoor, brittleness, coreset, lds or retraining.

    A stopped run resumes.
    """
    from natscope.core.bundle.format import find_bundles
    from natscope.core.errors import QueryError
    from natscope.precompute.experiments import EXPERIMENTS

    if experiment not in EXPERIMENTS:
        raise QueryError(f"There is no experiment '{experiment}'; choose one of {', '.join(EXPERIMENTS)}.")
    found = EXPERIMENTS[experiment]
    chosen: dict[str, Any] = {} if found.methods is None else {"methods": found.methods}
    if methods is not None:
        if found.methods is None:
            raise QueryError(f"The experiment '{experiment}' has no choice of methods; leave out --methods.")
        chosen = {"methods": method_names(methods)}
    if conditioning is not None:
        if not found.conditions:
            raise QueryError(f"The experiment '{experiment}' has no choice of conditioning; leave out --conditioning.")
        chosen["conditioning"] = conditioning
    if repeats is not None:
        if not found.repeats:
            raise QueryError(f"The experiment '{experiment}' is not repeated with other seeds; leave out --repeats.")
        chosen["repeats"] = repeats
    size = {"queries": queries or found.queries, "budget": budget or found.budget, "seed": seed}
    _measured(out, lambda **keeping: found.run(find_bundles(bundle) or [bundle], **size, **chosen, **keeping), size)


@click.command()
@click.option("--bundle", type=PATH, required=True, help="The bundle, whose manifest gets the chosen values.")
@click.option("--out", type=PATH, help="JSON file to write; beside the bundle by default.")
@click.option(
    "--score",
    type=click.Choice(["margin", "influence", "coreset"]),
    default="margin",
    show_default=True,
    help="How σ² is scored: by the margin lost without the named examples, by retraining or as EK-FAC influence "
    "predicts it (for weights that were loaded, in a bundle that holds EK-FAC factors), or by the accuracy of "
    "training on coresets.",
)
@click.option("--queries", type=COUNT, help="Held-out test examples; 10, by influence 25, for coresets 200 in 3 sets.")
@click.option("--budget", type=COUNT, help="The first examples that are scored, 50; in a coreset at most, 150.")
@click.option("--methods", help="Names of methods, separated by commas; those that use σ² by default.")
@conditioning_option
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the choice of test examples.")
@click.option("--take", type=PATH, help="Measure nothing; take the values of this finished result.")
@allow_code
@on_device
def tune(
    bundle: Path,
    out: Path | None,
    score: str,
    queries: int | None,
    budget: int | None,
    methods: str | None,
    conditioning: str | None,
    seed: int,
    take: Path | None,
) -> None:
    """Choose σ² for each method on held-out examples, by what happens without or with those it names; resumable.

    Except by influence, the network is trained again for each test example or set of them, method and value of σ².
    """
    from natscope.core.bundle.format import Bundle
    from natscope.core.errors import QueryError
    from natscope.core.methods import METHODS
    from natscope.precompute.experiments import tuning

    opened = None
    if take is not None:
        if any((out, queries, budget, methods, conditioning, seed, score != "margin")):
            raise QueryError("--take measures nothing and takes every value of its result; leave out all but --bundle.")
        file, result = take, tuning.read(take)
    else:
        usual = tuple(name for name, method in METHODS.items() if method.uses_sigma2)
        names = usual if methods is None else method_names(methods)
        images, most = tuning.SCORES[score]
        size: dict[str, Any] = {"queries": queries or images, "budget": budget or most, "seed": seed, "methods": names}
        run = {"coreset": tuning.tune_coresets, "influence": tuning.tune_by_influence, "margin": tuning.tune}[score]
        if conditioning is not None:
            if score == "coreset":
                raise QueryError("Coresets are chosen from all training data, without a choice of conditioning.")
            size["conditioning"] = conditioning
        path = Path(os.path.realpath(bundle))  # resolve() raises where links form a loop
        file = out or path.parent / f"{path.name}-{'' if score == 'margin' else f'{score}-'}tuning.json"

        def measure(**keeping: Any) -> Any:
            nonlocal opened
            opened = Bundle(bundle).manifest
            return run(bundle, **size, **keeping)

        result = _measured(file, measure, size)
    rescaled = tuning.record(bundle, result, file.name, opened=opened)
    how = "rescaled to its kernel" if rescaled else "as they are, for the result does not say on which scale"
    say(f"The bundle holds these values, {how}; they are now its defaults.")


def _measured(out: Path, run: Callable[..., Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Run an experiment, keeping finished parts; write its result and figures, and print what was found."""
    from natscope.app.figures.experiments import experiment_files
    from natscope.core.bundle.format import write_atomically
    from natscope.core.errors import QueryError
    from natscope.precompute.training.result_cache import ResultCache

    if out.suffix != ".json":
        raise QueryError(f"--out names a JSON file, such as result.json, not {out.name}.")
    cache = ResultCache(out.with_suffix(".partial.json"))
    try:
        for suffix in (".json", ".png", ".svg", ".md", ".partial.json", ".partial.lock"):
            check_writable(out.with_suffix(suffix), "--out")
        cache.check_own()
        with Bars() as bars:
            result = run(cache=cache, progress=bars).to_dict()
        for kind, data in experiment_files(result):
            write_atomically(out.with_suffix(f".{kind}"), data)
        write_atomically(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
        cache.discard()
    except OSError as error:
        raise QueryError(f"The result cannot be written to {out}: {error.strerror or error}.") from error
    used = result["setting"].get("largest", result["setting"].get("budget"))
    if asked["budget"] is not None and used is not None and used < asked["budget"]:
        say(f"The budget of {asked['budget']:,} was cut to {used:,}, the most that these data allow.")
    say(result["finding"])
    say(f"Written: {out} and its figures.")
    return result
