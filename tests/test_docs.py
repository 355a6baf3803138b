"""The README and the other pages, held to what the code does."""

import ast
import doctest
import re
import shlex
from dataclasses import fields
from io import StringIO
from pathlib import Path

import click
import numpy as np
import pytest
import torch

import natscope
from natscope.app.cli.commands import natscope as commands
from natscope.app.cli.precompute import _command
from natscope.app.figures.brittleness import flips_table
from natscope.app.figures.coreset import coreset_table
from natscope.app.figures.experiments import recall_table, retraining_table
from natscope.app.guard import MAX_UPLOADS, MAX_VISITORS
from natscope.app.listen import Listening
from natscope.app.results import load_result
from natscope.app.serve import settings
from natscope.app.uploads import LARGEST_BYTES, MEMORY, SECONDS
from natscope.core.bundle.request import Request
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.training.train import RECIPES, TrainingSpec
from tests.conftest import syntax_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize("name", [None, *natscope.__all__])
def test_the_examples_of_the_public_names_run(name, bundle_path, tmp_path, monkeypatch):
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "fashion-mnist").symlink_to(bundle_path)
    monkeypatch.chdir(tmp_path)
    documented = natscope if name is None else getattr(natscope, name)
    known = {"natscope": natscope, "np": np, "torch": torch, "Path": Path}
    found = [t for t in doctest.DocTestFinder(recurse=False).find(documented, name, globs=known) if t.examples]
    assert len(found) == 1
    told = StringIO()
    assert doctest.DocTestRunner().run(found[0], out=told.write).failed == 0, told.getvalue()


def test_the_public_names_are_few_and_the_same_to_tools_that_only_read(tmp_path):
    assert len(natscope.__all__) <= 20
    tree = syntax_of(ROOT / "natscope" / "__init__.py")
    imported = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and str(n.module).startswith("natscope.")]
    assert sorted(alias.name for node in imported for alias in node.names) == sorted(natscope.__all__) == dir(natscope)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = natscope.nothing


def test_the_python_examples_run(capsys):
    for example in blocks("python"):
        exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("[")


