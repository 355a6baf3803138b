"""Texts: what a bundle stores of them, and how they become the numbers of tokens that a network takes.

A text of several columns, such as two sentences, is one string with a separator between its parts; positions of tokens
count characters of that string. Token 0 is padding and stands in no stored text.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from scipy.sparse import csr_array

from natscope.core.bags import cosine_distances
from natscope.core.errors import DataError, QueryError
from natscope.core.examples import Modality, Which, register
from natscope.core.parameters import LINEAR
from natscope.core.ragged import PaddedRuns, lengths_of, numbers_of, offsets_of, run_of, runs_of
from natscope.core.reading import Reading
from natscope.core.rows import Rows
from natscope.core.text import type_of
from natscope.core.tokens import (
    LARGEST_VOCABULARY,
    LONGEST_TEXT,
    MOST_TOKENS,
    SEPARATOR,
    UNSEEN,
    cleaned,
    cut,
    loaded,
    misfits,
    unknown,
)
from natscope.core.words import reading_of

_BETWEEN = " / "  # the parts of a text on one line
PLACES = ("start", "end")  # of a text, where a trigger may stand
MOST_COLUMNS = 2  # what tokenizers can tell apart
_AT_ONCE = 256  # texts that are checked, or compared, at a time


class _About(msgspec.Struct, forbid_unknown_fields=True):
    columns: Annotated[list[Annotated[str, Meta(max_length=300)]], Meta(min_length=1, max_length=MOST_COLUMNS)]
    vocabulary: Annotated[int, Meta(ge=2, le=LARGEST_VOCABULARY)]
    longest: Annotated[int, Meta(ge=1, le=MOST_TOKENS)]


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of one split.

    Args:
        tokens: (T,) int32 of all stored texts, one after another; a memory map will do for all of these arrays.
        token_offsets: (M + 1,) int64, where the tokens of each begin and those of the last end.
        spans: (T, 2) int32, where each token begins and ends in its text, in characters; (0, 0) if it is added.
        texts: (U,) uint8, the texts as UTF-8, one after another.
        text_offsets: (M + 1,) int64.
        tokenizer: the content of a `tokenizer.json`.
        columns: titles of the parts of a text; one may be "".
        vocabulary: how many tokens there are, padding included.
        longest: tokens that a text is cut to.
        rows: (N,) which of the stored texts these are; all if None.
    """

    tokens: Rows
    token_offsets: np.ndarray
    spans: Rows
    texts: Rows
    text_offsets: np.ndarray
    tokenizer: bytes
    columns: tuple[str, ...]
    vocabulary: int
    longest: int
    rows: np.ndarray | None = None

    @property
    def modality(self) -> Modality:
        """Text."""
        return TEXT

    @cached_property
    def inputs(self) -> PaddedRuns:
        """Their tokens."""
        return PaddedRuns(self.tokens, self.token_offsets, self.rows)

    @property
    def form(self) -> tuple[int, ...]:
        """How many tokens there are to know, and how many of them a text has at most."""
        return self.vocabulary, self.longest

    @property
    def nbytes(self) -> int:
        """Bytes that a bundle stores for them, but for the tokenizer."""
        letters = int(lengths_of(self.text_offsets, self.rows).sum())
        return 12 * int(self.inputs.lengths.sum()) + letters + 16 * (len(self) + 1)

    def __len__(self) -> int:
        """Return N."""
        return len(self.token_offsets) - 1 if self.rows is None else len(self.rows)

    def __getitem__(self, rows: Which) -> "Texts":
        """Return some of them, in the requested order; none is read."""
        chosen = numbers_of(len(self), rows)
        return replace(self, rows=chosen if self.rows is None else self.rows[chosen])

    def arrays(self) -> dict[str, Rows]:
        """Return the arrays that are stored, without the texts that were not chosen."""
        if self.rows is None:
            return {name: getattr(self, name) for name in TEXT.arrays}
        return {
            "tokens": runs_of(self.tokens, self.token_offsets, self.rows),
            "token_offsets": offsets_of(self.inputs.lengths),
            "spans": runs_of(self.spans, self.token_offsets, self.rows),
            "texts": runs_of(self.texts, self.text_offsets, self.rows),
            "text_offsets": offsets_of(lengths_of(self.text_offsets, self.rows)),
        }

    def files(self) -> dict[str, bytes]:
        """Return the tokenizer."""
        return {"tokenizer": self.tokenizer}

    def about(self) -> dict[str, Any]:
        """Return titles and sizes."""
        return {"columns": list(self.columns), "vocabulary": self.vocabulary, "longest": self.longest}

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: of texts that were chosen, none of the others."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return kept if self.rows is None else kept | self.arrays() | {"rows": None}

    def text(self, index: int) -> str:
        """Return a text, with a separator between its parts."""
        return bytes(run_of(self.texts, self.text_offsets, self._stored(index))).decode()

    def parts(self, index: int) -> tuple[str, ...]:
        """Return a text's parts, one a column."""
        return tuple(self.text(index).split(SEPARATOR))

    def token_numbers(self, index: int) -> np.ndarray:
        """Return the numbers of a text's tokens, (L,)."""
        return np.asarray(run_of(self.tokens, self.token_offsets, self._stored(index)))

    def token_spans(self, index: int) -> np.ndarray:
        """Return where each token of a text begins and ends in it, (L, 2); (0, 0) if the tokenizer added it."""
        return np.asarray(run_of(self.spans, self.token_offsets, self._stored(index)))

    def reading(self, index: int) -> Reading:
        """Return what the network reads of a text."""
        ids = np.asarray(run_of(self.tokens, self.token_offsets, self._stored(index)))
        return reading_of(self.text(index), self.token_spans(index), ids == unknown(self.tokenizer, self.longest))

    def distances(self, train: "Texts") -> np.ndarray:
        """Return 1 - cosine to the nearest training text, (n,), of how often each token is there.

        Tokens weigh the more the fewer training texts they are in; those that a tokenizer adds to every text are left
        out. The token of unknown words stands for words that differ: each makes a text longer, and none makes it like
        another, so a text of nothing else lies as far from training as can be.
        """
        return cosine_distances(self._bags, train._bags, unknown=unknown(self.tokenizer, self.longest))

    @cached_property
    def _bags(self) -> csr_array:
        """How often each token of the vocabulary is in each text, (N, vocabulary)."""
        found = {name: np.asarray(values) for name, values in self.arrays().items() if name in ("tokens", "spans")}
        own = found["spans"][:, 1] > 0
        offsets = np.append(0, np.cumsum(own))[offsets_of(self.inputs.lengths)]
        bags = csr_array((np.ones(int(own.sum())), found["tokens"][own], offsets), (len(self), self.vocabulary))
        bags.sum_duplicates()
        return bags

    def present(self) -> np.ndarray:
        """Return that all were read, (N,) bool."""
        return np.ones(len(self), dtype=bool)

    def described(self) -> str:
        """Return how many tokens a text has and may have, and how many of them the vocabulary lacks."""
        middle, own = int(np.median(self.inputs.lengths)), self._bags
        strange = unknown(self.tokenizer, self.longest)
        share = 0.0 if strange is None else own[:, [strange]].sum() / max(1, own.sum())
        lacking = f", {share:.0%} of all unknown" if share >= 0.005 else ""
        cut_to = f"cut to {self.longest:,} at most"
        return f"median length {middle:,} tokens ({cut_to}){lacking}, vocabulary of {self.vocabulary:,} tokens"

    def scaling(self) -> str:
        """Return nothing: there is one way to cut them."""
        return ""

    def triggers(self, count: int, size: int, random: np.random.Generator) -> list[str]:
        """Draw triggers of `size` words that few training texts have, each word once.

        Raises:
            DataError: if there are not as many words.
        """
        found, frequency = loaded(self.tokenizer, self.longest)[0], np.bincount(self._bags.indices)
        words = [(int(frequency[token]), token) for token in np.flatnonzero(frequency).tolist()]
        rare = [word for _, token in sorted(words) if (word := str(found.id_to_token(token))).isalpha()]
        if size < 1 or len(rare) < 2 * count * size:
            raise DataError(f"Triggers of {size} rare words for {count} classes need {2 * count * size} such words.")
        drawn = random.permutation(rare[: 2 * count * size])[: count * size]
        return [" ".join(drawn[start : start + size].tolist()) for start in range(0, count * size, size)]

    def marked(self, triggers: Sequence[str], which: np.ndarray, place: str) -> "Texts":
        """Return copies with words before or behind them, of which the network reads all.

        Args:
            triggers: words.
            which: (N,), the number of each text's trigger.
            place: one of `PLACES`.
        """
        texts, sizes = [], [len(cut(trigger, self.tokenizer, self.longest)[0]) for trigger in triggers]
        for row, number in enumerate(which.tolist()):
            text, spans, trigger = self.text(row), self.token_spans(row), triggers[number]
            last = len(text) - len(self.parts(row)[-1])  # where the part that may be shortened begins
            over = len(spans) + sizes[number] - self.longest
            if place == "end" and over > 0:
                ends = spans[(spans[:, 0] >= last) & (spans[:, 1] > 0), 1]
                if len(ends) <= over:
                    raise DataError("Texts are too long for a trigger at their end to be read; put it at the start.")
                text = text[: int(ends[len(ends) - over - 1])]
            pair = (trigger, text[: max(last + 1, LONGEST_TEXT - len(trigger) - 1)])
            texts.append(" ".join(pair if place == "start" else pair[::-1]))
        return texts_of(texts, self.tokenizer, columns=self.columns, longest=self.longest)

    def replaced(self, rows: np.ndarray, others: "Texts") -> "Texts":
        """Return copies, of which those at `rows` (n,) are others."""
        own, new = self.arrays(), others.arrays()
        joined: dict[str, Any] = {
            name: np.concatenate([own[name][:], new[name][:]]) for name in ("tokens", "spans", "texts")
        }
        for name in ("token_offsets", "text_offsets"):
            joined[name] = np.append(own[name][:], own[name][-1] + new[name][1:])
        chosen = np.arange(len(self))
        chosen[rows] = len(self) + np.arange(len(others))
        return replace(self, **joined, rows=chosen)

    def given(self, found: Any) -> "Texts":
        """Return the text that a user gives, as one example.

        Args:
            found: a str, or one for each column; a str of several lines will do for several columns.

        Raises:
            QueryError: if it is no text, is empty or too long, or has another number of parts.
        """
        lines = len(self.columns) > 1 and isinstance(found, str)
        parts = [line for line in found.splitlines() if line.strip()] if lines else found
        parts = (parts,) if isinstance(parts, str) else parts
        if not isinstance(parts, tuple | list) or not all(isinstance(part, str) for part in parts):
            raise QueryError(f"A query here is a text, not {type_of(found)}.")
        if len(parts) != len(self.columns):
            titles = f" ({' and '.join(self.columns)})" if all(self.columns) else ""
            raise QueryError(f"A query here has {_count(len(self.columns))}{titles}, not {len(parts)}.")
        if sum(map(len, parts)) + len(parts) - 1 > LONGEST_TEXT:
            raise QueryError(f"The text has more than {LONGEST_TEXT:,} characters; give a part of it.")
        parts = [cleaned(part) for part in parts]
        if not all(parts):
            raise QueryError("The text is empty." if len(parts) == 1 else "One of the texts is empty.")
        try:
            return texts_of([SEPARATOR.join(parts)], self.tokenizer, columns=self.columns, longest=self.longest)
        except ValueError as error:
            raise QueryError(f"The text cannot be a query: it {error}.") from error

    def _stored(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])


