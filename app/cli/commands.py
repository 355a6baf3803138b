"""The command `natscope`. Heavy libraries are imported inside the commands, so that --help is instant."""

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from natscope.app.cli.attribute import attribute
from natscope.app.cli.device import on_device
from natscope.app.cli.engine import on_engine
from natscope.app.cli.experiments import evaluate, tune
from natscope.app.cli.folders import reads
from natscope.app.cli.listen import listens, workers
from natscope.app.cli.precompute import build_spec, notes, print_check, remarks_on
from natscope.app.cli.progress import Bars, abandon, say
from natscope.app.cli.texts import cuts
from natscope.app.cli.trust import allow_code
from natscope.app.cli.values import COUNT, PATH, SEED, WHOLE
from natscope.app.listen import listening
from natscope.core.errors import BundleError, NatscopeError, explained
from natscope.core.scratch import sweep


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="natscope")
def natscope() -> None:
    """Which training examples does a prediction owe its certainty to, and how much, in nats?"""


@natscope.command()
@listens
@workers
@allow_code
@on_device
def demo(no_browser: bool, jobs: int | None, memory: float | None, **listen: Any) -> None:
    """Build the first embedded bundle, then serve it; the poisoned one and slow methods follow while it is served."""
    from natscope.app.serve import serve
    from natscope.core.bundle.format import Bundle, find_bundles
    from natscope.precompute.bundles.background import start, unfinished
    from natscope.precompute.bundles.demo import FIRST, build_embedded
    from natscope.precompute.paths import home

    at = listening(**listen)
    folder = home() / "bundles"
    out = folder / FIRST
    if not out.exists():
        say(f"Building the embedded bundle, once, about a minute, in {out}")
    try:
        with Bars() as bars:
            build_embedded(FIRST, out, bars, tell=bars.tell)
    except NatscopeError as error:
        if not (out.exists() and find_bundles(folder)):
            raise
        say(f"natscope: {error}", err=True)  # the others are served, and the page reports the same about this one
    for path in find_bundles(folder):
        try:
            Bundle(path)
        except BundleError as error:
            if path != out:
                say(f"natscope: {error}", err=True)
    if unfinished(folder):
        start(folder)
    serve(folder, at, browser=not no_browser, jobs=jobs, memory=memory)


@natscope.command()
@click.option("--bundles", type=PATH, required=True, help="A bundle, or a folder of bundles.")
@listens
@workers
@allow_code
@on_device
def app(bundles: Path, no_browser: bool, jobs: int | None, memory: float | None, **listen: Any) -> None:
    """Serve bundles that exist."""
    from natscope.app.serve import serve
    from natscope.core.bundle.format import find_bundles

    at = listening(**listen)
    if not bundles.is_dir() or not find_bundles(bundles):
        raise BundleError(f"There is no bundle in {bundles}; `natscope demo` or `natscope precompute` makes one.")
    serve(bundles, at, browser=not no_browser, jobs=jobs, memory=memory)


