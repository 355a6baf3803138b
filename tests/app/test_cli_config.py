"""`natscope precompute --config`: a bundle, or the one behind a result, is built again; the file is not trusted."""

import json
import shutil
from dataclasses import replace

import pytest

from natscope.app.cli.commands import main
from natscope.app.cli.config import _words, replayed
from natscope.app.cli.precompute import build_spec
from natscope.core.bundle.format import MANIFEST, Bundle
from natscope.core.errors import BuildError
from natscope.core.index.spec import IndexSpec
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.compare import differences
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec
from tests.conftest import one_sentence
from tests.tiny import edited


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit, match=r"^\d+$") as exited:
            main(["precompute", *map(str, arguments)])
        return exited.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def small(run, tmp_path):
    options = ("--per-class", 20, "--epochs", 1, "--dim", 32, "--methods", "repsim", "--no-ntk", "--name", "Small")
    assert run(*options, "--out", tmp_path / "small")[0] == 0
    return tmp_path / "small"


def test_a_bundle_is_built_again_from_itself(run, small, tmp_path):
    for config in (small, small / MANIFEST):
        code, _, err = run("--config", config, "--out", tmp_path / "again")
        assert (code, err.startswith(f"The settings are those of {config}.")) == (0, True)
    ours, theirs = Bundle(tmp_path / "again").manifest, Bundle(small).manifest
    assert ours.results["settings"] == theirs.results["settings"]
    assert {n: r.sha256 for n, r in ours.files.items()} == {n: r.sha256 for n, r in theirs.files.items()}


def test_options_beside_it_win_and_are_told(run, small, tmp_path):
    code, _, err = run("--config", small, "--dim", 16, "--ntk", "on", "--out", tmp_path / "other")
    assert code == 0
    assert f"Other than in {small}: sketch.dim is 16, and was 32." in err
    assert f"Other than in {small}: ntk is True, and was False." in err
    assert Bundle(tmp_path / "other").manifest.sketch["dim"] == 16
    assert Bundle(tmp_path / "other").manifest.training["epochs"] == 1


def test_a_result_names_the_bundle_behind_it(run, small, tmp_path):
    settings = Bundle(small).manifest.results["settings"]
    bundle = {
        "command": f"{Bundle(small).manifest.command} --methods repsim --out BUNDLES/0\nnatscope tune --x",
        "identity": "0",
    }
    for change, told in (
        ({}, "has no settings, so its command is used"),
        ({"settings": settings}, "The settings are those of"),
    ):
        file = tmp_path / "result.json"
        file.write_text(json.dumps({"experiment": "lds", "bundles": [bundle | change] * 2}))
        code, _, err = run("--config", file, "--out", tmp_path / "again")
        assert code == 0
        assert "is about 2 bundles; the first is built." in err
        assert told in err
        assert Bundle(tmp_path / "again").manifest.results["settings"] == settings
    made_in_python = {"command": "natscope.build(…)", "settings": settings | {"content": "0" * 64}}
    file.write_text(json.dumps({"experiment": "lds", "bundles": [made_in_python]}))
    code, _, err = run("--config", file, "--out", tmp_path / "again")
    assert (code, "was built from Python" in err) == (2, True)


_MANY = BuildSpec(
    name="-3 × 'é'",
    classes=(0, 3),
    per_class=7,
    scaling=((-0.5,), (0.25,)),
    poison=PoisonSpec(0.1, 2, "top-left", (1, 0), 5),
    model=ModelSpec("mlp", (784, 5, 2), bias=True),
    training=TrainingSpec(epochs=3, batch_size=10, augment=True, precision="bfloat16", seed=9, warmup_epochs=1),
    sketch=SketchSpec("tensorsketch", 128, 4),
    index=IndexSpec("ivf"),
    ntk=True,
    layers=("*.weight", "head.*"),
    outputs="all",
)


@pytest.mark.parametrize(
    "spec",
    [
        BuildSpec(),
        _MANY,
        replace(_MANY, ntk=False, sketch=SketchSpec("exact"), outputs="own", index=IndexSpec("flat"), poison=None),
        replace(_MANY, index=IndexSpec("flat"), training=TrainingSpec()),
        BuildSpec(model=ModelSpec("resnet9", None)),
        BuildSpec(model=ModelSpec("resnet9", None, output="-1")),
    ],
)
def test_every_setting_can_be_typed_again(spec):
    from natscope.app.cli.commands import precompute

    settings = json.loads(json.dumps(spec.settings()))
    with precompute.make_context("precompute", list(_words(settings))) as context:
        options = dict(context.params)
    again = build_spec(options["name"], options, precompute.params)
    assert list(differences(settings, again.settings())) == []


def _edit(change):
    return lambda path: edited(path, lambda raw: change(raw["results"]["settings"]))


def _reading(**more):
    def damage(path):
        edited(path, lambda raw: raw["results"]["settings"].update(folder={"reading": more}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edit(lambda s: s["model"].update(architecture="os:system")), "is code, which runs only if you name it"),
        (
            _edit(lambda s: s.update(content="0" * 64)),
            r"built from Python, .* there, by natscope\.build",
        ),
        (_edit(lambda s: s.update(training=None, weights="0" * 64)), "name it with --weights"),
        (_edit(lambda s: s["training"].update(epochs=-3)), "settings that cannot be used: .*'--epochs'"),
        (_edit(lambda s: s["training"].update(fun=1)), "neither a bundle nor a result"),
        (_edit(lambda s: s.update(ntk="maybe")), "neither a bundle nor a result"),
        (_edit(lambda s: s.update(poison=[1])), "neither a bundle nor a result"),
        (_edit(lambda s: s.clear()), "neither a bundle nor a result"),
        (lambda path: (path / MANIFEST).write_text("[]"), "neither a bundle nor a result"),
        (
            lambda path: (path / MANIFEST).write_text('{"experiment": 1, "bundles": [{"command": "rm -rf /"}]}'),
            "neither",
        ),
        (lambda path: (path / MANIFEST).write_text('{"experiment": 1, "bundles": []}'), "neither"),
        (lambda path: (path / MANIFEST).unlink(), "is missing"),
        (_reading(help=True), "an option that only you can give: --help"),
        (_reading(device="cuda"), "an option that only you can give: --device"),
        (_reading(weights="/etc/hostname"), "name it with --weights"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(run, tiny_path, tmp_path, damage, message):
    path = shutil.copytree(tiny_path, tmp_path / "forged")
    damage(path)
    code, out, err = run("--config", path, "--out", tmp_path / "never")
    assert (code, out) == (2, "")
    with pytest.raises(BuildError, match=message):
        raise BuildError(one_sentence(err))
    assert not (tmp_path / "never").exists()


def test_options_are_read_as_if_typed(tiny_path):
    from natscope.app.cli.commands import precompute

    options, settings = replayed(tiny_path, precompute, {"dim": 5}, {"dim"})
    assert (options["dim"], options["epochs"], options["widths"]) == (5, 5, "16,6,3")
    assert settings["sketch"]["dim"] == 16