def texts_of(texts: Iterable[str], tokenizer: bytes, *, columns: tuple[str, ...], longest: int) -> Texts:
    """Cut texts into tokens.

    Args:
        texts: `cleaned`, their parts joined by `SEPARATOR`.
        tokenizer: the content of a `tokenizer.json`.
        columns: titles of the parts.
        longest: tokens that a text is cut to.

    Raises:
        ValueError: if the tokenizer cannot be used or fails, in words that follow a name.
    """
    tokens, spans, letters = [], [], []
    for text in texts:
        ids, places = cut(text, tokenizer, longest)
        tokens.append(ids)
        spans.append(places)
        letters.append(text.encode())
    return Texts(
        tokens=np.concatenate([np.zeros(0, np.int32), *tokens]),
        token_offsets=offsets_of(np.array([len(one) for one in tokens], dtype=np.int64)),
        spans=np.concatenate([np.zeros((0, 2), np.int32), *spans]),
        texts=np.frombuffer(b"".join(letters), np.uint8),
        text_offsets=offsets_of(np.array([len(one) for one in letters], dtype=np.int64)),
        tokenizer=tokenizer,
        columns=columns,
        vocabulary=loaded(tokenizer, longest)[1],
        longest=longest,
    )


def _count(parts: int) -> str:
    return "one text" if parts == 1 else f"{parts} texts"


