import numpy as np
import pytest
import torch

from natscope.core.index.search import InnerProductIndex
from natscope.core.methods import METHODS, Candidates, Query, Settings, method, rank
from natscope.core.pool import Pool
from natscope.core.posterior import FeatureConditioning, FeatureSpectrum
from natscope.core.recursion import Quotas
from tests import oracles

RANDOM = np.random.default_rng(0)
FEATURES, PENULTIMATE = RANDOM.normal(size=(30, 12)), RANDOM.normal(size=(30, 6)).astype(np.float32)
QUERY = Query(
    RANDOM.normal(size=12),
    RANDOM.normal(size=6).astype(np.float32),
    margin=lambda: MARGIN,
    input=torch.ones(1, 3),
    target=2,
)
MARGIN = RANDOM.normal(size=12)
ARRAYS = {
    "margin_features": RANDOM.normal(size=(30, 12)),
    "loss_weights": RANDOM.uniform(size=30),
    "trak_features": RANDOM.normal(size=(30, 12)).astype(np.float32),
    "trak_out_to_loss": RANDOM.uniform(size=30).astype(np.float32),
}
INFLUENCE = RANDOM.normal(size=30)


def every_part(pool, penultimate=PENULTIMATE, **more):
    return Candidates(
        pool,
        penultimate,
        array=ARRAYS.__getitem__,
        influence=lambda image, target: INFLUENCE * float(image.sum()) * target,
        **more,
    )


@pytest.fixture
def candidates():
    return every_part(Pool(FEATURES), index=lambda: InnerProductIndex.flat(FEATURES))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ranks_within_its_budget_and_tells_what_it_is(name, candidates):
    selected = METHODS[name].select(candidates, QUERY, Settings(0.5, 7))
    assert len(set(selected.indices)) == 7
    assert (selected.nats is not None) == (METHODS[name].information is not None)
    assert METHODS[name].name == name
    for text in (METHODS[name].title, METHODS[name].summary, METHODS[name].formula, METHODS[name].advice):
        assert text


@pytest.mark.parametrize("name", [name for name, about in METHODS.items() if about.information is None])
def test_what_ranks_takes_the_highest_scores_and_skips_full_groups(name, candidates):
    groups, left = np.arange(30) % 3, [2, 20, 0]
    wanted = []
    for row in METHODS[name].select(candidates, QUERY, Settings(0.5, 30)).indices:
        if left[groups[row]]:
            wanted.append(row)
            left[groups[row]] -= 1
    for budget in (5, 40):
        settings = Settings(0.5, budget, quotas=Quotas(groups, np.array([2, 20, 0])))
        assert METHODS[name].select(candidates, QUERY, settings).indices.tolist() == wanted[:budget]
    with pytest.raises(ValueError, match="each of the 30 rows, not of 2"):
        METHODS[name].select(candidates, QUERY, Settings(quotas=Quotas([0, 0], [1])))


@pytest.mark.parametrize("name", [name for name, about in METHODS.items() if about.information])
def test_the_information_criteria_honour_quotas_where_there_is_an_index_too(name, candidates):
    settings = Settings(0.5, 30, quotas=Quotas(np.arange(30) % 3, [2, 20, 0]))
    assert np.bincount(METHODS[name].select(candidates, QUERY, settings).indices % 3).tolist() == [2, 10]


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.information is None and n != "kronfluence"])
def test_of_several_queries_a_score_is_the_mean(name, candidates):
    random = np.random.default_rng(8)
    features, penultimate, margins = (random.normal(size=(3, size)) for size in (12, PENULTIMATE.shape[1], 12))
    settings, means = Settings(0.5, 30, exclude=(4,)), np.zeros(30)
    for place in range(3):
        single = Query(features[place], penultimate[place], margin=lambda place=place: margins[place])
        alone = METHODS[name].select(candidates, single, settings)
        means[alone.indices] += alone.scores / 3
    together = METHODS[name].select(candidates, Query(features, penultimate, margin=lambda: margins), settings)
    assert 4 not in together.indices
    np.testing.assert_allclose(together.scores, means[together.indices], rtol=1e-5, atol=1e-9)
    assert len(together.indices) == 29


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_out_what_it_is_told_to(name, candidates):
    free = METHODS[name].select(candidates, QUERY, Settings(0.5, 5)).indices
    taken = tuple(int(i) for i in free[:2])
    selected = METHODS[name].select(candidates, QUERY, Settings(0.5, 30, exclude=taken))
    assert sorted([*selected.indices, *taken]) == list(range(30))


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.uses_sigma2])
def test_sigma2_changes_nothing_where_a_method_says_so(name, candidates):
    first, second = (METHODS[name].select(candidates, QUERY, Settings(s, 30)) for s in (1e-3, 1e3))
    assert first.indices.tolist() == second.indices.tolist()


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.uses_sigma2])
def test_sigma2_matters_where_a_method_says_so(name, candidates):
    first, second = (METHODS[name].select(candidates, QUERY, Settings(s, 30)) for s in (1e-3, 1e3))
    assert first.indices.tolist() != second.indices.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_a_larger_conditioning_set_matters_where_a_method_says_so(name):
    everyone = np.concatenate([FEATURES, RANDOM.normal(size=(40, 12))])
    conditioning = FeatureConditioning.of(FeatureSpectrum.of([everyone]), FEATURES)
    pool = Pool(FEATURES)
    alone, among = (
        METHODS[name].select(every_part(pool, conditioning=c), QUERY, Settings(0.5, 30)) for c in (None, conditioning)
    )
    same = np.allclose(np.sort(alone.scores), np.sort(among.scores))
    assert same != METHODS[name].conditions


