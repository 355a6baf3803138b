import itertools
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from natscope import assets
from natscope.app.cli.commands import natscope
from natscope.core.bundle.format import Bundle
from natscope.core.errors import BuildError, QueryError
from natscope.core.methods import METHODS
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.experiments import EXPERIMENTS, brittleness
from natscope.precompute.training import removal
from natscope.precompute.training.models import network_of
from natscope.precompute.training.removal import Answer, Schedule, identity_of, run_schedule, run_schedules
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import data_of, recipe_of
from natscope.precompute.training.together import suits, train_together
from natscope.precompute.training.train import TrainingSpec, train
from tests.tiny import edited, saved

NAMES = ("info_loss", "random")
SETTINGS = {"queries": 2, "budget": 120, "seed": 0, "methods": NAMES}
SILENT = lambda stage, done, total: None  # noqa: E731


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """A bundle of 1,500 images, which is retrained in a third of the time of the usual one."""
    spec = BuildSpec(per_class=150, training=TrainingSpec(epochs=10), sketch=SketchSpec(dim=256), methods=NAMES)
    path = tmp_path_factory.mktemp("few") / "few"
    build(spec, path, SILENT)
    return path


@pytest.fixture(scope="module")
def written(few_images, tmp_path_factory):
    """The command, stopped after its first schedule and run again."""
    out = tmp_path_factory.mktemp("brittleness") / "brittleness.json"

    def stop(stage, done, total):
        if stage.startswith("Training") and done == 1:
            raise Stopped

    cache = ResultCache(out.with_suffix(".partial.json"))
    with pytest.raises(Stopped):
        brittleness.run([few_images], **SETTINGS, cache=cache, progress=stop)
    assert sum("removal" in name for name in json.loads(cache.path.read_text())) == 1
    command = f"evaluate brittleness --bundle {few_images} --out {out} --queries 2 --budget 120"
    done = CliRunner().invoke(natscope, [*command.split(), "--methods", ",".join(NAMES)])
    assert done.exit_code == 0, done.output
    return out


def test_each_query_is_asked_up_to_its_flip(written, attributor):
    result = json.loads(written.read_text())
    grid = result["setting"]["grid"]
    assert grid == [20, 60, 120]
    assert result["setting"]["conditioning"] == "train"
    labels = attributor.test_labels
    for row in result["rows"]:
        assert len(row["queries"]) == 2
        for query in row["queries"]:
            flipped = [after["predicted"] != query["class"] for after in query["after"]]
            assert query["class"] == labels[query["query"]]
            assert query["margin"] > 0
            assert not any(flipped[:-1])
            assert flipped[-1] or len(flipped) == len(grid)
            assert [after["removed"] for after in query["after"]] == grid[: len(flipped)]
            for after in query["after"]:  # a flip is a negative margin: log odds of the class against all others
                assert after["predicted"] == query["class"] or after["margin"] < 0
                assert after["probability"] == pytest.approx(1 / (1 + np.exp(-after["margin"])))
    assert {file.name for file in written.parent.iterdir()} == {
        f"brittleness.{k}" for k in ("json", "png", "svg", "md")
    }
    assert "±" in written.with_suffix(".md").read_text()
    assert f"{result['rows'][0]['flips'][-1]['mean']:.0%}" in result["finding"]


def test_predictions_flip_sooner_without_what_info_loss_names_than_without_as_many_others(written):
    rows = {row["method"]: row for row in json.loads(written.read_text())["rows"]}
    trained = {name: sum(len(query["after"]) for query in row["queries"]) for name, row in rows.items()}
    assert trained["info_loss"] < trained["random"]
    assert rows["info_loss"]["margin_drop"]["mean"] > rows["random"]["margin_drop"]["mean"]
    assert rows["info_loss"]["flips"][-1]["mean"] > rows["random"]["flips"][-1]["mean"]


def test_without_removing_anything_the_answer_is_the_networks_own(attributor, tmp_path):
    query = attributor.query("test", 0)
    schedule = Schedule(0, query.predicted, (), (0,))
    cache = ResultCache(tmp_path / "kept.json")
    ((found,),) = run_schedules(attributor.bundle, [schedule], cache=cache, workers=1, progress=SILENT)
    assert found.predicted == query.predicted
    assert found.probability == pytest.approx(query.probabilities[query.predicted], abs=1e-6)
    assert f"{identity_of(attributor.bundle)} removal {schedule.key}" in cache


