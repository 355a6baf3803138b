import csv
import io
import json

import numpy as np
import pytest

from natscope.app.figures.data import numbers
from natscope.app.figures.experiments import experiment_files
from natscope.app.figures.tables import lds_table
from natscope.core import metrics
from natscope.core.analysis.additive import additive_scores
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, Settings
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments import EXPERIMENTS, lds
from natscope.precompute.training.result_cache import ResultCache

SILENT = lambda stage, done, total: None  # noqa: E731


@pytest.fixture(scope="module")
def attributor(tiny_path):
    return open_attributor(tiny_path)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tmp_path_factory.mktemp("lds") / "part.json"


@pytest.fixture(scope="module")
def result(tiny_path, parts):
    settings = {"queries": 6, "budget": 4, "seed": 0, "methods": tuple(METHODS)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lds, "SEEDS", 4)
        return lds.run_on([tiny_path], **settings, cache=ResultCache(parts), progress=SILENT).to_dict()


def test_the_metric_is_dattris_own():
    """What `dattri.metric.lds` of dattri 0.3.0 returns for the same numbers."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(12, 3))
    halves = [np.sort(rng.permutation(12)[:6]) for _ in range(8)]
    values = np.round(scores[np.stack(halves)].sum(1) + rng.normal(size=(8, 3)) * 2, 1)
    correlations, p_values = lds.lds(lds.summed(scores.T, halves), values)
    np.testing.assert_allclose(correlations, [0.8333333333333335, 0.5476190476190477, 0.7065994945288228], atol=1e-6)
    np.testing.assert_allclose(p_values, [0.010175540123456752, 0.16002564253889653, 0.05006339467042153], atol=1e-6)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.information])
def test_an_image_by_itself_has_the_information_of_a_set_of_one(attributor, name):
    (scores,) = additive_scores(attributor, name, np.array([1]), sigma2=3.0, progress=SILENT)
    pool = attributor.margin_candidates(np.arange(len(scores)), SILENT).pool
    query = attributor.margin_query(np.array([1])).features[0]
    of_set = metrics.information_loss if METHODS[name].information == "loss" else metrics.information_gain
    wanted = [of_set(pool, query, 3.0, [row]) for row in range(len(scores))]
    np.testing.assert_allclose(np.abs(scores), wanted, rtol=1e-5, atol=1e-9)
    covariance = pool.cross(query[None])[:, 0]
    if METHODS[name].information == "loss":
        covariance = pool.posterior(query[None], 3.0).alpha[:, 0]
    assert (np.sign(scores) == np.sign(covariance)).all()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.information])
def test_the_scores_of_others_are_those_they_rank_by(attributor, name):
    scores = additive_scores(attributor, name, np.array([1, 2]), sigma2=3.0, progress=SILENT)
    assert scores.shape == (2, len(attributor.train_labels))
    query = attributor.margin_query(np.array([2]))
    settings = Settings(3.0, len(attributor.train_labels), seed=2)
    found = METHODS[name].select(attributor.margin_candidates(np.arange(60), SILENT), query, settings)
    np.testing.assert_allclose(scores[1, found.indices], found.scores, rtol=1e-4, atol=1e-6 * np.abs(scores).max())


def test_the_information_of_a_half_is_that_of_the_set(attributor):
    halves, tests = lds.draw_halves(60, 2, seed=0), np.array([0, 5])
    found = lds.information_of(attributor, halves, tests, sigma2=2.0, progress=SILENT)
    pool = attributor.margin_candidates(np.arange(60), SILENT).pool
    queries = attributor.margin_query(tests).features
    for row, half in enumerate(halves):
        for column in range(2):
            wanted = metrics.information_gain(pool, queries[column], 2.0, half)
            assert found[row, column] == pytest.approx(wanted, rel=1e-6)


def test_the_most_that_can_be_reached_is_that_of_a_perfect_score():
    """The mean over ten seeds of a signal with noise, ranked by the signal itself."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(3000, 1))
    seeds = signal[:, None] + rng.normal(size=(3000, 10, 1)) * 2
    (agreement,), _ = lds.lds(seeds[:, ::2].mean(axis=1), seeds[:, 1::2].mean(axis=1))
    (reached,), _ = lds.lds(signal, seeds.mean(axis=1))
    assert lds.most(agreement) == pytest.approx(reached, abs=0.02)
    assert lds.most(-0.1) == 0.0


