import json
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from natscope import assets
from natscope.app.cli.commands import natscope
from natscope.core.analysis.curves import sample_queries
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import Request
from natscope.core.bundle.verify import check_bundle
from natscope.core.errors import BuildError, BundleError, FileError, QueryError
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments import tuning
from natscope.precompute.experiments.brittleness import most_removed
from natscope.precompute.experiments.result import TUNED, build_command
from natscope.precompute.training.result_cache import ResultCache


class Stopped(Exception):
    pass


SILENT = lambda stage, done, total: None  # noqa: E731


GRID = "natscope.core.bundle.format.GRID"
_CHOSEN = {"for": "prediction", "sigma2": {"relatif": 7.0}, "score": "s", "date": "d"}


@pytest.fixture(scope="module")
def tuned(bundle_path, tmp_path_factory):
    """A copy of the bundle, tuned by the command for one method on two images, from three values of sigma2."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(bundle_path, folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRID, (-6, 0, 5))
        command = f"tune --bundle {folder / 'bundle'} --queries 2 --budget 40 --methods info_gain"
        done = CliRunner().invoke(natscope, command.split())
    assert done.exit_code == 0, done.output
    assert "now its defaults" in done.output
    return folder


def test_the_best_value_is_in_the_manifest_and_is_what_commands_take(tuned):
    result = json.loads((tuned / "bundle-tuning.json").read_text())
    curve = result["curves"]["info_gain"]
    scale = Bundle(tuned / "bundle").scale()
    assert [point["sigma2"] for point in curve] == pytest.approx([1e-6 * scale, scale, 1e5 * scale])
    chosen = result["sigma2"]["info_gain"]
    assert chosen == curve[int(np.argmax([point["mean"] for point in curve]))]["sigma2"]
    bundle = Bundle(tuned / "bundle")
    assert bundle.sigma2("info_gain") == chosen
    assert bundle.sigma2("info_loss") == scale
    assert check_bundle(tuned / "bundle") == []
    command = f"attribute --bundle {tuned / 'bundle'} --test-index 0 --method info_gain --json"
    done = CliRunner().invoke(natscope, command.split())
    assert json.loads(done.output)["sigma2"] == chosen
    assert (tuned / "bundle-tuning.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_choice_keeps_the_first(tuned, tmp_path):
    shutil.copytree(tuned / "bundle", tmp_path / "bundle")
    first = Bundle(tmp_path / "bundle").sigma2("info_gain")
    tuning.record(tmp_path / "bundle", _CHOSEN, "mine.json")
    bundle = Bundle(tmp_path / "bundle")
    assert (bundle.sigma2("info_gain"), bundle.sigma2("relatif")) == (first, 7.0)


def test_a_result_says_that_a_bundle_was_built_in_python(tuned):
    manifest = Bundle(tuned / "bundle").manifest
    settings = manifest.results["settings"] | {"content": "0" * 64}
    manifest = replace(manifest, results=manifest.results | {"settings": settings})
    assert build_command("coreset", manifest, 0).startswith("natscope.build(model, train_set, test_set, ")


def test_a_result_names_the_file_that_its_sigma2_came_from(tuned, tmp_path):
    shutil.copytree(tuned / "bundle", tmp_path / "bundle")

    def command():
        made = build_command("coreset", Bundle(tmp_path / "bundle").manifest, 0)
        return [line.split("--take ")[1] for line in made.splitlines() if "--take" in line]

    assert command() == ["bundle-tuning.json"]
    chosen = _CHOSEN
    tuning.record(tmp_path / "bundle", chosen, "second.json")
    assert command() == ["bundle-tuning.json", "second.json"]
    tuning.record(tmp_path / "bundle", chosen | {"for": "coreset"}, "coreset-tuning.json")
    assert command() == ["bundle-tuning.json", "second.json", "coreset-tuning.json"]  # one of the user's own
    for name in (TUNED["prediction"], TUNED["coreset"]):
        tuning.record(tmp_path / "bundle", tuning.read(assets.path("results", name)), name)
    assert command() == ["assets/results/tuning.json", "assets/results/coreset-tuning.json"]
    tuning.record(tmp_path / "bundle", chosen, "second.json")
    assert command() == ["assets/results/tuning.json", "second.json", "assets/results/coreset-tuning.json"]


def test_a_class_is_never_removed_as_a_whole(attributor):
    assert most_removed(attributor) == np.bincount(attributor.train_labels).min() - 1


@pytest.fixture(scope="module")
def for_coresets(bundle_path, tmp_path_factory):
    """A copy of the bundle, tuned for coresets by the command, from two values of sigma2, and stopped once before."""
    folder = tmp_path_factory.mktemp("coresets")
    shutil.copytree(bundle_path, folder / "bundle")

    def stop(stage, done, total):
        if stage.startswith("Training") and done == 2:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRID, (0, 4))
        settings = {"queries": 20, "budget": 30, "seed": 0, "methods": ("info_gain",)}
        cache = ResultCache(folder / "bundle-coreset-tuning.partial.json")
        with pytest.raises(Stopped):
            tuning.tune_coresets(folder / "bundle", **settings, cache=cache, progress=stop)
        assert sum(" subset " in name for name in cache.parts()) == 2
        command = f"tune --score coreset --bundle {folder / 'bundle'} --queries 20 --budget 30 --methods info_gain"
        done = CliRunner().invoke(natscope, command.split())
    assert done.exit_code == 0, done.output
    return folder


def test_coresets_have_a_sigma2_of_their_own(for_coresets):
    result = json.loads((for_coresets / "bundle-coreset-tuning.json").read_text())
    chosen = result["sigma2"]["info_gain"]
    bundle = Bundle(for_coresets / "bundle")
    scales = bundle.scale("coreset"), bundle.scale()
    assert scales[0] > 10 * scales[1]  # margins are not scaled as the NTK parameterisation does
    assert [point["sigma2"] for point in result["curves"]["info_gain"]] == [scales[0], 1e4 * scales[0]]
    assert all(0.2 < point["mean"] < 0.8 and point["error"] > 0 for point in result["curves"]["info_gain"])
    assert result["command"].endswith("--methods info_gain --score coreset")
    assert bundle.sigma2("info_gain", purpose="coreset") == chosen
    assert bundle.sigma2("info_gain") == 10 * scales[1]
    assert bundle.sigma2("info_loss", purpose="coreset") == 0.1 * scales[0]
    assert not (for_coresets / "bundle-coreset-tuning.partial.json").exists()


def test_weights_that_were_loaded_are_tuned_without_retraining(bundle_path, tiny_path, tmp_path, monkeypatch):
    monkeypatch.setattr(GRID, (-6, 0, 5))
    path = shutil.copytree(bundle_path, tmp_path / "bundle")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["training"] = {"weights": manifest["files"]["weights"]["sha256"]}
    (path / "manifest.json").write_text(json.dumps(manifest))
    command = f"tune --bundle {path} --queries 2 --budget 20 --methods info_gain --conditioning pool".split()
    refused = CliRunner().invoke(natscope, command).exception
    assert isinstance(refused, BuildError)
    assert "cannot be retrained. For predictions `--score influence`" in str(refused)
    done = CliRunner().invoke(natscope, [*command, "--score", "influence"])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "bundle-influence-tuning.json").read_text())
    assert result["command"].endswith("--methods info_gain --conditioning pool --score influence")
    attributor = open_attributor(path)
    images = sample_queries(attributor, 2, seed=0, part="held out")
    whole = [attributor.attribute(image, Request("kronfluence", budget=10**4)).items for image in images]
    expected = []
    for point in result["curves"]["info_gain"]:
        sums = []
        for image, scores in zip(images, whole, strict=True):
            request = Request("info_gain", point["sigma2"], 20)
            first = [item.train_index for item in attributor.attribute(image, request).items]
            sums.append(sum(item.score for item in scores if item.train_index in first))
        expected.append(np.mean(sums))
    assert [point["mean"] for point in result["curves"]["info_gain"]] == pytest.approx(expected, rel=1e-4)
    assert Bundle(path).sigma2("info_gain") == result["sigma2"]["info_gain"]
    path = shutil.copytree(tiny_path, tmp_path / "without")
    manifest = json.loads((path / "manifest.json").read_text())
    for name in [name for name in manifest["files"] if name.startswith("kronfluence/")]:
        del manifest["files"][name]
    manifest["methods"].pop("kronfluence", None)
    (path / "manifest.json").write_text(json.dumps(manifest))
    lacking = CliRunner().invoke(natscope, f"tune --bundle {path} --score influence --queries 2".split()).exception
    assert isinstance(lacking, QueryError)
    assert "Kronfluence" in str(lacking)


def test_values_can_be_taken_from_a_result(for_coresets, tuned, bundle_path, tmp_path):
    shutil.copytree(bundle_path, tmp_path / "bundle")
    for result in (tuned / "bundle-tuning.json", for_coresets / "bundle-coreset-tuning.json"):
        done = CliRunner().invoke(natscope, f"tune --bundle {tmp_path / 'bundle'} --take {result}".split())
        assert done.exit_code == 0, done.output
    taken, first, second = (Bundle(path / "bundle") for path in (tmp_path, tuned, for_coresets))
    assert taken.sigma2("info_gain") == first.sigma2("info_gain")
    assert taken.sigma2("info_gain", purpose="coreset") == second.sigma2("info_gain", purpose="coreset")


def test_values_keep_their_relation_to_the_scale_of_the_features(tuned, bundle_path, tmp_path):
    shutil.copytree(bundle_path, tmp_path / "bundle")
    result = tuning.read(tuned / "bundle-tuning.json")
    scales = result["setting"]["kernel"]["scales"]
    assert scales["prediction"] == Bundle(tuned / "bundle").scale()
    chosen = result["sigma2"]["info_gain"]
    for measured, factor in ((scales["prediction"] / 100, 100), (None, 1), (math.inf, 1), (10**400, 1), ("x", 1)):
        scales["prediction"] = measured
        assert tuning.record(tmp_path / "bundle", result, "result.json") == (factor != 1)
        assert Bundle(tmp_path / "bundle").sigma2("info_gain") == pytest.approx(factor * chosen)
    with pytest.raises(QueryError, match="cannot be printed; rename it"):
        tuning.record(tmp_path / "bundle", result, "result\n.json")


def test_a_bundle_that_took_the_place_of_the_tuned_one_gets_no_values(tuned, bundle_path, tiny_path, tmp_path):
    result, opened = tuning.read(tuned / "bundle-tuning.json"), Bundle(bundle_path).manifest
    shutil.copytree(tiny_path, tmp_path / "other")
    before = (tmp_path / "other" / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match=r"replaced while σ² was chosen .* in result\.json"):
        tuning.record(tmp_path / "other", result, "result.json", opened=opened)
    assert (tmp_path / "other" / "manifest.json").read_bytes() == before
    shutil.copytree(tuned / "bundle", tmp_path / "same")  # which got values since
    tuning.record(tmp_path / "same", result, "result.json", opened=opened)


def test_values_for_a_backdoor_are_taken_from_its_experiment(tiny_path, bundle_path, tmp_path):
    result = tuning.read(assets.path("results", TUNED["backdoor"]))
    for name in ("poisoned", "clean"):
        shutil.copytree(tiny_path if name == "poisoned" else bundle_path, tmp_path / name)
    with pytest.raises(QueryError, match=r"backdoor, .*clean has none"):
        tuning.record(tmp_path / "clean", result, TUNED["backdoor"])
    tuning.record(tmp_path / "poisoned", result, TUNED["backdoor"])
    bundle = Bundle(tmp_path / "poisoned")
    chosen = result["sigma2"]
    assert chosen == {row["method"]: row["oracle"]["sigma2"][0] for row in result["rows"] if row["oracle"]}
    assert {name: bundle.sigma2(name, purpose="backdoor") for name in chosen} == chosen
    assert bundle.sigma2("info_loss") == bundle.scale()
    assert bundle.sigma2("info_loss", purpose="coreset") == 0.1 * bundle.scale("coreset")
    with pytest.raises(ValueError, match="prediction, coreset, backdoor, not for lunch"):
        bundle.sigma2("info_loss", purpose="lunch")
    assert build_command("retraining", bundle.manifest, 0).endswith("--take assets/results/backdoor.json")
    assert "--take" not in build_command("backdoor", bundle.manifest, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "brittleness"},
        {"sigma2": {"info_gain": "NaN"}},
        {"sigma2": {"info_gain": 0}},
        {"sigma2": {"info_gain": "10"}},
        {"sigma2": {"info_gain": True}},
        {"sigma2": {"info_gain": [1]}},
        {"sigma2": {"magic": 1.0}},
        {"sigma2": {"random": 1.0}},
        {"sigma2": {}},
        {"sigma2": {"info_gain": 5}},
        {"sigma2": {"info_gain": 10, "info_loss": 10}},
        {"curves": None},
        {"curves": {}},
        {"curves": {"info_gain": []}},
        {"curves": {"info_gain": [{"sigma2": 10, "mean": None}]}},
        {"sigma2": [1]},
        {"score": ["s"]},
        {"score": "\u202es"},
        {"setting": {"kernel": {"scales": {"prediction": -5}}}},
        {"setting": {"kernel": "a"}},
        {"date": None},
        {"for": "all"},
        {"for": []},
    ],
)
def test_what_is_no_result_is_not_taken(tmp_path, change):
    curves = {"info_gain": [{"sigma2": 10.0, "mean": 0.5, "error": None}]}
    whole = {"experiment": "tune", "sigma2": {"info_gain": 10}, "score": "s", "date": "d", "curves": curves}
    file = tmp_path / "result.json"
    file.write_text(json.dumps(whole))
    assert tuning.read(file)["sigma2"] == {"info_gain": 10.0}
    file.write_text(json.dumps(whole | change))
    with pytest.raises(QueryError, match="not a result of `natscope tune`"):
        tuning.read(file)


@pytest.mark.parametrize("text", ["", "[" * 10_000, "null", "{}", "\xff"])
def test_what_is_no_json_is_not_taken(tmp_path, text):
    file = tmp_path / "result.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(QueryError, match="not a result of `natscope tune`"):
        tuning.read(file)


def test_a_result_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(FileError, match="is a pipe"):
        tuning.read(tmp_path / "pipe.json")


def test_too_few_held_out_images_are_refused(bundle_path, tmp_path):
    settings = {"queries": 900, "budget": 30, "seed": 0, "methods": ("info_gain",)}
    with pytest.raises(QueryError, match=r"2,000 test examples .* 3 sets of 900"):
        tuning.tune_coresets(bundle_path, **settings, cache=ResultCache(tmp_path / "k"), progress=SILENT)


def test_a_longer_experiment_contains_a_shorter_one(attributor):
    some, more = ([q.index for q in sample_queries(attributor, n, seed=3, part="reported")] for n in (5, 9))
    assert more[:5] == some


def test_nothing_is_tuned_on_what_is_reported(attributor):
    held = {q.index for q in sample_queries(attributor, 500, seed=0, part="held out")}
    reported = {q.index for q in sample_queries(attributor, 3000, seed=1, part="reported")}
    assert len(held) == 500
    assert not held & reported


def test_a_stopped_choice_goes_on_where_it_was(bundle_path, tmp_path, monkeypatch):
    def stop(stage, done, total):
        if stage.startswith("Training") and done == 1:
            raise Stopped

    monkeypatch.setattr(GRID, (0, 5))
    settings = {"queries": 1, "budget": 30, "seed": 0, "methods": ("relatif",)}
    file, stages = tmp_path / "kept.json", []
    with pytest.raises(Stopped):
        tuning.tune(bundle_path, **settings, cache=ResultCache(file), progress=stop)
    watch = lambda stage, done, total: stages.append((stage, done))  # noqa: E731
    again = tuning.tune(bundle_path, **settings, cache=ResultCache(file), progress=watch).to_dict()
    assert ("Training without what was found", 1) in stages
    assert ("Training without what was found", 0) not in stages
    assert not any(stage.startswith("Asking") for stage, _ in stages)
    assert set(again["sigma2"]) == {"relatif"}


def test_the_nearest_to_one_of_the_best_is_chosen():
    curve = [{"sigma2": s, "mean": m} for s, m in ((1e-6, 2.0), (1e-3, 2.0), (0.1, 2.0), (1.0, 1.0), (1e5, 2.0))]
    assert tuning.best(curve) == 0.1


def test_a_method_without_sigma2_is_refused(bundle_path, tmp_path):
    with pytest.raises(QueryError, match="RepSim does not use σ²"):
        tuning.tune(
            bundle_path,
            queries=1,
            budget=5,
            seed=0,
            methods=("repsim",),
            cache=ResultCache(tmp_path / "k"),
            progress=SILENT,
        )