def test_what_is_measured_of_a_training_is_that_of_its_bundle_alone(tiny_path, tmp_path):
    """Bundles may have the same network and differ in what it is shown, how, and what the right answers are."""
    known = {identity_of(Bundle(tiny_path))}
    labels = np.load(tiny_path / "test_labels.npy")
    changes = {
        "test_labels": lambda path: saved(path, "test_labels", (labels + 1) % 3),
        "test_images": lambda path: saved(path, "test_images", 255 - np.load(path / "test_images.npy")),
        "std": lambda path: edited(path, lambda raw: raw["dataset"].update(std=[1.5])),
        "classes": lambda path: edited(path, lambda raw: raw["dataset"].update(classes=["a", "b", "c"])),
    }
    for name, change in changes.items():
        shutil.copytree(tiny_path, tmp_path / name)
        change(tmp_path / name)
        known.add(identity_of(Bundle(tmp_path / name)))
    assert len(known) == 1 + len(changes)


def test_a_ladder_that_was_stopped_goes_on_at_its_next_step(attributor, tmp_path, monkeypatch):
    trained, schedule = [], Schedule(0, 4, (5, 6, 7), (1, 2, 3))

    def train(bundle, image, target, rows, progress):
        trained.append(len(rows))
        if trained == [1, 2]:
            raise Stopped
        return Answer(target, 0.9, 2.0)

    monkeypatch.setattr("natscope.precompute.training.removal.without", train)
    with pytest.raises(Stopped):
        run_schedule(attributor.bundle, schedule, ResultCache(tmp_path / "steps"))
    assert run_schedule(attributor.bundle, schedule, ResultCache(tmp_path / "steps")) == [Answer(4, 0.9, 2.0)] * 3
    assert trained == [1, 2, 2, 3]


def test_schedules_of_the_same_sets_are_climbed_once(attributor, tmp_path, monkeypatch):
    assert Schedule(0, 1, (5, 6, 7), (2, 3)).key == Schedule(0, 1, (6, 5, 7, 9), (2, 3)).key
    assert Schedule(0, 1, (5, 6, 7), (2, 3)).key != Schedule(0, 1, (5, 7, 6), (2, 3)).key
    assert Schedule(0, 1, (5, 6), (2,)).key != Schedule(1, 1, (5, 6), (2,)).key


def test_a_flip_counts_for_all_larger_budgets():
    after = lambda *classes: [{"removed": m, "predicted": c} for m, c in enumerate(classes)]  # noqa: E731
    runs = [{"class": 3, "after": after(3, 3, 5)}, {"class": 3, "after": after(3, 3, 3)}]
    assert brittleness.flips(runs, (1, 2, 3)).tolist() == [[False, False, True], [False, False, False]]
    runs = [{"class": 3, "after": after(5)}]
    assert brittleness.flips(runs, (1, 2, 3)).tolist() == [[True, True, True]]


def test_the_finding_says_where_the_papers_claim_holds():
    def row(name, *means):
        return {"method": name, "flips": [{"mean": mean} for mean in means]}

    good = [row("info_loss", 0.5, 0.9), row("info_gain", 0.4, 0.8), row("trak", 0.1, 0.2), row("random", 0.0, 0.0)]
    said = brittleness.finding(good, (1, 2))
    assert "At every budget all information methods beat all baselines" in said
    assert "TRAK" in said
    good[1] = row("info_gain", 0.1, 0.8)
    assert "At 1 of 2 budgets" in brittleness.finding(good, (1, 2))
    good[0] = row("info_loss", 0.0, 0.1)
    assert "At no budget do all information methods beat" in brittleness.finding(good, (1, 2))


def test_what_cannot_be_asked_is_refused_in_a_sentence(bundle_path, attributor, tmp_path, monkeypatch):
    cache = ResultCache(tmp_path / "kept.json")
    with pytest.raises(QueryError, match="fewer than 100000"):
        brittleness.run([bundle_path], **(SETTINGS | {"queries": 100_000}), cache=cache, progress=SILENT)
    monkeypatch.setattr(
        "natscope.precompute.training.retrain.TrainingSpec.from_dict",
        lambda values: (_ for _ in ()).throw(TypeError("weights")),
    )
    with pytest.raises(BuildError, match="loaded, not trained"):
        brittleness.run([bundle_path], **SETTINGS, cache=cache, progress=SILENT)


def test_methods_that_the_bundle_lacks_are_left_out(few_images, tmp_path):
    settings = SETTINGS | {"queries": 1, "budget": 6, "methods": ("kronfluence", "random")}
    cache = ResultCache(tmp_path / "kept.json")
    result = brittleness.run([few_images], **settings, cache=cache, progress=SILENT).to_dict()
    assert [row["method"] for row in result["rows"]] == ["random"]
    assert METHODS["kronfluence"].files


def _runs(flipped):
    return [{"class": 0, "after": [{"removed": 9, "predicted": int(flip)}]} for flip in flipped]