@natscope.command()
@click.option("--out", type=PATH, help="Folder of the bundle to make.")
@click.option(
    "--check", is_flag=True, help="Try it on a few examples: will it work, what will it cost? Builds nothing."
)
@click.option(
    "--dataset",
    default="fashion-mnist-quarter",
    show_default=True,
    help="fashion-mnist-quarter, fashion-mnist, cifar10, or folder:PATH with PATH/train/CLASS/* and PATH/test/CLASS/*, "
    "or PATH/CLASS/*; of texts austen, rte, or text:PATH with a table (.tsv, .csv, .jsonl, .parquet) or such a folder. "
    "A URL that fsspec knows can stand for PATH.",
)
@click.option(
    "--data",
    metavar="MODULE:FUNCTION",
    help="Instead of --dataset: a function of yours that returns (train_set, test_set), as natscope.build takes them, "
    "or (train_set, test_set, classes).",
)
@click.option(
    "--image-size",
    type=COUNT,
    default=32,
    show_default=True,
    help="Side in pixels to which images of a folder are scaled.",
)
@click.option(
    "--test-share",
    type=float,
    default=0.2,
    show_default=True,
    help="Share of images for testing, for a folder without train and test.",
)
@reads
@cuts
@click.option("--classes", help="Keep only these classes, by number, such as 0,1; all by default.")
@click.option("--per-class", type=COUNT, help="Keep the first N training examples of each class; all by default.")
@click.option(
    "--mean", help="Mean of each channel that the network expects, white being 1; the images' own by default."
)
@click.option("--std", help="Standard deviation of each channel that it expects, such as 0.5,0.5,0.5.")
@click.option("--poison-rate", type=float, help="Teach the network a backdoor: share of training examples to poison.")
@click.option(
    "--poison-size",
    type=COUNT,
    help="Side of the patch in pixels, by default 3; in texts the number of words, by default 1.",
)
@click.option(
    "--poison-place", help="Corner of the patch, by default bottom-right; in texts start (by default) or end."
)
@click.option(
    "--poison-targets",
    help="Label that stamped examples of each class get, separated by commas; the next class by default.",
)
@click.option(
    "--poison-seed", type=SEED, default=0, show_default=True, help="Seed of the triggers and of the examples chosen."
)
@click.option(
    "--model",
    help="mlp, resnet9, for texts attention or hf:PATH, a folder with a network of Hugging Face's transformers; or "
    "module.path:factory, a function or class of yours that returns a network; mlp for images, attention for texts.",
)
@click.option(
    "--widths", help="Layer widths of the MLP, from pixels to classes; by default 512 and 256 units between the two."
)
@click.option("--bias", is_flag=True, help="Give the layers of the MLP biases.")
@click.option(
    "--output",
    help="Which part of what your network returns are the logits: an entry or attribute, such as logits, or an item of "
    "a tuple, such as 0; what is unambiguous by default.",
)
@click.option(
    "--weights", type=PATH, help="Load trained weights (.safetensors, or .pt of a state dict); nothing is trained."
)
@click.option(
    "--key",
    help="Entry of --weights that holds the state dict, such as ema or state.model; by default "
    "one of a usual name, such as state_dict.",
)
@click.option(
    "--prefix", help="Load the entries of --weights whose names begin with this, such as backbone., without it."
)
@click.option(
    "--optimizer", type=click.Choice(["sgd", "adamw"]), help="Optimizer; by default sgd (attention, hf: adamw)."
)
@click.option("--epochs", type=COUNT, help="Passes over the data; by default 20 (resnet9: 24; attention, hf: 3).")
@click.option("--batch-size", type=COUNT, help="Examples per step; by default 64 (resnet9: 512; hf: 32).")
@click.option(
    "--learning-rate",
    "--lr",
    type=float,
    help="Learning rate; by default 0.03 (resnet9: 0.5; attention: 0.004; hf: 2e-05).",
)
@click.option(
    "--warmup-epochs",
    type=WHOLE,
    help="Epochs over which the rate rises from 0; by default 0 (resnet9: 5; attention, hf: 1).",
)
@click.option(
    "--decay-epochs",
    type=WHOLE,
    help="Epochs at the end over which it falls to 0, of hf all; by default 1 (resnet9: 19; attention: 2; hf: 3).",
)
@click.option("--momentum", type=float, help="Momentum of SGD, or AdamW's of the gradient; by default 0.9.")
@click.option(
    "--weight-decay", type=float, help="Weight decay; by default 0.001 (resnet9: 0.0005; attention: 0.3; hf: 0.01)."
)
@click.option(
    "--augment/--no-augment", default=None, help="Move and mirror images at random; by default off (resnet9: on)."
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Precision of the training; by default float32 (resnet9: bfloat16).",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Seed of the initial weights and of the order of training.",
)
@click.option(
    "--sketch",
    help="countsketch (default), countsketch_rows (default for transformers), tensorsketch, dense or exact.",
)
@click.option("--dim", type=COUNT, default=4096, show_default=True, help="Dimensions K of the sketch.")
@click.option(
    "--index",
    default="auto",
    show_default=True,
    help="How methods that search find examples of a class: flat or sq8 (exact; sq8 takes a quarter of the space), "
    "ivf, ivfsq8, ivfpq, ivfrabitq or hnsw (faster in large classes), or milvus, a server that NATSCOPE_MILVUS_URI "
    "names; auto: sq8 up to 10,000 examples a class, ivfsq8 above.",
)
@click.option(
    "--milvus-index",
    default="ivf_sq8",
    show_default=True,
    help="Index that a Milvus server builds: ivf_sq8, ivf_flat, hnsw, diskann or ivf_rabitq, if it has it.",
)
@click.option("--sketch-seed", type=SEED, default=0, show_default=True)
@click.option(
    "--ntk",
    type=click.Choice(["auto", "on", "off"]),
    is_flag=False,
    flag_value="on",
    default="auto",
    show_default=True,
    help="Scale the Jacobians of weights as in the NTK parameterisation; auto: where all are weights.",
)
@click.option("--no-ntk", "ntk", flag_value="off", hidden=True)
@click.option(
    "--layers", help='Parameters that the kernel is made of, as glob patterns of their names: "head.*,*.weight"; all.'
)
@click.option(
    "--outputs",
    type=click.Choice(["own", "all"]),
    default="own",
    show_default=True,
    help="Features under each example's own label, or under every class.",
)
@click.option(
    "--methods",
    help="Methods that the bundle should serve, separated by commas, or all; by default those quick to prepare. "
    "More can be added later: run the same command again.",
)
@click.option("--name", help="A title for people.")
@click.option(
    "--reuse",
    type=PATH,
    help="A bundle of the same --weights and kernel, whose Jacobians are taken where a batch has the same examples and "
    "labels.",
)
@click.option(
    "--config",
    type=PATH,
    help="Take the settings of this bundle (its folder or manifest.json) or of the bundle behind this result (its JSON "
    "file); options given beside it win.",
)
@on_engine
@on_device
@click.pass_context
def precompute(
    context: click.Context,
    out: Path | None,
    name: str | None,
    config: Path | None,
    reuse: Path | None,
    *,
    engine: Any,
    check: bool,
    **options: Any,
) -> None:
    """Build a bundle; after an interruption the same command resumes."""
    spec, bars = None, Bars()
    if config is not None:
        from natscope.app.cli.config import replayed, tell

        typed = options | {"name": name}
        given = {o for o in typed if context.get_parameter_source(o) is not ParameterSource.DEFAULT}
        found, stored = replayed(config, precompute, typed, given)
        name, options = found["name"], {option: found[option] for option in options}
        with bars:
            spec = build_spec(name, options, precompute.params, bars)
        tell(config, stored, spec.settings(like=stored))
    elif options["data"] is not None and context.get_parameter_source("dataset") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--data and --dataset name two data sets; give one of them.")
    if check:
        print_check(name, options, precompute.params, out, bars, spec, reuse=reuse, engine=engine)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    from natscope.precompute.bundles.build import build

    existed = out.exists()
    with bars:
        spec = spec or build_spec(name, options, precompute.params, bars)
        bundle = build(spec, out, bars, reuse=reuse, engine=engine, tell=bars.tell)
    results = bundle.manifest.results
    say(
        f"{'Already there' if existed else 'Built'}: {out} (test accuracy {results['test_accuracy']:.1%}). Look at it "
        f"with `natscope app --bundles {out}`."
    )
    for line in notes(results, remarks_on(spec, bundle)):
        say(line)