def test_more_halves_contain_fewer():
    few, many = lds.draw_halves(60, 2, seed=1), lds.draw_halves(60, 5, seed=1)
    assert all(len(half) == 30 and len(set(half.tolist())) == 30 for half in many)
    np.testing.assert_array_equal(few, many[:2])


def test_targets_are_oriented_so_that_more_is_surer():
    values = np.zeros((2, 3, 2, 1))
    values[0, :, 0, 0], values[1, :, 0, 0] = [1, 2, 3], [2, 2, 2]
    values[:, :, 1, 0] = [[5, 5, 5], [1, 1, 1]]
    found = lds._targets(values)
    assert found["margin"][:, 0].tolist() == [2, 2]
    assert found["loss"][:, 0].tolist() == [-5, -1]
    assert found["variance"][:, 0].tolist() == [-1, 0]


def test_the_result_has_a_row_for_each_sum_and_says_how_far_it_can_get(result):
    kinds = [(row["method"], row["sum"]) for row in result["rows"]]
    information = [name for name, method in METHODS.items() if method.information]
    assert {name for name, _ in kinds} == set(METHODS) - {"info_gain_approx"}
    assert {name for name, kind in kinds if kind == "unsigned"} == set(information) - {"info_gain_approx"}
    assert [name for name, kind in kinds if kind == "of the set"] == ["info_gain"]
    for row in (*result["rows"], result["ceilings"]):
        assert all(-1 <= row[name]["mean"] <= 1 and 0 <= row[name]["sure"] <= 1 for name in lds.TARGETS)
    assert result["setting"]["halves"] == 4
    assert result["command"].startswith("natscope evaluate lds --bundle BUNDLES --out lds.json --queries 6 --budget 4")
    json.dumps(result, allow_nan=False)
    assert [suffix for suffix, _ in experiment_files(result)] == ["md"]
    assert len(lds_table(result).markdown().splitlines()) == len(kinds) + 3


@pytest.mark.parametrize(("mean", "error"), [(-0.1, 0.01), (0.1, 0.2), (0.3, None)])
def test_a_ceiling_below_its_own_error_is_not_told(result, mean, error):
    ceilings = {name: {"mean": 0.9, "error": 0.01, "sure": 1.0, "most": 0.97} for name in lds.TARGETS}
    rows = [row | {name: {"mean": 0.42, "error": 0.1} for name in lds.TARGETS} for row in result["rows"][:1]]
    assert lds.finding(rows, ceilings).endswith("0.42 of at most 0.97 for the variance.")
    ceilings["loss"] = {"mean": mean, "error": error, "sure": 0.0, "most": lds.most(mean)}
    said = lds.finding(rows, ceilings)
    assert f"0.42 of at most 0.97 for the margin; {lds.title(rows[0])} 0.42 for the loss; " in said
    assert "For the loss the seeds do not agree enough to tell the most that a score could reach" in said
    shown = result | {"rows": rows, "ceilings": ceilings}
    assert lds_table(shown).last[3:] == ["0.970", "not measurable", "0.970"]
    lines = list(csv.DictReader(io.StringIO(numbers(shown))))
    assert (lines[-1]["lds_margin"], lines[-1]["lds_loss"]) == ("0.97", "")


def test_finished_trainings_are_not_repeated(result, tiny_path, parts, monkeypatch):
    monkeypatch.setattr(lds, "SEEDS", 4)
    stages = []
    settings = {"queries": 6, "budget": 4, "seed": 0, "methods": ("random",)}
    watch = lambda stage, done, total: stages.append((stage, done))  # noqa: E731
    lds.run_on([tiny_path], **settings, cache=ResultCache(parts), progress=watch)
    assert [found for found in stages if found[0].startswith("Training")] == [("Training on halves", 4)]


def test_what_cannot_be_measured_is_one_sentence(tiny_path, tmp_path):
    found, cache = EXPERIMENTS["lds"], ResultCache(tmp_path / "part.json")
    for change, fault in (({"budget": 2}, "three halves"), ({"queries": 10}, "9 test examples to ask about")):
        settings = {"queries": 3, "budget": 3, "seed": 0, "methods": ("random",)} | change
        with pytest.raises(QueryError, match=fault):
            found.run([tiny_path], **settings, cache=cache, progress=SILENT)
    with pytest.raises(QueryError, match="about one bundle"):
        found.run([tiny_path, tiny_path], queries=3, budget=3, seed=0, methods=(), cache=cache, progress=SILENT)
