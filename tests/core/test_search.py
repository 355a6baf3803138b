import faiss
import numpy as np
import pytest

from natscope.core.index import search
from natscope.core.index.search import InnerProductIndex, build_index
from natscope.core.index.spec import KINDS, IndexSpec

INEXACT = [kind for kind in KINDS if kind != "flat"]


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(3000, 48)).astype(np.float32)


def test_the_largest_square_is_found_whatever_its_sign(features):
    index, signs = InnerProductIndex.flat(features), set()
    for vector in np.random.default_rng(1).normal(size=(40, 48)):
        products = features.astype(np.float64) @ vector
        row, product = index.largest_square(vector, features, excluded=[])
        assert row == np.argmax(products**2)
        assert product == pytest.approx(products[row], rel=1e-12)
        signs.add(np.sign(product))
    assert signs == {1.0, -1.0}


def test_excluded_rows_are_left_out(features):
    index, vector = InnerProductIndex.flat(features), np.random.default_rng(2).normal(size=48)
    order = np.argsort(-((features.astype(np.float64) @ vector) ** 2))
    for taken in (1, 5, 500):
        row, _ = index.largest_square(vector, features, excluded=order[:taken])
        assert row == order[taken]
    with pytest.raises(ValueError, match="Every row of the index is excluded"):
        index.largest_square(vector, features, excluded=np.arange(3000))


def test_rows_closer_than_single_precision_are_told_apart_in_double(features):
    # More near-ties than the first search returns; only one of them is the largest in double precision.
    base = np.ones(48, dtype=np.float32)
    close = np.repeat(base[None], 200, axis=0)
    close[150, 0] = np.nextafter(np.float32(1), np.float32(2))
    row, _ = InnerProductIndex.flat(close).largest_square(np.ones(48), close, excluded=[])
    assert row == 150


def test_ties_go_to_the_lowest_row():
    twins = np.tile(np.random.default_rng(3).normal(size=(1, 16)).astype(np.float32), (100, 1))
    assert InnerProductIndex.flat(twins).largest_square(twins[0], twins, excluded=[0, 1])[0] == 2


def test_an_index_survives_being_saved(features, tmp_path):
    saved = InnerProductIndex.flat(features)
    saved.save(tmp_path / "index.faiss")
    loaded = InnerProductIndex.load(tmp_path / "index.faiss")
    assert loaded.exact
    assert len(loaded) == 3000
    vector = np.random.default_rng(4).normal(size=48)
    assert loaded.largest_square(vector, features, excluded=[]) == saved.largest_square(vector, features, excluded=[])


def test_another_metric_is_refused():
    with pytest.raises(ValueError, match="inner-product metric"):
        InnerProductIndex(faiss.IndexFlatL2(4), exact=True)


# Indexes that are not exact


@pytest.fixture(scope="module")
def clustered():
    """Clustered rows around a common mean, long and short ones among them, as Jacobians of one class are."""
    random = np.random.default_rng(5)
    means = random.normal(size=(60, 48))
    rows = means[random.integers(60, size=8_000)] + 0.6 * random.normal(size=(8_000, 48)) + 2
    return (rows * random.uniform(0.3, 3, size=(8_000, 1))).astype(np.float32)


@pytest.fixture(scope="module", params=INEXACT)
def indexed(request, clustered, tmp_path_factory):
    """Return an index of each kind that is not exact, built from a memory map, and its file."""
    folder = tmp_path_factory.mktemp(request.param)
    np.save(folder / "features.npy", clustered)
    features = np.load(folder / "features.npy", mmap_mode="r")
    build_index(features, IndexSpec(request.param), folder / "index")
    return InnerProductIndex.load(folder / "index"), folder / "index"


def test_what_is_loaded_is_what_was_built(indexed):
    index, file = indexed
    assert (index.kind, index.exact, len(index)) == (file.parent.name.rstrip("0123456789"), False, 8_000)


def test_the_largest_square_is_mostly_found_whatever_its_sign(indexed, clustered):
    index, found, signs, shares = indexed[0], 0, set(), []
    for vector in np.random.default_rng(6).normal(size=(60, 48)):
        products = clustered.astype(np.float64) @ vector
        row, product = index.largest_square(vector, clustered, excluded=[])
        assert product == pytest.approx(products[row], rel=1e-12)
        best = np.argmax(products**2)
        found += row == best
        shares.append(product**2 / products[best] ** 2)
        signs.add(np.sign(product))
    assert found >= 50
    assert np.mean(shares) >= 0.99
    assert signs == {1.0, -1.0}


