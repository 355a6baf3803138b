import json
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from natscope.app.cli.commands import natscope
from natscope.app.figures import on_page
from natscope.app.figures.backdoor import sigma2_chosen
from natscope.app.figures.experiments import charts, experiment_files
from natscope.app.figures.tables import recall_table
from natscope.app.paper import TABLE_1
from natscope.app.theme import PALETTES
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.candidates import CandidateSets
from natscope.core.bundle.format import GRID, Bundle
from natscope.core.bundle.request import Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS
from natscope.core.metrics import recall_at_k
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments import backdoor as experiment
from natscope.precompute.experiments import tuning
from natscope.precompute.training.result_cache import ResultCache
from tests.conftest import EACH

SILENT = lambda stage, done, total: None  # noqa: E731
SETTINGS = {"queries": 6, "budget": 100, "seed": 0, "methods": tuple(METHODS), "conditioning": "pool"}


@pytest.fixture(scope="module", autouse=True)
def few_sigma2s():
    """Choose from a third of the values of σ², in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("natscope.core.bundle.format.GRID", GRID[::3])
        yield


@pytest.fixture(scope="module")
def result(poisoned_path, tmp_path_factory):
    cache = ResultCache(tmp_path_factory.mktemp("kept") / "part.json")
    return experiment.run([poisoned_path], **SETTINGS, cache=cache, progress=SILENT).to_dict()


def test_the_information_methods_find_the_culprits_and_chance_does_not(result):
    rows = {row["method"]: row for row in result["rows"]}
    chance = result["attack"]["base_rate"]["mean"]
    assert chance == pytest.approx(1 / 30)
    assert rows["info_loss"]["recall"]["mean"] > 10 * chance
    assert rows["info_loss"]["mrr"]["mean"] > 0.8
    assert rows["random"]["recall"]["mean"] < 5 * chance
    assert "most: " in result["finding"]


def test_without_a_recorded_sigma2_the_default_ratio_is_measured(result, poisoned):
    """The bundle's values for backdoors, which poisoned queries chose, are not looked at."""
    assert poisoned.bundle.manifest.chosen["backdoor"]
    for row in result["rows"]:
        method = METHODS[row["method"]]
        assert row["sigma2"] == ([poisoned.bundle.scale() * method.ratio] if method.uses_sigma2 else None)
        assert row["ratio"] == ([method.ratio] if method.uses_sigma2 else None)
        assert row["tuned"] == ([None] if method.uses_sigma2 else None)
    assert "without using poisoned images" in result["finding"]


def test_the_oracle_is_the_best_of_the_grid_on_the_queries_that_tune(result, poisoned):
    ratios = result["setting"]["ratios"]
    assert ratios == [10.0**exponent for exponent in GRID[::3]]
    for row in result["rows"]:
        if not METHODS[row["method"]].uses_sigma2:
            assert (row["oracle"], row["tuning"]) == (None, None)
            continue
        chosen = row["oracle"]["ratio"]
        assert row["oracle"]["sigma2"] == pytest.approx([chosen * poisoned.bundle.scale()])
        assert row["tuning"][ratios.index(chosen)] == max(row["tuning"])
        if row["sigma2"] == row["oracle"]["sigma2"]:
            assert row["oracle"]["recall"] == row["recall"]


def test_a_recorded_sigma2_is_measured_and_not_the_oracles(poisoned_path, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "TUNED_ON", 2)
    shutil.copytree(poisoned_path, tmp_path / "tuned")
    values = {"for": "prediction", "score": "margin lost", "date": "2026-01-01", "sigma2": {"info_gain": 0.007}}
    tuning.record(tmp_path / "tuned", values, "own.json")
    asked, measured = [], experiment._measure

    def watched(attributor, name, sigma2, **settings):
        asked.append((name, sigma2))
        return measured(attributor, name, sigma2, **settings)

    monkeypatch.setattr(experiment, "_measure", watched)
    some = SETTINGS | {"queries": 2, "budget": 50, "methods": ("info_gain", "repsim")}
    cache = ResultCache(tmp_path / "part.json")
    found = experiment.run([tmp_path / "tuned"], **some, cache=cache, progress=SILENT).to_dict()
    gain, repsim = found["rows"]
    assert (gain["sigma2"], gain["tuned"]) == ([0.007], ["own.json"])
    assert gain["ratio"] == pytest.approx([0.007 / Bundle(poisoned_path).scale()])
    best = gain["oracle"]["sigma2"][0]
    assert list(dict.fromkeys(asked)) == [("info_gain", 0.007), ("info_gain", best), ("repsim", 1.0)]
    assert repsim["oracle"] is None
    assert "taken from own.json" in sigma2_chosen(found)


