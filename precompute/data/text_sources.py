"""Where texts come from: tables, folders of .txt by class, GLUE's RTE, and passages of Jane Austen's novels."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from natscope import assets
from natscope.core.errors import DataError, FileError, out_of_memory
from natscope.core.files import read_regular
from natscope.core.text import few, plain, short, type_of
from natscope.core.texts import MOST_COLUMNS
from natscope.core.tokens import FEWEST_TOKENS, LARGEST_VOCABULARY, LONGEST_TEXT, MOST_TOKENS, SEPARATOR, cleaned
from natscope.precompute.data.folders import content_of, files_of, readable
from natscope.precompute.data.splits import class_names, parts, shown
from natscope.precompute.data.tables import Table, decoded, format_of, read_table
from natscope.precompute.data.tokenizing import SPECIAL
from natscope.precompute.paths import home

TEXT = "text:"  # prefix of the path of a data set that is a table, or a folder of .txt by class
_TEXT_TITLES = (
    ("text",),
    ("sentence",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
)
_LABEL_TITLES = ("label", "labels", "class", "category")
_TRAINING = re.compile(r"(?<![a-z])train(?:ing)?(?![a-z])", re.IGNORECASE)  # in the name of a file
_HELD_OUT = ("test", "dev", "validation", "valid", "val")  # what stands in its place in that of the test split
_LISTED = 4
LONGEST_TITLE = 300  # characters of a class or column
_RTE = ("sentence1", "sentence2")


@dataclass(frozen=True)
class TextSpec:
    """How a file or folder becomes a data set of texts.

    Args:
        columns: titles of one or two columns of a table that make a text; those of a usual title if empty.
        label: title of the column of classes; the one of a usual title if empty.
        vocabulary: tokens at most that natscope's own tokenizer knows.
        longest: tokens that a text is cut to.
        tokenizer: a `tokenizer.json` that belongs to a network trained elsewhere; one is made if None.
        test: a table of the test set, or its URL; the one of a usual name beside the training set if None, or else a
            share of it.
        test_share: share of each class that becomes the test set if there is none.
        seed: seed of that choice.
        skip_broken: leave out texts that are empty or too long, instead of refusing the data.
    """

    columns: tuple[str, ...] = ()
    label: str = ""
    vocabulary: int = 10_000
    longest: int = 128
    tokenizer: Path | None = None
    test: Path | str | None = None
    test_share: float = 0.2
    seed: int = 0
    skip_broken: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        found = asdict(self) | {"columns": list(self.columns)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}

    def check(self) -> None:
        """Raise DataError if they make no sense."""
        if len(self.columns) > MOST_COLUMNS:
            raise DataError(f"--text names one column or two, not {len(self.columns)}.")
        if not len(SPECIAL) < self.vocabulary <= LARGEST_VOCABULARY:
            raise DataError(
                f"A vocabulary has {len(SPECIAL) + 1} to {LARGEST_VOCABULARY:,} tokens, not {self.vocabulary:,}; "
                "change --vocabulary."
            )
        if not FEWEST_TOKENS <= self.longest <= MOST_TOKENS:
            raise DataError(
                f"Texts are cut to {FEWEST_TOKENS} to {MOST_TOKENS:,} tokens, not {self.longest:,}; change --longest."
            )
        if not 0 < self.test_share < 1 or self.seed < 0:
            raise DataError("The test share must lie between 0 and 1, and its seed must be 0 or more.")


@dataclass(frozen=True)
class Row:
    """A text, its parts joined by `SEPARATOR`, its label as it is written, and where it is from."""

    text: str
    label: str
    source: str


@dataclass
class Found:
    """What was read: rows of the training set, of the test set if there is one, and the classes if they are known."""

    title: str
    columns: tuple[str, ...]
    train: list[Row]
    test: list[Row] | None
    classes: tuple[str, ...] | None
    skipped: list[str]
    remarks: list[str]


def _kept(rows: Sequence[Row], spec: TextSpec, title: str, skipped: list[str]) -> list[Row]:
    """Return rows whose text can be used, cleaned; raises DataError for others, unless they may be skipped."""
    found, broken = [], []
    for row in rows:
        pieces = [cleaned(part) for part in row.text.split(SEPARATOR)]
        reason = ""
        if not all(any(unicodedata.category(c)[0] in "LMNPS" for c in part) for part in pieces):
            reason = "is empty"
        elif sum(map(len, pieces)) >= LONGEST_TEXT:
            reason = f"has more than {LONGEST_TEXT:,} characters"
        elif not row.label:
            reason = "has no label"
        if reason:
            broken.append(f"{row.source} {reason}")
        else:
            found.append(replace(row, text=SEPARATOR.join(pieces)))
    if broken and not spec.skip_broken:
        raise DataError(
            f"{len(broken):,} of {len(rows):,} texts in {title} cannot be used: {few(broken, _LISTED, '; ')}. Remove "
            "them, or go on without them with --skip-broken."
        )
    if not found:
        raise DataError(f"{title} has no text that can be used.")
    skipped += broken
    return found


# Tables


def from_tables(path: Path, spec: TextSpec) -> Found:
    """Read a table, and that of the test set which is named or lies beside it.

    Raises:
        DataError: if they cannot be read, or have no columns of text and labels.
    """
    title, table = f"{TEXT}{shown(Path(path.name))}", read_table(path)
    columns, label = _titles(table, spec)
    remarks: list[str] = []
    if spec.test is not None:
        test: Table | None = read_table(Path(spec.test).absolute())
    else:
        test = _beside(table, columns, label, remarks)
    skipped: list[str] = []
    train = _kept(_rows(table, columns, label), spec, shown(path), skipped)
    held_out = None if test is None else _kept(_rows(test, columns, label), spec, shown(test.path), skipped)
    return Found(title, columns, train, held_out, None, skipped, remarks)


def _titles(table: Table, spec: TextSpec) -> tuple[tuple[str, ...], str]:
    """Return the titles of the text's columns and of the label's, those of usual titles where none are named."""
    there = list(table.columns)
    label = spec.label or next((title for title in _LABEL_TITLES if title in there), "")
    if not label:
        raise DataError(
            f"No column of {shown(table.path)} is called {', '.join(_LABEL_TITLES[:-1])} or {_LABEL_TITLES[-1]}; name "
            f"the column of classes by --label: it has {few([short(title) for title in there], _LISTED)}."
        )
    table.column(label, "--label")
    others = [title for title in there if title != label]
    usual = [titles for titles in _TEXT_TITLES if set(titles) <= set(others)]
    columns = spec.columns or max(usual, key=len, default=tuple(others[:1]) if len(others) == 1 else ())
    if not columns:
        raise DataError(
            f"Several columns of {shown(table.path)} may be the text: {few(others, _LISTED)}; name it by --text, or "
            "two of them as --text FIRST,SECOND."
        )
    for title in columns:
        table.column(title, "--text")
        if not plain(title) or len(title) > LONGEST_TITLE:
            raise DataError(f"The column {short(title)!r} of {shown(table.path)} has no title that can be shown.")
    if label in columns or len(set(columns)) < len(columns):
        raise DataError(f"--text and --label name the column {short(label if label in columns else columns[0])} twice.")
    return columns, label


def _beside(table: Table, columns: tuple[str, ...], label: str, remarks: list[str]) -> Table | None:
    """Return the test set that lies beside a training set, under the same name but for one word."""
    chosen = None
    for other in _named_alike(table.path):
        found = None if chosen else read_table(other)
        if found is None:
            remarks.append(f"{shown(Path(other.name))} is not used")
        elif not {*columns, label} <= set(found.columns) or set(map(str, found.columns[label])) == {"-1"}:
            remarks.append(f"{shown(Path(other.name))} is not used, having no labels")
        else:
            chosen = found
            remarks.append(f"{shown(Path(other.name))} is the test split")
    return chosen


def _named_alike(path: Path) -> list[Path]:
    """Return the files beside a training set whose names say that they are held out."""
    others = [path.with_name(_TRAINING.sub(word, path.name, count=1)) for word in _HELD_OUT]
    return [other for other in others if other != path and other.is_file()]


def _rows(table: Table, columns: tuple[str, ...], label: str) -> list[Row]:
    parts_of = [table.column(title, "--text") for title in columns]
    labels = table.column(label, "--label")
    rows, name = [], shown(Path(table.path.name))
    for number, line in enumerate(table.lines):
        found = [values[number] for values in parts_of]
        for title, part in zip(columns, found, strict=True):
            if part is not None and not isinstance(part, str):
                raise DataError(f"{shown(table.path)}, {line}, has no text in {title} but {type_of(part)}.")
        text = SEPARATOR.join((part or "").replace(SEPARATOR, "") for part in found)
        rows.append(Row(text, _label(labels[number], f"{shown(table.path)}, {line},"), f"{name}, {line}"))
    return rows


def _label(value: Any, where: str) -> str:
    """Return a label as text: a word, or a whole number; "" if there is none."""
    if value is None:
        return ""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value.strip())
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer) or (isinstance(value, float | np.floating) and float(value).is_integer()):
        return str(int(value))
    raise DataError(f"{where} has a label that is neither a word nor a whole number; name another column by --label.")


# Folders


def from_folder(path: Path, spec: TextSpec) -> Found:
    """Read CLASS/*.txt, or train/CLASS/*.txt and test/CLASS/*.txt.

    Raises:
        DataError: if the folder has another form, or files that are no texts.
    """
    if spec.columns or spec.label or spec.test:
        raise DataError(
            f"--text, --label and --test are for tables; {shown(path)} is a folder, whose folders are classes."
        )
    with readable(path):
        inside = sorted(path.iterdir())
        if (tables := [file for file in inside if format_of(file)]) and not any(one.is_dir() for one in inside):
            raise DataError(
                f"{shown(path)} holds no folders of classes but tables; name one of them, as in --dataset "
                f"{TEXT}{shown(tables[0])}."
            )
        train, held_out, _ = parts(path, None)
        names = class_names(path / train)
        folders = [path / train, *([] if held_out is None else [path / held_out])]
        if len(names) < 2:
            raise DataError(
                f"{shown(path)} has {len(names)} {'class' if len(names) == 1 else 'classes'}, and a classifier needs "
                "at least two: put each class's .txt files into a subfolder of its own, or into train/CLASS and "
                "test/CLASS."
            )
        for name in () if held_out is None else class_names(path / held_out):
            if name not in names:
                raise DataError(f"{shown(folders[1])} has a class {name} that {shown(folders[0])} does not have.")
        files = [[f for f in files_of(one, names, any_kind=True) if f[0].suffix.lower() == ".txt"] for one in folders]
    skipped: list[str] = []
    splits = []
    for folder, some in zip(folders, files, strict=True):
        if not some:
            raise DataError(f"{shown(folder)} has no .txt file in a folder of a class.")
        rows = [Row(_content(file), names[label], shown(file.relative_to(path))) for file, label in some]
        splits.append(_kept(rows, spec, shown(folder), skipped))
    title = f"{TEXT}{shown(Path(path.resolve().name))}"
    return Found(title, ("",), splits[0], splits[1] if held_out is not None else None, tuple(names), skipped, [])


def _content(file: Path) -> str:
    try:
        content = read_regular(file, 8 * LONGEST_TEXT, links=True)
    except FileError as error:
        raise DataError(str(error)) from error
    return decoded(file, content).replace(SEPARATOR, "")


# Data sets by name


def _austen(spec: TextSpec) -> Found:
    """Read the passages that ship: which of Jane Austen's novels is one from?"""
    splits = []
    for split in ("train", "test"):
        table = read_table(assets.path("austen", f"{split}.jsonl.gz"))
        rows, count = [], defaultdict[tuple[str, int], int](int)
        for text, novel, chapter in zip(*(table.columns[c] for c in ("text", "novel", "chapter")), strict=True):
            count[novel, chapter] += 1
            rows.append(Row(text, novel, f"{novel}, chapter {chapter}, passage {count[novel, chapter]}"))
        splits.append(rows)
    return Found("austen", ("",), splits[0], splits[1], None, [], [])


def _rte_folder() -> Path | None:
    return next((f for name in ("RTE", "rte") if (f := home() / "datasets" / name).is_dir()), None)


def _rte(spec: TextSpec) -> Found:
    """Read GLUE's files where the user has them, or else through `datasets`."""
    if (folder := _rte_folder()) is not None:
        files = replace(spec, columns=_RTE, label="label", test=spec.test or folder / "dev.tsv")
        return replace(from_tables(folder / "train.tsv", files), title="rte")
    instead = (
        f"or put GLUE's train.tsv and dev.tsv into {home() / 'datasets' / 'RTE'}, or name the file as --dataset "
        f"{TEXT}PATH/train.tsv"
    )
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"RTE comes by the library datasets, which is missing; install it, {instead}.") from error
    try:
        found = load_dataset("nyu-mll/glue", "rte")
        classes = tuple(found["train"].features["label"].names)
        splits = [
            [
                Row(SEPARATOR.join(row[title] for title in _RTE), classes[row["label"]], f"{split}, row {number}")
                for number, row in enumerate(found[split])
            ]
            for split in ("train", "validation")
        ]
    except Exception as error:  # whatever a network, a disk or a new version of the library does
        if out_of_memory(error):
            raise
        raise DataError(f"RTE could not be downloaded; check the network and the disk, {instead}.") from error
    return Found("rte", _RTE, _kept(splits[0], spec, "rte", []), _kept(splits[1], spec, "rte", []), classes, [], [])


TEXT_DATASETS: dict[str, Callable[[TextSpec], Found]] = {"austen": _austen, "rte": _rte}


def of_texts(name: str) -> bool:
    """Return whether a data set is one of texts, by its name."""
    return name.startswith(TEXT) or name in TEXT_DATASETS


def fingerprint(name: str, spec: TextSpec) -> str:
    """Return a checksum of the files behind a data set, by which a build notices changes.

    Raises:
        DataError: if there are none.
    """
    path = Path(name.removeprefix(TEXT)).absolute() if name.startswith(TEXT) else None
    if name == "rte" and (folder := _rte_folder()) is not None:
        path = folder / "train.tsv"
    named = [Path(file).absolute() for file in (spec.test, spec.tokenizer) if file is not None]
    if path is None and not named:
        return ""
    whole = path is not None and path.is_dir()
    files = (
        [] if path is None else sorted(f for f in path.rglob("*") if f.suffix.lower() == ".txt") if whole else [path]
    )
    files += _named_alike(path) if path is not None and not whole and spec.test is None else []
    digest = hashlib.sha256()
    for file in [*files, *named]:
        inside = file.relative_to(path).as_posix() if path and whole and file.is_relative_to(path) else file.name
        digest.update(f"{inside}\0{content_of(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
