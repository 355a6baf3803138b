"""What names and sentences become for each medium; that a browser then shows them as they are is test_hostile's."""

import ast
import csv
import io
from pathlib import Path

import pytest
from matplotlib.cbook import is_math_text

from natscope.app import escape
from natscope.app.cli.commands import main
from tests.conftest import one_sentence, syntax_of

_APP = Path(__file__).parents[2] / "app"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Ankle boot", "Ankle boot"),
        ("T-shirt/top", "T-shirt/top"),
        ("**b** _i_ `c` $x$", r"\*\*b\*\* \_i\_ \`c\` \$x\$"),
        ("[link](x)", r"\[link\](x)"),
        ("<b>&amp;", r"\<b\>\&amp;"),
        (":red[x]", r"\:red\[x\]"),
        (":smile:", "\\:\u2060smile\\:"),
        (":material/home:", "\\:\u2060material/home\\:"),
        ("http://evil.example", "http\\:\u2060//evil.example"),
        ("www.evil.example", "www\u2060.evil.example"),
        ("a@b.example", "a@\u2060b.example"),
        ("a@+@.b", "a@\u2060+@\u2060.b"),
        ("--out -> -- a--b", "--out -\u2060\\> -\u2060- a--b"),
        ("- item", "\u2060- item"),
        ("12. item", "\u206012. item"),
        (" x ", "&#32;x&#32;"),
        ("a\nb\u202ec", r"a\\nb\\u202ec"),
    ],
)
def test_markdown_reads_nothing_in_a_name(name, written):
    assert escape.markdown(name) == written


def test_a_sentence_keeps_natscopes_own_commands_alone():
    reported = escape.sentence(
        "No *x* in `y`; run `natscope demo --port 1`, with `--seed`, not `rm -rf` or `natscope $(x)`."
    )
    assert reported == (
        r"No \*x\* in \`y\`; run `natscope demo --port 1`, with `--seed`, not \`rm -rf\` or \`natscope \$(x)\`."
    )


def test_a_terminal_obeys_nothing_and_text_in_any_script_is_left():
    hostile = "\x1b[31m\x9b2J\x07\r\n\t\u202e\u2066\u2028\udc80"
    assert escape.terminal(hostile) == r"\x1b[31m\x9b2J\x07\r\n\t\u202e\u2066\u2028\udc80"
    assert escape.terminal("שלום 👩‍🔬 é 中文 \\x1b") == "שלום 👩‍🔬 é 中文 \\x1b"


def test_what_is_quoted_turns_nothing_around():
    assert escape.isolated("1 word: “שלום” +5%, “x” -1%") == ("1 word: “\u2068שלום\u2069” +5%, “\u2068x\u2069” -1%")


def test_html_is_read_neither_between_tags_nor_in_an_attribute():
    assert (
        escape.html("<img src=\"x\" title='y'>&\x1b") == "&lt;img src=&quot;x&quot; title=&#x27;y&#x27;&gt;&amp;\\x1b"
    )


def test_figures_show_names_as_they_are_and_short():
    assert escape.chart("<b>x</b> & y") == "&lt;b&gt;x&lt;/b&gt; &amp; y"
    assert escape.chart("x" * 41) == "x" * 39 + "…"
    for name in ("$x$", "$", r"\$x$", "$$", "$\\frac{$"):
        written = escape.mathtext(name, 20)
        assert not is_math_text(written)
        assert written.replace(r"\$", "$") == name  # as Matplotlib does with what is no formula
    assert escape.mathtext("$" * 30, 4) == r"\$\$\$…"


def test_no_cell_of_a_table_is_a_formula():
    rows = [["=1+1", -2.5, "a"], ["+x", 0, 'b"\n'], ["-x", "", "@x"], ["\tx", 1, "＝x"], ["a;=b;c", "x\t@y", "z-1=2"]]
    read = list(csv.reader(io.StringIO(escape.table(["name", "score", "other"], rows))))
    assert read == [
        ["name", "score", "other"],
        ["'=1+1", "-2.5", "a"],
        ["'+x", "0", 'b"\\n'],
        ["'-x", "", "'@x"],
        ["\\tx", "1", "'＝x"],
        ["a;'=b;c", "x\\t@y", "z-1=2"],  # as it is read where cells end with a semicolon
    ]


def test_no_table_of_a_page_holds_a_formula_when_it_is_saved():
    rows = [{"class": "=1+1", "n": -1, "other": "a;@b \x1b"}]
    assert escape.cells(rows) == [{"class": "\u2060=1+1", "n": -1, "other": "a;\u2060@b \\x1b"}]


@pytest.mark.parametrize("file", sorted((_APP / "views").glob("*.py")), ids=lambda file: file.name)
def test_every_table_of_a_page_is_made_so(file):
    for node in ast.walk(syntax_of(file)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "dataframe":
            assert ast.unparse(node.args[0]).startswith("escape.cells(")


def test_an_error_in_a_terminal_is_one_line_without_commands_to_it(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["verify", "--bundle", "/none/\x1b[2J\nnatscope: all is well"])
    assert r" /none/\x1b[2J\nnatscope: all is well;" in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("names", "home", "why"),
    [
        ({"echo"}, "cli/progress.py", "say() writes lines to terminals"),
        ({"error", "warning"}, "views/notice.py", "complain() and warn() draw what went wrong"),
    ],
)
def test_sentences_have_one_way_out(names, home, why):
    for file in sorted(_APP.rglob("*.py")):
        for node in ast.walk(syntax_of(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                fixed = node.args and isinstance(node.args[0], ast.Constant)
                assert fixed or str(file.relative_to(_APP)) == home, f"{file}, line {node.lineno}: {why}"