@pytest.mark.parametrize(("page", "least"), [(README, 5), (SERVING, 3)])
def test_every_command_of_a_page_exists_with_its_options(page, least):
    shown = "\n".join(blocks("console", page)).split("\n")
    lines = [line[2:].split("  #")[0] for line in shown if line[:2] == "$ "]
    assert len(lines) >= least
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "natscope"
        command = commands.get_command(click.Context(commands), words[1])
        assert command is not None, f"there is no command {words[1]}"
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "option", re.findall(r"--[a-z][a-z0-9-]+", README.split("## Settings")[1].split("## How far")[0])
)
def test_every_option_of_the_settings_table_exists(option):
    known = {o for c in commands.commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    assert option in known


def test_the_defaults_of_the_settings_table_are_those_of_the_code():
    table = dict(re.findall(r"^\| (.+?) \| (.+?) \|", README, re.MULTILINE))
    request, spec = Request(), BuildSpec()
    assert table["method"] == f"`{request.method}`"
    assert float(table["σ², observation noise variance"]) == request.sigma2
    assert int(table["M, how many images"]) == request.budget
    assert table["pool"] == f"`{request.pool}`"
    assert table["conditioning set of InfoLoss and RelatIF"] == f"`{request.conditioning}`"
    sketch = SketchSpec()
    assert table["sketch, K, seed"] == f"`{sketch.kind}`, {sketch.dim}, {sketch.seed}"
    assert table["network"] == f"MLP {'-'.join(map(str, spec.model.widths))}, no biases"
    recipe = table["recipe"]
    for name in ("epochs", "batch_size", "learning_rate", "momentum"):
        assert f"{getattr(spec.training, name):g}" in recipe


def test_the_command_lines_defaults_are_those_of_the_library():
    options = {p.name: p.default for p in commands.commands["attribute"].params}
    for field in fields(Request):
        if field.name == "sigma2":
            typed = commands.commands["attribute"].make_context("attribute", ["--bundle", "x"]).params
            assert typed["sigma2"] is None  # the bundle's own, where it was tuned
        elif field.name != "target":
            assert options[field.name] == field.default, field.name
    options, spec = {p.name: p.default for p in commands.commands["precompute"].params}, BuildSpec()
    usual = {"dataset": spec.dataset, "outputs": spec.outputs, "ntk": spec.ntk, "seed": spec.training.seed}
    for name, value in usual.items():
        assert options[name] == value, name
    assert (options["sketch"], options["dim"]) == (spec.sketch.kind, spec.sketch.dim)
    assert (options["image_size"], options["test_share"]) == (spec.folder.image_size, spec.folder.test_share)


def test_the_help_of_each_setting_of_a_recipe_names_its_defaults():
    said = {p.name: p.help for p in commands.commands["precompute"].params}
    words = {True: "on", False: "off"}
    for field in fields(TrainingSpec):
        if field.name == "seed":
            continue
        mlp, resnet9 = (getattr(RECIPES[name], field.name) for name in ("mlp", "resnet9"))
        told = [words.get(v, v) if isinstance(v, bool) else str(v) for v in (mlp, resnet9)]
        expected = f"{told[0]}, resnet9: {told[1]}." if mlp != resnet9 else f"{told[0]}."
        assert said[field.name].endswith(f" {expected}") or said[field.name] == expected, field.name
    assert " and ".join(map(str, BuildSpec().model.widths[1:-1])) in said["widths"]


@pytest.mark.parametrize(
    "words", [[], ["--no-augment"], ["--augment"], ["--skip-broken", "--no-ntk"], ["--mean", "0,0"]]
)
def test_a_command_that_is_written_down_is_the_one_that_was_typed(words):
    command = commands.commands["precompute"]
    options = command.make_context("precompute", list(words)).params
    assert _command(options, command.params).split()[2:] == words


@pytest.mark.parametrize(("file", "least"), [("README.md", 5), ("SECURITY.md", 1), ("docs/serving.md", 1)])
def test_links_of_a_page_lead_somewhere(file, least):
    page = (ROOT / file).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!http)([^)#]+)", page) + re.findall(r'src(?:set)?="([^"]+)"', page)
    assert len(targets) >= least
    for target in targets:
        assert ((ROOT / file).parent / target).exists(), target


def test_the_bounds_of_the_page_on_serving_are_those_of_the_code():
    said = dict(re.findall(r"^\| (.+?) \| (.+?) \|", SERVING, re.MULTILINE))
    server = settings(Listening("localhost", "127.0.0.1", 8501, (), ""))
    first = {name: int(re.match(r"\d+", said[name])[0]) for name in said if re.match(r"\d+ ?", said[name])}
    assert first["visitors at the same time"] == MAX_VISITORS
    assert first["uploads of a session in memory"] == MAX_UPLOADS
    assert first["a session after its page is closed"] == server["server.disconnectedSessionTTL"]
    assert said["a message"] == (
        f"{server['server.maxMessageSize']} MB to a visitor, {server['server.maxWidgetStateSize']} MB from one"
    )
    assert said["an uploaded image"] == (
        f"{LARGEST_BYTES / 1e6:g} MB, read in a process that is ended after {SECONDS:g} s or {MEMORY / 2**20:g} MB"
    )
    options = {o: p.default for p in commands.commands["app"].params for o in p.opts}
    for option in ("--host", "--port", "--allowed-host", "--base-path", "--jobs", "--memory"):
        assert f"`{option}`" in said
        assert option in options
    assert (said["`--host`"], said["`--port`"]) == (f"`{options['--host']}`", str(options["--port"]))


def test_no_figure_is_left_to_be_filled_in():
    assert "<!--" not in README
    assert "TODO" not in README


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("retraining-cifar10", retraining_table),
        ("backdoor", recall_table),
        ("backdoor-cifar10", recall_table),
        ("coreset", coreset_table),
        ("brittleness", flips_table),
        ("brittleness-cifar10", flips_table),
        ("coreset-cifar10", coreset_table),
    ],
)
def test_the_tables_of_the_readme_are_those_of_the_results(name, table):
    for line in table(load_result(name)).splitlines()[2:]:
        if "*chance*" not in line:
            assert line in README
