import numpy as np
import pytest

from natscope.core import greedy
from natscope.core.index.search import InnerProductIndex, build_index
from natscope.core.index.shortlist import Shortlist
from natscope.core.index.spec import EXACT, KINDS, IndexSpec
from natscope.core.pool import Pool
from natscope.core.rows import RowView

INEXACT = [kind for kind in KINDS if kind not in EXACT]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A memory map of clustered rows with a falling spectrum."""
    random = np.random.default_rng(0)
    scale = np.linspace(1, 0.05, 48)
    rows = (
        random.normal(size=(40, 48))[random.integers(40, size=6_000)] + 0.7 * random.normal(size=(6_000, 48))
    ) * scale
    file = tmp_path_factory.mktemp("features") / "features.npy"
    np.save(file, rows.astype(np.float32) + 0.3)
    return np.load(file, mmap_mode="r")


@pytest.fixture(scope="module", params=INEXACT)
def index(request, features, tmp_path_factory):
    file = tmp_path_factory.mktemp(request.param) / "index"
    build_index(features, IndexSpec(request.param), file)
    return InnerProductIndex.load(file)


@pytest.mark.parametrize("sigma2", [1e-2, 1.0, 1e3])
def test_a_selection_recovers_the_information_of_the_exact_one(index, features, sigma2):
    recalls, shares = [], []
    for query in np.random.default_rng(1).normal(size=(6, 48)) * np.linspace(1, 0.05, 48):
        exact = greedy.info_gain_approx(Pool(np.array(features)), query, sigma2, 30)
        found = greedy.info_gain_approx(Pool(features), query, sigma2, 30, index=index)
        assert len(set(found.indices.tolist())) == 30
        recalls.append(np.isin(found.indices, exact.indices).mean())
        shares.append(found.nats[-1] / exact.nats[-1])
    assert np.mean(shares) >= 0.98
    if sigma2 > 1:  # below, many rows are almost equally good
        assert np.mean(recalls) >= 0.8


def test_scores_signs_and_nats_are_exact_for_what_was_picked(index, features):
    query, sigma2 = np.random.default_rng(2).normal(size=48), 0.5
    found = greedy.info_gain_approx(Pool(features), query, sigma2, 10, index=index)
    rows = np.array(features[found.indices], dtype=np.float64)
    for count in range(10):
        earlier = rows[:count]
        block = earlier @ earlier.T + sigma2 * np.eye(count)
        residual = query - earlier.T @ np.linalg.solve(block, earlier @ query)
        assert found.scores[count] == pytest.approx((rows[count] @ residual) ** 2, rel=1e-8)
        assert found.signs[count] == np.sign(rows[count] @ residual)
    block = rows @ rows.T + sigma2 * np.eye(10)
    fall = (rows @ query) @ np.linalg.solve(block, rows @ query)
    assert found.nats[-1] == pytest.approx(-0.5 * np.log(1 - fall / (query @ query)), rel=1e-8)


def test_excluded_rows_are_not_picked_and_the_whole_pool_is(index, features):
    query = np.random.default_rng(3).normal(size=48)
    first = greedy.info_gain_approx(Pool(features), query, 1.0, 20, index=index)
    without = greedy.info_gain_approx(Pool(features), query, 1.0, 20, index=index, exclude=first.indices[:5].tolist())
    assert not np.isin(first.indices[:5], without.indices).any()
    left = [3, 700, 5_999]
    exclude = np.setdiff1d(np.arange(len(features)), left).tolist()
    rest = greedy.info_gain_approx(Pool(features), query, 1.0, 99, index=index, exclude=exclude)
    assert sorted(rest.indices.tolist()) == left


def test_the_same_question_gives_the_same_answer(index, features):
    query = np.random.default_rng(4).normal(size=48)
    one, two = (greedy.info_gain_approx(Pool(features), query, 1.0, 25, index=index) for _ in range(2))
    assert one.indices.tolist() == two.indices.tolist()
    assert one.nats.tolist() == two.nats.tolist()


def test_of_equal_rows_the_lowest_is_picked_first():
    features = np.zeros((5, 4), dtype=np.float32)
    features[[1, 3]] = 2

    class _Proposes:
        proposals = 5

        def propose(self, vector, count, *, excluded):
            return np.setdiff1d(np.arange(5), excluded)

    shortlist = Shortlist(_Proposes(), features, [0])
    assert [shortlist.best(np.ones(4))[0] for _ in range(4)] == [1, 3, 2, 4]
    with pytest.raises(ValueError, match="Every row"):
        shortlist.best(np.ones(4))


def test_proposals_serve_several_picks(index, features):
    shortlist, query = Shortlist(index, features, []), np.random.default_rng(5).normal(size=48)
    for _ in range(50):
        shortlist.best(query)
    assert shortlist.searches == 1


def test_no_pick_reads_all_features(index, features, monkeypatch):
    def refuse(self, x):
        assert len(x) < 1000
        return np.einsum("nk,nk->n", x, x)

    monkeypatch.setattr("natscope.core.kernels.LinearKernel.diagonal", refuse)
    pool = Pool(features)
    found = greedy.info_gain_approx(pool, np.ones(48), 1.0, 10, index=index)
    assert pool.variances(found.indices).shape == (10,)


def test_a_memory_map_with_nan_is_refused_once_it_is_read(tmp_path):
    np.save(tmp_path / "features.npy", np.full((4, 3), np.nan))
    pool = Pool(np.load(tmp_path / "features.npy", mmap_mode="r"))
    with pytest.raises(ValueError, match="not finite"):
        _ = pool.diagonal


def test_a_view_reads_the_rows_that_were_chosen():
    array = np.arange(40, dtype=np.float32).reshape(10, 4)
    rows = np.array([7, 2, 5])
    view = RowView(array, rows)
    assert (len(view), view.shape, view.ndim, view.dtype) == (3, (3, 4), 2, np.float32)
    np.testing.assert_array_equal(np.asarray(view), array[rows])
    np.testing.assert_array_equal(view[1], array[2])
    np.testing.assert_array_equal(view[1:], array[[2, 5]])
    np.testing.assert_array_equal(view[[2, 0]], array[[5, 7]])
    query = np.ones(4)
    for rule in (greedy.info_gain, greedy.info_gain_approx, greedy.info_loss):
        assert rule(Pool(view), query, 1.0, 3).indices.tolist() == rule(array[rows], query, 1.0, 3).indices.tolist()
