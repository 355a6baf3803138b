"""Write the pages of the site for its builder: `python -m docs.pages [FOLDER]`, the first half of `make docs`.

What the code or a result knows (numbers, methods, terms, options) is filled in by Jinja, formulas become MathML so that
the site needs no script for them, and links lead to pages of the site.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import jinja2
from latex2mathml.converter import convert

import natscope
from docs import results
from natscope.app.cli.commands import natscope as command_line
from natscope.app.results import load_benchmark
from natscope.app.words import GLOSSARY, LIMITS
from natscope.core.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
_DOCS = ROOT / "docs"
NOTEBOOK = _DOCS / "notebook.ipynb"
_ALSO = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # stand at the top, and are pages of the site too
_MODULES = (
    "core.jacobians",
    "core.sketches",
    "core.pool",
    "core.posterior",
    "core.greedy",
    "core.recursion",
    "core.metrics",
    "core.methods.base",
    "core.bundle.format",
    "core.bundle.attributor",
    "core.analysis.comparison",
    "core.analysis.coreset",
    "core.analysis.audit",
)
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_UNKNOWN = {r"\arg\max": r"\text{arg max}", r"\mathrm": r"\text", r"\setminus": "∖", r"\sim": "∼"}


def main(folder: Path) -> None:
    """Write every page, and the pictures that pages show, below a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "assets" / "screenshots", folder / "assets" / "screenshots")
    shutil.copytree(ROOT / "assets" / "results", folder / "assets" / "results", ignore=shutil.ignore_patterns("*.md"))
    shutil.copytree(_DOCS / "stylesheets", folder / "stylesheets")
    shutil.copy(ROOT / "app" / "icon.png", folder / "assets")
    for page in pages():
        written = folder / (_place(page) or page.name)
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(render(page), encoding="utf-8")
    shutil.copy(NOTEBOOK, folder)
    (folder / NOTEBOOK.with_suffix(".md").name).write_text(notebook(), encoding="utf-8")


def notebook() -> str:
    """Return the notebook as a page: its text and code."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    blocks = [
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts, strict=True)
    ]
    return "\n\n".join([*blocks, f"With what it prints and shows: [{NOTEBOOK.name}]({NOTEBOOK.name}).\n"])


def pages() -> list[Path]:
    """Return the files that become pages."""
    return [*sorted(_DOCS.rglob("*.md")), *(ROOT / name for name in _ALSO)]


def render(page: Path) -> str:
    """Return a page as the site's builder reads it."""
    text = page.read_text(encoding="utf-8")
    if page.is_relative_to(_DOCS):
        text = _environment().from_string(text).render()
    return "".join(_block(part, page) for part in _FENCE.split(text))


def _block(part: str, page: Path) -> str:
    if part.lstrip().startswith("```math\n"):
        return (
            f'<div class="formula">{_mathml(part.strip().removeprefix("```math").removesuffix("```"), "block")}</div>'
        )
    if part.lstrip().startswith("```"):
        return part
    part = re.sub(r"\$`(.+?)`\$", lambda found: f"<span>{_mathml(found[1], 'inline')}</span>", part)
    return _LINK.sub(lambda found: _link(found, page), part)


def _mathml(latex: str, display: str) -> str:
    for command, known in _UNKNOWN.items():
        latex = latex.replace(command, known)
    return convert(latex.strip(), display=display).replace("*", "&#x2217;").replace("_", "&#x5F;")


def _link(found: re.Match[str], page: Path) -> str:
    """Return a link to a page or picture as it is on the site; one to another file of the repository is its text."""
    image, text, target, anchor = found.groups()
    place = _place(Path(os.path.normpath(page.parent / target)))
    if place is None:
        return text
    written = Path(os.path.relpath(place, (_place(page) or Path(page.name)).parent)).as_posix()
    return f"{image}[{text}]({written}{anchor or ''})"


def _place(path: Path) -> Path | None:
    """Return where a file of the repository stands on the site; None where it is not there."""
    name = path.relative_to(ROOT)
    if name.parts[0] == "docs":
        return name.relative_to("docs").with_suffix(".md") if path == NOTEBOOK else name.relative_to("docs")
    if name.parts[:2] in {("assets", "results"), ("assets", "screenshots")} and name.suffix not in {"", ".md"}:
        return name
    if str(name) in _ALSO:
        return Path(str(name).lower())
    return Path("index.md") if str(name) == "README.md" else None


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    environment.globals.update(
        commands=lambda: "\n".join(_commands()),
        glossary=GLOSSARY,
        limits=LIMITS,
        methods=METHODS,
        modules=[f"natscope.{name}" for name in _MODULES],
        public=natscope.__all__,
        result=results.read,
        section=results.section,
        search=load_benchmark("search"),
        search_table=results.search_table,
        searched=results.searched,
        scale_table=results.scale_table,
        grown=results.grown,
        searches=results.searches,
        influence_agrees=results.influence_agrees,
    )
    return environment


def _commands() -> Iterator[str]:
    """Describe every command of the command line, its options in a table."""
    for name, command in sorted(command_line.commands.items()):
        context = click.Context(command, info_name=name)
        yield f"## natscope {name}\n"
        yield f"{_plain(command.help or '')}\n"
        yield "| option | default | what it is |\n|---|---|---|"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                cells = (_option(parameter, context), _default(parameter, context), _plain(parameter.help or ""))
                yield f"| {' | '.join(cells)} |"
        yield ""


def _option(option: click.Option, context: click.Context) -> str:
    value = "" if option.is_flag else f" {option.make_metavar(context).split(' ')[0]}"
    names = f"`{'/'.join((*option.opts, *option.secondary_opts))}{value}`".replace("|", "\\|")
    return names + (" (required)" if option.required else "")


def _default(option: click.Option, context: click.Context) -> str:
    value = option.get_default(context)
    if isinstance(value, bool) and option.secondary_opts:
        return f"`{(option.opts if value else option.secondary_opts)[0]}`"
    return f"`{value}`" if option.show_default and value is not None and not isinstance(value, bool) else ""


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
