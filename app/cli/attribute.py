"""The command that asks a bundle about one query or many."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click

from natscope.app import escape
from natscope.app.cli.device import on_device
from natscope.app.cli.progress import Bars, abandon, say
from natscope.app.cli.trust import allow_code
from natscope.app.cli.values import COUNT, INDICES, PATH, SEED, check_writable
from natscope.core.text import beginning, few

_LISTED = 10  # images in a sentence
_SHOWN = 60  # characters of a text in a table
_TOGETHER = 100  # queries that are answered before the first is printed; an attributor remembers the features of more


@click.command()
@click.option("--bundle", type=PATH, required=True, help="The bundle.")
@click.option(
    "--test-index", "test", type=INDICES, help="The query: a test example by its number, or several: 0,5,10-20."
)
@click.option(
    "--train-index",
    "train",
    type=INDICES,
    help="The query: a training example by its number, or several; each is left out of its own ranking.",
)
@click.option("--all-wrong", is_flag=True, help="The queries: every test example that the network predicts wrong.")
@click.option("--image", type=PATH, help="The query: an image file, or a file of text where the bundle is of texts.")
@click.option(
    "--invert/--no-invert", default=None, help="Swap light and dark of --image; by default its border decides."
)
@click.option("--text", multiple=True, help="The query: a text, in quotes; a second --text for networks that take two.")
@click.option("--method", help="Name of the method; by default the first that the app lists under Methods.")
@click.option(
    "--sigma2",
    type=float,
    help="Observation noise variance σ²; what `tune` chose for the method, else about the kernel's scale.",
)
@click.option("--budget", type=COUNT, default=10, show_default=True, help="How many training examples, M.")
@click.option("--pool", type=click.Choice(["same-class", "all"]), default="same-class", show_default=True)
@click.option(
    "--conditioning",
    type=click.Choice(["pool", "train"]),
    default="pool",
    show_default=True,
    help="What a method that conditions on data conditions on: the pool, or all training data.",
)
@click.option("--target", help="Class to attribute, by number or name; the predicted one by default.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the random method.")
@click.option("--json", "kind", flag_value="json", help="A JSON object on stdout, one line for each query.")
@click.option("--csv", "kind", flag_value="csv", help="One table on stdout, whose lines name query and settings.")
@click.option(
    "--scores",
    type=PATH,
    help="Write every candidate's score by itself to this .npy or .csv file: a line for each training example, a "
    "column for each query in the order asked; NaN (in CSV empty) for examples that are no candidates.",
)
@allow_code
@on_device
def attribute(
    bundle: Path,
    kind: str | None,
    scores: Path | None,
    target: str | None,
    method: str | None,
    sigma2: float | None,
    **options: Any,
) -> None:
    """Rank the training examples that one prediction, or each of many, relies on most."""
    from natscope.core.bundle.request import Request
    from natscope.precompute.bundles.opening import open_attributor

    named = {name: options.pop(name) for name in ("test", "train", "all_wrong", "image", "invert", "text")}
    _check_asked(named, scores)
    with redirect_stdout(sys.stderr):  # a network may print; what scripts read is the answer alone
        attributor = open_attributor(bundle)
        number = None if target is None else _class_number(target, attributor.bundle.classes)
        request = Request(Request().method if method is None else method, sigma2, target=number, **options)
        asked = _asked(attributor, named)
    if scores is not None:
        from natscope.app.cli.scores import write_scores

        def each(fill: Callable[..., None]) -> Iterator[Any]:
            return (query for query, _ in _each(attributor, asked, request, fill))

        write_scores(attributor, len(asked), request, scores, each)
        if kind is None:
            return
    done = 0
    try:
        whole = kind != "csv"

        def answer(_: int, query: Any, progress: Any) -> Any:
            return attributor.attribute(query, request, progress, whole=whole)

        for query, result in _each(attributor, asked, request, answer):
            for line in _lines(attributor, query, result, kind, first=not done, several=len(asked) > 1):
                say(line)
            done += 1
    except KeyboardInterrupt:
        say(f"natscope: stopped after {done:,} of {len(asked):,} queries.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        abandon(sys.stdout)
        say(f"natscope: stopped after {done:,} of {len(asked):,} queries: nothing reads the output now.", err=True)
        sys.exit(141)  # as a process that SIGPIPE ended


def _check_asked(named: dict[str, Any], scores: Path | None) -> None:
    """Raise QueryError, before anything is opened, unless one kind of query is named and scores can be written."""
    from natscope.core.errors import QueryError

    if sum(named[name] not in (None, False, ()) for name in ("test", "train", "all_wrong", "image", "text")) != 1:
        raise QueryError(
            "Name the query: --test-index I, --train-index I, --all-wrong, --image FILE or --text TEXT, one of them."
        )
    if named["invert"] is not None and named["image"] is None:
        raise QueryError("--invert and --no-invert are for --image; leave them out.")
    if scores is not None:
        if scores.suffix not in (".npy", ".csv"):
            raise QueryError(f"--scores names a .npy or a .csv file to write, not {scores.name}.")
        try:
            check_writable(scores, "--scores")
        except OSError as error:
            raise QueryError(f"The scores cannot be written to {scores}: {error.strerror or error}.") from error


def _asked(attributor: Any, named: dict[str, Any]) -> list[Any]:
    """Return the queries: what `_query` takes, numbers of images by split or an upload."""
    import numpy as np

    from natscope.core.errors import QueryError

    bundle = attributor.bundle
    if named["image"] is not None:
        return [("upload", _uploaded(attributor, named["image"], named["invert"]))]
    if named["text"]:
        return [("upload", _text(attributor, named["text"]))]
    if named["all_wrong"]:
        predicted = np.asarray(bundle.array("test_logits")).argmax(axis=1)
        if not len(wrong := np.flatnonzero(predicted != attributor.test_labels)):
            raise QueryError("The network predicts every test example right, so --all-wrong names none.")
        return [("test", int(index)) for index in wrong]
    origin = "test" if named["test"] is not None else "train"
    count = len(bundle.array(f"{origin}_labels"))
    for part in named[origin]:
        for index in (part[0], part[-1]):
            if not 0 <= index < count:
                attributor.query(origin, index)  # raises
    every = [index for part in named[origin] for index in part]
    found = Counter(every)
    if again := sorted(index for index, times in found.items() if times > 1):
        numbers = (
            f"{bundle.modality.one} {again[0]}" if len(again) == 1 else f"{bundle.modality.many} {few(again, _LISTED)}"
        )
        say(f"natscope: --{origin}-index names {numbers} more than once; each is asked about once.", err=True)
    return [(origin, index) for index in found]


def _each(attributor: Any, asked: Sequence[Any], request: Any, answer: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each query with its answer, in the order asked, having computed those about one class together.

    Candidates of all classes are computed once for each class that is attributed, and few are kept; so are those of
    one class if there are many.

    Args:
        attributor: of the bundle.
        asked: the queries.
        request: the method and its settings.
        answer: called with a query's place, the query, and what shows the progress of what is computed for many.
    """
    from natscope.core.methods import METHODS
    from natscope.core.progress import silent

    method = METHODS.get(request.method) if isinstance(request.method, str) else None
    ahead = len(asked) > 1 and method and not attributor.missing(method) and request.pool == "same-class"
    own = (request.pool, request.conditioning) == ("same-class", "pool")
    together = _TOGETHER if own else len(asked)
    with Bars(leave=False) as bars:
        for start in range(0, len(asked), together):
            with redirect_stdout(sys.stderr):
                part = [_query(attributor, *which) for which in asked[start : start + together]]
            targets = [query.predicted if request.target is None else request.target for query in part]
            found: dict[int, Any] = {}
            shown = 0
            for target in dict.fromkeys(targets):
                places = [place for place, other in enumerate(targets) if other == target]
                with redirect_stdout(sys.stderr):
                    bars("Queries", start + len(found), len(asked))
                    if ahead:
                        attributor.ahead(method, [part[place] for place in places], target, bars)
                    for place in places:
                        with _named(part[place], asked):
                            found[place] = answer(start + place, part[place], silent if own else bars)
                        bars("Queries", start + len(found), len(asked))
                bars.close()
                while shown in found:
                    yield part[shown], found[shown]
                    shown += 1


