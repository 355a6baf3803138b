"""From the options of `natscope precompute` to the settings of a bundle, and back to a command that builds it."""

import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from natscope.app.cli.engine import flags_of
from natscope.app.cli.progress import say
from natscope.app.cli.texts import are_texts, text_spec

_WIDTH = 110
_LISTED = 10  # of the files that were skipped


def build_spec(
    name: str | None, options: dict[str, Any], parameters: Sequence[click.Parameter], progress: Any = None
) -> Any:
    """Return the `BuildSpec` that the options of `natscope precompute` describe.

    Args:
        name: a title for people, or None.
        options: values by parameter name.
        parameters: the command's parameters, to write it down again.
        progress: called while the data of --data are read, or those of a URL fetched; nothing is told when None.

    Raises:
        BuildError: for an option that cannot be read.
        DataError: if a URL cannot be fetched.
    """
    from natscope.core.bundle.bounds import LONGEST
    from natscope.core.errors import BuildError
    from natscope.core.index.spec import CHOICES, MILVUS, MILVUS_TYPES, IndexSpec
    from natscope.core.progress import silent
    from natscope.core.sketches import FOR_TRANSFORMERS, SKETCHES, SketchSpec
    from natscope.precompute.bundles.spec import BuildSpec
    from natscope.precompute.data.decode import Decoding
    from natscope.precompute.data.folders import FolderSpec
    from natscope.precompute.data.named import made_by
    from natscope.precompute.data.remote import displayed
    from natscope.precompute.training.models import ModelSpec
    from natscope.precompute.training.train import RECIPES, TrainingSpec
    from natscope.precompute.training.trusted import trust

    if options["sketch"] not in (None, *SKETCHES):
        raise BuildError(f"There is no sketch '{options['sketch']}'; choose one of {', '.join(SKETCHES)}.")
    if options["index"] not in CHOICES:
        raise BuildError(f"There is no index '{options['index']}'; choose one of {', '.join(CHOICES)}.")
    if (kind := options["milvus_index"]) not in MILVUS_TYPES:
        raise BuildError(f"There is no index '{kind}' of Milvus; choose one of {', '.join(MILVUS_TYPES)}.")
    if kind != IndexSpec(MILVUS).milvus and options["index"] != MILVUS:
        raise BuildError("--milvus-index is for --index milvus; leave it out.")
    if options["weights"] is None and (options["key"] or options["prefix"]):
        raise BuildError("--key and --prefix choose a part of the file that --weights names; give that, too.")
    _check_code(options)
    hub = _hub(options)
    model = _model_spec(options) if hub is None else ModelSpec.of(hub, trained=options["weights"] is not None)
    usual = RECIPES.get(model.architecture, TrainingSpec())
    usual = usual if options["epochs"] is None else usual.lasting(options["epochs"])
    recipe = {f.name: options[f.name] for f in fields(TrainingSpec) if options[f.name] is not None}
    title = name or (
        f"{options['data'] or displayed(options['dataset'])}, {model.title}, seed {options['seed']}"
        f"{'' if options['poison_rate'] is None else ', poisoned'}"
    )
    scaling, code = _scaling(options["mean"], options["std"]), {k: options[k] or "" for k in ("load", "transform")}
    mean, std = scaling or (None, None)
    data = None
    if options["data"] is not None:
        data = made_by(options["data"], mean=mean, std=std, **code, progress=progress or silent)
    for option, own in code.items():
        if own:  # whoever types it trusts it
            trust(own, f"--{option} ({option}= in Python)")
    return BuildSpec(
        name=title if name else "".join(c for c in title if c.isprintable())[:LONGEST],
        dataset=options["data"] or options["dataset"],
        data=data,
        made_by=options["data"] or "",
        folder=FolderSpec(
            **{f.name: (options | code)[f.name] for f in fields(FolderSpec) if f.name != "reading"},
            reading=Decoding(**{f.name: options[f.name] for f in fields(Decoding)}),
        ),
        text=text_spec(options if hub is None else options | {"tokenizer": hub.tokenizer}),
        classes=None if options["classes"] is None else _numbers("--classes", options["classes"], "0,1"),
        per_class=options["per_class"],
        scaling=scaling,
        poison=_poison_spec(options),
        model=model,
        training=replace(usual, **recipe),
        sketch=SketchSpec(
            options["sketch"] or (SketchSpec.kind if hub is None else FOR_TRANSFORMERS),
            options["dim"],
            options["sketch_seed"],
        ),
        index=IndexSpec(options["index"], milvus=options["milvus_index"]),
        ntk={"auto": None, "on": True, "off": False}[options["ntk"]],
        layers=() if options["layers"] is None else tuple(filter(None, map(str.strip, options["layers"].split(",")))),
        outputs=options["outputs"],
        weights=options["weights"],
        weights_key=options["key"],
        weights_prefix=options["prefix"] or "",
        methods=None if options["methods"] is None else method_names(options["methods"]),
        command=_command(options | {"name": name, "methods": None}, parameters),
    ).here(progress or silent)