def test_features_under_a_class_are_computed_for_all_methods_at_once(poisoned_path, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "TUNED_ON", 2)
    computed, features = [], CandidateSets._all_features

    def watched(own, target, progress):
        computed.append(target)
        return features(own, target, progress)

    monkeypatch.setattr(CandidateSets, "_all_features", watched)
    some = SETTINGS | {"queries": 3, "methods": ("info_loss", "relatif"), "conditioning": "train"}
    cache = ResultCache(tmp_path / "part.json")
    found = experiment.run([poisoned_path], **some, cache=cache, progress=SILENT)
    assert 1 <= max(Counter(computed).values()) <= 2  # once to choose sigma2, and once to measure
    again = ResultCache(tmp_path / "stopped.json")
    for name, part in cache.parts().items():
        if "class=" in name or "tuning" in name:
            again.get(name, lambda part=part: part)
    computed.clear()
    resumed = experiment.run([poisoned_path], **some, cache=again, progress=SILENT).to_dict()
    assert resumed["rows"] == found.to_dict()["rows"]
    assert not computed


def test_where_the_oracle_agrees_it_is_measured_at_the_very_same_value(poisoned):
    grid = poisoned.bundle.sigma2s()
    own = np.nextafter(grid[1], 1.0)  # as the rounding of a ratio leaves it
    bundle = SimpleNamespace(
        sigma2=lambda name: own, sigma2s=lambda: grid, scale=poisoned.bundle.scale, manifest=poisoned.bundle.manifest
    )
    asked = []
    measure = lambda name, sigma2s: asked.append([*sigma2s]) or {"recall": 1.0, "mrr": 1.0}  # noqa: E731
    row = experiment._row([SimpleNamespace(bundle=bundle)], "info_loss", 1, [[0.1, 0.2]], measure)
    assert asked == [[own], [own]]
    assert row["oracle"]["sigma2"] == row["sigma2"]


def test_features_of_a_query_are_computed_once_for_all_methods(poisoned_path, monkeypatch):
    attributor = open_attributor(poisoned_path)
    query, computed, features = attributor.query("test", 0), [], attributor.features.features
    monkeypatch.setattr(
        attributor.features, "features", lambda inputs, classes: computed.append(classes) or features(inputs, classes)
    )
    first = attributor.attribute(query, Request("info_loss", 1.0, 5, conditioning="pool"))
    again = attributor.attribute(query, Request("info_loss", 1.0, 5, conditioning="pool"))
    attributor.attribute(query, Request("info_gain", 10.0, 5))
    assert len(computed) == 1
    assert first.items == again.items
    attributor.attribute(query, Request("info_gain", 10.0, 5, target=(query.predicted + 1) % 10))
    attributor.attribute(attributor.query("test", 1), Request("info_gain", 10.0, 5))
    assert len(computed) == 3


def test_the_papers_numbers_stand_beside_those_of_its_setting(result):
    assert "paper" not in recall_table(result).markdown()
    alike = result | {"setting": result["setting"] | {"network": "resnet9 3-10", "data": "folder:cifar10, 50,000"}}
    lines = recall_table(alike).markdown().splitlines()
    assert lines[0].split(" | ")[1:] == [
        *("recall@50", "MRR@100", "recall@50, paper", "MRR@100, paper", "recall@50 of the oracle (σ² / scale) |")
    ]
    assert {line.count("|") for line in lines} == {7}
    for name in {row["method"] for row in result["rows"]} & TABLE_1.keys():
        line = next(line for line in lines if line.startswith(f"| {METHODS[name].title} |"))
        assert f"| {TABLE_1[name][0]:.3f} ± {TABLE_1[name][1]:.3f} | {TABLE_1[name][2]:.3f} ± " in line


