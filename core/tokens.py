"""From a text to its tokens, by a tokenizer.json that a stranger may have written."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from natscope.core.errors import out_of_memory
from natscope.core.files import from_json, size

SEPARATOR = "\x1e"  # between the columns of a text
LONGEST_TEXT = 100_000  # characters of an example
FEWEST_TOKENS, MOST_TOKENS = 4, 2**13  # that an example may be cut to
LARGEST_VOCABULARY = 2**22
LARGEST_TOKENIZER = 20_000_000  # bytes of a tokenizer
_LONGEST_WORD, _LONGEST_PATTERN = 200, 1000  # characters
_MOST_GROWTH = 1000  # times that all replacements together may lengthen a text
_SIMPLE = re.compile(r"[^()|*+{]*(?:[*+]|\{\d{1,3},?\d{0,3}\})?[^()|*+{]*")  # a pattern that repeats one thing at most
_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")  # of a line
# Control characters but for tabs and ends of lines, marks that turn the direction of writing, halves of characters.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def cleaned(text: str) -> str:
    """Return a text without what cannot be seen, in composed characters (NFC), its lines ended alike."""
    return unicodedata.normalize("NFC", UNSEEN.sub("", _ENDS.sub("\n", text))).strip()


@lru_cache(maxsize=8)
def loaded(tokenizer: bytes, longest: int) -> tuple[Tokenizer, int]:
    """Return a tokenizer that cuts texts to `longest` tokens, and how many tokens it knows.

    Args:
        tokenizer: the content of a `tokenizer.json`.
        longest: in tokens.

    Raises:
        ValueError: if it cannot be used, in words that follow a file's name.
    """
    if len(tokenizer) > LARGEST_TOKENIZER:
        raise ValueError(f"is larger than {size(LARGEST_TOKENIZER)}")
    with _understood("does not have the form of a tokenizer.json"):
        content = from_json(tokenizer)
        steps = list(_steps([content.get("normalizer"), content.get("pre_tokenizer")]))
        repeated = any(count > 1 for count in _parts_of(content.get("post_processor")).values())
        model = content.get("model")
        letters = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if repeated or (isinstance(letters, int) and letters > _LONGEST_WORD):
        raise ValueError("may take forever to cut a text")
    if not all(len(pattern) <= _LONGEST_PATTERN and _SIMPLE.fullmatch(pattern) for pattern, _ in steps):
        raise ValueError("holds a pattern that may take forever")
    if math.prod(1 + longest for _, longest in steps) > _MOST_GROWTH:
        raise ValueError("makes texts too long")
    with _understood("does not have the form of a tokenizer.json"):
        found = Tokenizer.from_buffer(tokenizer)
        found.no_padding()
        found.enable_truncation(longest)
        found.encode_special_tokens = True  # "[SEP]" in a text is a word like any other
        known = max(found.get_vocab(with_added_tokens=True).values(), default=0) + 1
    if not 2 <= known <= LARGEST_VOCABULARY:
        raise ValueError("has a vocabulary that is empty or too large")
    if max(found.num_special_tokens_to_add(pair) for pair in (False, True)) >= longest:
        raise ValueError(f"leaves no room for words in {longest} tokens")
    return found, known


@lru_cache(maxsize=8)
def unknown(tokenizer: bytes, longest: int) -> int | None:
    """Return the token that stands for all words that a tokenizer does not know; None if it has no such.

    Args:
        tokenizer: the content of a `tokenizer.json`.
        longest: tokens that a text is cut to.

    Raises:
        ValueError: if it cannot be used, in words that follow a file's name.
    """
    found, model = loaded(tokenizer, longest)[0], from_json(tokenizer)["model"]
    number = model.get("unk_id")
    return number if isinstance(number, int) else found.token_to_id(str(model.get("unk_token")))


def _steps(found: Any) -> Iterator[tuple[str, int]]:
    """Yield the regular expression of each step, "" if it has none, and by how much it may lengthen a match."""
    if isinstance(found, dict):
        pattern = found.get("pattern")
        if found.get("type") == "Precompiled":  # a map that may lengthen a character to anything
            raise ValueError
        regex = pattern.get("Regex", "") if isinstance(pattern, dict) else ""
        yield str(regex), len(str(found.get("content", ""))) + len(str(found.get("prepend", "")))
    for value in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _steps(value)


def _parts_of(found: Any, place: str = "") -> Counter[str]:
    """Count how often a template names each part of a text, for one text and for two."""
    counts: Counter[str] = Counter()
    if isinstance(found, dict):
        if isinstance(sequence := found.get("Sequence"), dict):
            counts[f"{place} {sequence.get('id')}"] += 1
        for key, value in found.items():
            counts += _parts_of(value, key if key in ("single", "pair") else place)
    for value in found if isinstance(found, list) else ():
        counts += _parts_of(value, place)
    return counts


def cut(text: str, tokenizer: bytes, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a text's tokens, (L,) int32, and where each begins and ends in it, (L, 2) int32; (0, 0) if it was added.

    Args:
        text: `cleaned`, its parts joined by `SEPARATOR`.
        tokenizer: the content of a `tokenizer.json`.
        longest: tokens that it is cut to.

    Raises:
        ValueError: if the tokenizer cannot be used or fails, or the text has no tokens of its own, in words that follow
            a name.
    """
    parts, (cutter, known) = text.split(SEPARATOR), loaded(tokenizer, longest)
    with _understood("cannot be cut into tokens"):
        found = cutter.encode(parts[0], parts[1] if len(parts) > 1 else None)
        ids = np.array(found.ids, dtype=np.int32)
        which = np.array([-1 if part is None else part for part in found.sequence_ids], dtype=np.int32)
        spans = np.array(found.offsets, dtype=np.int32).reshape(-1, 2)
    if not (which >= 0).any():
        raise ValueError("has no words")
    if (ids == 0).any():
        raise ValueError("is cut into tokens of the number 0, which stands for padding")
    ends = np.array([len(part) for part in parts])[which.clip(0)]
    if len(ids) > longest or (ids >= known).any() or (spans[:, 1] > ends).any() or (spans[:, 0] > spans[:, 1]).any():
        raise ValueError("is cut into tokens that its tokenizer does not have")
    begins = np.array([0, len(parts[0]) + 1], dtype=np.int32)[which.clip(0)]
    return ids, np.where(which[:, None] < 0, 0, spans + begins[:, None]).astype(np.int32)


