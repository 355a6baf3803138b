"""Texts from Python: in words, with their tokenizer, or as the numbers of their tokens."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from natscope.core.bundle.request import QueryExample
from natscope.core.errors import DataError, QueryError
from natscope.core.text import kind_of
from natscope.core.texts import MOST_COLUMNS, Texts, texts_of
from natscope.core.tokens import LARGEST_VOCABULARY, LONGEST_TEXT, MOST_TOKENS, SEPARATOR, cleaned
from natscope.precompute.data.datasets import Dataset
from natscope.precompute.data.items import given_items
from natscope.precompute.data.own import labelled
from natscope.precompute.data.tokenizing import Given, content_of, numbered

_PART = "training"


def kind_of_texts(train_set: Any) -> type[str] | type[int] | None:
    """Return what the inputs of a data set are: texts, whole numbers in a row for each text, or None of these."""
    with suppress(Exception):  # somebody's data set, of which `own_dataset` says what is wrong
        first = None if isinstance(train_set, str | Path) else train_set[0][0]
        if isinstance(first, str) or (isinstance(first, tuple) and all(isinstance(part, str) for part in first)):
            return str
        return None if _numbers(first) is None else int
    return None


def own_texts(
    train_set: Any, tokenizer: Given | None, *, classes: Sequence[str] | None = None, longest: int
) -> Dataset:
    """Return a data set of texts that somebody has in Python; its test part is its training part.

    Args:
        train_set: a pair (texts, labels), or a torch Dataset of (text, label); a text is a str, or two of them.
        tokenizer: as the network was trained with, or the path of its `tokenizer.json`.
        classes: a title for each label; the data's own, or the labels themselves, when None.
        longest: tokens that a text is cut to.

    Raises:
        DataError: if a text, a label or the tokenizer cannot be used; the sentence says which.
    """
    if tokenizer is None:
        raise DataError(
            f"The {_PART} set holds texts, and texts need tokenizer=, with which the network was trained; or give the "
            "numbers of their tokens."
        )
    content, (texts, labels, items) = content_of(tokenizer, longest), given_items(train_set, _PART)
    parts = [_parts(text, row) for row, text in enumerate(texts)]
    if not parts:
        raise DataError(f"The {_PART} set is empty.")
    for row, found in enumerate(parts):
        if len(found) != len(parts[0]):
            raise DataError(f"Item {row} of the {_PART} set has {len(found)} texts and the first one {len(parts[0])}.")
    titles, (numbers,) = labelled([items], [labels], classes)
    train = _cut([SEPARATOR.join(found) for found in parts], content, ("",) * len(parts[0]), longest)
    sources = tuple(items.sources)
    return Dataset("own data", titles, train, numbers, train, numbers, sources, sources)


def own_tokens(train_set: Any, x: Any, *, classes: Sequence[str] | None = None) -> tuple[Dataset, Any]:
    """Return a data set of texts that are given as the numbers of their tokens, and the query in words of it.

    Its words are those numbers, and its tokenizer knows those that there are.

    Args:
        train_set: a pair (tokens, labels), or a torch Dataset of (tokens, label); tokens are whole numbers above 0,
            with any number of zeros behind them as padding.
        x: a query, likewise, alone or as an item (tokens, label); anything else stays as it is.
        classes: a title for each label; the data's own, or the labels themselves, when None.

    Raises:
        DataError: if an item or label cannot be used; the sentence says which.
        QueryError: if the query's tokens cannot be used.
    """
    given, labels, _ = given_items(train_set, _PART)
    asked, words = x, [_words(found, f"Item {row} of the {_PART} set", DataError) for row, found in enumerate(given)]
    paired = isinstance(x, tuple) and len(x) == 2 and _numbers(x[0]) is not None
    if not isinstance(x, str | QueryExample):
        said = _words(x[0] if paired else x, "The query", QueryError)
        asked = ((said,), x[1]) if paired else (said,)
        words.append(said)
    found = own_texts((words[: len(given)], labels), numbered(words), classes=classes, longest=MOST_TOKENS)
    return found, asked


def _parts(text: Any, row: int) -> list[str]:
    """Return the columns of a text, cleaned."""
    found, what = [text] if isinstance(text, str) else text, f"Item {row} of the {_PART} set"
    if not isinstance(found, tuple | list) or not found or not all(isinstance(part, str) for part in found):
        hint = "; leave out tokenizer= for numbers of tokens" if _numbers(text) is not None else ""
        raise DataError(f"{what} is {kind_of(text)}, not a text{hint}.")
    if len(found) > MOST_COLUMNS:
        raise DataError(f"{what} has {len(found)} texts, and natscope takes up to {MOST_COLUMNS}.")
    if sum(map(len, found)) + len(found) - 1 > LONGEST_TEXT:
        raise DataError(f"{what} has more than {LONGEST_TEXT:,} characters; give a part of it.")
    found = [cleaned(part) for part in found]
    if not all(found):
        raise DataError(f"{what} is an empty text; leave it out.")
    return found


def _cut(texts: Sequence[str], tokenizer: bytes, columns: tuple[str, ...], longest: int) -> Texts:
    row = 0

    def each() -> Iterator[str]:
        nonlocal row
        for row in range(len(texts)):
            yield texts[row]

    try:
        return texts_of(each(), tokenizer, columns=columns, longest=longest)
    except ValueError as error:
        raise DataError(f"Item {row} of the {_PART} set {error}.") from error


def _numbers(found: Any) -> np.ndarray | None:
    """Return whole numbers in a row, (L,) int64, or in a batch of one; None if something is no such."""
    if isinstance(found, Tensor):
        found = found.detach().cpu().numpy()
    if not isinstance(found, np.ndarray | list | tuple) or not len(found):
        return None
    with suppress(ValueError, TypeError, OverflowError):
        array = np.asarray(found)
        array = array[0] if array.ndim == 2 and len(array) == 1 else array
        if array.ndim == 1 and array.dtype.kind in "iu" and array.dtype != np.uint8:
            return array.astype(np.int64)
    return None


def _words(found: Any, what: str, kind: type[DataError | QueryError]) -> str:
    """Return tokens as a text, a word for each; raises `kind` if they are none."""
    numbers = _numbers(found)
    if numbers is None:
        raise kind(f"{what} is {kind_of(found)}, not whole numbers of tokens.")
    numbers = np.trim_zeros(numbers, "b")
    if not len(numbers):
        raise kind(f"{what} has no tokens.")
    if numbers.min() < 1 or numbers.max() >= LARGEST_VOCABULARY:
        raise kind(f"{what} has tokens outside 1 to {LARGEST_VOCABULARY - 1:,}; 0 is padding, and stands at the end.")
    if len(numbers) > MOST_TOKENS:
        raise kind(f"{what} has more than {MOST_TOKENS:,} tokens.")
    return " ".join(map(str, numbers.tolist()))