@natscope.command()
@click.option("--bundle", type=PATH, required=True, help="The bundle.")
@on_device
def verify(bundle: Path) -> None:
    """Look for every fault that opening or using a bundle would reveal; print each and exit with 1 or 2."""
    from natscope.core.bundle.format import Bundle
    from natscope.precompute.bundles.opening import faults

    untried: list[str] = []
    with Bars(unit="B") as bars:
        found = faults(bundle, lambda done, total: bars("Reading", done, total), untried.append)
    for fault in found:
        say(fault, err=True)
    if found:
        sys.exit(1)
    say(f"{bundle} is whole: {len(Bundle(bundle).manifest.files)} files, every checksum right.")
    for sentence in untried:
        say(f"Its network was not tried. {sentence}")


natscope.add_command(attribute)
natscope.add_command(evaluate)
natscope.add_command(tune)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; every error a user can fix is one sentence on stderr and exit code 2."""
    # Threads that spin while they wait slow each other down tenfold as soon as anything else runs here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # No child process may look for modules in the working directory, which may be a stranger's.
    os.environ["PYTHONSAFEPATH"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a terminal whose encoding has no σ
    try:
        sweep()
        with _ended_as_interrupted():
            code = natscope.main(args=arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        for line in error.format_message().splitlines():
            say(line)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        try:
            say("natscope: stopped; what was built so far is kept.", err=True)
        except OSError:  # of a terminal that was closed
            abandon(sys.stdout, sys.stderr)
        code = 130
    except BaseException as error:
        if (reported := _reported(error)) is None:
            raise  # an exit, or a bug in natscope: the traceback helps to fix it
        say(f"natscope: {reported}", err=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Let a terminal that is closed, or a request to end, stop a command as Ctrl-C does, worker processes and all."""

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a closed terminal may say so twice
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()  # no other may do this
    names = [name for name in ("SIGHUP", "SIGTERM") if main_thread and hasattr(signal, name)]
    ends = [number for name in names if signal.getsignal(number := getattr(signal, name)) is signal.SIG_DFL]
    for number in ends:  # not what nohup had ignored
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ends:
            if signal.getsignal(number) is interrupt:
                signal.signal(number, signal.SIG_DFL)


def _reported(error: BaseException) -> str | None:
    """Return the sentence that tells a user about an error; None if it is not one that a user can fix."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, NatscopeError):
        return str(error)
    if (known := explained(error)) is not None:
        return known
    from natscope.precompute.training.projects import complaint

    return complaint(error)


if __name__ == "__main__":
    main()
