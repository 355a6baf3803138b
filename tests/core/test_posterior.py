import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natscope.core import pool as pool_module
from natscope.core.errors import QueryError
from natscope.core.greedy import info_loss
from natscope.core.kernels import LinearKernel, packed
from natscope.core.pool import Pool
from natscope.core.posterior import (
    FeatureConditioning,
    FeaturePrecision,
    FeatureSpectrum,
    SamplePrecision,
    SampleSpectrum,
    feature_gram,
)
from tests import oracles


@st.composite
def problems(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    features = random.normal(size=(rows, width))
    if draw(st.booleans()):
        features[-1] = features[0]
    return features, random.normal(size=(2, width)), 10.0 ** draw(st.integers(-6, 5))


def posteriors(features, queries, sigma2):
    by_samples = SampleSpectrum.of(features @ features.T)
    yield by_samples.posterior(features @ queries.T, np.einsum("qk,qk->q", queries, queries), sigma2)
    yield FeatureConditioning.of(FeatureSpectrum.of([features]), features).posterior(queries, sigma2)
    gram = feature_gram([features])
    yield FeaturePrecision(lambda dtype: gram, features).posterior(queries, sigma2)


@given(problem=problems())
@settings(max_examples=80, deadline=None)
def test_every_decomposition_gives_the_posterior_of_a_dense_solve(problem):
    features, queries, sigma2 = problem
    inverse = oracles.inverse_precision(features, sigma2)
    variance = [float(oracles.covariance(q, q, inverse)) for q in queries]
    covariance = np.array([[float(oracles.covariance(x, q, inverse)) for q in queries] for x in features])
    own = [float(oracles.covariance(x, x, inverse)) for x in features]
    scale = np.linalg.norm(queries, axis=1)
    for posterior in posteriors(features, queries, sigma2):
        np.testing.assert_allclose(posterior.variance, variance, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(sigma2 * posterior.alpha, covariance, rtol=1e-6, atol=1e-9 * scale.max())
        np.testing.assert_allclose(posterior.pool_variance, own, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(sigma2 - sigma2**2 * posterior.precision, own, rtol=1e-5, atol=1e-9 * sigma2 + 1e-9)


def test_precision_columns_are_columns_of_the_inverse():
    random = np.random.default_rng(0)
    features, queries = random.normal(size=(8, 5)), random.normal(size=(1, 5))
    inverse = np.linalg.inv(features @ features.T + 0.3 * np.eye(8))
    for posterior in posteriors(features, queries, 0.3):
        np.testing.assert_allclose(posterior.precision_columns([5, 2]), inverse[:, [5, 2]], atol=1e-12)


def test_what_is_remembered_of_a_sigma2_is_of_this_one_and_nobody_changes_it():
    random = np.random.default_rng(0)
    features, query = random.normal(size=(6, 4)), random.normal(size=(1, 4))
    spectrum = SampleSpectrum.of(features @ features.T)

    def ask(sigma2):
        found = spectrum.posterior(features @ query.T, query @ query[0], sigma2)
        return np.stack([found.precision, found.pool_variance])

    first = [ask(sigma2) for sigma2 in (0.1, 1.0)]
    spectrum.posterior(features @ query.T, query @ query[0], 0.1).precision[:] = 0.0
    for sigma2, expected in zip((0.1, 1.0), first, strict=True):
        np.testing.assert_array_equal(ask(sigma2), expected)
        inverse = np.linalg.inv(features @ features.T + sigma2 * np.eye(6))
        np.testing.assert_allclose(expected[0], np.diag(inverse), rtol=1e-9)


@pytest.mark.parametrize("rows", [0, 1, 127, 128, 300])
def test_products_with_one_row_are_those_of_a_whole_product(rows):
    random = np.random.default_rng(rows)
    features, one = random.normal(size=(rows, 32)).astype(np.float32), random.normal(size=(1, 32))
    np.testing.assert_allclose(LinearKernel()(features, one), features.astype(np.float64) @ one.T, rtol=1e-12)
    np.testing.assert_allclose(LinearKernel().diagonal(features), (features.astype(np.float64) ** 2).sum(1), rtol=1e-12)


def test_the_feature_gram_is_accumulated_in_a_stream():
    blocks = np.random.default_rng(0).normal(size=(5, 7, 4)).astype(np.float32)
    stacked = blocks.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(feature_gram(iter(blocks)), stacked.T @ stacked, rtol=1e-12)
    np.testing.assert_allclose(feature_gram(iter(blocks), np.float32), stacked.T @ stacked, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="at least one example"):
        feature_gram([])


def test_a_small_sigma2_is_answered_from_products_of_float64():
    random = np.random.default_rng(3)
    features, query = random.normal(size=(90, 40)).astype(np.float32), random.normal(size=(1, 40))
    features[:, 20:] = features[:, :20] + np.float32(1e-3) * random.normal(size=(90, 20)).astype(np.float32)
    exact = feature_gram([features])
    asked = []
    conditioning = FeaturePrecision(lambda dtype: asked.append(dtype) or feature_gram([features], dtype), features)
    single, double = [np.float32], [np.float32, np.float64]
    for ratio, types in ((1e-3, single), (1e-5, single), (1e-7, double), (1e-9, double), (1e-2, double)):
        sigma2 = ratio * float(np.trace(exact))
        found, right = (
            each.posterior(query, sigma2) for each in (conditioning, FeaturePrecision(lambda dtype: exact, features))
        )
        np.testing.assert_allclose(found.variance, right.variance, rtol=1e-2)
        np.testing.assert_allclose(found.alpha, right.alpha, atol=1e-2 * np.abs(right.alpha).max())
        assert asked == types


def test_a_large_pool_is_turned_in_float32_where_that_is_enough(monkeypatch):
    random = np.random.default_rng(4)
    features, query = random.normal(size=(90, 40)), random.normal(size=(1, 40))
    gram = feature_gram([features])
    for ratio, close in ((1e-3, 1e-4), (1e-9, 1e-12)):
        sigma2 = ratio * float(np.trace(gram))
        right = FeaturePrecision(lambda dtype: gram, features).posterior(query, sigma2)
        with monkeypatch.context() as patch:
            patch.setattr("natscope.core.posterior._MANY", 10)
            large = FeaturePrecision(lambda dtype: gram, features)
            found, kept = large.posterior(query, sigma2), large._solve(sigma2)[1]
        differs = np.abs(found.alpha - right.alpha).max() / np.abs(right.alpha).max()
        assert differs <= close
        assert (differs > 1e-12) == (close > 1e-12)  # rounded in the one case alone
        assert kept.dtype == (np.float32 if close > 1e-12 else np.float64)  # and kept as it was computed


def test_a_pool_larger_than_its_gram_gives_the_same_posterior(monkeypatch):
    random = np.random.default_rng(1)
    features, queries = random.normal(size=(60, 8)).astype(np.float32), random.normal(size=(2, 8))
    small = Pool(features).posterior(queries, 0.1)
    monkeypatch.setattr("natscope.core.pool.LARGEST_GRAM", 10)
    large = Pool(features).posterior(queries, 0.1)
    np.testing.assert_allclose(small.variance, large.variance, rtol=1e-9)
    np.testing.assert_allclose(small.alpha, large.alpha, atol=1e-9)


def test_the_gram_is_computed_once_and_a_given_one_is_used():
    features = np.random.default_rng(2).normal(size=(4, 3))
    pool = Pool(features)
    assert not pool.has_gram
    assert pool.gram is pool.gram
    assert pool.has_gram
    given_gram = features @ features.T
    assert Pool(features, gram=given_gram).gram is given_gram


def test_the_gram_of_a_given_triangle_is_read_from_it_and_not_kept():
    features = np.random.default_rng(2).normal(size=(7, 3))
    gram = features @ features.T
    pool = Pool(features, gram=packed(gram))
    assert pool.has_gram
    assert pool.gram_follows()
    np.testing.assert_array_equal(pool.columns([4, 0, 6, 4]), gram[:, [4, 0, 6, 4]])
    np.testing.assert_array_equal(pool.gram, gram)
    assert pool.gram is not pool.gram
    assert not Pool(2 * features, gram=packed(gram)).gram_follows()


def test_twins_are_rows_with_the_same_features():
    features = np.random.default_rng(3).normal(size=(6, 3))
    features[4], features[2] = features[1], -features[1]
    assert Pool(features).twins(4).tolist() == [1, 4]
    assert Pool(features).twins(2).tolist() == [2]


def test_the_inverse_of_one_sigma2_conditions_like_the_spectrum():
    rng = np.random.default_rng(3)
    features, queries = rng.normal(size=(700, 40)), rng.normal(size=(3, 40))
    gram, cross, prior = features @ features.T, features @ queries.T, (queries**2).sum(1)
    for sigma2 in (1e-2, 1.0, 1e4):
        slow = SampleSpectrum.of(gram).posterior(cross, prior, sigma2)
        fast = SamplePrecision.of(gram, sigma2).posterior(cross, prior, sigma2)
        rows = np.array([5, 600, 17])
        for name in ("variance", "alpha", "precision"):
            np.testing.assert_allclose(getattr(fast, name), getattr(slow, name), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(fast.pool_variance, slow.pool_variance, rtol=1e-5)
        np.testing.assert_allclose(fast.precision_columns(rows), slow.precision_columns(rows), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("dim", [60, 200])
@pytest.mark.parametrize("sigma2", [1e-6, 1e-2, 1.0, 1e3])
def test_a_large_pool_picks_what_its_spectrum_picks(monkeypatch, sigma2, dim):
    rng = np.random.default_rng(4)
    features, query = rng.normal(size=(300, dim)), rng.normal(size=dim)
    slow = info_loss(Pool(features), query, sigma2, 20)
    monkeypatch.setattr(pool_module, "LIVE", 100)
    fast = info_loss(Pool(features), query, sigma2, 20)
    assert fast.indices.tolist() == slow.indices.tolist()
    np.testing.assert_allclose(fast.nats, slow.nats, rtol=1e-6)


def test_more_dimensions_than_memory_holds_products_of_are_refused():
    with pytest.raises(QueryError, match="K = 1,000,000"):
        feature_gram([np.zeros((1, 1_000_000), dtype=np.float32)])