def _query(attributor: Any, origin: str, which: Any) -> Any:
    return which if origin == "upload" else attributor.query(origin, which)


@contextmanager
def _named(query: Any, asked: Sequence[Any]) -> Iterator[None]:
    """Name the query in what is refused, if there are several."""
    from natscope.app.rankings import title
    from natscope.core.errors import QueryError

    try:
        yield
    except QueryError as error:
        if len(asked) == 1:
            raise
        raise QueryError(f"{title(query)}: {error}") from error


def _lines(attributor: Any, query: Any, result: Any, kind: str | None, *, first: bool, several: bool) -> Iterator[str]:
    """Yield an answer as the lines of one format."""
    from natscope.app import rankings

    bundle = attributor.bundle
    if kind == "json":
        yield json.dumps(result.to_dict(query, bundle.classes), allow_nan=False)
    elif kind == "csv":
        yield from escape.table(rankings.columns(bundle), rankings.rows(bundle, query, result)).splitlines()[
            0 if first else 1 :
        ]
    else:
        if several:
            yield from (() if first else ("",))
            yield f"{rankings.title(query)}  {query.source}"
        yield from _for_people(bundle, query, result)


def _for_people(bundle: Any, query: Any, result: Any) -> Iterator[str]:
    from natscope.app.words import everything, percent, ratio_text, unlike
    from natscope.core.methods import METHODS

    classes, method = bundle.classes, METHODS[result.request.method]
    chance = query.probabilities[query.predicted]
    label = "" if query.label is None else f", labelled {classes[query.label]}"
    yield f"Predicted {classes[query.predicted]} ({chance:.1%}){label}; attributed: {classes[result.target]}."
    if (reading := query.example.reading(0)) is not None and (said := reading.sentence()):
        yield said
    if query.ood > 1:
        yield unlike(bundle.modality, len(bundle.array("test_labels")))
    if method.uses_sigma2:
        ratio = ratio_text(result.sigma2, bundle.mean_kernel())
        yield f"{method.title} at σ² = {result.sigma2:.3g}{f', {ratio}' if ratio else ''}."
    if result.nats is not None and result.total_nats:
        share = result.nats / result.total_nats
        whole = everything(result, bundle.modality)
        amount = f"{percent(share)} ({result.nats:.3f} nats)"
        count = len(result.items)
        these = (
            f"These {count} {bundle.modality.many} contribute"
            if count > 1
            else f"This {bundle.modality.one} contributes"
        )
        yield f"{these} {amount} of what {whole} reveal."
    yield f"{'rank':>4}  {bundle.modality.one:>6}  {'label':<12}  {'score':>11}  {'nats':>8}  sign  source"
    for i in result.items:
        nats = "" if i.nats is None else f"{i.nats:.4f}"
        yield (
            f"{i.rank:>4}  {i.train_index:>6}  {classes[i.label]:<12}  {i.score:>11.4g}  {nats:>8}  "
            f"{'-0+'[i.sign + 1]:<4}  {i.source}" + (f": {escape.visible(beginning(i.text, _SHOWN))}" if i.text else "")
        )
    if result.nats is not None:
        yield (
            "Nats are those of a line and all above it; a score is of one alone, in the method’s own units, and need "
            "not fall with the rank."
        )


