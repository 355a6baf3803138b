"""The README, the documentation and the site made of it, held to what the code does."""

import ast
import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from io import StringIO
from pathlib import Path

import click
import numpy as np
import pytest
import torch

import natscope
from benchmarks.__main__ import main as benchmarks
from docs import pages
from docs.results import read
from natscope.app.cli.commands import natscope as commands
from natscope.app.cli.precompute import _command
from natscope.app.figures.tables import recall_table
from natscope.app.guard import MAX_UPLOADS, MAX_VISITORS
from natscope.app.listen import Listening
from natscope.app.serve import settings
from natscope.app.uploads import LARGEST_BYTES, MEMORY, SECONDS
from natscope.app.views import explain, paper
from natscope.core.bundle.request import Request
from natscope.core.sketches import FOR_TRANSFORMERS, SketchSpec
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.training.train import RECIPES, TrainingSpec
from tests.conftest import syntax_of

ROOT = Path(__file__).parents[1]
MAIN = ROOT / "app" / "main.py"
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *pages.pages())}
README, SERVING, SETTINGS = TEXTS["README.md"], TEXTS["docs/serving.md"], TEXTS["docs/settings.md"]


_MY_MODEL = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3))
"""


def blocks(language, page):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)


def shown(page):
    """Return the commands of a page: lines of its console and sh blocks, and code within its sentences."""
    lines = [line[2:] for block in blocks("console", page) for line in block.splitlines() if line[:2] == "$ "]
    lines += [line for block in blocks("sh", page) for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    lines += re.findall(r"`((?:natscope|make|python -m) [^`]+)`", prose)
    return [line.split("  #")[0].split("    #")[0].strip() for line in lines]


@pytest.mark.parametrize("name", [None, *natscope.__all__])
def test_the_examples_of_the_public_names_run(name, bundle_path, tmp_path, monkeypatch):
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "fashion-mnist").symlink_to(bundle_path)
    (tmp_path / "my_model.py").write_text(_MY_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    documented = natscope if name is None else getattr(natscope, name)
    known = {"natscope": natscope, "np": np, "torch": torch, "Path": Path}
    found = [t for t in doctest.DocTestFinder(recurse=False).find(documented, name, globs=known) if t.examples]
    assert len(found) == 1
    reported = StringIO()
    assert doctest.DocTestRunner().run(found[0], out=reported.write).failed == 0, reported.getvalue()


def test_the_public_names_are_few_and_the_same_to_tools_that_only_read(tmp_path):
    assert len(natscope.__all__) <= 20
    tree = syntax_of(ROOT / "natscope" / "__init__.py")
    imported = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and str(n.module).startswith("natscope.")]
    assert sorted(alias.name for node in imported for alias in node.names) == sorted(natscope.__all__) == dir(natscope)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = natscope.nothing


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if blocks("python", text)])
def test_the_python_examples_of_a_page_run_one_after_another(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = {"__name__": "example"}
    for code in blocks("python", TEXTS[name]):
        exec(compile(code, name, "exec"), known)
    sys.modules.pop("my_model", None)


_NOTEBOOK = """
import json, sys

known = {"__name__": "__main__"}
for code in json.load(sys.stdin):
    exec(code, known)
