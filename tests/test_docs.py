"""The README, held to what the code does."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import click
import pytest

from app.cli import natscope
from core.answers import Request
from core.sketches import SketchSpec
from precompute.spec import BuildSpec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[")


def test_every_command_of_the_readme_exists_with_its_options():
    lines = [line[2:].split("  #")[0] for block in blocks("console") for line in block.split("\n") if line[:2] == "$ "]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "natscope"
        command = natscope.get_command(click.Context(natscope), words[1])
        assert command is not None, f"there is no command {words[1]}"
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "option", re.findall(r"--[a-z][a-z0-9-]+", README.split("## Settings")[1].split("## How far")[0])
)
def test_every_option_of_the_settings_table_exists(option):
    known = {o for c in natscope.commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
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
    options = {p.name: p.default for p in natscope.commands["attribute"].params}
    for field in fields(Request):
        if field.name != "target":
            assert options[field.name] == field.default, field.name
    options, spec = {p.name: p.default for p in natscope.commands["precompute"].params}, BuildSpec()
    recipe = spec.training.to_dict()
    for name, value in {**recipe, "dataset": spec.dataset, "outputs": spec.outputs, "ntk": spec.ntk}.items():
        assert options[name] == value, name
    assert options["widths"] == ",".join(map(str, spec.model.widths))
    assert (options["sketch"], options["dim"]) == (spec.sketch.kind, spec.sketch.dim)


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)", README) + re.findall(r'src(?:set)?="([^"]+)"', README)
    assert len(targets) > 4
    for target in targets:
        assert (ROOT / target).exists(), target


def test_no_figure_is_left_to_be_filled_in():
    assert "<!--" not in README
    assert "TODO" not in README