def test_differences_from_the_best_baseline_are_tested_query_by_query():
    queries = np.arange(40)
    rows = [
        {"method": "info_loss", "queries": _runs(queries < 20)},  # 15 more than the best baseline, none fewer
        {"method": "info_gain", "queries": _runs((queries < 4) | (queries == 30))},  # one more, one fewer
        {"method": "graddot", "queries": _runs(queries < 5)},
        {"method": "random", "queries": _runs(queries < 1)},
    ]
    loss, gain = brittleness.paired_tests(rows, (9,))
    assert (loss["baseline"], loss["difference"], gain["difference"]) == ("graddot", 15 / 40, 0)
    assert loss["p"] == pytest.approx(2 * 0.5**15)
    assert loss["p_holm"] == pytest.approx(2 * loss["p"])
    assert gain["p"] == gain["p_holm"] == 1
    assert loss["high"] == pytest.approx(15 / 40)
    assert loss["low"] == pytest.approx((2 * 0.025 ** (1 / 15) - 1) * 15 / 40)  # Clopper and Pearson's of 15 in 15
    assert gain["low"] < 0 < gain["high"]
    words = brittleness.significance([loss, gain])
    assert "InfoLoss at 9 (+38%" in words
    assert "InfoGain" not in words
    assert "No information method differs significantly from GradDot" in brittleness.significance([gain])
    assert brittleness.paired_tests(rows[2:], (9,)) == []
    assert brittleness.significance([]) == ""
    same = brittleness.paired_tests([rows[2] | {"method": "info_loss"}, rows[2]], (9,))[0]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def test_a_stack_of_networks_is_trained_as_each_of_them_alone(few_images, tmp_path, monkeypatch):
    bundle = Bundle(few_images)
    schedules = [
        Schedule(index, int(bundle.array("test_labels")[index]), tuple(range(index, index + 60)), (20, 60), stop=stop)
        for index, stop in ((0, False), (1, False), (2, True))
    ]
    caches = [ResultCache(tmp_path / f"{name}.json") for name in ("alone", "together")]
    alone = run_schedules(bundle, schedules, cache=caches[0], workers=1, progress=SILENT)
    monkeypatch.setattr(removal, "suits", lambda bundle: True)
    monkeypatch.setattr(removal, "at_once", lambda bundle: 2)
    together = run_schedules(bundle, schedules, cache=caches[1], workers=1, progress=SILENT)
    assert [len(answers) for answers in together] == [len(answers) for answers in alone]
    for ours, theirs in zip(*(itertools.chain(*found) for found in (together, alone)), strict=True):
        assert ours.predicted == theirs.predicted
        assert ours.margin == pytest.approx(theirs.margin, abs=0.5)  # a rounded pre-activation may change sign
    assert not suits(bundle)  # on a processor, each network has its own process
    again = run_schedules(bundle, schedules, cache=caches[1], workers=1, progress=SILENT)
    assert again == together


def test_in_double_precision_a_stack_has_the_weights_of_single_trainings(few_images):
    bundle = Bundle(few_images)
    (images, labels), recipe = data_of(bundle), replace(recipe_of(bundle), epochs=2, warmup_epochs=1)
    order = np.random.default_rng([recipe.seed, 0]).permutation(len(labels))
    left_out = [np.arange(30), np.arange(700, 720), order[: recipe.batch_size]]  # the whole of the first batch
    stack = train_together(network_of(bundle, seed=1).double(), images.double(), labels, recipe, left_out)
    for row, rows in enumerate(left_out):
        model = network_of(bundle, seed=1).double()
        train(model, images.double(), labels, recipe, leave_out=rows)
        for name, parameter in model.named_parameters():
            assert torch.allclose(stack[name][row], parameter, rtol=0, atol=1e-12)
    assert not torch.allclose(stack[name][0], stack[name][1], rtol=0, atol=1e-6)
    with pytest.raises(BuildError, match="infinite or NaN"):
        train_together(network_of(bundle, seed=1), images, labels, replace(recipe, learning_rate=1e9), left_out)


@pytest.mark.parametrize(("name", "most"), [("brittleness", 300), ("relative-information", 100)])
def test_a_budget_that_was_cut_is_told(name, most, tmp_path, monkeypatch):
    found = json.loads(assets.path("results", f"{name}.json").read_text(encoding="utf-8"))
    run = replace(EXPERIMENTS[name], run=lambda *_, **__: SimpleNamespace(to_dict=lambda: found))
    monkeypatch.setitem(EXPERIMENTS, name, run)
    monkeypatch.setattr("natscope.app.figures.experiments.experiment_files", lambda result: [])
    for asked, told in ((most, False), (2_000, True)):
        command = f"evaluate {name} --bundle {tmp_path} --out {tmp_path / 'result.json'} --budget {asked}"
        done = CliRunner().invoke(natscope, command.split())
        assert (f"The budget of {asked:,} was cut to {most:,}" in done.output) is told, done.output
