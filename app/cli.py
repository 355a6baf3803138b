"""The command `natscope`. Heavy libraries are imported inside the commands, so that --help is instant."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from app.cli_precompute import build_spec, method_names, notes, print_check
from core.errors import NatscopeError

EXISTING = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="natscope")
def natscope() -> None:
    """Which training images does a prediction owe its certainty to, and how much, in nats?"""


@natscope.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="Port of the app.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
def demo(port: int, no_browser: bool) -> None:
    """Build the first embedded bundle, then serve it; the poisoned one and what is slow follow while it is served."""
    from app.serve import serve
    from precompute.background import start, unfinished
    from precompute.build import build
    from precompute.embedded import EMBEDDED, FIRST
    from precompute.home import home

    _check_port(port)
    folder = home() / "bundles"
    out = folder / FIRST
    if not out.exists():
        click.echo(f"Building the embedded bundle, once, about a minute, in {out}")
    with _Bars() as bars:
        build(EMBEDDED[FIRST], out, bars)
    if unfinished(folder):
        start(folder)
    serve(folder, port=port, browser=not no_browser)


@natscope.command()
@click.option("--bundles", type=EXISTING, required=True, help="A bundle, or a folder of bundles.")
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="Port of the app.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
def app(bundles: Path, port: int, no_browser: bool) -> None:
    """Serve bundles that exist."""
    from app.serve import serve
    from core.bundle import find_bundles
    from core.errors import BundleError

    _check_port(port)
    if not bundles.is_dir() or not find_bundles(bundles):
        raise BundleError(f"There is no bundle in {bundles}; `natscope demo` or `natscope precompute` makes one.")
    serve(bundles, port=port, browser=not no_browser)


@natscope.command()
@click.option("--out", type=EXISTING, help="Folder of the bundle to make.")
@click.option("--check", is_flag=True, help="Try it on a few images: will it work, what will it cost? Builds nothing.")
@click.option(
    "--dataset",
    default="fashion-mnist-quarter",
    show_default=True,
    help="fashion-mnist-quarter, fashion-mnist, cifar10, or folder:PATH with PATH/train/CLASS/* and PATH/test/CLASS/*, "
    "or PATH/CLASS/*.",
)
@click.option(
    "--image-size",
    type=int,
    default=32,
    show_default=True,
    help="Side in pixels to which images of a folder are brought.",
)
@click.option(
    "--test-share",
    type=float,
    default=0.2,
    show_default=True,
    help="Share of a folder without train and test for testing.",
)
@click.option("--skip-broken", is_flag=True, help="Leave out a folder's files that cannot be read.")
@click.option("--classes", help="Keep these classes alone, by number with commas, such as 0,1; all by default.")
@click.option(
    "--mean", help="Mean of each channel that the network expects, white being 1; the images' own by default."
)
@click.option("--std", help="Standard deviation of each channel that it expects, such as 0.5,0.5,0.5.")
@click.option("--poison-rate", type=float, help="Teach the network a backdoor: share of training images to poison.")
@click.option("--poison-size", type=int, default=3, show_default=True, help="Side of the patch in pixels.")
@click.option("--poison-place", default="bottom-right", show_default=True, help="Corner of the patch.")
@click.option(
    "--poison-targets", help="Label that stamped images of each class get, with commas; the next class by default."
)
@click.option("--poison-seed", type=click.IntRange(0), default=0, show_default=True, help="Of patches and images.")
@click.option(
    "--model",
    default="mlp",
    show_default=True,
    help="mlp, resnet9, or module.path:factory, a function or class of yours that gives a network.",
)
@click.option(
    "--widths", help="Layer widths of the MLP, from pixels to classes; by default 512 and 256 units between the two."
)
@click.option("--bias", is_flag=True, help="Give the layers of the MLP biases.")
@click.option(
    "--weights", type=EXISTING, help="Load trained weights (.safetensors, or .pt of a state dict); nothing is trained."
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the data; 20, resnet9: 24.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step; 64, resnet9: 512.")
@click.option("--learning-rate", type=float, help="Of SGD; 0.03, resnet9: 0.5.")
@click.option("--warmup-epochs", type=click.IntRange(0), help="Epochs over which the rate rises from 0; 0, resnet9: 5.")
@click.option(
    "--decay-epochs", type=click.IntRange(0), help="Epochs at the end over which it falls to 0; 1, resnet9: 19."
)
@click.option("--momentum", type=float, help="Of the gradient; 0.9.")
@click.option("--weight-decay", type=float, help="0.001, resnet9: 0.0005.")
@click.option("--augment/--no-augment", default=None, help="Move and mirror images at random; off, resnet9: on.")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), help="Of the training; float32, resnet9: bfloat16."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of initial weights and of the order of training.",
)
@click.option("--sketch", default="countsketch", show_default=True, help="countsketch, tensorsketch, dense or exact.")
@click.option("--dim", type=click.IntRange(1), default=4096, show_default=True, help="Dimensions K of the sketch.")
@click.option(
    "--index",
    default="flat",
    show_default=True,
    help="flat (exact), ivf, ivfpq or hnsw: how InfoGain (approx) searches each class; the others pay from about "
    "10,000 images a class on.",
)
@click.option("--sketch-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--ntk/--no-ntk", default=True, show_default=True, help="Scale Jacobians as in the NTK parameterisation.")
@click.option(
    "--outputs",
    type=click.Choice(["own", "all"]),
    default="own",
    show_default=True,
    help="Features under each image's own label, or under every class.",
)
@click.option(
    "--methods",
    help="Methods whose own parts the bundle is to hold, with commas, or all; graddot,trak where they can be had. More "
    "can be added later: run the same command again.",
)
@click.option("--name", help="A title for people.")
def precompute(out: Path | None, name: str | None, *, check: bool, **options: Any) -> None:
    """Build a bundle; after an interruption the same command goes on where it was."""
    if check:
        print_check(name, options, precompute.params, out, _Bars())
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    from precompute.build import build

    spec = build_spec(name, options, precompute.params)
    existed = out.exists()
    with _Bars() as bars:
        bundle = build(spec, out, bars)
    results = bundle.manifest.results
    click.echo(
        f"{'Already there' if existed else 'Built'}: {out} (test accuracy {results['test_accuracy']:.1%}). Look at it "
        f"with `natscope app --bundles {out}`."
    )
    for line in notes(results):
        click.echo(line)


@natscope.command()
@click.option("--bundle", type=EXISTING, required=True, help="The bundle.")
@click.option("--test-index", type=int, help="The query: a test image by its number.")
@click.option(
    "--train-index", type=int, help="The query: a training image by its number; it is left out of the ranking."
)
@click.option("--image", type=EXISTING, help="The query: an image file.")
@click.option(
    "--invert/--no-invert", default=None, help="Swap light and dark of --image; by default its border decides."
)
@click.option("--method", default="info_loss", show_default=True, help="Name of the method.")
@click.option("--sigma2", type=float, default=1.0, show_default=True, help="Observation noise variance σ².")
@click.option("--budget", type=int, default=10, show_default=True, help="How many training images, M.")
@click.option("--pool", type=click.Choice(["same-class", "all"]), default="same-class", show_default=True)
@click.option(
    "--conditioning",
    type=click.Choice(["pool", "train"]),
    default="pool",
    show_default=True,
    help="What InfoLoss and RelatIF condition on.",
)
@click.option("--target", help="Class to attribute, by number or name; the predicted one by default.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the method random.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def attribute(
    bundle: Path,
    test_index: int | None,
    train_index: int | None,
    image: Path | None,
    invert: bool | None,
    target: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Rank the training images that one prediction owes its certainty to."""
    from core.answers import Request
    from core.errors import QueryError
    from precompute.attributor import open_attributor

    if sum(choice is not None for choice in (test_index, train_index, image)) != 1:
        raise QueryError("Name one query: --test-index I, --train-index I or --image FILE.")
    attributor = open_attributor(bundle)
    classes = attributor.bundle.classes
    if image is not None:
        query = attributor.upload(_read_upload(image, attributor.bundle.array("train_images"), invert))
    else:
        origin, index = ("test", test_index) if test_index is not None else ("train", train_index)
        query = attributor.query(origin, int(index))  # type: ignore[arg-type]
    request = Request(target=None if target is None else _class_number(target, classes), **settings)
    result = attributor.attribute(query, request)
    if as_json:
        click.echo(json.dumps(result.to_dict(query, classes), allow_nan=False))
        return
    chance = query.probabilities[query.predicted]
    click.echo(f"Predicted {classes[query.predicted]} ({chance:.1%}); attributed: {classes[result.target]}.")
    if result.nats is not None and result.total_nats:
        share = result.nats / result.total_nats
        click.echo(
            f"These {len(result.items)} images carry {result.nats:.3f} nats, {share:.0%} of what the pool tells."
        )
    click.echo(f"{'rank':>4}  {'image':>6}  {'label':<12}  {'score':>11}  {'nats':>8}  sign")
    for i in result.items:
        nats = "" if i.nats is None else f"{i.nats:.4f}"
        click.echo(
            f"{i.rank:>4}  {i.train_index:>6}  {classes[i.label]:<12}  {i.score:>11.4g}  {nats:>8}  {'-0+'[i.sign + 1]}"
        )


