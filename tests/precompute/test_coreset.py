import json
import os
import re
import shutil

import numpy as np
import pytest

from natscope.app.figures.experiments import charts, experiment_files
from natscope.app.figures.tables import coreset_table
from natscope.core.analysis.coreset import FREE, PER_CLASS, QUOTAS, VARIANTS
from natscope.core.bundle.format import Bundle
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments import EXPERIMENTS, coreset
from natscope.precompute.experiments.result import over_bundles
from natscope.precompute.training.removal import identity_of
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.subset import Subset, accuracies, train_on
from tests.conftest import EACH

SILENT = lambda stage, done, total: None  # noqa: E731
SETTINGS = {"queries": 20, "budget": 60, "seed": 0, "methods": ("info_gain", "random")}


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def stopped(bundle_path, tmp_path_factory):
    """Stop the experiment in the middle of its trainings, and give the file of what is kept."""
    file = tmp_path_factory.mktemp("coreset") / "part.json"

    def stop(stage, done, total):
        if stage.startswith("Training") and done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        coreset.run([bundle_path], **SETTINGS, cache=ResultCache(file), progress=stop)
    return file


@pytest.fixture(scope="module")
def result(bundle_path, stopped):
    done = []
    found = coreset.run(
        [bundle_path],
        **SETTINGS,
        cache=ResultCache(stopped),
        progress=lambda stage, step, _: done.append((stage, step)),
    ).to_dict()
    assert done[0] == ("Training on what was chosen", 3)  # nothing was chosen again, three trainings were kept
    return found


def test_a_stopped_run_goes_on_where_it_was_and_ends_as_one_that_was_not(result, bundle_path, tmp_path):
    again = coreset.run(
        [bundle_path], **SETTINGS, cache=ResultCache(tmp_path / "other.json"), progress=SILENT
    ).to_dict()
    assert again == result


def test_the_result_says_what_was_done(result, bundle_path):
    assert [(row["method"], row["variant"]) for row in result["rows"]] == [
        (name, variant) for name in ("info_gain", "random") for variant in VARIANTS
    ]
    assert set(result["setting"]["variants"]) == set(VARIANTS)
    assert result["setting"]["grid"] == [12, 24, 60]
    assert {"experiment", "date", "command", "bundles", "setting", "versions", "finding"} <= set(result)
    assert "--queries 20 --budget 60 --seed 0 --methods info_gain,random" in result["command"]
    for row in result["rows"]:
        assert len(row["accuracy"]) == 3
        assert all(0.05 < value["mean"] < result["all_data"]["mean"] for value in row["accuracy"])
    assert result["rows"][0]["sigma2"] == [0.1 * Bundle(bundle_path).scale("coreset")]
    assert result["rows"][3]["sigma2"] is None
    for row in result["rows"]:
        assert row["makeup"]["images"] == 24
        largest = row["makeup"]["largest_class"]["mean"]
        assert largest == 0.125 if row["variant"] != FREE else 0.125 < largest < 1
    assert "with all training examples, on" in result["finding"]
    assert result["setting"]["measured_on"].startswith("7,980 other test examples")
    json.dumps(result, allow_nan=False)


def test_on_all_training_images_it_is_the_bundles_own_network(bundle_path, result):
    bundle = open_attributor(bundle_path).bundle
    subset = Subset(np.arange(10 * EACH), np.array([3, 4]))
    own = accuracies(bundle, np.asarray(bundle.array("test_logits")), subset.asked)
    assert train_on(bundle, subset) == pytest.approx(own, abs=1e-4)
    labels = np.asarray(bundle.array("test_labels"))
    right = np.asarray(bundle.array("test_logits")).argmax(axis=1) == labels
    assert own == {"others": np.delete(right, [3, 4]).mean(), "asked": right[[3, 4]].mean()}
    some = accuracies(bundle, np.asarray(bundle.array("test_logits")), subset.asked, np.arange(10))
    assert some["others"] == np.delete(right[:10], [3, 4]).mean()
    everyone = accuracies(bundle, np.asarray(bundle.array("test_logits")), np.arange(len(labels)))
    assert everyone["others"] is None


def test_a_training_depends_on_what_is_in_the_set_and_not_on_its_order(bundle_path):
    bundle = open_attributor(bundle_path).bundle
    first, asked = np.array([5, 1, 9]), np.array([0, 2])
    identity = identity_of(bundle)
    key = Subset(first, asked).key(bundle, identity)
    assert Subset(first[::-1], asked[::-1]).key(bundle, identity) == key
    assert Subset(first[:2], asked).key(bundle, identity) != key
    assert Subset(first, asked[:1]).key(bundle, identity) != key
    assert Subset(first, asked, np.arange(7)).key(bundle, identity) != key
    assert Subset(first, asked, seed=1).key(bundle, identity) != key


def test_repeats_choose_for_other_images_and_train_by_other_seeds(bundle_path, tmp_path):
    settings = SETTINGS | {"budget": 30, "methods": ("repsim",)}
    once, twice = (
        coreset.run(
            [bundle_path], **settings, **more, cache=ResultCache(tmp_path / f"{len(more)}.json"), progress=SILENT
        ).to_dict()
        for more in ({}, {"repeats": 2})
    )
    assert once["command"].replace("--seed 0", "--seed 0 --repeats 2") == twice["command"]
    for before, after in zip(once["rows"], twice["rows"], strict=True):
        for mean, means in zip(before["accuracy"], after["accuracy"], strict=True):
            assert means["values"][:1] == mean["values"]
            assert len(means["values"]) == 2
            assert means["error"] is not None
    bundle = open_attributor(bundle_path).bundle
    first = Subset(np.arange(100), np.array([0]))
    assert train_on(bundle, first) == train_on(bundle, first)
    assert train_on(bundle, first) != train_on(bundle, Subset(np.arange(100), np.array([0]), seed=1))


