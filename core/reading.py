"""What a network reads of a text: words that its tokenizer does not know are all one to it, and the end may be cut."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from natscope.core.text import few, short

_NAMED = 5  # unknown words that a sentence names


@dataclass(frozen=True, eq=False)
class Reading:
    """The words of a text, and what becomes of them; signs of punctuation count as none.

    Args:
        text: the text.
        spans: (W, 2), where each word begins and ends, in characters.
        read: (W,) whether it has a token.
        known: (W,) whether none of its tokens is the one that stands for all unknown words.
    """

    text: str
    spans: np.ndarray
    read: np.ndarray
    known: np.ndarray

    @property
    def unknown(self) -> list[str]:
        """The words that are read and not known, each once, in their order."""
        found = self.spans[self.read & ~self.known].tolist()
        return list(dict.fromkeys(self.text[begin:end] for begin, end in found))

    def fate(self, begin: int, end: int) -> str:
        """Return what becomes of a part of the text: "unread", "unknown", or "" for what is read and known."""
        within = (self.spans[:, 0] < end) & (self.spans[:, 1] > begin)
        if (within & ~self.read).any():
            return "unread"
        return "unknown" if (within & ~self.known).any() else ""

    def sentence(self) -> str:
        """Return what the network does not see, in a sentence; "" if it sees every word."""
        said, count, unknown = [], len(self.read), self.unknown
        if not self.read.all():
            rest = bool(np.all(np.diff(self.read.astype(int)) <= 0))
            said.append(f"The network reads {'the first ' if rest else ''}{int(self.read.sum()):,} of {count:,} words")
        if unknown:
            words = "1 word is" if len(unknown) == 1 else f"{len(unknown):,} words are"
            named = few([f"“{short(word)}”" for word in unknown], _NAMED)
            said.append(f"{words} unknown to {'it' if said else 'the network'}: {named}")
        return f"{'; '.join(said)}." if said else ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as an answer in JSON has it."""
        return {"words": len(self.read), "read": int(self.read.sum()), "unknown": self.unknown}
