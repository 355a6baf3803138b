import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natscope.core import greedy, metrics
from natscope.core.pool import Pool
from natscope.core.posterior import FeatureConditioning, FeatureSpectrum
from tests import oracles

RANDOM = np.random.default_rng(0)
FEATURES, QUERIES = RANDOM.normal(size=(7, 4)), RANDOM.normal(size=(2, 4))


@pytest.mark.parametrize("sigma2", [1e-6, 1e-2, 1.0, 1e5])
@pytest.mark.parametrize("subset", [[3], [5, 0, 2], []])
def test_information_is_that_of_a_dense_solve(sigma2, subset):
    pool = Pool(FEATURES)
    gain = oracles.information(QUERIES, FEATURES[:0], FEATURES[subset], sigma2)
    loss = oracles.information(QUERIES, np.delete(FEATURES, subset, axis=0), FEATURES, sigma2)
    assert metrics.information_gain(pool, QUERIES, sigma2, subset) == pytest.approx(gain, rel=1e-6, abs=1e-12)
    assert metrics.information_loss(pool, QUERIES, sigma2, subset) == pytest.approx(loss, rel=1e-6, abs=1e-12)


def test_information_loss_takes_a_larger_conditioning_set():
    conditioning = FeatureConditioning.of(FeatureSpectrum.of([FEATURES]), FEATURES[:3])
    found = metrics.information_loss(Pool(FEATURES[:3]), QUERIES, 0.1, [2, 0], conditioning=conditioning)
    wanted = oracles.information(QUERIES, np.delete(FEATURES, [0, 2], axis=0), FEATURES, 0.1)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_total_information_is_the_gain_of_everything_that_is_left():
    pool = Pool(FEATURES)
    everything = metrics.total_information(pool, pool, QUERIES, 0.1)
    assert everything == pytest.approx(oracles.information(QUERIES, FEATURES[:0], FEATURES, 0.1), rel=1e-9)
    assert everything == pytest.approx(metrics.information_gain(pool, QUERIES, 0.1, range(7)), rel=1e-9)
    without = metrics.total_information(pool, pool, QUERIES, 0.1, exclude=[4])
    wanted = oracles.information(QUERIES, FEATURES[:0], np.delete(FEATURES, 4, axis=0), 0.1)
    assert without == pytest.approx(wanted, rel=1e-9)


@given(order=st.permutations([1, 4, 6]))
@settings(max_examples=6, deadline=None)
def test_information_does_not_depend_on_the_order(order):
    pool = Pool(FEATURES)
    for measure in (metrics.information_gain, metrics.information_loss):
        assert measure(pool, QUERIES, 0.5, order) == pytest.approx(measure(pool, QUERIES, 0.5, [1, 4, 6]), rel=1e-9)


def test_relative_information_is_one_for_the_reference_and_less_for_random_picks():
    pool = Pool(FEATURES)
    best = greedy.info_loss(pool, QUERIES, 10.0, 3).indices
    assert metrics.relative_information(pool, QUERIES, 10.0, best, best) == pytest.approx(1)
    worst = metrics.relative_information(pool, QUERIES, 10.0, [i for i in range(7) if i not in best][:3], best)
    assert 0 <= worst < 1
    assert np.isnan(metrics.relative_information(pool, QUERIES, 1.0, [0], []))


def test_recall_counts_relevant_items_against_the_most_there_could_be():
    ranking = [9, 3, 7, 1]
    assert metrics.recall_at_k(ranking, {3, 1, 8}, 2) == 1 / 2
    assert metrics.recall_at_k(ranking, {3, 1, 8}, 4) == 2 / 3
    assert metrics.recall_at_k(np.array(ranking), {9}, 4) == 1
    with pytest.raises(ValueError, match="relevant item"):
        metrics.recall_at_k(ranking, set(), 4)


def test_reciprocal_rank_is_of_the_first_relevant_item_within_k():
    assert metrics.reciprocal_rank([9, 3, 7], {7, 3}) == 1 / 2
    assert metrics.reciprocal_rank([9, 3, 7], {7}, k=2) == 0
    assert metrics.reciprocal_rank(np.arange(200), {100}) == 0
    assert metrics.reciprocal_rank(np.arange(200), {99}) == 1 / 100


def test_jaccard_is_overlap_over_union():
    assert metrics.jaccard([1, 2, 3], np.array([2, 3, 4])) == 2 / 4
    assert metrics.jaccard([], []) == 1
    assert metrics.jaccard([1], []) == 0


def test_redundancy_is_the_mean_cosine_of_pairs():
    features = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    assert metrics.redundancy(Pool(features), [0, 1]) == pytest.approx(1)
    assert metrics.redundancy(Pool(features), [0, 1, 2]) == pytest.approx(1 / 3)
    assert np.isnan(metrics.redundancy(Pool(features), [0]))
    assert np.isnan(metrics.redundancy(Pool(features), [0, 3]))


@pytest.mark.parametrize("sigma2", [1e-4, 1.0, 1e5])
def test_curves_are_the_information_of_every_prefix(sigma2):
    pool, ranking = Pool(FEATURES), [4, 0, 6, 2]
    gains = metrics.information_gain_curve(pool, QUERIES, sigma2, ranking)
    losses = metrics.information_loss_curve(pool, QUERIES, sigma2, ranking)
    for size in range(1, 5):
        subset = ranking[:size]
        gain = oracles.information(QUERIES, FEATURES[:0], FEATURES[subset], sigma2)
        loss = oracles.information(QUERIES, np.delete(FEATURES, subset, axis=0), FEATURES, sigma2)
        assert gains[size - 1] == pytest.approx(gain, rel=1e-6, abs=1e-12)
        assert losses[size - 1] == pytest.approx(loss, rel=1e-6, abs=1e-12)