assert len(known["answer"]) == 6 and known["answer"]._repr_html_().count("<img") == 7
assert not known["session"].running
"""


@pytest.mark.slow
def test_the_notebook_runs_from_a_network_of_torchvision_to_the_app(tmp_path):
    cells = json.loads(pages.NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) <= 10
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    code = json.dumps(["".join(cell["source"]) for cell in cells])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(tmp_path / "own")}
    done = subprocess.run(
        [sys.executable, "-c", _NOTEBOOK],
        input=code,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"Test accuracy: (\d+)%", done.stdout)
    assert found is not None
    assert int(found[1]) > 60
    assert "http" not in done.stdout
    assert "True None" in done.stdout


def test_the_readme_is_short_and_its_example_prints_indices_and_nats(capsys):
    assert len(README.splitlines()) <= 150
    (code,) = blocks("python", README)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("[")


@pytest.mark.parametrize(
    ("name", "line"), sorted({(name, line) for name, text in TEXTS.items() for line in shown(text)})
)
def test_every_command_of_a_page_exists_with_its_options(name, line):
    words = shlex.split(line.replace("…", "x"))
    if words[:1] == ["make"]:
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[:3] == ["python", "-m", "benchmarks"]:
        _has_options(benchmarks, words[3:], benchmarks.commands)
    elif words[:1] == ["natscope"] and words[1:2] != ["COMMAND"] and words[1:2] != ["--version"]:
        _has_options(commands, words[1:], commands.commands)
    elif words[:2] == ["python", "-m"]:
        own = Path(*words[2].removeprefix("natscope.").split(".")).with_suffix(".py")
        assert words[2] in {"build", "http.server"} or (ROOT / own).exists()
    else:
        assert not words or words[0] in {"natscope", "export", "pre-commit", "ray", "ssh"}, f"no test knows {words[0]}"


def _has_options(group, words, names):
    assert words[0] in names
    command = group.get_command(click.Context(group), words[0])
    known = {o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts)} | {"-h"}
    assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize(("name", "least"), [("README.md", 8), ("docs/commands.md", 14), ("docs/serving.md", 4)])
def test_the_commands_of_a_page_are_found(name, least):
    assert len(shown(TEXTS[name])) >= least


def test_an_entry_of_the_changelog_is_one_short_line():
    lines = TEXTS["CHANGELOG.md"].split("## Unreleased")[1].splitlines()
    assert [line for line in lines if len(line) > 120 or line.startswith("  ")] == []


@pytest.mark.parametrize("option", re.findall(r"--[a-z][a-z0-9-]+", SETTINGS))
def test_every_option_of_the_settings_table_exists(option):
    known = {o for c in commands.commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    assert option in known


def test_the_defaults_of_the_settings_table_are_those_of_the_code():
    table = dict(re.findall(r"^\| (.+?) \| (.+?) \|", SETTINGS, re.MULTILINE))
    request, spec = Request(), BuildSpec()
    assert table["method"] == f"`{request.method}`"
    assert "natscope tune" in table["σ², observation noise variance"]
    assert request.sigma2 is None
    assert table["NTK scaling of the Jacobian"].startswith("`auto`")
    assert spec.ntk is None
    assert int(table["M, how many images"]) == request.budget
    assert table["pool"] == f"`{request.pool}`"
    assert table["conditioning set of InfoLoss and RelatIF"] == f"`{request.conditioning}`"
    sketch = SketchSpec()
    kinds = f"`{sketch.kind}` (a network of transformers: `{FOR_TRANSFORMERS}`)"
    assert table["sketch, K, seed"] == f"{kinds}, {sketch.dim}, {sketch.seed}"
    assert table["network"] == f"MLP {'-'.join(map(str, spec.model.widths))}, no biases"
    recipe = table["recipe"]
    for name in ("epochs", "batch_size", "learning_rate", "momentum"):
        assert f"{getattr(spec.training, name):g}" in recipe


def test_the_table_of_recipes_is_that_of_the_code():
    rows = re.findall(r"^\| `--([a-z-]+)` \| (.+) \|$", SETTINGS.split("## Recipes")[1].split("\n## ")[0], re.MULTILINE)
    told = {name.replace("-", "_"): values.split(" | ") for name, values in rows}
    assert set(told) == {field.name for field in fields(TrainingSpec)} - {"seed"}
    for name, values in told.items():
        own = [getattr(RECIPES[network], name) for network in ("mlp", "resnet9", "attention", "bert")]
        assert values == [("off", "on")[value] if isinstance(value, bool) else str(value) for value in own], name


def test_places_and_tabs_of_the_app_have_the_names_that_the_documentation_gives_them():
    places = set(re.findall(r'st\.Page\(.+?, title="(.+?)"', MAIN.read_text(encoding="utf-8")))
    tabs = {title for view in (explain, paper) for title, _ in view._TABS.values()}
    named = r"(?:[Pp]lace|[Pp]age|[Tt]ab)s?\s+\*?([A-Z][\w&]*)|\b([A-Z]\w*)\s+(?:place|page|tab)\b"
    texts = {name: text for name, text in TEXTS.items() if name != "CHANGELOG.md"}
    found = {(page, one or other) for page, text in texts.items() for one, other in re.findall(named, text)}
    first = {title.split()[0] for title in places | tabs} | {"The", "Each", "A"}  # those begin a sentence
    assert {(page, name) for page, name in found if name not in first} == set()
    assert len(found) > 5
    table = [line.split("|") for line in TEXTS["docs/guide/index.md"].splitlines() if line.startswith("|")][2:]
    shown = [re.sub(r"\[(.+?)\]\(.+\)", r"\1", cell).strip() for row in table for cell in row[1:3]]
    assert {name for name in shown if name} == (places | tabs) - {"Start", "natscope"}


def test_the_command_lines_defaults_are_those_of_the_library():
    options = {p.name: p.default for p in commands.commands["attribute"].params}
    for field in fields(Request):
        if field.name == "sigma2":
            typed = commands.commands["attribute"].make_context("attribute", ["--bundle", "x"]).params
            # The bundle's own, where it was tuned; and the registry's first, without loading it for the help text.
            assert typed["sigma2"] is typed["method"] is None
        elif field.name not in ("target", "method"):
            assert options[field.name] == field.default, field.name
    options, spec = {p.name: p.default for p in commands.commands["precompute"].params}, BuildSpec()
    helps = {p.name: p.help for p in commands.commands["precompute"].params}
    usual = {"dataset": spec.dataset, "outputs": spec.outputs, "seed": spec.training.seed}
    for name, value in usual.items():
        assert options[name] == value, name
    assert commands.commands["precompute"].make_context("precompute", ["--out", "x"]).params["ntk"] == "auto"
    assert f"{spec.sketch.kind} (default), {FOR_TRANSFORMERS} (default for transformers)" in helps["sketch"]
    assert options["dim"] == spec.sketch.dim
    assert (options["image_size"], options["test_share"]) == (spec.folder.image_size, spec.folder.test_share)


def test_the_help_of_each_setting_of_a_recipe_names_its_defaults():
    said = {p.name: p.help for p in commands.commands["precompute"].params}
    words = {True: "on", False: "off"}
    for field in fields(TrainingSpec):
        if field.name == "seed":
            continue
        kinds = {"mlp": "mlp", "resnet9": "resnet9", "attention": "attention", "hf": "bert"}
        values = {title: getattr(RECIPES[name], field.name) for title, name in kinds.items()}
        shown = {title: words.get(v, v) if isinstance(v, bool) else str(v) for title, v in values.items()}
        others = [v for v in dict.fromkeys(shown.values()) if v != shown["mlp"]]
        named = [f"{', '.join(title for title, v in shown.items() if v == other)}: {other}" for other in others]
        expected = f"by default {shown['mlp']}" + (f" ({'; '.join(named)})." if named else ".")
        assert said[field.name].endswith(f" {expected}"), field.name
    assert " and ".join(map(str, BuildSpec().model.widths[1:-1])) in said["widths"]


@pytest.mark.parametrize(
    "words", [[], ["--no-augment"], ["--augment"], ["--skip-broken", "--ntk", "off"], ["--mean", "0,0"]]
)
def test_a_command_that_is_written_down_is_the_one_that_was_typed(words):
    command = commands.commands["precompute"]
    options = command.make_context("precompute", list(words)).params
    assert _command(options, command.params).split()[2:] == words


@pytest.mark.parametrize("name", TEXTS)
def test_links_of_a_page_lead_somewhere(name):
    text = re.sub(r"^ *```.*?^ *```", "", TEXTS[name], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text) + re.findall(r'src(?:set)?="([^"]+)"', text):
        assert ((ROOT / name).parent / target).exists(), target


def test_every_file_that_contributors_are_told_of_exists():
    named = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_0-9]+\.[a-z]+)?)`", TEXTS["CONTRIBUTING.md"])
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_contributors_are_told_of_every_folder_of_code():
    folders = {
        f"{file.parent.relative_to(ROOT)}/"
        for name in ("app", "core", "precompute")
        for file in (ROOT / name).rglob("*.py")
    }
    assert {folder for folder in folders if f"| `{folder}` |" not in TEXTS["CONTRIBUTING.md"]} == set()


def test_the_bounds_of_the_page_on_serving_are_those_of_the_code():
    said = dict(re.findall(r"^\| (.+?) \| (.+?) \|", SERVING, re.MULTILINE))
    server = settings(Listening("localhost", "127.0.0.1", 8501, (), ""))
    first = {name: int(re.match(r"\d+", said[name])[0]) for name in said if re.match(r"\d+ ?", said[name])}
    assert first["visitors at the same time"] == MAX_VISITORS
    assert first["uploads of a session in memory"] == MAX_UPLOADS
    assert first["a session after its page is closed"] == server["server.disconnectedSessionTTL"]
    sizes = [f"{server[f'server.{name}']} MB" for name in ("maxMessageSize", "maxWidgetStateSize")]
    assert re.findall(r"\d+ MB", said["a message"]) == sizes
    bounds = [f"{LARGEST_BYTES / 1e6:g} MB", f"{SECONDS:g} s", f"{MEMORY / 2**20:g} MB"]
    assert re.findall(r"\d+ M?[Bs]", said["an uploaded image"]) == bounds
    options = {o: p.default for p in commands.commands["app"].params for o in p.opts}
    for option in ("--host", "--port", "--allowed-host", "--base-path", "--jobs", "--memory"):
        assert f"`{option}`" in said
        assert option in options
    assert (said["`--host`"], said["`--port`"]) == (f"`{options['--host']}`", str(options["--port"]))


@pytest.mark.parametrize("name", TEXTS)
def test_no_figure_is_left_to_be_filled_in(name):
    assert "<!--" not in TEXTS[name]
    assert "TODO" not in TEXTS[name]


def test_the_readmes_table_is_that_of_the_result():
    rows = [line for line in recall_table(read("backdoor-cifar10")).markdown().splitlines() if "*chance*" not in line]
    assert "\n".join(rows) in README