def test_rows_of_either_sign_are_proposed(indexed, clustered):
    vector = np.random.default_rng(7).normal(size=48)
    vector -= clustered.mean(0) * (vector @ clustered.mean(0)) / (clustered.mean(0) @ clustered.mean(0))
    products = clustered @ vector.astype(np.float32)
    proposed = indexed[0].propose(vector, 256, excluded=[])
    assert proposed.tolist() == sorted(set(proposed.tolist()))
    for order in (np.argsort(products), np.argsort(-products)):
        assert np.isin(order[:20], proposed).mean() >= 0.8


def test_rows_left_out_are_never_proposed(indexed, clustered):
    vector = np.random.default_rng(8).normal(size=48)
    best = np.argsort(-((clustered.astype(np.float64) @ vector) ** 2))
    for taken in (best[:1], best[:300]):
        proposed = indexed[0].propose(vector, 256, excluded=taken)
        assert not np.isin(proposed, taken).any()
        assert indexed[0].largest_square(vector, clustered, excluded=taken)[0] not in taken
    with pytest.raises(ValueError, match="Every row of the index is excluded"):
        indexed[0].largest_square(vector, clustered, excluded=np.arange(8_000))


def test_the_last_rows_are_found_however_hidden(indexed, clustered):
    left = np.random.default_rng(9).choice(8_000, 3, replace=False)
    excluded = np.setdiff1d(np.arange(8_000), left)
    vector = np.random.default_rng(10).normal(size=48)
    row, _ = indexed[0].largest_square(vector, clustered, excluded=excluded)
    assert row in left
    assert set(indexed[0].propose(vector, 256, excluded=excluded)) <= set(left)


def test_the_same_rows_and_settings_give_the_same_bytes(indexed, clustered, tmp_path):
    _, file = indexed
    build_index(clustered, IndexSpec(file.parent.name.rstrip("0123456789")), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_lists_written_block_by_block_are_those_that_faiss_writes(clustered, tmp_path, kind):
    spec = IndexSpec(kind)
    build_index(clustered, spec, tmp_path / "ours")
    index = faiss.read_index(str(tmp_path / "ours"))
    index.reset()
    index.add(clustered - search._sample(clustered, spec).mean(0))
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_flat_index_written_block_by_block_is_the_one_that_faiss_writes(clustered, tmp_path):
    build_index(clustered, IndexSpec(), tmp_path / "ours")
    InnerProductIndex.flat(clustered).save(tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_few_rows_get_a_flat_index_whatever_was_asked_for(clustered, tmp_path):
    build_index(clustered[:255], IndexSpec("ivfpq"), tmp_path / "index")
    index = InnerProductIndex.load(tmp_path / "index")
    assert (index.kind, index.exact) == ("flat", True)


def test_lists_are_searched_from_disk(clustered, tmp_path):
    build_index(clustered, IndexSpec("ivf"), tmp_path / "index")
    index = InnerProductIndex.load(tmp_path / "index")
    assert isinstance(faiss.downcast_InvertedLists(index._index.invlists), faiss.OnDiskInvertedLists)


class _Counted:
    """Features that count how many rows were read at once, and in all."""

    def __init__(self, features):
        self.features, self.shape, self.most, self.all = features, features.shape, 0, 0

    def __len__(self):
        return len(self.features)

    def __getitem__(self, rows):
        found = self.features[rows]
        self.most, self.all = max(self.most, len(found)), self.all + len(found)
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_read_in_blocks_and_candidates_alone_are_scored(clustered, tmp_path, kind):
    counted = _Counted(clustered)
    build_index(counted, IndexSpec(kind), tmp_path / "index")
    assert counted.most <= 8_000  # the sample, or a block
    counted = _Counted(clustered)
    InnerProductIndex.load(tmp_path / "index").largest_square(np.ones(48), counted, excluded=[])
    assert counted.all <= 2048


def test_an_index_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"There is no index 'annoy'; choose one of flat, ivf, ivfpq, hnsw\."):
        IndexSpec("annoy")


def test_an_index_of_another_type_is_refused(clustered, tmp_path):
    faiss.write_index(faiss.index_factory(48, "LSH"), str(tmp_path / "index"))
    with pytest.raises(ValueError, match="not one of natscope's"):
        InnerProductIndex.load(tmp_path / "index")
