from functools import partial
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from natscope.core import greedy
from natscope.core.index.search import InnerProductIndex
from natscope.core.pool import Pool
from natscope.core.posterior import FeatureConditioning, FeaturePrecision, FeatureSpectrum, feature_gram
from natscope.core.recursion import Quotas
from tests import oracles

RULES = {
    "info_gain": (greedy.info_gain, oracles.info_gain_scores),
    "info_gain_approx": (greedy.info_gain_approx, oracles.info_gain_approx_scores),
    "info_loss": (greedy.info_loss, oracles.info_loss_scores),
}
# How many queries count as few: none, and the recursion for many is judged.
FEW = pytest.mark.parametrize("few", [greedy.FEW_QUERIES, 0], ids=["few", "many"])


def recursion(few):
    return mock.patch.object(greedy, "FEW_QUERIES", few)


@st.composite
def problems(draw):
    """Features with duplicated, zero and linearly dependent rows, queries, and a noise variance from 1e-6 to 1e5."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, width = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    features = random.normal(size=(rows, width))
    if draw(st.booleans()):
        features[-1] = features[0]
    if draw(st.booleans()):
        features[random.integers(rows)] = 0
    if draw(st.booleans()):
        features[:, -1] = features[:, 0]
    queries = random.normal(size=(draw(st.integers(1, 2)), width))
    sigma2 = 10.0 ** draw(st.integers(-6, 5))
    return features, queries, sigma2, draw(st.integers(1, rows))


def assert_greedy(selection, features, sigma2, scores_of, information_of):
    """Each pick has the largest score, the lowest index among twins, and the nats are those of the picks so far."""
    for place, pick in enumerate(selection.indices):
        before = selection.indices[:place]
        scores = np.array([float(s) for s in scores_of(before)])
        scores[before] = -1
        tolerance = 1e-7 * scores.max() + 1e-20
        assert scores[pick] >= scores.max() - tolerance
        ties = np.flatnonzero(scores >= scores.max() - 1e-13 * scores.max())
        exact = [i for i in ties if (features[i] == features[pick]).all()]
        assert pick == min(exact, default=pick)
        np.testing.assert_allclose(selection.scores[place], scores[pick], rtol=1e-5, atol=1e-14)
        wanted = information_of(selection.indices[: place + 1])
        np.testing.assert_allclose(selection.nats[place], wanted, rtol=1e-6, atol=1e-12)


@FEW
@pytest.mark.parametrize("name", ["info_gain", "info_gain_approx"])
@given(problem=problems())
@settings(max_examples=60, deadline=None)
def test_gain_rules_pick_what_brute_force_picks(name, few, problem):
    features, queries, sigma2, budget = problem
    rule, scores = RULES[name]
    with recursion(few):
        selection = rule(features, queries, sigma2, budget)
    assert len(selection.indices) == budget == len(set(selection.indices))
    assert_greedy(
        selection,
        features,
        sigma2,
        partial(scores, features, queries, sigma2),
        lambda picks: oracles.information(queries, features[:0], features[picks], sigma2),
    )


@FEW
@given(problem=problems())
@example(problem=(np.ones((3, 1)), np.ones((1, 1)), 1e-6, 3))
@settings(max_examples=60, deadline=None)
def test_info_loss_picks_what_brute_force_picks(few, problem):
    features, queries, sigma2, budget = problem
    with recursion(few):
        selection = greedy.info_loss(features, queries, sigma2, budget)
    assert_greedy(
        selection,
        features,
        sigma2,
        partial(oracles.info_loss_scores, features, queries, sigma2),
        lambda picks: oracles.information(queries, np.delete(features, picks, axis=0), features, sigma2),
    )


@FEW
@pytest.mark.parametrize("one_sigma2", [False, True])
@given(problem=problems(), others=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_info_loss_conditions_on_all_training_examples_when_told_to(few, one_sigma2, problem, others):
    features, queries, sigma2, budget = problem
    rest = np.random.default_rng(others).normal(size=(others, features.shape[1]))
    everyone = np.concatenate([features, rest])
    conditioning = FeatureConditioning.of(FeatureSpectrum.of([everyone]), features)
    if one_sigma2:
        gram = feature_gram([everyone])
        conditioning = FeaturePrecision(lambda dtype: gram, features)
    with recursion(few):
        selection = greedy.info_loss(features, queries, sigma2, budget, conditioning=conditioning)
    assert_greedy(
        selection,
        features,
        sigma2,
        partial(oracles.info_loss_scores, features, queries, sigma2, others=rest),
        lambda picks: oracles.information(queries, np.delete(everyone, picks, axis=0), everyone, sigma2),
    )


@FEW
@given(problem=problems())
@settings(max_examples=40, deadline=None)
def test_an_excluded_row_counts_as_never_seen(few, problem):
    features, queries, sigma2, budget = problem
    for rule, _ in RULES.values():
        kept = np.delete(features, 1, axis=0)
        with recursion(few):
            without, never = rule(features, queries, sigma2, budget, exclude=[1]), rule(kept, queries, sigma2, budget)
        np.testing.assert_allclose(without.nats, never.nats, rtol=1e-6, atol=1e-10)
        assert 1 not in without.indices


@given(problem=problems(), order=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_information_never_falls_and_does_not_depend_on_the_order_of_the_pool(problem, order):
    features, queries, sigma2, _ = problem
    shuffled = list(range(len(features)))
    order.shuffle(shuffled)
    for rule, _ in RULES.values():
        straight = rule(features, queries, sigma2, len(features))
        moved = rule(features[shuffled], queries, sigma2, len(features))
        assert (np.diff(straight.nats, prepend=0) >= -1e-12).all()
        # All images are picked in the end, whatever the way there.
        np.testing.assert_allclose(straight.nats[-1], moved.nats[-1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_both_criteria_tend_to_the_squared_correlation_as_noise_grows(name):
    # Lemma 1: 2 sigma2 k_** Info(S) / ||k_S*||^2 -> 1, with an error of the order 1 / sigma2.
    random = np.random.default_rng(0)
    features, query = random.normal(size=(40, 16)), random.normal(size=16)
    errors = []
    for sigma2 in (1e3, 1e4, 1e5):
        selection = RULES[name][0](features, query, sigma2, 5)
        squared = np.sum((features[selection.indices] @ query) ** 2)
        errors.append(abs(2 * sigma2 * (query @ query) * selection.nats[-1] / squared - 1))
    assert errors[0] < 0.2
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.2)
    assert errors[2] == pytest.approx(errors[1] / 10, rel=0.2)


def test_at_large_noise_all_rules_rank_by_squared_covariance():
    random = np.random.default_rng(1)
    features, query = random.normal(size=(50, 20)), random.normal(size=20)
    wanted = np.argsort(-((features @ query) ** 2))[:10]
    for rule, _ in RULES.values():
        assert rule(features, query, 1e8, 10).indices.tolist() == wanted.tolist()


def test_info_gain_at_one_query_is_not_submodular():
    # f_* = a, phi_1 = b, phi_2 = a + b, with a and b orthogonal: 1 tells nothing alone, and something after 2.
    query, first, second = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 1.0])
    alone = greedy.info_gain(first[None], query, 0.1, 1).nats[-1]
    after = greedy.info_gain(second[None], query, 0.1, 1).nats[-1]
    both = greedy.info_gain(np.stack([second, first]), query, 0.1, 2).nats[-1]
    assert alone == pytest.approx(0, abs=1e-15)
    assert both - after > 0.5


def test_near_duplicates_cover_for_one_another_in_info_loss():
    query = np.array([1.0, 0.0])
    twins = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]])
    loss = greedy.info_loss(twins, query, 1e-3, 3)
    # Nothing is lost to speak of until the last one goes.
    assert loss.nats[0] < 0.5
    assert loss.nats[2] > 3


@FEW
@pytest.mark.parametrize("name", RULES)
def test_ties_go_to_the_lowest_row(name, few):
    features = np.tile(np.random.default_rng(2).normal(size=(1, 8)), (5, 1))
    with recursion(few):
        assert RULES[name][0](features, features[0] + 0.1, 0.5, 5).indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("sigma2", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("ahead", ["Gram", "whole", "columns"])
def test_many_queries_get_the_picks_that_moving_all_covariances_gives(name, sigma2, ahead, monkeypatch):
    random = np.random.default_rng(6)
    spectrum = np.arange(1, 61) ** -0.7
    features, queries = (random.normal(size=(n, 60)) * spectrum for n in (400, 50))
    features[200:220] = features[:20]
    if ahead != "Gram":
        monkeypatch.setattr("natscope.core.pool.LARGEST_GRAM", 10)
    if ahead == "columns":
        monkeypatch.setattr("natscope.core.pool.LARGEST_WHOLE", 10)
        monkeypatch.setattr("natscope.core.posterior.LARGEST_WHOLE", 10)
    with recursion(1000):
        wanted = RULES[name][0](features, queries, sigma2, 120)
    with mock.patch.object(greedy.ManyQueries, "start", autospec=True, side_effect=greedy.ManyQueries.start) as used:
        found = RULES[name][0](features, queries, sigma2, 120)
    assert used.call_count == 1
    assert found.indices.tolist() == wanted.indices.tolist()
    np.testing.assert_allclose(found.nats, wanted.nats, rtol=1e-7)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-6)
    assert found.signs.tolist() == wanted.signs.tolist()


def test_all_columns_at_once_are_the_columns():
    features = np.random.default_rng(7).normal(size=(30, 4)).astype(np.float32)
    pool = Pool(features)
    with mock.patch("natscope.core.pool.LARGEST_GRAM", 10), mock.patch("natscope.core.kernels._ROWS_AT_ONCE", 8):
        np.testing.assert_allclose(pool.whole(), pool.columns(range(30)), rtol=1e-12, atol=1e-12)
        posterior = pool.posterior(features[:2], 0.1)
        np.testing.assert_allclose(posterior.whole(), posterior.precision_columns(range(30)), rtol=1e-10, atol=1e-10)
    with mock.patch("natscope.core.pool.LARGEST_GRAM", 10), mock.patch("natscope.core.pool.LARGEST_WHOLE", 10):
        assert Pool(features).whole() is None


@pytest.mark.parametrize("name", RULES)
def test_signs_tell_proponents_from_opponents(name):
    query = np.array([1.0, 0.0])
    selection = RULES[name][0](np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), query, 10.0, 3)
    assert dict(zip(selection.indices.tolist(), selection.signs.tolist(), strict=True)) == {0: 1, 2: -1, 1: 0}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("sigma2", [1e-6, 1.0, 1e5])
def test_a_large_pool_without_a_gram_gives_the_same_picks(name, sigma2, monkeypatch):
    random = np.random.default_rng(3)
    features = random.normal(size=(300, 24)).astype(np.float32)
    query = random.normal(size=24)
    with_gram = RULES[name][0](features, query, sigma2, 12)
    monkeypatch.setattr("natscope.core.pool.LARGEST_GRAM", 10)
    assert not Pool(features).fits_gram
    without = RULES[name][0](features, query, sigma2, 12)
    assert with_gram.indices.tolist() == without.indices.tolist()
    np.testing.assert_allclose(with_gram.nats, without.nats, rtol=1e-6, atol=1e-10)


def test_a_flat_index_gives_exactly_what_a_scan_gives():
    random = np.random.default_rng(4)
    features = random.normal(size=(2000, 32)).astype(np.float32)
    features[100] = features[7]
    index = InnerProductIndex.flat(features)
    for sigma2 in (1e-4, 1.0, 1e4):
        for query in random.normal(size=(5, 32)):
            scan = greedy.info_gain_approx(features, query, sigma2, 25)
            searched = greedy.info_gain_approx(features, query, sigma2, 25, index=index)
            assert scan.indices.tolist() == searched.indices.tolist()
            assert scan.signs.tolist() == searched.signs.tolist()
            np.testing.assert_allclose(scan.nats, searched.nats, rtol=1e-8)


@pytest.mark.parametrize("name", RULES)
def test_a_budget_beyond_the_pool_takes_the_whole_pool(name):
    features = np.random.default_rng(5).normal(size=(4, 3))
    assert sorted(RULES[name][0](features, features[0], 1.0, 99).indices) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", RULES)
def test_the_arrays_of_a_selection_are_read_only(name):
    selection = RULES[name][0](np.eye(3), np.ones(3), 1.0, 2)
    assert selection.indices.dtype == np.int64
    assert selection.nats.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        selection.nats[0] = 1


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("features", "query", "sigma2", "budget", "sentence"),
    [
        (np.eye(3), np.ones(3), 0.0, 1, "positive number, not 0"),
        (np.eye(3), np.ones(3), -1.0, 1, "must be a positive number"),
        (np.eye(3), np.ones(3), np.nan, 1, "must be a positive number"),
        (np.eye(3), np.ones(3), np.inf, 1, "must be a positive number"),
        (np.eye(3), np.ones(3), 1.0, 0, "at least 1, not 0"),
        (np.eye(3), np.ones(4), 1.0, 1, "Queries need 3 features"),
        (np.eye(3), np.array([1, np.nan, 0]), 1.0, 1, "not finite"),
        (np.full((2, 3), np.inf), np.ones(3), 1.0, 1, "not finite"),
        (np.zeros((0, 3)), np.ones(3), 1.0, 1, "n at least 1"),
        (np.ones(3), np.ones(3), 1.0, 1, "shape"),
    ],
)
def test_input_that_cannot_be_used_is_refused(name, features, query, sigma2, budget, sentence):
    with pytest.raises(ValueError, match=sentence):
        RULES[name][0](features, query, sigma2, budget)


def test_an_index_serves_one_query():
    with pytest.raises(ValueError, match="one query at a time"):
        greedy.info_gain_approx(np.eye(3), np.eye(3), 1.0, 1, index=InnerProductIndex.flat(np.eye(3)))


def test_a_first_selection_computes_the_columns_that_it_needs_and_a_later_one_the_gram():
    rng = np.random.default_rng(0)
    features, query = rng.normal(size=(900, 12)), rng.normal(size=12)
    pool = Pool(features)
    first = greedy.info_gain(pool, query, 10.0, 5)
    assert not pool.has_gram
    while not pool.has_gram:
        again = greedy.info_gain(pool, query, 10.0, 5)
    assert again.indices.tolist() == first.indices.tolist()
    np.testing.assert_allclose(again.nats, first.nats, rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_row_may_be_excluded_twice(name):
    features = np.random.default_rng(5).normal(size=(12, 4))
    once, twice = (RULES[name][0](features, features[3], 1.0, 11, exclude=rows) for rows in ((1, 2), (1, 1, 2)))
    assert once.indices.tolist() == twice.indices.tolist()
    assert len(once.indices) == 10


@FEW
@pytest.mark.parametrize("name", RULES)
@given(problem=problems(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_with_quotas_each_pick_is_the_best_of_the_groups_that_are_not_full(name, few, problem, seed):
    features, queries, sigma2, budget = problem
    random = np.random.default_rng(seed)
    groups, most = random.integers(3, size=len(features)), random.integers(3, size=3)
    rule, scores_of = RULES[name]
    with recursion(few):
        selection = rule(features, queries, sigma2, budget, quotas=Quotas(groups, most))
    picks = selection.indices.tolist()
    for place, pick in enumerate(picks):
        taken = np.bincount(groups[picks[:place]], minlength=3)
        scores = np.array([float(score) for score in scores_of(features, queries, sigma2, picks[:place])])
        open_rows = [
            row for row in range(len(features)) if row not in picks[:place] and taken[groups[row]] < most[groups[row]]
        ]
        assert pick in open_rows
        assert scores[pick] >= scores[open_rows].max() - 1e-7 * scores.max() - 1e-20
        np.testing.assert_allclose(selection.scores[place], scores[pick], rtol=1e-5, atol=1e-14)
    above, below = (
        (features[:0], features[picks]) if name != "info_loss" else (np.delete(features, picks, axis=0), features)
    )
    if picks:
        wanted = oracles.information(queries, above, below, sigma2)
        np.testing.assert_allclose(selection.nats[-1], wanted, rtol=1e-6, atol=1e-12)
    assert len(picks) == min(budget, np.minimum(np.bincount(groups, minlength=3), most).sum())


@FEW
@pytest.mark.parametrize("name", RULES)
def test_many_picks_with_quotas_are_those_of_a_reference_in_weight_space(name, few):
    """So many queries and picks that the recursion for many goes by its bounds, and one class is small."""
    random = np.random.default_rng(7)
    features, queries, sigma2 = random.normal(size=(80, 12)), random.normal(size=(40, 12)), 2.0
    features[:20] *= 3  # group 0 has the best rows
    groups, most = np.repeat([0, 1, 2, 3], [20, 30, 27, 3]), np.array([9, 9, 8, 8])
    wanted: list[int] = []
    left = most.copy()
    while (open_rows := [row for row in range(80) if row not in wanted and left[groups[row]]]) and len(wanted) < 60:
        given = np.delete(features, wanted, axis=0) if name == "info_loss" else features[wanted]
        inverse = np.linalg.inv(np.eye(12) + given.T @ given / sigma2)
        squares = ((features @ inverse @ queries.T) ** 2).sum(axis=1)
        variance = np.einsum("nk,kl,nl->n", features, inverse, features)
        scores = squares / {"info_loss": sigma2 - variance, "info_gain": sigma2 + variance}.get(name, 1.0)
        wanted.append(max(open_rows, key=lambda row: scores[row]))
        left[groups[wanted[-1]]] -= 1
    with recursion(few):
        found = RULES[name][0](features, queries, sigma2, 60, quotas=Quotas(groups, most))
    assert found.indices.tolist() == wanted
    assert np.bincount(groups[found.indices]).tolist() == [9, 9, 8, 3]


@pytest.mark.parametrize("name", RULES)
def test_an_excluded_row_counts_for_no_quota(name):
    features = np.random.default_rng(5).normal(size=(6, 4))
    quotas = Quotas([0, 0, 0, 1, 1, 1], [1, 2])
    found = RULES[name][0](features, features[0], 1.0, 9, exclude=(0, 3), quotas=quotas)
    assert sorted(found.indices // 3) == [0, 1, 1]
    assert not {0, 3} & set(found.indices.tolist())


def test_quotas_that_cannot_be_used_are_refused_in_a_sentence():
    features = np.eye(3)
    for groups, most, said in (
        ([0, 1, 2], [1, 1], "numbers from 0 to 1, for there are 2"),
        ([0, -1, 1], [1, 1], "numbers from 0 to 1"),
        ([0, 0, 1], [1, -1], "not negative"),
        ([0, 0, 1.5], [1, 1], "groups of quotas are a list of whole numbers"),
        ([0, 0, 1], 1, "most of quotas are a list of whole numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            Quotas(groups, most)
    for rule, _ in RULES.values():
        with pytest.raises(ValueError, match="each of the 3 rows, not of 2"):
            rule(features, features[0], 1.0, 2, quotas=Quotas([0, 1], [1, 1]))
    index = InnerProductIndex.flat(features)
    with pytest.raises(ValueError, match="leave index out"):
        greedy.info_gain_approx(features, features[0], 1.0, 2, index=index, quotas=Quotas([0, 0, 1], [1, 1]))
