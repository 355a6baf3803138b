from dataclasses import replace

import numpy as np
import pytest

from natscope.core.analysis.comparison import OVERLAPS, Row, compare_one, overlaps, shared_images
from natscope.core.bundle.request import Attribution, Item, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, rank

SILENT = lambda stage, done, total: None  # noqa: E731


def answered(images, labels=None, scores=None, name="info_loss"):
    labels, scores = labels or [0] * len(images), scores or list(range(len(images), 0, -1))
    items = tuple(
        Item(position + 1, image, label, score, None, 1, 1.0)
        for position, (image, label, score) in enumerate(zip(images, labels, scores, strict=True))
    )
    answer = Attribution(Request(name), 1.0, 0, 100, items, None, 0.5, 0.1)
    return Row(Request(name), answer)


FAILED = Row(Request("trak"), None, "It cannot be had.")


def test_equal_scores_next_to_each_other_share_a_rank():
    row = answered([1, 2, 3, 4, 5], scores=[3.0, 2.0, 2.0, 1.0, 1.0])
    assert row.answer.rank_labels == ("1", "2=", "2=", "4=", "4=")
    assert answered([7]).answer.rank_labels == ("1",)


def test_the_label_mix_counts_the_most_frequent_first():
    assert answered([1, 2, 3, 4], labels=[5, 2, 2, 2]).label_mix == {2: 3, 5: 1}
    assert FAILED.label_mix == {}


def test_shared_images_are_those_of_two_rows_or_more_the_most_shared_first():
    rows = [answered([1, 2, 3]), FAILED, answered([3, 9, 1]), answered([8, 3, 7])]
    assert shared_images(rows) == {3: (0, 2, 3), 1: (0, 2)}
    assert shared_images([answered([1]), answered([2])]) == {}


def test_overlaps_are_means_over_the_queries_that_both_answered():
    first = [answered([1, 2, 3, 4]), answered([3, 4, 5, 6]), FAILED]
    second = [answered([1, 2, 3, 4]), answered([1, 2, 3, 4]), answered([1, 2, 8, 9])]
    found = overlaps([first, second], OVERLAPS["jaccard"])
    np.testing.assert_allclose(found, found.T)
    assert found[0, 1] == pytest.approx((2 / 6 + 1) / 2)
    assert found[0, 2] == pytest.approx(2 / 6)
    assert found[0, 0] == 1
    assert np.isnan(overlaps([first], OVERLAPS["rbo"])[0, 2])


def variance(phi, known, sigma2):
    """The query's variance given features (n, K), by one dense solve in weight space."""
    precision = np.eye(known.shape[1]) + known.T @ known / sigma2
    return float(phi @ np.linalg.solve(precision, phi))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("origin", "index"), [("test", 5), ("train", 40)])
def test_every_subset_is_judged_by_its_information_in_nats(attributor, name, origin, index):
    query = attributor.query(origin, index)
    row = compare_one(attributor, query, Request(name, sigma2=3.0, budget=4), evaluation_sigma2=0.5, progress=SILENT)
    rows = np.flatnonzero(attributor.train_labels == row.answer.target)
    if origin == "train":
        rows = rows[rows != index]
    features = np.asarray(attributor.bundle.array("features")[rows], dtype=np.float64)
    phi = attributor.query_features(query, row.answer.target).astype(np.float64)
    picked = np.isin(rows, row.picks)
    assert picked.sum() == 4
    nothing, without, everything, alone = (
        variance(phi, features[keep], 0.5) for keep in (slice(0), ~picked, slice(None), picked)
    )
    assert row.loss == pytest.approx(0.5 * np.log(without / everything), rel=1e-5)
    assert row.gain == pytest.approx(0.5 * np.log(nothing / alone), rel=1e-5)


def test_a_method_that_fails_keeps_its_sentence_to_itself(attributor, monkeypatch):
    def scores(candidates, query, settings):
        return rank(np.full(len(candidates.pool), np.nan), settings)

    broken = replace(METHODS["random"], name="broken", select=scores)
    monkeypatch.setitem(METHODS, "broken", broken)
    query = attributor.query("test", 5)
    failed, other = (
        compare_one(attributor, query, Request(name), evaluation_sigma2=1.0, progress=SILENT)
        for name in ("broken", "random")
    )
    assert failed.answer is None
    assert "not numbers" in failed.failure
    assert failed.picks == ()
    assert len(other.picks) == 10


def test_a_class_that_is_not_there_is_a_row_with_the_reason(attributor):
    row = compare_one(
        attributor, attributor.query("test", 5), Request(target=99), evaluation_sigma2=1.0, progress=SILENT
    )
    assert row.answer is None
    assert row.failure.startswith("There is no class 99;")


def test_a_judge_needs_a_variance(attributor):
    with pytest.raises(QueryError, match="positive number, not 0"):
        compare_one(attributor, attributor.query("test", 5), Request(), evaluation_sigma2=0.0, progress=SILENT)