def test_the_loss_curve_takes_a_larger_conditioning_set():
    conditioning = FeatureConditioning.of(FeatureSpectrum.of([FEATURES]), FEATURES[:3])
    found = metrics.information_loss_curve(Pool(FEATURES[:3]), QUERIES, 0.1, [2, 0], conditioning=conditioning)
    for size in (1, 2):
        wanted = oracles.information(QUERIES, np.delete(FEATURES, [2, 0][:size], axis=0), FEATURES, 0.1)
        assert found[size - 1] == pytest.approx(wanted, rel=1e-9)


def test_rank_biased_overlap_by_hand():
    # Shared among the first 1, 2, 3: 0, 2, 2. (1 - p)/p (0 + p^2 2/2 + p^3 2/3) + p^3 2/3 at p = 0.5.
    found = metrics.rank_biased_overlap([1, 2, 3], [2, 1, 4], persistence=0.5)
    assert found == pytest.approx(0.25 + 0.125 * 2 / 3 + 0.125 * 2 / 3)
    assert metrics.rank_biased_overlap([3, 1, 2], [3, 1, 2]) == pytest.approx(1)
    assert metrics.rank_biased_overlap([1, 2], [3, 4]) == 0
    early, late = ([1, 2, 3, 4], [1, 5, 6, 7]), ([1, 2, 3, 4], [5, 6, 7, 1])
    assert metrics.rank_biased_overlap(*early) > metrics.rank_biased_overlap(*late)


def test_rank_biased_overlap_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="not 2 and 1"):
        metrics.rank_biased_overlap([1, 2], [1])
    with pytest.raises(ValueError, match="not 0 and 0"):
        metrics.rank_biased_overlap([], [])
    with pytest.raises(ValueError, match="between 0 and 1, not 1"):
        metrics.rank_biased_overlap([1], [1], persistence=1)


def test_joint_information_is_what_the_queries_entropy_loses():
    rng = np.random.default_rng(0)
    features, queries, sigma2 = rng.normal(size=(12, 20)), rng.normal(size=(4, 20)), 0.7
    subset = [2, 5, 7, 11]
    rows = features[subset]
    posterior = queries @ np.linalg.inv(np.eye(20) + rows.T @ rows / sigma2) @ queries.T
    wanted = 0.5 * (np.linalg.slogdet(queries @ queries.T)[1] - np.linalg.slogdet(posterior)[1])
    pool = Pool(features)
    assert metrics.joint_information_gain(pool, queries, sigma2, subset) == pytest.approx(wanted, rel=1e-9)
    one = metrics.information_gain(pool, queries[0], sigma2, subset)
    assert metrics.joint_information_gain(pool, queries[0], sigma2, subset) == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("sigma2", [1e-9, 1.0, 1e9])
def test_queries_that_repeat_each_other_add_nothing(sigma2):
    rng = np.random.default_rng(1)
    features, queries = rng.normal(size=(8, 30)), rng.normal(size=(3, 30))
    pool, subset = Pool(features), list(range(8))
    once = metrics.joint_information_gain(pool, queries, sigma2, subset)
    again = metrics.joint_information_gain(pool, np.concatenate([queries, 2 * queries]), sigma2, subset)
    assert again == pytest.approx(once, rel=1e-6)
    singles = [metrics.information_gain(pool, query, sigma2, subset) for query in queries]
    assert again >= max(singles) * (1 - 1e-9)


def test_rows_named_twice_count_once_and_a_mask_names_rows():
    pool, query = Pool(FEATURES), QUERIES[0]
    mask = np.isin(np.arange(len(FEATURES)), (0, 1))
    for measure in (metrics.information_gain, metrics.information_loss):
        once = measure(pool, query, 1.0, [0, 1])
        assert measure(pool, query, 1.0, [0, 0, 1]) == once
        assert measure(pool, query, 1.0, mask) == once


@pytest.mark.parametrize("measure", [metrics.information_gain, metrics.information_loss])
def test_what_is_no_row_query_or_variance_is_refused(measure):
    pool, query = Pool(FEATURES), QUERIES[0]
    for rows in ([-1], [len(FEATURES)], [1.5], 3):
        with pytest.raises(ValueError, match=r"Rows of this pool are whole numbers from 0 to"):
            measure(pool, query, 1.0, rows)
    for sigma2 in (0.0, -1.0, np.inf, np.nan, "1"):
        with pytest.raises(ValueError, match="must be a positive number"):
            measure(pool, query, sigma2, [0])
    for wrong in (query[:-1], np.zeros((0, len(query)))):
        with pytest.raises(ValueError, match="Queries need"):
            measure(pool, wrong, 1.0, [0])
    with pytest.raises(ValueError, match="not finite"):
        measure(pool, query * np.nan, 1.0, [0])


def test_rows_that_a_tiny_variance_cannot_tell_apart_are_one_sentence():
    with pytest.raises(ValueError, match="sigma2 is too small"):
        metrics.information_gain(Pool(np.ones((3, 1))), np.ones(1), 1e-300, [0, 1])
