"""Text from outside (names, addresses, sentences that contain them), escaped for where it is shown.

A name is shown literally, and never interpreted as markup, a link, a formula or a terminal's control sequence. Each
medium has one function, called once, where the text is output.
"""

import csv
import html as _python
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from natscope.core.text import UNSEEN

_MARKS = re.compile(r"([\\`*_\[\]{<>#&$~|:])")
_EDGES = re.compile(r"^\s+|\s+$")
# What starts a list or underlines a heading, and what Streamlit's pages turn into links, icons, emoji and arrows after
# Markdown is read, when a backslash is gone: a character of no width goes in between.
_BREAKS = re.compile(
    r"""^(?=[-+](?:\s|$)|[-=]+\s*$|\d+[.)](?:\s|$))
    |(?<=:)(?=//|material/|[\w+-]+(?::|$))
    |(?<=www)(?=\.)
    |(?<=@)
    |(?<=(?<!\S)[-<>~])(?=(?:[->=]|->)(?!\S))""",
    re.IGNORECASE | re.VERBOSE,
)
_JOINER = "\u2060"
_QUOTED = re.compile("“([^“”]*)”")
_COMMAND = re.compile(r"`((?:natscope |--)[\w .,:=/-]+)`")
# Where a spreadsheet begins to read a formula, wide signs too: at the start, and behind what separates cells in other
# languages' settings.
_FORMULA = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=[=+\-@\t\r\n＝＋－＠])")
_LONGEST = 40  # characters of a name in a chart


def visible(text: str) -> str:
    r"""Return the text on one line, with invisible characters that change what is displayed spelt out (\x1b)."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def terminal(text: str) -> str:
    """Return the text for a line on a terminal, without control characters."""
    return visible(text)


def html(text: str) -> str:
    """Return the text for HTML, between tags or in a quoted attribute."""
    return _python.escape(visible(text))


def markdown(text: str) -> str:
    """Return the text for Streamlit's Markdown: in sentences, labels, tooltips and titles of dialogs."""
    return _EDGES.sub(lambda found: "".join(f"&#{ord(space)};" for space in found[0]), _inner(visible(text)))


def sentence(text: str) -> str:
    """Return one of natscope's own sentences, which may contain text from outside, for Streamlit's Markdown.

    What looks like a natscope command or option stays code between backticks.
    """
    own = _COMMAND.split(visible(text))
    return "".join(f"`{part}`" if position % 2 else _inner(part) for position, part in enumerate(own))


def isolated(text: str) -> str:
    """Return a text, escaped before, in which what is quoted “so” does not turn the rest of its line around.

    A right-to-left word takes numbers and signs that follow it along.
    """
    return _QUOTED.sub("“\u2068\\1\u2069”", text)


def chart(text: str) -> str:
    """Return the text, shortened, for Plotly, which interprets some HTML."""
    return _python.escape(_short(visible(text), _LONGEST), quote=False)


def mathtext(text: str, longest: int) -> str:
    """Return the text, shortened to `longest` characters, for Matplotlib, which interprets formulas between dollars."""
    return _short(visible(text), longest).replace("$", r"\$")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV; text that a spreadsheet would take for a formula gets an apostrophe before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def cells(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table on a page, escaped so that no spreadsheet reads a formula when it is saved as CSV."""
    return [
        {
            name: _FORMULA.sub(_JOINER, visible(value)) if isinstance(value, str) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _inner(text: str) -> str:
    return _MARKS.sub(r"\\\1", _BREAKS.sub(_JOINER, text))


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _cell(value: object) -> object:
    return _FORMULA.sub("'", visible(value)) if isinstance(value, str) else value