def test_budgets_are_shares_of_the_training_images_up_to_the_largest():
    assert coreset.budgets(15_000, 1500) == (30, 60, 150, 300, 600, 1500)
    assert coreset.budgets(15_000) == (30, 60, 150, 300, 600, 1500)
    assert coreset.budgets(2500) == (5, 10, 25, 50, 100, 250)
    assert coreset.budgets(3) == (1,)
    assert coreset.budgets(15_000, 100) == (30, 60, 100)
    assert coreset.budgets(40, 1500) == (1, 2, 4, 40)
    assert EXPERIMENTS["coreset"].queries == 500
    assert EXPERIMENTS["coreset"].budget is None


def test_the_finding_says_who_is_above_chance():
    def row(name, variant, *means):
        return {"method": name, "variant": variant, "accuracy": [over_bundles([m - off, m + off]) for m in means]}

    off = 0.01
    rows = [row("info_gain", FREE, 0.3, 0.6), row("random", FREE, 0.2, 0.5), row("trak", FREE, 0.1, 0.7)]
    rows += [row("info_gain", PER_CLASS, 0.4, 0.6), row("random", PER_CLASS, 0.5, 0.5)]
    rows += [row("info_gain", QUOTAS, 0.1, 0.2), row("random", QUOTAS, 0.2, 0.2)]
    said = coreset.finding(rows, (10, 20), over_bundles([0.9]), {})
    assert re.search(
        r"on 10 .* 50\.0% with random ones class by class;.* 70\.0% with those that TRAK chooses, 50\.0% with random",
        said,
    )
    assert re.search(
        r"freely: InfoGain at 2 .*TRAK at 1 of 2 .*; with class quotas: none; class by class: InfoGain at 1 of 2 ",
        said,
    )
    off = 0.2
    assert "chosen freely: none" in coreset.finding(
        [row("trak", FREE, 0.6), row("random", FREE, 0.5)], (10,), over_bundles([0.9]), {}
    )
    once = {"method": "random", "variant": FREE, "accuracy": [over_bundles([0.5])]}
    assert "trained on once" in coreset.finding([once, once | {"method": "trak"}], (10,), over_bundles([0.9]), {})
    for name, classes, wrong in (("info_gain", 0.2, 0.0), ("random", 0.2, 0.1), ("trak", 0.6, 0.5)):
        next(row for row in rows if row["method"] == name)["makeup"] = {
            "images": 20,
            "wrong": over_bundles([wrong]),
            "largest_class": over_bundles([classes]),
        }
    said = coreset.finding(rows, (10, 20), over_bundles([0.9]), {})
    assert re.search(r"first 20 .* 60% with TRAK are of one class; 50% with TRAK .* wrong\.$", said)


def test_small_coresets_and_few_classes_are_not_called_uneven():
    def said(images, at_random, classes):
        rows = [
            {
                "method": name,
                "variant": FREE,
                "accuracy": [over_bundles([0.5])],
                "makeup": {"images": images, "wrong": over_bundles([0.0]), "largest_class": over_bundles([share])},
            }
            for name, share in (("random", at_random), ("trak", classes))
        ]
        return coreset.finding(rows, (images,), over_bundles([0.9]), {})

    assert "of one class" not in said(1, 1.0, 1.0)
    assert "of one class" not in said(25, 0.52, 0.6)
    assert "80% with TRAK" in said(25, 0.52, 0.8)


def test_bundles_of_other_data_are_refused(bundle_path, poisoned_path, tmp_path):
    cache = ResultCache(tmp_path / "part.json")
    with pytest.raises(QueryError, match="different training examples"):
        coreset.run([bundle_path, poisoned_path], **(SETTINGS | {"methods": ("random",)}), cache=cache, progress=SILENT)


def test_the_figures_and_the_table_show_every_row(result):
    files = dict(experiment_files(result))
    assert set(files) == {"png", "svg", "md"}
    assert files["png"].startswith(b"\x89PNG")
    table = coreset_table(result).markdown()
    assert f"| {METHODS['info_gain'].title}, with class quotas |" in table
    assert f"{100 * result['rows'][0]['accuracy'][0]['mean']:.1f}" in table
    for chart, variant in zip(charts(result), VARIANTS, strict=True):
        rows = [row for row in result["rows"] if row["variant"] == variant]
        assert [line.name for line in chart.series] == [METHODS[row["method"]].title for row in rows]
        assert [line.y[0] for line in chart.series] == [100 * row["accuracy"][0]["mean"] for row in rows]


def test_what_cannot_be_done_is_refused_in_a_sentence(bundle_path, tmp_path):
    cache = ResultCache(tmp_path / "part.json")
    with pytest.raises(QueryError, match="left to measure"):
        coreset.run([bundle_path], **(SETTINGS | {"queries": 10_000}), cache=cache, progress=SILENT)
    with pytest.raises(QueryError, match="500 test examples at most"):
        coreset.run([bundle_path], **(SETTINGS | {"queries": 501}), cache=cache, progress=SILENT)
    with pytest.raises(QueryError, match=r"GradDot .*`--methods graddot`"):
        coreset.run([without_margins(bundle_path, tmp_path / "bare")], **SETTINGS, cache=cache, progress=SILENT)


def without_margins(bundle, folder):
    shutil.copytree(bundle, folder, copy_function=os.link)
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["margin_features"]
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
