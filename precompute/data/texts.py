"""Data sets of texts: what was read becomes tokens and labels, divided so that no text is on both sides."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from natscope.core.errors import DataError
from natscope.core.progress import Progress, silent
from natscope.core.text import few, plain, short
from natscope.core.texts import Texts, texts_of
from natscope.precompute.data.datasets import Dataset
from natscope.precompute.data.items import MOST_CLASSES
from natscope.precompute.data.text_sources import (
    LONGEST_TITLE,
    TEXT,
    TEXT_DATASETS,
    Found,
    Row,
    TextSpec,
    from_folder,
    from_tables,
)
from natscope.precompute.data.tokenizing import brought, trained

_LISTED = 4  # sources or classes in a sentence


def text_dataset(name: str, spec: TextSpec, progress: Progress = silent) -> tuple[Dataset, list[str]]:
    """Read a data set of texts.

    Args:
        name: "text:PATH" of a table or a folder of .txt files by class, or a key of `TEXT_DATASETS`.
        spec: how it is read.
        progress: called now and then with texts that were cut into tokens, and how many there are.

    Returns:
        The data set, and a line for each text that was left out.

    Raises:
        DataError: if it cannot be read, or makes no data set of at least two classes.
    """
    spec.check()
    if name == TEXT:
        raise DataError(f"Name the table or folder of texts, as in {TEXT}reviews.csv.")
    if name in TEXT_DATASETS and (spec.columns or spec.label or spec.test):
        raise DataError(f"--text, --label and --test are for tables of yours; leave them out with {name}.")
    if name in TEXT_DATASETS:
        found = TEXT_DATASETS[name](spec)
    elif name.startswith(TEXT):
        path = Path(name.removeprefix(TEXT)).absolute()
        found = from_folder(path, spec) if path.is_dir() else from_tables(path, spec)
    else:
        raise DataError(
            f"There is no data set of texts {name!r}; choose {' or '.join(TEXT_DATASETS)}, or a file or folder of "
            f"yours as {TEXT}PATH."
        )
    return _assembled(found, spec, progress)


def _assembled(found: Found, spec: TextSpec, progress: Progress) -> tuple[Dataset, list[str]]:
    classes, numbers = _classes(found)
    if found.test is None:
        drawn = _drawn(found.train, spec)
        splits = [[row for n, row in enumerate(found.train) if (n in drawn) is wanted] for wanted in (False, True)]
    else:
        splits = [found.train, found.test]
    labels = [np.array([numbers[row.label] for row in rows], dtype=np.int64) for rows in splits]
    counts = [np.bincount(some, minlength=len(classes)) for some in labels]
    if not counts[0].all():
        missing = classes[int(np.argmin(counts[0]))]
        raise DataError(f"{found.title} has a class {short(missing)} without a training text; leave it out.")
    if not splits[1]:
        raise DataError(
            f"Each class of {found.title} has a single text, and none is left for testing; name a test set by --test."
        )
    remarks = [*found.remarks, *_odd(splits, counts[1], classes)]
    texts = [row.text for row in splits[0]]
    if spec.tokenizer is None:
        tokenizer = trained(texts, vocabulary=spec.vocabulary)
    else:
        tokenizer = brought(spec.tokenizer, spec.longest)
    train = _cut(splits[0], tokenizer, found.columns, spec.longest, progress)
    test = _cut(splits[1], tokenizer, found.columns, spec.longest, progress)
    data = Dataset(
        name=found.title,
        classes=classes,
        train=train,
        train_labels=labels[0],
        test=test,
        test_labels=labels[1],
        train_sources=tuple(row.source for row in splits[0]),
        test_sources=tuple(row.source for row in splits[1]),
        remarks=tuple(remarks),
    )
    return data, found.skipped


def _cut(rows: Sequence[Row], tokenizer: bytes, columns: tuple[str, ...], longest: int, progress: Progress) -> Texts:
    at = 0

    def each() -> Iterator[str]:
        nonlocal at
        for at, row in enumerate(rows):
            if at % 1000 == 0:
                progress("Reading texts", at, len(rows))
            yield row.text
        progress("Reading texts", len(rows), len(rows))

    try:
        return texts_of(each(), tokenizer, columns=columns, longest=longest)
    except ValueError as error:
        raise DataError(f"The text of {rows[at].source} {error}.") from error


def _classes(found: Found) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the titles of the classes, and the number of each label; numbers in order, words by the alphabet."""
    there = {row.label for row in found.train}
    if found.classes is not None:
        return found.classes, {label: number for number, label in enumerate(found.classes)}
    for label in there:
        if not plain(label) or len(label) > LONGEST_TITLE:
            raise DataError(f"{found.title} has a label that is no title of a class: {short(label)!r}.")
    known: dict[str, str] = {}
    for label in sorted(there):
        if (other := known.setdefault(label.casefold(), label)) != label:
            raise DataError(
                f"The labels {other} and {label} of {found.title} differ in nothing but upper and lower case; make "
                "them one."
            )
    if len(there) < 2:
        only = f": {short(next(iter(there)))}" if there else ""
        raise DataError(f"{found.title} has {len(there)} class{only}, and a classifier needs at least two.")
    if len(there) > MOST_CLASSES or len(there) == len(found.train) > 2:
        raise DataError(
            f"{found.title} has {len(there):,} different labels for {len(found.train):,} texts; name the column of "
            "classes by --label."
        )
    numbers = all(re.fullmatch(r"-?\d{1,18}", label) for label in there)
    order = sorted(there, key=int if numbers else str)
    for row in found.test or ():
        if row.label not in there:
            raise DataError(f"{row.source} is of the class {short(row.label)}, which the training set does not have.")
    return tuple(order), {label: number for number, label in enumerate(order)}


def _drawn(rows: Sequence[Row], spec: TextSpec) -> set[int]:
    """Return which rows are for testing: a share of each class, and all or none of those of the same text."""
    same: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        same[row.text].append(number)
    of_class: dict[str, list[list[int]]] = defaultdict(list)
    for group in same.values():
        of_class[rows[group[0]].label].append(group)
    test: set[int] = set()
    for place, (_, groups) in enumerate(sorted(of_class.items())):
        if len(groups) > 1:
            count = min(max(1, round(spec.test_share * len(groups))), len(groups) - 1)
            chosen = np.random.default_rng([spec.seed, place]).choice(len(groups), count, replace=False)
            test.update(number for one in chosen for number in groups[one])
    return test


def _odd(splits: Sequence[Sequence[Row]], counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return what is odd of a training and a test set, as far as it may stay so."""
    found, train = [], {row.text: row.source for row in splits[0]}
    twice = [f"{row.source} = {train[row.text]}" for row in splits[1] if row.text in train]
    if twice:
        same = "test text is also a training text" if len(twice) == 1 else "test texts are also training texts"
        found.append(f"{len(twice):,} {same}: {few(twice, _LISTED)}")
    if not counts.all():
        alone = [name for name, count in zip(classes, counts, strict=True) if not count]
        found.append(f"without a test text: {few(alone, _LISTED)}")
    return found