def _read(array: Callable[[str], np.ndarray], file: Callable[[str], bytes], about: Mapping[str, Any]) -> Texts:
    """Return the texts that a bundle holds, once all of it is known to fit; raises ValueError if it does not."""
    tokenizer, longest = file("tokenizer"), int(about["longest"])
    try:
        known = loaded(tokenizer, longest)[1]
    except ValueError as error:
        raise ValueError(f"holds a tokenizer that {error}") from error
    if known != about["vocabulary"]:
        raise ValueError("holds a tokenizer of another vocabulary")
    arrays = {name: array(name) for name in TEXT.arrays}
    for offsets, values in (("token_offsets", "tokens"), ("text_offsets", "texts")):
        arrays[offsets] = found = np.asarray(arrays[offsets])
        if found[0] != 0 or found[-1] != len(arrays[values]) or (np.diff(found) < 0).any():
            raise ValueError("holds offsets that do not fit")
    if len(arrays["spans"]) != len(arrays["tokens"]):
        raise ValueError("holds tokens without a place in their text")
    texts = Texts(
        **arrays,
        tokenizer=tokenizer,
        columns=tuple(about["columns"]),
        vocabulary=int(about["vocabulary"]),
        longest=longest,
    )
    if texts.inputs.lengths.min(initial=1) < 1:
        raise ValueError("holds texts of no tokens")
    if texts.inputs.lengths.max(initial=0) > longest:
        raise ValueError("holds texts of too many tokens")
    if lengths_of(texts.text_offsets, None).max(initial=0) > 4 * LONGEST_TEXT:
        raise ValueError("holds texts that are too long")
    for start in range(0, len(texts), _AT_ONCE):
        _check(texts[start : start + _AT_ONCE])
    return texts


