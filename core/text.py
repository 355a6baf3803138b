"""Text as a sentence shows it: how much of it, and without characters that change what is displayed."""

import re
from collections.abc import Sequence

_SHOWN = 60  # characters of a text

# Control characters, line separators, marks that turn the direction of writing, and halves of characters.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> bool:
    """Return whether a text has no such character, and so cannot change how its surroundings look."""
    return UNSEEN.search(text) is None


def short(text: str) -> str:
    """Return the beginning of a text that is long, else all of it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def beginning(text: str, longest: int) -> str:
    """Return a text, or its beginning up to a word's end."""
    if len(text) <= longest:
        return text
    return next(iter(text[:longest].rsplit(None, 1)), "") + " …"  # of spaces alone, nothing


def listed(parts: Sequence[str]) -> str:
    """Return a list in words, "a, b and c", of one part or more."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def few(parts: Sequence[object], most: int, between: str = ", ") -> str:
    """Return the first few of a list, and how many more there are: "cat, dog and 1,200 more"."""
    more = f" and {len(parts) - most:,} more" if len(parts) > most else ""
    return f"{between.join(map(str, parts[:most]))}{more}"


def kind_of(found: object) -> str:
    """Return what somebody's function gave: "3 values" of a tuple or list, "an int" of anything else."""
    return f"{len(found)} values" if isinstance(found, tuple | list) else type_of(found)


def type_of(found: object) -> str:
    """Return the type of a value with its article: "an int"."""
    name = type(found).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"