def _uploaded(attributor: Any, file: Path, invert: bool | None) -> Any:
    from natscope.app.uploads import LARGEST_BYTES, read_apart
    from natscope.core.files import read_regular
    from natscope.precompute.bundles.asking import ask_about_file

    data = read_regular(file, LARGEST_BYTES, links=True)
    return ask_about_file(attributor, data, file.name, invert=invert, read=lambda *given: read_apart(*given).image)


def _text(attributor: Any, parts: tuple[str, ...]) -> Any:
    from natscope.core.errors import QueryError
    from natscope.precompute.bundles.asking import ask_about

    if attributor.bundle.modality.from_file is None:
        raise QueryError(f"This bundle is of {attributor.bundle.modality.many}; ask about a file by --image.")
    return ask_about(attributor, parts[0] if len(parts) == 1 else parts)


def _class_number(text: str, classes: tuple[str, ...]) -> int:
    from natscope.core.errors import QueryError

    if text in classes:
        return classes.index(text)
    if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < len(classes):
        return int(text)
    alike = [label for label, name in enumerate(classes) if name.casefold() == text.casefold()]
    if len(alike) == 1:
        return alike[0]
    if alike:
        numbers = ", ".join(f"{label} ({classes[label]})" for label in alike)
        raise QueryError(f"Several classes are called '{text}' except for capitals; name one by its number: {numbers}.")
    raise QueryError(
        f"There is no class '{text}'; choose a number from 0 to {len(classes) - 1} or one of {', '.join(classes)}."
    )