def _check_code(options: dict[str, Any]) -> None:
    """Refuse options about a user's own functions, or about files, that contradict others or change nothing."""
    from natscope.core.errors import BuildError
    from natscope.precompute.data.datasets import FOLDER
    from natscope.precompute.data.decode import USUAL
    from natscope.precompute.data.folders import FolderSpec

    own = [f"--{name}" for name in ("transform", "load") if options[name] is not None]
    if are_texts(options):
        _check_texts(options)
        return
    if own and options["data"] is None and not options["dataset"].startswith(FOLDER):
        raise BuildError(f"{own[0]} reads files; name a folder by --dataset folder:PATH, or your own data by --data.")
    if options["data"] is not None or not options["dataset"].startswith(FOLDER):
        usual = {f.name: getattr(source, f.name) for source in (FolderSpec(), USUAL) for f in fields(source)}
        for name, value in usual.items():
            if name not in ("load", "transform", "reading") and options[name] != value:
                option = f"--{name.replace('_', '-')}"
                raise BuildError(f"{option} is for a folder of images, --dataset folder:PATH; leave it out.")
    needless = {"image_size": FolderSpec().image_size, "fit": USUAL.fit, "channels": USUAL.channels}
    if own and any(options[name] != value for name, value in needless.items()):
        raise BuildError(
            f"{own[0]} gives what the network takes, of its size; leave out --image-size, --fit and --channels."
        )


def _check_texts(options: dict[str, Any]) -> None:
    """Refuse options about pictures for a data set of texts."""
    from natscope.core.errors import BuildError
    from natscope.precompute.data.decode import USUAL
    from natscope.precompute.data.folders import FolderSpec

    usual = {f.name: getattr(source, f.name) for source in (FolderSpec(), USUAL) for f in fields(source)}
    usual |= dict.fromkeys(("load", "transform", "mean", "std"))
    for name, value in usual.items():
        if name not in ("test_share", "skip_broken", "reading") and options[name] != value:
            raise BuildError(f"--{name.replace('_', '-')} is for images; leave it out.")


def print_check(
    name: str | None,
    options: dict[str, Any],
    parameters: Sequence[click.Parameter],
    out: Path | None,
    bars: Any,
    spec: Any = None,
    *,
    reuse: Path | None = None,
    engine: Any = None,
) -> None:
    """Print whether a build will work and what it will cost; exit with 2 if it will not work.

    Args:
        name: a title for people, or None.
        options: values by parameter name.
        parameters: the command's parameters.
        out: the folder to publish, if it is known.
        bars: shows progress.
        spec: the `BuildSpec` that they describe, if it is there already.
        reuse: the bundle whose Jacobians are to be taken, if any.
        engine: where passes over the examples are to run.
    """
    from natscope.core.errors import NatscopeError
    from natscope.precompute.bundles.check import check

    try:
        with bars:
            spec = spec or build_spec(name, options, parameters, bars)
            for title, text in check(spec, out, bars, reuse=reuse, engine=engine):
                for line in _paragraph(title, text):
                    say(line)
    except NatscopeError as error:
        say(f"Will not work: {error}", err=True)
        sys.exit(2)
    command = _command(options | {"name": name}, parameters)
    taken = flags_of(engine) + ("" if reuse is None else f" --reuse {shlex.quote(str(reuse))}")
    say(f"Ready: {command}{taken} --out {shlex.quote(str(out)) if out else 'FOLDER'}")


def remarks_on(spec: Any, bundle: Any) -> list[str]:
    """Return what a person should know of the folder that a bundle was built from, in sentences."""
    from natscope.precompute.data.remarks import remarks

    if spec.path is None:
        return []
    return remarks(spec.path, spec.folder, train=bundle.sources("train"), test=bundle.sources("test"))


def notes(results: Mapping[str, Any], remarks: Sequence[str] = ()) -> Iterator[str]:
    """Yield lines on a build beyond its accuracy: layers by torch.func, skipped files, remarks on a folder."""
    from natscope.core.parameters import composition, imbalance

    shares = results["kernel"]["shares"]
    yield from _paragraph("Kernel", f"{composition(shares)}; mean k(x, x) {results['kernel']['mean']:.3g}")
    if (warning := imbalance(shares, results["kernel"].get("whole"))) is not None:
        yield from _paragraph("", warning)
    if layers := results.get("by_torch_func"):
        yield from _paragraph("Layers", f"by torch.func, exact and slower: {', '.join(layers)}")
    if reused := results.get("reused"):
        some = (
            f"the Jacobians of {reused['rows']:,} training examples" if reused["rows"] else "none: every batch differs"
        )
        yield from _paragraph("Reused", some)
    for remark in results.get("remarks", []):
        yield from _paragraph("Network", remark)
    for sentence in results.get("left_out", {}).values():
        yield from _paragraph("Left out", sentence)
    if skipped := results.get("skipped"):
        yield from _paragraph(
            "Skipped", f"{len(skipped):,} files that cannot be read; the bundle's manifest.json names all"
        )
        yield from (f"{' ' * 11}{file}" for file in skipped[:_LISTED])
    for remark in remarks:
        yield from _paragraph("Folder", remark)