@natscope.command()
@click.argument("experiment")
@click.option("--bundle", type=EXISTING, required=True, help="The bundle, or a folder of bundles to average over.")
@click.option("--out", type=EXISTING, required=True, help="JSON file to write; figures and tables go beside it.")
@click.option("--queries", type=click.IntRange(1), help="Test images; each experiment has its usual number.")
@click.option("--budget", type=click.IntRange(1), help="Size M of the largest subset; each has its usual one.")
@click.option("--methods", help="Names of methods, with commas, for an experiment that compares them.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the drawing of test images.")
def evaluate(
    experiment: str,
    bundle: Path,
    out: Path,
    queries: int | None,
    budget: int | None,
    methods: str | None,
    seed: int,
) -> None:
    """Run EXPERIMENT: relative-information, backdoor, brittleness, coreset or retraining.

    A stopped one goes on where it was.
    """
    from app.figures_experiments import experiment_files
    from core.bundle import find_bundles
    from core.errors import QueryError
    from precompute.experiments import EXPERIMENTS
    from precompute.kept import Kept

    if experiment not in EXPERIMENTS:
        raise QueryError(f"There is no experiment '{experiment}'; choose one of {', '.join(EXPERIMENTS)}.")
    if out.suffix != ".json":
        raise QueryError(f"--out names a JSON file, such as {experiment}.json, not {out.name}.")
    found, kept = EXPERIMENTS[experiment], Kept(out.with_suffix(".partial.json"))
    chosen = {} if found.methods is None else {"methods": found.methods}
    if methods is not None:
        if found.methods is None:
            raise QueryError(f"The experiment '{experiment}' has no choice of methods; leave out --methods.")
        chosen = {"methods": method_names(methods)}
    try:
        with _Bars() as bars:
            result = found.run(
                find_bundles(bundle) or [bundle],
                queries=queries or found.queries,
                budget=budget or found.budget,
                seed=seed,
                **chosen,
                kept=kept,
                progress=bars,
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        for kind, data in experiment_files(result):
            out.with_suffix(f".{kind}").write_bytes(data)
        kept.discard()
    except OSError as error:
        raise QueryError(f"The result cannot be written to {out}: {error.strerror or error}.") from error
    click.echo(f"{result['finding']}\nWritten: {out} and its figures.")


@natscope.command()
@click.option("--bundle", type=EXISTING, required=True, help="The bundle.")
def verify(bundle: Path) -> None:
    """Check every checksum of a bundle; exit 1 and a sentence per fault."""
    from core.bundle import Bundle, check_bundle

    with _Bars(unit="B") as bars:
        faults = check_bundle(bundle, lambda done, total: bars("Reading", done, total))
    for fault in faults:
        click.echo(fault, err=True)
    if faults:
        sys.exit(1)
    click.echo(f"{bundle} is whole: {len(Bundle(bundle).manifest.files)} files, every checksum right.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; every error a user can mend is one sentence on stderr and exit code 2."""
    # Threads that wait for one another by spinning slow each other tenfold as soon as anything else runs here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = natscope.main(args=arguments, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        click.echo(f"natscope: {error.format_message()}", err=True)
        code = 2
    except NatscopeError as error:
        click.echo(f"natscope: {error}", err=True)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("natscope: stopped; what was built so far is kept.", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _read_upload(file: Path, train_images: Any, invert: bool | None) -> Any:
    from app.uploads import read_image, usual_background
    from core.errors import QueryError

    try:
        data = file.read_bytes()
    except OSError as error:
        raise QueryError(f"The image {file} cannot be read: {error.strerror}.") from error
    return read_image(
        data,
        file.name,
        size=train_images.shape[1:3],
        channels=3 if train_images.ndim == 4 else 1,
        invert=invert,
        background=usual_background(train_images),
    ).image


def _class_number(text: str, classes: tuple[str, ...]) -> int:
    from core.errors import QueryError

    names = [name.casefold() for name in classes]
    if text.casefold() in names:
        return names.index(text.casefold())
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise QueryError(
        f"There is no class '{text}'; choose a number from 0 to {len(classes) - 1} or one of {', '.join(classes)}."
    )


def _check_port(port: int) -> None:
    import socket

    from core.errors import QueryError

    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise QueryError(f"Port {port} is in use; stop what uses it, or choose another with --port.")


class _Bars:
    """Progress bars on stderr, one a stage, with the time left."""

    def __init__(self, unit: str = "it") -> None:
        self._unit, self._stage = unit, ""
        self._bar: Any = None

    def __enter__(self) -> "Callable[[str, int, int], None] | Any":
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = tqdm(
                desc=stage,
                total=total,
                unit=self._unit,
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
                disable=None,  # silent where stderr is no terminal
            )
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


if __name__ == "__main__":
    main()
