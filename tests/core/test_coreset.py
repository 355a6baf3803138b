import numpy as np
import pytest

from natscope.core import greedy
from natscope.core.analysis.coreset import FREE, MOST_QUERIES, PER_CLASS, QUOTAS, Coresets, draw, shares, usable
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, RANDOM
from natscope.core.metrics import information_gain, jaccard
from natscope.core.pool import Pool
from natscope.precompute.bundles.opening import open_attributor

ASKED = np.arange(40)


@pytest.fixture(scope="module")
def coresets(attributor):
    return Coresets(attributor)


@pytest.fixture(scope="module")
def query(coresets):
    return coresets.ask(ASKED)


def choose(coresets, query, name, budget=30, variant=PER_CLASS, **more):
    return coresets.select(name, query, sigma2=1.0, budget=budget, variant=variant, **more)


def test_shares_are_even_until_a_class_runs_out():
    assert shares(7, np.array([5, 5, 5])).tolist() == [3, 2, 2]
    assert shares(8, np.array([1, 9, 4])).tolist() == [1, 4, 3]
    assert shares(99, np.array([1, 0, 4])).tolist() == [1, 0, 4]


def test_a_draw_has_no_image_twice_and_depends_on_the_seed_alone():
    rows = np.arange(100, 200)
    once, again, other = draw(rows, 20, seed=1), draw(rows, 20, seed=1), draw(rows, 20, seed=2)
    assert len(set(once.tolist())) == 20
    assert once.tolist() == again.tolist() != other.tolist()
    assert draw(rows, 500, seed=0).tolist() == rows.tolist()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "kronfluence"])
def test_class_by_class_means_as_many_of_every_class_and_the_first_are_a_smaller_coreset(name, coresets, query):
    chosen, fewer = choose(coresets, query, name, 34), choose(coresets, query, name, 20)
    assert len(set(chosen.tolist())) == 34
    assert np.bincount(coresets.labels[chosen], minlength=10).tolist() == [4] * 4 + [3] * 6
    assert chosen[:20].tolist() == fewer.tolist()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "kronfluence"])
def test_with_quotas_the_free_choice_goes_on_in_the_classes_that_are_not_full(name, coresets, query):
    chosen, free = (choose(coresets, query, name, 34, variant=variant) for variant in (QUOTAS, FREE))
    assert len(set(chosen.tolist())) == 34
    assert np.bincount(coresets.labels[chosen], minlength=10).tolist() == [4] * 4 + [3] * 6
    full = next(
        place for place in range(34) if (coresets.labels[free[:place]] == coresets.labels[free[place]]).sum() > 2
    )
    assert chosen[:full].tolist() == free[:full].tolist()


def test_quotas_of_all_images_are_all_images(tiny_path):
    tiny = Coresets(open_attributor(tiny_path))
    chosen = choose(tiny, tiny.ask([0, 1]), "info_gain", 10_000, variant=QUOTAS)
    assert sorted(chosen.tolist()) == list(range(len(tiny.labels)))


def test_each_class_is_asked_about_its_own_queries_or_about_all_where_it_has_none(coresets, attributor):
    features = np.asarray(attributor.bundle.array("margin_features"))
    asked = np.flatnonzero(attributor.test_labels < 2)[:12]
    query, labels = coresets.ask(asked), attributor.test_labels[asked]
    chosen = choose(coresets, query, "info_gain", 40)
    for label in (0, 1, 5):
        rows = np.flatnonzero(coresets.labels == label)
        own = query.features[labels == label] if label < 2 else query.features
        wanted = rows[greedy.info_gain(Pool(features[rows]), own, 1.0, 4).indices]
        assert chosen[coresets.labels[chosen] == label].tolist() == wanted.tolist()


def test_plain_info_gain_is_the_greedy_rule_on_the_margins_features(coresets, query, attributor):
    rows = np.flatnonzero(attributor.train_labels < 2)[:600]
    features = np.asarray(attributor.bundle.array("margin_features"))
    whole = choose(coresets, query, "info_gain", 12, variant=FREE)
    wanted = greedy.info_gain(Pool(features), query.features, 1.0, 12)
    assert whole.tolist() == wanted.indices.tolist()
    reported = coresets.information(whole, query, 1.0)
    np.testing.assert_allclose(reported, wanted.nats, rtol=1e-6)
    at_random = choose(coresets, query, RANDOM, 12, variant=FREE)
    assert coresets.information(at_random, query, 1.0)[-1] < reported[-1]
    some = np.array([3, 1, 7])
    found = coresets.information(rows[some], query, 0.1)[-1]
    assert found == pytest.approx(information_gain(Pool(features[rows]), query.features, 0.1, some))


def test_queries_are_measured_as_the_training_images_are(coresets, attributor):
    """A training image's own features come out of the network as the bundle holds them."""
    found = attributor._margins.features(
        attributor.bundle.inputs("train")[:5], attributor.train_labels[:5], measurement="margin"
    )  # as `margin_query` does
    np.testing.assert_allclose(found, attributor.bundle.array("margin_features")[:5], rtol=1e-3, atol=1e-5)


def test_random_differs_by_seed_and_by_class(coresets, query):
    first, second = (choose(coresets, query, RANDOM, 200, seed=seed) for seed in (0, 1))
    assert jaccard(first, second) < 0.1
    places = [np.searchsorted(np.flatnonzero(coresets.labels == c), first[coresets.labels[first] == c]) for c in (0, 1)]
    assert sorted(places[0]) != sorted(places[1])


def test_kronfluence_chooses_too(tiny_path, coresets):
    tiny = Coresets(open_attributor(tiny_path))
    chosen = choose(tiny, tiny.ask([0, 1, 4, 8]), "kronfluence", 6)
    assert np.bincount(tiny.labels[chosen]).tolist() == [2, 2, 2]
    assert "kronfluence" in usable(coresets.attributor)


def test_what_cannot_be_asked_is_refused_in_a_sentence(coresets):
    with pytest.raises(QueryError, match="at least one"):
        coresets.ask([])
    with pytest.raises(QueryError, match=f"{MOST_QUERIES} test examples at most, not 501"):
        coresets.ask(np.arange(501))
    with pytest.raises(QueryError, match="numbers from 0 to 9,999"):
        coresets.ask([10_000])
    with pytest.raises(QueryError, match="free, quotas or per-class, not 'balanced'"):
        choose(coresets, coresets.ask([0]), "info_gain", variant="balanced")
    with pytest.raises(QueryError, match="must be a positive number"):
        coresets.select("info_gain", coresets.ask([0]), sigma2=-1.0, budget=3, variant=PER_CLASS)
