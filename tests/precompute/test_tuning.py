import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from app.cli import natscope
from core.bundle import Bundle, check_bundle
from core.curves import sample_queries
from core.errors import QueryError
from precompute import tuning
from precompute.kept import Kept

SILENT = lambda stage, done, total: None  # noqa: E731


@pytest.fixture(scope="module")
def tuned(bundle_path, tmp_path_factory):
    """A copy of the bundle, tuned by the command for one method on two images, from three values of sigma2."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(bundle_path, folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "SIGMA2S", (1e-6, 1.0, 1e5))
        command = f"tune --bundle {folder / 'bundle'} --queries 2 --budget 40 --methods info_gain"
        done = CliRunner().invoke(natscope, command.split())
    assert done.exit_code == 0, done.output
    assert "now its defaults" in done.output
    return folder


def test_the_best_value_is_in_the_manifest_and_is_what_commands_take(tuned):
    result = json.loads((tuned / "bundle-tuning.json").read_text())
    curve = result["curves"]["info_gain"]
    assert [point["sigma2"] for point in curve] == [1e-6, 1.0, 1e5]
    chosen = result["sigma2"]["info_gain"]
    assert chosen == curve[int(np.argmax([point["mean"] for point in curve]))]["sigma2"]
    bundle = Bundle(tuned / "bundle")
    assert bundle.sigma2("info_gain") == chosen
    assert bundle.sigma2("info_loss") == 1.0
    assert check_bundle(tuned / "bundle") == []
    command = f"attribute --bundle {tuned / 'bundle'} --test-index 0 --method info_gain --json"
    done = CliRunner().invoke(natscope, command.split())
    assert json.loads(done.output)["sigma2"] == chosen
    assert (tuned / "bundle-tuning.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_choice_keeps_the_first(tuned, tmp_path):
    shutil.copytree(tuned / "bundle", tmp_path / "bundle")
    first = Bundle(tmp_path / "bundle").sigma2("info_gain")
    tuning.record(tmp_path / "bundle", {"sigma2": {"relatif": 7.0}, "score": "s", "date": "d"})
    bundle = Bundle(tmp_path / "bundle")
    assert (bundle.sigma2("info_gain"), bundle.sigma2("relatif")) == (first, 7.0)


def test_nothing_is_tuned_on_what_is_reported(attributor):
    held = {q.index for q in sample_queries(attributor, 500, seed=0, part="held out")}
    reported = {q.index for q in sample_queries(attributor, 3000, seed=1, part="reported")}
    assert len(held) == 500
    assert not held & reported


def test_a_stopped_choice_goes_on_where_it_was(bundle_path, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if stage.startswith("Training") and done == 1:
            raise Stopped

    monkeypatch.setattr(tuning, "SIGMA2S", (1.0, 1e5))
    settings = {"queries": 1, "budget": 30, "seed": 0, "methods": ("relatif",)}
    file, stages = tmp_path / "kept.json", []
    with pytest.raises(Stopped):
        tuning.tune(bundle_path, **settings, kept=Kept(file), progress=stop)
    watch = lambda stage, done, total: stages.append((stage, done))  # noqa: E731
    again = tuning.tune(bundle_path, **settings, kept=Kept(file), progress=watch)
    assert ("Training without what was found", 1) in stages
    assert ("Training without what was found", 0) not in stages
    assert not any(stage.startswith("Asking") for stage, _ in stages)
    assert set(again["sigma2"]) == {"relatif"}


def test_the_smallest_of_the_best_is_chosen():
    curve = [{"sigma2": s, "mean": m} for s, m in ((0.1, 1.0), (1.0, 2.0), (10.0, 2.0))]
    assert tuning.best(curve) == 1.0


def test_a_method_without_sigma2_is_refused(bundle_path, tmp_path):
    with pytest.raises(QueryError, match="RepSim does not use σ²"):
        tuning.tune(
            bundle_path, queries=1, budget=5, seed=0, methods=("repsim",), kept=Kept(tmp_path / "k"), progress=SILENT
        )