def _paragraph(title: str, text: str) -> list[str]:
    return textwrap.wrap(f"{title:<10} {text}", _WIDTH, subsequent_indent=" " * 11, break_on_hyphens=False)


def _model_spec(options: dict[str, Any]) -> Any:
    from natscope.core.errors import BuildError
    from natscope.precompute.training.models import ModelSpec

    about = {"bias": options["bias"], "output": options["output"]}
    model = options["model"] or ("attention" if are_texts(options) else "mlp")
    if options["bias"] and model != "mlp":
        raise BuildError(f"--bias is for --model mlp, not for {model}; leave it out.")
    if options["widths"] is not None:
        return ModelSpec(model, _numbers("--widths", options["widths"], "784,512,256,10"), **about)
    given = options["data"] is None and options["dataset"].startswith("fashion-mnist")
    whole = given and options["classes"] is None
    if model == "mlp" and whole:
        return ModelSpec(**about)  # as in the embedded bundle
    return ModelSpec(model, None, **about)


def _hub(options: Mapping[str, Any]) -> Any:
    """Return the network of `transformers` that --model names; None if it names another kind."""
    from natscope.core.errors import BuildError
    from natscope.precompute.training.pretrained import HUB, found

    name = options["model"] or ""
    if not name.startswith(HUB):
        return None
    if not are_texts(options):
        raise BuildError(f"--model {HUB} is for texts, --dataset text:PATH; choose another network.")
    for option in ("widths", "bias", "output"):
        if options[option]:
            raise BuildError(f"--{option} is for networks of another kind than --model {HUB}; leave it out.")
    hub = found(name.removeprefix(HUB))
    if options["tokenizer"] is not None and not options["tokenizer"].samefile(hub.tokenizer):
        raise BuildError(f"--model {name} comes with its own tokenizer; leave out --tokenizer.")
    return hub


def _scaling(mean: str | None, std: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    from natscope.core.errors import BuildError

    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise BuildError("--mean and --std go together: give both, or neither.")
    try:
        return tuple(map(float, mean.split(","))), tuple(map(float, std.split(",")))
    except ValueError as error:
        raise BuildError("--mean and --std take numbers separated by commas, such as 0.5,0.5,0.5.") from error


def _poison_spec(options: dict[str, Any]) -> Any:
    from natscope.core.texts import PLACES
    from natscope.precompute.data.poison import PoisonSpec

    if options["poison_rate"] is None:
        return None
    targets = options["poison_targets"]
    texts = are_texts(options)
    usual = PoisonSpec(size=1, place=PLACES[0]) if texts else PoisonSpec()
    return PoisonSpec(
        rate=options["poison_rate"],
        size=options["poison_size"] or usual.size,
        place=options["poison_place"] or usual.place,
        targets=None if targets is None else _numbers("--poison-targets", targets, "1,2,0"),
        seed=options["poison_seed"],
    )


def _numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    from natscope.core.errors import BuildError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BuildError(f"{option} takes whole numbers separated by commas, such as {example}, not {text}.") from error


def method_names(text: str) -> tuple[str, ...]:
    """Read names of methods separated by commas, or "all"; raises QueryError if there is no such method."""
    from natscope.core.errors import QueryError
    from natscope.core.methods import METHODS

    names = tuple(METHODS) if text.strip() == "all" else tuple(n.strip() for n in text.split(",") if n.strip())
    for name in names:
        if name not in METHODS:
            raise QueryError(f"There is no method '{name}'; choose from {', '.join(METHODS)}.")
    if not names:
        raise QueryError(f"Name at least one method of {', '.join(METHODS)}.")
    return tuple(dict.fromkeys(names))


def _command(options: dict[str, Any], parameters: Sequence[click.Parameter]) -> str:
    """Return the command that builds this bundle, naming only what differs from the defaults, and nothing secret."""
    from natscope.precompute.data.remote import displayed

    words = ["natscope", "precompute"]
    for parameter in parameters:
        value = options.get(parameter.name or "")
        if not isinstance(parameter, click.Option) or parameter.hidden or value is None:
            continue
        if parameter.is_flag:  # off by default, whatever click calls it; None leaves it to the recipe
            if value is not (parameter.default if parameter.default in (True, None) else False):
                words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        elif value != parameter.default:
            words += [parameter.opts[0], displayed(str(value))]
    return shlex.join(words)