def test_the_oracle_is_drawn_beside_what_was_measured(result):
    (chart,) = charts(result)
    rows = sorted(result["rows"], key=lambda row: -row["recall"]["mean"])
    assert chart.marks == [row["oracle"] and 100 * row["oracle"]["recall"]["mean"] for row in rows]
    marks = on_page.figure(chart, PALETTES["light"]).data[1]
    assert list(marks.x) == [mark for mark in chart.marks if mark is not None]
    assert "default multiple" in sigma2_chosen(result)


def test_random_finds_the_base_rate_within_its_error(poisoned):
    backdoor = poisoned.bundle.manifest.backdoor
    query = experiment.stamped_query(poisoned, backdoor, experiment.draw_queries(poisoned, 1, seed=0)[0][0])
    base = experiment.draw_queries(poisoned, 1, seed=0)[0][1]
    truth, recalls = set(backdoor.culprits(base).tolist()), []
    for seed in range(200):
        request = Request("random", budget=50, seed=seed, target=int(backdoor.targets[base]))
        items = poisoned.attribute(query, request).items
        recalls.append(recall_at_k([item.train_index for item in items], truth, 50))
    error = np.std(recalls, ddof=1) / 200**0.5
    assert abs(np.mean(recalls) - 50 / EACH) < 4 * error


def test_with_shuffled_labels_of_the_poison_the_recall_falls_to_chance(poisoned):
    """The truth is exchanged for as many images of the same pool, drawn blindly: nothing is left to be found."""
    backdoor, rng = poisoned.bundle.manifest.backdoor, np.random.default_rng(0)
    real, shuffled = [], []
    for index, base in experiment.draw_queries(poisoned, 20, seed=1):
        pool = np.flatnonzero(poisoned.train_labels == backdoor.targets[base])
        query = experiment.stamped_query(poisoned, backdoor, index)
        request = Request("info_loss", budget=50, target=int(backdoor.targets[base]))
        ranking = [item.train_index for item in poisoned.attribute(query, request).items]
        real.append(recall_at_k(ranking, set(backdoor.culprits(base).tolist()), 50))
        shuffled.append(recall_at_k(ranking, set(rng.choice(pool, 50, replace=False).tolist()), 50))
    error = np.std(shuffled, ddof=1) / len(shuffled) ** 0.5
    assert np.mean(real) > 0.5
    assert abs(np.mean(shuffled) - 50 / EACH) < 4 * error


def test_no_method_reads_the_record_of_the_attack(poisoned):
    """A bundle without the record ranks as one with it."""
    at_random = Attributor(poisoned.bundle, poisoned.features.model)
    bundle = at_random.bundle
    manifest = bundle.manifest
    index, base = experiment.draw_queries(poisoned, 1, seed=2)[0]
    backdoor = manifest.backdoor
    query = experiment.stamped_query(poisoned, backdoor, index)
    names = [name for name, method in METHODS.items() if poisoned.missing(method) is None]
    seen = {name: poisoned.attribute(query, Request(name, target=int(backdoor.targets[base]))) for name in names}
    try:
        bundle.manifest = replace(manifest, poison=None)
        for name in names:
            again = at_random.attribute(query, Request(name, target=int(backdoor.targets[base])))
            assert [i.train_index for i in again.items] == [i.train_index for i in seen[name].items]
    finally:
        bundle.manifest = manifest


def test_queries_are_right_without_and_fooled_with_the_patch(poisoned):
    backdoor = poisoned.bundle.manifest.backdoor
    drawn = experiment.draw_queries(poisoned, 15, seed=3)
    assert len({index for index, _ in drawn}) == 15
    for index, base in drawn:
        assert poisoned.query("test", index).predicted == base == poisoned.test_labels[index]
        assert experiment.stamped_query(poisoned, backdoor, index).predicted == backdoor.targets[base]
    with pytest.raises(QueryError, match="ask for fewer"):
        experiment.draw_queries(poisoned, 100_000, seed=0)


def test_tuning_uses_other_queries_than_those_reported(poisoned):
    drawn = experiment.draw_queries(poisoned, 10 + experiment.TUNED_ON, seed=0)
    assert not {i for i, _ in drawn[:10]} & {i for i, _ in drawn[10:]}


def test_the_smallest_of_the_best_sigma2_is_taken_over_all_bundles():
    low, high = [0.0, 0.4, 0.0, 0.0], [0.0, 0.6, 0.0, 0.9]
    assert experiment.choose_position([{"m": low}, {"m": high}])["m"] == 1


