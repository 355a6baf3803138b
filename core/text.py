"""Invisible characters that change what is displayed."""

import re

# Control characters, line separators, marks that turn the direction of writing, and halves of characters.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> bool:
    """Return whether a text has no such character, and so cannot change how its surroundings look."""
    return UNSEEN.search(text) is None