def test_relatif_is_the_posterior_correlation(candidates):
    selected = METHODS["relatif"].select(candidates, QUERY, Settings(0.5, 30))
    inverse = oracles.inverse_precision(FEATURES, 0.5)
    own = float(oracles.covariance(QUERY.features, QUERY.features, inverse))
    wanted = []
    for row in selected.indices:
        x = FEATURES[row]
        variance = float(oracles.covariance(x, x, inverse))
        wanted.append(float(oracles.covariance(x, QUERY.features, inverse)) / np.sqrt(variance * own))
    np.testing.assert_allclose(selected.scores, wanted, rtol=1e-8)
    assert (np.diff(selected.scores) <= 0).all()
    assert selected.signs.tolist() == np.sign(wanted).astype(int).tolist()


@pytest.mark.parametrize("taken", [(4,), (4, 9), (9, 4, 9, 20)])
def test_relatif_without_rows_is_relatif_of_a_pool_that_never_had_them(candidates, taken):
    kept = np.delete(np.arange(30), taken)
    without = METHODS["relatif"].select(candidates, QUERY, Settings(0.5, len(kept), exclude=taken))
    never = METHODS["relatif"].select(
        Candidates(Pool(FEATURES[kept]), PENULTIMATE[kept]), QUERY, Settings(0.5, len(kept))
    )
    assert without.indices.tolist() == kept[never.indices].tolist()
    np.testing.assert_allclose(without.scores, never.scores, rtol=1e-8)


def test_repsim_is_the_cosine_of_penultimate_features(candidates):
    selected = METHODS["repsim"].select(candidates, QUERY, Settings(budget=30))
    a, b = PENULTIMATE.astype(float), QUERY.penultimate.astype(float)
    cosines = a @ b / np.linalg.norm(a, axis=1) / np.linalg.norm(b)
    assert selected.indices.tolist() == np.argsort(-cosines).tolist()
    np.testing.assert_allclose(selected.scores, np.sort(cosines)[::-1])


def test_repsim_of_an_image_that_the_layer_ignores_is_zero(candidates):
    dark = np.zeros_like(PENULTIMATE)
    selected = METHODS["repsim"].select(Candidates(candidates.pool, dark), QUERY, Settings(budget=3))
    assert selected.indices.tolist() == [0, 1, 2]
    assert selected.scores.tolist() == [0, 0, 0]


def test_graddot_is_the_product_of_the_losses_and_the_margins_gradients(candidates):
    selected = METHODS["graddot"].select(candidates, QUERY, Settings(budget=30))
    wanted = ARRAYS["loss_weights"] * (ARRAYS["margin_features"] @ MARGIN)
    assert selected.indices.tolist() == np.argsort(-wanted).tolist()
    np.testing.assert_allclose(selected.scores, np.sort(wanted)[::-1])


def test_trak_weighs_products_by_the_out_to_loss_gradient(candidates):
    selected = METHODS["trak"].select(candidates, QUERY, Settings(budget=30))
    wanted = ARRAYS["trak_out_to_loss"] * (ARRAYS["trak_features"] @ MARGIN)
    np.testing.assert_allclose(selected.scores, np.sort(wanted)[::-1], rtol=1e-5, atol=1e-6)


def test_kronfluence_ranks_by_the_influence_on_the_target(candidates):
    selected = METHODS["kronfluence"].select(candidates, QUERY, Settings(budget=30))
    np.testing.assert_allclose(selected.scores, np.sort(INFLUENCE * 3 * 2)[::-1])


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.files])
def test_a_method_without_what_it_needs_says_so(name):
    with pytest.raises(ValueError, match="more of the bundle"):
        METHODS[name].select(Candidates(Pool(FEATURES), PENULTIMATE), QUERY, Settings())


def test_random_is_uniform_and_the_same_for_a_seed(candidates):
    pick = METHODS["random"].select
    once, again, other = (pick(candidates, QUERY, Settings(budget=30, seed=s)).indices for s in (0, 0, 1))
    assert once.tolist() == again.tolist() != other.tolist()
    firsts = [int(pick(candidates, QUERY, Settings(budget=1, seed=s)).indices[0]) for s in range(3000)]
    counts = np.bincount(firsts, minlength=30)
    # Chi-squared with 29 degrees of freedom: its 99.99% quantile is 67.
    assert ((counts - 100) ** 2 / 100).sum() < 67


def test_ranking_goes_from_the_largest_score_with_ties_to_the_lowest_row():
    ranked = rank(np.array([0.0, 2.0, -3.0, 2.0]), Settings(budget=4))
    assert ranked.indices.tolist() == [1, 3, 0, 2]
    assert ranked.signs.tolist() == [1, 1, 0, -1]


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not numbers"):
        rank(np.array([1.0, np.nan]), Settings())


def test_a_method_is_added_by_one_decorated_function(monkeypatch, candidates):
    monkeypatch.setattr("natscope.core.methods.base.METHODS", added := dict(METHODS))

    @method("norm", "Norm", summary="s", formula="f", advice="a")
    def _norm(candidates, query, settings):
        return rank(candidates.pool.diagonal, settings)

    selected = added["norm"].select(candidates, QUERY, Settings(budget=1))
    assert selected.indices[0] == np.argmax(np.linalg.norm(FEATURES, axis=1))
