"""The words of a text, and how much of a link between two texts each of them carries, or each pair of them.

Tokens are what a network reads; people read words, which may be several tokens. What a word carries is the sum over its
tokens: see `natscope.core.token_shares`.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from natscope.core.features import FeatureMap
from natscope.core.reading import Reading
from natscope.core.token_shares import token_features

_PIECE = re.compile(r"\S+")
_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")  # each is a word: there are no spaces


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a text.

    Args:
        spans: (W, 2), where each begins and ends, in characters.
        numbers: (L,) the word of each token; W for those of none, which the tokenizer added.
    """

    spans: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True, eq=False)
class Link:
    """The kernel k(x, q) of two texts by their words.

    Args:
        parts: (W + 1, V + 1) float32, whose sum is k(x, q): of each word of x with each word of q; the last row and
            the last column are of what belongs to no word.
        words: (W, 2), where the words of x begin and end.
        query_words: (V, 2), where those of q do.
    """

    parts: np.ndarray
    words: np.ndarray
    query_words: np.ndarray

    @property
    def total(self) -> float:
        """k(x, q) itself."""
        return float(self.parts.sum(dtype=np.float64))

    def shares(self) -> np.ndarray:
        """Return each word of x's share of the link, and last what belongs to no word of x, (W + 1,)."""
        return self.parts.sum(axis=1, dtype=np.float64) / self._whole

    def query_shares(self) -> np.ndarray:
        """Return each word of q's share of the link, and last what belongs to no word of q, (V + 1,)."""
        return self.parts.sum(axis=0, dtype=np.float64) / self._whole

    def strongest(self, count: int) -> list[tuple[int, int, float]]:
        """Return the pairs with the largest shares, whatever their sign: words of x and of q, and the share."""
        shares = self.parts[:-1, :-1].astype(np.float64) / self._whole
        order = np.argsort(-np.abs(shares), axis=None, kind="stable")[:count]
        found = zip(*np.unravel_index(order, shares.shape), strict=True)
        return [(int(one), int(other), float(shares[one, other])) for one, other in found if shares[one, other]]

    @property
    def _whole(self) -> float:
        return self.total or 1.0


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each word of a text begins and ends: letters with their marks, or a run of other signs."""
    for match in _PIECE.finditer(text):
        begin, word = match.start(), None
        for place, sign in enumerate(match.group(), begin):
            mark = unicodedata.category(sign)[0] == "M" or sign == "\u200d"
            own = True if mark and word is not None else word if mark else sign.isalnum() or sign == "_"
            within = sign in "'’-" and word and text[place + 1 : place + 2].isalnum()
            alone = _IDEOGRAPH.match(sign) or _IDEOGRAPH.match(text[place - 1])
            if place > begin and not (mark or within) and (own != word or alone):
                yield begin, place
                begin = place
            word = word if mark and word is not None else True if within else own
        yield begin, match.end()


def words_of(text: str, spans: np.ndarray) -> Words:
    """Return the words of a text, and which of them each token belongs to: the one that its last character is in.

    Args:
        text: the text.
        spans: (L, 2), where each token begins and ends in it; (0, 0) if the tokenizer added it.
    """
    read = int(spans[:, 1].max(initial=0))  # what follows was cut off
    found = np.array([span for span in _spans(text) if span[0] < read], dtype=np.int64).reshape(-1, 2)
    last = spans[:, 1] - 1
    numbers = np.searchsorted(found[:, 1], last, side="right")
    inside = numbers < len(found)
    inside[inside] = found[numbers[inside], 0] <= last[inside]
    return Words(found, np.where(inside & (spans[:, 1] > 0), numbers, len(found)))


def reading_of(text: str, spans: np.ndarray, unknown: np.ndarray) -> Reading:
    """Return what a network reads of a text.

    Args:
        text: the text.
        spans: (L, 2), where each token begins and ends in it; (0, 0) if the tokenizer added it.
        unknown: (L,) whether a token stands for all words that the tokenizer does not know.
    """
    found = [(begin, end) for begin, end in _spans(text) if any(map(str.isalnum, text[begin:end]))]
    words = np.array(found, dtype=np.int64).reshape(-1, 2)
    own = spans[:, 1] > spans[:, 0]
    begins, ends = spans[own].T
    first, after = np.searchsorted(words[:, 1], begins, side="right"), np.searchsorted(words[:, 0], ends)
    read, strange = np.zeros(len(words), dtype=bool), np.zeros(len(words), dtype=bool)
    for one, other, is_unknown in zip(first.tolist(), after.tolist(), unknown[own].tolist(), strict=True):
        read[one:other] = True
        strange[one:other] |= is_unknown
    return Reading(text, words, read, ~strange)


def word_features(features: FeatureMap, ids: Tensor, words: Words, target: int) -> np.ndarray:
    """Return the features of each word of a text, and last those of what belongs to none, (W + 1, K) float64.

    Args:
        features: the network and the sketch.
        ids: (1, L) int64, the text's tokens.
        words: the text's words.
        target: the class whose logit is taken.

    Raises:
        ValueError: if the kernel is the exact one, which has no features.
    """
    found = token_features(features, ids, target)
    sums = np.zeros((len(words.spans) + 1, found.shape[1]))
    np.add.at(sums, np.append(words.numbers, len(words.spans)), found)
    return sums


def link_of(own: np.ndarray, words: Words, query: np.ndarray, query_words: Words) -> Link:
    """Return the link of two texts by their `word_features` and words."""
    return Link((own @ query.T).astype(np.float32), words.spans, query_words.spans)
