import json

import numpy as np
import pytest
from click.testing import CliRunner

from natscope.app.cli.commands import natscope
from natscope.core.errors import QueryError
from natscope.precompute.experiments import EXPERIMENTS, retraining
from natscope.precompute.training.result_cache import ResultCache

SILENT = lambda stage, done, total: None  # noqa: E731
SETTINGS = {"queries": 1, "budget": 50, "seed": 0, "conditioning": "pool"}


@pytest.fixture(scope="module")
def written(poisoned_path, tmp_path_factory):
    """The command, killed in the middle of its first training and run again."""
    out = tmp_path_factory.mktemp("retraining") / "retraining.json"

    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if stage.startswith("Training") and done == 3:
            raise Stopped

    cache = ResultCache(out.with_suffix(".partial.json"))
    with pytest.raises(Stopped):
        retraining.run([poisoned_path], **SETTINGS, methods=("info_loss", "random"), cache=cache, progress=stop)
    assert cache.beside("info_loss").exists()
    command = ["evaluate", "retraining", "--bundle", str(poisoned_path), "--out", str(out), "--conditioning", "pool"]
    done = CliRunner().invoke(natscope, command)
    assert done.exit_code == 0, done.output
    return out


def test_without_what_info_loss_names_the_attack_fails_and_without_as_many_others_it_works(written):
    result = json.loads(written.read_text())
    before, without, at_random = result["rows"]
    assert [row["method"] for row in result["rows"]] == [None, "info_loss", "random"]
    assert without["removed"] == pytest.approx(at_random["removed"], abs=30)  # a class's images may be named only once
    assert without["poisoned_removed"] > 8 * at_random["poisoned_removed"]
    assert without["attack_success"] < before["attack_success"] - 0.3
    assert at_random["attack_success"] > before["attack_success"] - 0.2
    assert without["test_accuracy"] > before["test_accuracy"] - 0.02
    assert before["attack_success"] == pytest.approx(np.mean(before["class_success"]), abs=0.01)
    assert f"{without['attack_success']:.1%}" in result["finding"]
    assert "--methods info_loss,random" in result["command"]
    assert f"{at_random['attack_success']:.1%}" in written.with_suffix(".md").read_text()
    assert {file.name for file in written.parent.iterdir()} == {"retraining.json", "retraining.md"}


def test_a_stopped_training_ends_as_one_that_was_not(written, poisoned_path, tmp_path):
    cache = ResultCache(tmp_path / "part.json")
    whole = retraining.run([poisoned_path], **SETTINGS, methods=("info_loss",), cache=cache, progress=SILENT).to_dict()
    assert whole["rows"] == json.loads(written.read_text())["rows"][:2]


def test_what_cannot_be_done_is_refused_in_a_sentence(poisoned_path, bundle_path, tmp_path):
    cache, settings = ResultCache(tmp_path / "part.json"), {"methods": ("random",), "progress": SILENT}
    with pytest.raises(QueryError, match="is not poisoned"):
        retraining.run([bundle_path], **SETTINGS, **settings, cache=cache)
    with pytest.raises(QueryError, match="about one bundle"):
        retraining.run([poisoned_path, poisoned_path], **SETTINGS, **settings, cache=cache)
    with pytest.raises(QueryError, match=r"\d+ test examples of class T-shirt/top"):
        retraining.run([poisoned_path], **(SETTINGS | {"queries": 1001}), **settings, cache=cache)


@pytest.mark.parametrize(
    ("experiment", "option", "value", "said"),
    [
        ("retraining", "--methods", "nobody", "'nobody'"),
        ("retraining", "--methods", " , ", "at least one method"),
        ("relative-information", "--methods", "random", "no choice of methods"),
        ("lds", "--conditioning", "pool", "no choice of conditioning"),
        ("retraining", "--repeats", "2", "not repeated with other seeds"),
    ],
)
def test_an_option_that_does_not_suit_is_one_sentence(experiment, option, value, said, poisoned_path, tmp_path):
    out = str(tmp_path / "r.json")
    command = ["evaluate", experiment, "--bundle", str(poisoned_path), "--out", out, option, value]
    done = CliRunner().invoke(natscope, command)
    assert said in str(done.exception)
    assert EXPERIMENTS["backdoor"].methods
