import numpy as np
import pytest

from natscope.core import greedy
from natscope.core.methods.base import Settings
from natscope.core.methods.baselines import rank
from natscope.core.noise_regime import HIGH_NOISE, IMPRECISE, regime
from natscope.core.pool import Pool


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return Pool(rng.normal(size=(40, 12))), rng.normal(size=12)


@pytest.mark.parametrize("rule", [greedy.info_loss, greedy.info_gain, greedy.info_gain_approx])
def test_at_large_noise_a_larger_one_changes_nothing_and_at_small_noise_it_does(rule, problem):
    pool, query = problem
    found = {sigma2: rule(pool, query, sigma2, 8) for sigma2 in (0.1, 1e7, 1e9)}
    reported = {s: regime(pool, query, selection, s, cosine=False) for s, selection in found.items()}
    assert reported == {0.1: None, 1e7: HIGH_NOISE, 1e9: HIGH_NOISE}
    np.testing.assert_array_equal(found[1e7].indices, found[1e9].indices)


def test_what_may_not_be_picked_is_left_out_of_the_limit_too(problem):
    pool, query = problem
    first = int(np.argmax(pool.cross(query[None])[:, 0] ** 2))
    selection = greedy.info_gain(pool, query, 1e8, 5, exclude=(first,))
    assert regime(pool, query, selection, 1e8, cosine=False, exclude=(first,)) == HIGH_NOISE
    assert regime(pool, query, selection, 1e8, cosine=False) is None


def test_the_limit_of_a_correlation_is_the_prior_one(problem):
    pool, query = problem
    prior = pool.cross(query[None])[:, 0] / np.sqrt(pool.diagonal)
    assert regime(pool, query, rank(prior, Settings(budget=10)), 1e8, cosine=True) == HIGH_NOISE
    assert regime(pool, query, rank(-prior, Settings(budget=10)), 1e8, cosine=True) is None


def test_too_small_a_noise_is_named(problem):
    pool, query = problem
    selection = greedy.info_gain(pool, query, 1.0, 5)
    assert regime(pool, query, selection, 1e-12 * pool.diagonal.sum(), cosine=False) == IMPRECISE


@pytest.mark.parametrize("method", ["info_loss", "info_gain", "relatif"])
def test_an_answer_says_its_regime(method, attributor):
    from natscope.core.bundle.request import Request

    query = attributor.query("test", 3)
    reported = [attributor.attribute(query, Request(method, sigma2=s)).regime for s in (1.0, 1e12)]
    assert reported == [None, HIGH_NOISE]
    assert attributor.attribute(query, Request("repsim", sigma2=1e12)).regime is None