def misfits(stored: Iterable[tuple[str, np.ndarray, np.ndarray]], tokenizer: bytes, longest: int) -> Iterator[str]:
    """Yield what is wrong with stored tokens, in words that follow "the bundle", by cutting each text again.

    Args:
        stored: each text, the numbers of its tokens (L,), and where they begin and end (L, 2).
        tokenizer: the content of a `tokenizer.json`.
        longest: tokens that a text is cut to.
    """
    others, elsewhere = list[int](), list[int]()
    for row, (text, numbers, spans) in enumerate(stored):
        try:
            found, places = cut(text, tokenizer, longest)
        except ValueError as error:
            yield f"holds a text, number {row:,}, which {error}"
            return
        if not np.array_equal(numbers, found):
            others.append(row)
        elif not np.array_equal(spans, places):
            elsewhere.append(row)
    for rows, fault in ((others, "into these tokens"), (elsewhere, "at these places")):
        if rows:
            texts = "a text" if len(rows) == 1 else f"{len(rows):,} texts"
            example = f"number {rows[0]:,}" if len(rows) == 1 else f"the first is number {rows[0]:,}"
            yield f"holds {texts} that its tokenizer does not cut {fault}; {example}"


@contextmanager
def _understood(words: str) -> Iterator[None]:
    """Turn whatever a tokenizer raises, even its panics, which are no Exception, into a ValueError of a few words."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if out_of_memory(error):
            raise
        raise ValueError(words) from error