def test_an_honest_bundle_is_refused_in_a_sentence(bundle_path, tmp_path):
    cache = ResultCache(tmp_path / "part.json")
    with pytest.raises(QueryError, match=r"is not poisoned; .*--poison-rate"):
        experiment.run(
            [bundle_path], queries=3, budget=10, seed=0, methods=tuple(METHODS), cache=cache, progress=SILENT
        )


def test_a_stopped_run_goes_on_where_it_was(poisoned_path, tmp_path, result):
    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        before.append(stage)
        if METHODS["relatif"].title in stage and stage.startswith("Asking"):
            raise Stopped

    file, before, stages = tmp_path / "part.json", [], []
    with pytest.raises(Stopped):
        experiment.run([poisoned_path], **SETTINGS, cache=ResultCache(file), progress=stop)
    assert any(" info_gain_approx " in name for name in json.loads(file.read_text()))
    again = experiment.run(
        [poisoned_path], **SETTINGS, cache=ResultCache(file), progress=lambda stage, *_: stages.append(stage)
    ).to_dict()
    assert not any(stage.startswith("Choosing") for stage in stages)
    asked = [(stages.count(stage), before.count(stage)) for stage in ("Asking InfoLoss", "Asking InfoGain")]
    assert all(own and earlier and (own + earlier) % SETTINGS["queries"] == 0 for own, earlier in asked)
    assert again == result


def test_a_damaged_file_of_parts_counts_as_none(tmp_path):
    file = tmp_path / "deep" / "part.json"
    cache = ResultCache(file)
    assert cache.get("a", lambda: [1]) == [1]
    assert ResultCache(file).get("a", lambda: pytest.fail("computed again")) == [1]
    file.write_text("{")
    assert ResultCache(file).get("a", lambda: [2]) == [2]
    cache.discard()
    assert not file.exists()


def test_the_command_writes_json_figures_and_a_table(poisoned_path, tmp_path, result, monkeypatch):
    from natscope.precompute import experiments

    done_before = SimpleNamespace(to_dict=lambda: result)
    monkeypatch.setitem(
        experiments.EXPERIMENTS, "backdoor", experiments.Experiment(lambda *a, **k: done_before, queries=6, budget=100)
    )
    out = tmp_path / "r" / "backdoor.json"
    done = CliRunner().invoke(natscope, ["evaluate", "backdoor", "--bundle", str(poisoned_path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text()) == result
    assert {kind for kind, _ in experiment_files(result)} == {"png", "svg", "md"}
    assert (out.parent / "backdoor.png").read_bytes().startswith(b"\x89PNG")
    table = (out.parent / "backdoor.md").read_text()
    assert table == recall_table(result).markdown()
    assert all(METHODS[row["method"]].title in table for row in result["rows"])


def test_two_who_keep_parts_in_one_file_lose_none(tmp_path):
    first, second = ResultCache(tmp_path / "part.json"), ResultCache(tmp_path / "part.json")
    first.get("a", lambda: [1])
    second.get("b", lambda: [2])
    first.get("c", lambda: [3])
    assert ResultCache(tmp_path / "part.json").parts() == first.parts() == {"a": [1], "b": [2], "c": [3]}
    first.discard()
    assert list(tmp_path.iterdir()) == []


def test_only_files_of_ones_own_are_discarded(tmp_path):
    for name in ("run.partial.txt", "run.partial.keep"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "run.partial.folder").mkdir()
    cache = ResultCache(tmp_path / "run.partial.json")
    cache.check_own()
    cache.get("a", lambda: [1])
    cache.beside("steps").write_text("work in progress")
    cache.check_own()
    cache.discard()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "run.partial.folder",
        "run.partial.keep",
        "run.partial.txt",
    ]


@pytest.mark.parametrize("content", ['{"mine": 1}', '{"experiment": "coreset", "rows": []}', "[1]", "notes"])
def test_a_file_that_holds_no_parts_is_not_overwritten(tmp_path, content):
    (tmp_path / "run.partial.json").write_text(content)
    with pytest.raises(QueryError, match="it holds something else"):
        ResultCache(tmp_path / "run.partial.json").check_own()