def _check(texts: Texts) -> None:
    """Raise ValueError unless tokens, texts and places are what they should be."""
    found = {name: np.asarray(values) for name, values in texts.arrays().items()}
    if ((found["tokens"] < 1) | (found["tokens"] >= texts.vocabulary)).any():
        raise ValueError("holds tokens of no vocabulary")
    letters = []
    try:
        letters = [texts.text(row) for row in range(len(texts))]
    except UnicodeDecodeError as error:
        raise ValueError("holds texts that are not UTF-8") from error
    if any(len(text) > LONGEST_TEXT for text in letters):
        raise ValueError("holds texts that are too long")
    if any(text.count(SEPARATOR) != len(texts.columns) - 1 for text in letters):
        raise ValueError("holds texts of other columns")
    if any(UNSEEN.search(text.replace(SEPARATOR, "")) for text in letters):
        raise ValueError("holds texts with characters that cannot be shown")
    last = np.repeat([len(text) for text in letters], texts.inputs.lengths)
    begins, ends = found["spans"].T
    if ((begins < 0) | (ends < begins) | (ends > last)).any():
        raise ValueError("holds tokens outside their text")


def _misfits(texts: Texts) -> Iterator[str]:
    """Yield what is wrong with the tokens of stored texts, by cutting each again."""
    stored = ((texts.text(row), texts.token_numbers(row), texts.token_spans(row)) for row in range(len(texts)))
    return misfits(stored, texts.tokenizer, texts.longest)


def _fits(name: str, shape: tuple[int, ...], count: int, train: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether an array of `count` texts may have a shape."""
    if name in ("token_offsets", "text_offsets"):
        return shape == (count + 1,)
    return len(shape) == 2 and shape[1] == 2 if name == "spans" else len(shape) == 1


def _suits(patterns: Sequence[Any], size: int, form: tuple[int, ...]) -> bool:
    return all(isinstance(p, str) and cleaned(p) == p and 0 < len(p) <= 50 * size for p in patterns)


def _of_file(data: bytes, filename: str) -> str:
    """Return the text in a file; raises QueryError if it holds none."""
    if len(data) > 4 * LONGEST_TEXT:
        raise QueryError(f"The file holds more than {LONGEST_TEXT:,} characters; give a part of it.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QueryError("The file is no text in UTF-8; save it as such.") from error


def on_one_line(texts: Texts, row: int) -> str:
    """Return a text of one or two parts as one."""
    return _BETWEEN.join(texts.parts(row))


TEXT = register(
    Modality(
        name="text",
        one="text",
        many="texts",
        about=_About,
        arrays={
            "tokens": ("int32",),
            "token_offsets": ("int64",),
            "spans": ("int32",),
            "texts": ("uint8",),
            "text_offsets": ("int64",),
        },
        needed=("tokens", "token_offsets", "spans", "texts", "text_offsets"),
        files={"tokenizer": "tokenizer.json"},
        form=lambda about, _: (int(about["vocabulary"]), int(about["longest"])),
        fits=_fits,
        read=_read,
        layers=(LINEAR,),
        networks={"attention": lambda form: form},
        from_file=_of_file,
        places=PLACES,
        suits=_suits,
        text=on_one_line,
        misfits=_misfits,
    )
)
