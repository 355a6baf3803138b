"""The settings of a bundle or of a result that exists, as options of `natscope precompute`; the file is not trusted."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from natscope.app.cli.progress import say

_SHOWN = 60  # characters of a value in a sentence
# What a file never decides: where to write, what to read beside it, what to trust; and what acts while it is parsed.
_TYPED_ALONE, _REFUSED = ("weights", "out", "config", "check"), ("--help", "-h", "--device", "--allow-code")
# What is somebody's code, and runs only if it is named beside the file.
_CODE = {
    "model": "The network",
    "data": "What gives the data",
    "transform": "What makes inputs",
    "load": "What reads files",
}


def replayed(
    file: Path, command: click.Command, options: dict[str, Any], given: set[str]
) -> tuple[dict[str, Any], Any]:
    """Return the options that build the bundle of a file again, and its settings, None if they are not known.

    Args:
        file: a bundle's folder, its manifest.json, or the JSON file of a result, whose first bundle is taken.
        command: `natscope precompute`, which reads the options as if they were typed.
        options: those that were typed, by parameter name.
        given: names of those that win over the file.

    Raises:
        BuildError: if the file holds no settings, settings that no option has, code that is not named beside it, or
            the settings of a bundle that was built from Python.
    """
    from natscope.core.errors import BuildError
    from natscope.precompute.bundles.compare import from_python
    from natscope.precompute.training.pretrained import HUB

    words, settings = _words_of(file)
    if settings is not None and from_python(settings):
        raise BuildError(
            f"{file} was built from Python, of data that no option names; build it again there, by natscope.build with "
            "the same network and data."
        )
    if refused := [word for word in words if word.partition("=")[0] in _REFUSED]:
        raise BuildError(f"{file} holds an option that only you can give: {refused[0].partition('=')[0]}.")
    try:
        with command.make_context("precompute", words) as context:
            found = dict(context.params)
    except click.ClickException as error:
        raise BuildError(f"{file} holds settings that cannot be used: {error.format_message()}") from error
    loaded = found.get("weights") is not None or bool(settings and settings.get("weights"))
    merged = found | {name: options[name] for name in (*given, *_TYPED_ALONE) if name in options}
    if "dataset" in given and "data" not in given:
        merged["data"] = None
    code = [option for option in _CODE if ":" in (merged[option] or "") and option not in given]
    if code:
        named = " ".join(f"--{option} {merged[option][:_SHOWN]}" for option in code)
        weights = ", and its weights by --weights" if loaded and merged["weights"] is None else ""
        what = "a folder, which is read" if (merged[code[0]] or "").startswith(HUB) else "code, which runs"
        raise BuildError(f"{_CODE[code[0]]} of {file} is {what} only if you name it: {named}{weights}.")
    if loaded and merged["weights"] is None:
        raise BuildError(f"The weights of {file} were loaded from a file; name it with --weights.")
    return merged, settings


def tell(file: Path, stored: Mapping[str, Any] | None, own: Mapping[str, Any]) -> None:
    """Say on stderr whether a build has the settings of a file."""
    from natscope.precompute.bundles.compare import differences

    if stored is None:
        say(f"{file} has no settings, so its command is used.", err=True)
        return
    found = list(differences(stored, own))
    for sentence in found:
        say(f"Other than in {file}: {sentence}.", err=True)
    if not found:
        say(f"The settings are those of {file}.", err=True)


def _words_of(file: Path) -> tuple[list[str], Mapping[str, Any] | None]:
    """Return the options that a file calls for, and the settings behind them."""
    from natscope.core.bundle.format import MANIFEST, Manifest
    from natscope.core.bundle.manifest import LARGEST
    from natscope.core.bundle.schema import SchemaError
    from natscope.core.errors import BuildError
    from natscope.core.files import from_json, read_regular
    from natscope.core.methods import METHODS

    path = file / MANIFEST if file.is_dir() else file
    text = read_regular(path, LARGEST, links=True)
    try:
        raw = from_json(text)
        if isinstance(raw, dict) and "experiment" in raw:
            return _words_of_result(file, raw)
        manifest = Manifest.from_json(text)
        settings = manifest.results["settings"]
        words = list(_words(settings))
    except (SchemaError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise BuildError(
            f"{file} is neither a bundle nor a result whose settings this version of natscope knows."
        ) from error
    methods = [name for name, method in METHODS.items() if not method.files or name in manifest.methods]
    return [*words, f"--methods={','.join(methods)}"], settings


def _words_of_result(file: Path, raw: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any] | None]:
    import shlex

    from natscope.precompute.bundles.compare import from_python

    bundles = raw["bundles"]
    if len(bundles) > 1:
        say(f"{file} is about {len(bundles)} bundles; the first is built.", err=True)
    settings = bundles[0].get("settings")
    if settings is not None and from_python(settings):
        return [], settings
    words = shlex.split(bundles[0]["command"].splitlines()[0])
    if words[:2] != ["natscope", "precompute"] or {"-h", "--help"} & set(words):
        raise ValueError
    methods = [f"--methods={words[place + 1]}" for place, word in enumerate(words[:-1]) if word == "--methods"]
    return (words[2:], None) if settings is None else ([*_words(settings), *methods], settings)


def _words(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield settings as options."""
    from natscope.precompute.training.train import TrainingSpec

    reading = settings.get("folder", {}).get("reading", {})
    training = asdict(TrainingSpec.from_dict(settings["training"])) if settings["training"] else {}
    values: dict[str, Any] = {
        **{name: settings[name] for name in ("name", "outputs")},
        "dataset": None if settings.get("data") else settings["dataset"],
        **{name: settings.get(name) for name in ("data", "load", "transform", "classes", "per_class")},
        **{name: value for name, value in settings.get("folder", {}).items() if name not in ("files", "reading")},
        **{"text" if name == "columns" else name: value for name, value in _text(settings).items()},
        **dict(zip(("mean", "std"), settings.get("scaling") or (), strict=False)),
        **{f"poison_{name}": value for name, value in settings.get("poison", {}).items()},
        "model": _model(settings["model"]),
        **{name: settings["model"].get(name) for name in ("widths", "bias", "output")},
        **{name: value for name, value in training.items() if name != "augment"},
        "sketch": settings["sketch"]["kind"],
        "dim": settings["sketch"]["dim"],
        "sketch_seed": settings["sketch"]["seed"],
        "index": settings.get("index", {"kind": "auto" if settings["sketch"]["kind"] == "exact" else "flat"})["kind"],
        "milvus_index": settings.get("index", {}).get("milvus"),
        "ntk": {None: "auto", True: "on", False: "off"}[settings["ntk"]],
        "layers": settings["layers"] or None,
        "key": settings.get("weights_key"),
        "prefix": settings.get("weights_prefix"),
        **reading,
    }
    for name, value in values.items():
        if value is True:
            yield f"--{_dashed(name)}"
        elif value is not None and value is not False:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"--{_dashed(name)}={text}"
    if training:
        yield "--augment" if training["augment"] else "--no-augment"


def _model(settings: Mapping[str, Any]) -> str:
    """Return a network as --model names it."""
    from natscope.precompute.training.pretrained import HUB

    start = settings.get("start", {"folder": "FOLDER"})  # not known where weights were loaded
    return str(settings["architecture"]) if settings.get("config") is None else f"{HUB}{start['folder']}"


def _text(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return how texts are read, as options name it."""
    return {name: value or None for name, value in settings.get("text", {}).items() if name not in ("files", "seed")}


def _dashed(name: str) -> str:
    return name.replace("_", "-")
