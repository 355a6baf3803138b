from pathlib import Path

import faiss
import numpy as np
import pytest

from natscope.core.index.search import InnerProductIndex, build_index
from natscope.core.index.spec import EXACT, KINDS, IndexSpec

INEXACT = [kind for kind in KINDS if kind not in EXACT]


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
    with pytest.raises(ValueError, match="Every row"):
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
        InnerProductIndex(faiss.IndexFlatL2(4))


# An index of a byte a feature


@pytest.fixture(scope="module")
def coded(features, tmp_path_factory):
    file = tmp_path_factory.mktemp("sq8") / "index"
    build_index(features, IndexSpec("sq8"), file)
    return InnerProductIndex.load(file)


def test_an_sq8_index_finds_what_a_flat_one_finds(features, coded):
    assert (coded.kind, coded.exact) == ("sq8", True)
    flat, random = InnerProductIndex.flat(features), np.random.default_rng(12)
    for vector in random.normal(size=(60, 48)) * 10.0 ** random.uniform(-6, 6, size=(60, 1)):
        excluded = random.choice(3000, 40, replace=False)
        row, product = coded.largest_square(vector, features, excluded=excluded)
        expected = flat.largest_square(vector, features, excluded=excluded)
        assert (row, product) == (expected[0], pytest.approx(expected[1], rel=1e-12))


def test_rows_that_one_code_stands_for_are_told_apart(tmp_path):
    # 200 rows nearer to each other than a step, more than the first search returns.
    random = np.random.default_rng(13)
    rows = random.normal(size=(600, 48)).astype(np.float32)
    rows[100:300] = 3 + 1e-4 * random.normal(size=(200, 48))
    build_index(rows, IndexSpec("sq8"), tmp_path / "index")
    products = rows.astype(np.float64) @ np.ones(48)
    found = InnerProductIndex.load(tmp_path / "index").largest_square(np.ones(48), rows, excluded=[])
    assert found[0] == np.argmax(products**2)


def test_the_default_is_sq8_for_usual_classes_and_lists_for_large_ones():
    assert [IndexSpec().kind_of(count) for count in (255, 256, 10_000, 10_001)] == ["flat", "sq8", "sq8", "ivfsq8"]


def test_an_sq8_index_takes_a_quarter_of_a_flat_one(features, tmp_path):
    sizes = {}
    for kind in ("flat", "sq8"):
        build_index(features, IndexSpec(kind), tmp_path / kind)
        sizes[kind] = (tmp_path / kind).stat().st_size
    assert 3.8 <= sizes["flat"] / sizes["sq8"] <= 4
    assert all(size <= IndexSpec(kind).bytes(*features.shape) for kind, size in sizes.items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_disk_that_is_full_is_an_error_of_the_system(features):
    with pytest.raises(OSError, match="No space left"):
        build_index(features, IndexSpec(), Path("/dev/full"))


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
    """Return an index of each kind that is not exact, built from a memory map, its file and its kind."""
    folder = tmp_path_factory.mktemp(request.param)
    np.save(folder / "features.npy", clustered)
    features = np.load(folder / "features.npy", mmap_mode="r")
    build_index(features, IndexSpec(request.param), folder / "index")
    return InnerProductIndex.load(folder / "index"), folder / "index", request.param


def test_what_is_loaded_is_what_was_built(indexed):
    index, _, kind = indexed
    assert (index.kind, index.exact, len(index)) == (kind, False, 8_000)


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
    proposed = indexed[0].propose(vector, indexed[0].proposals, excluded=[])
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
    with pytest.raises(ValueError, match="Every row"):
        indexed[0].largest_square(vector, clustered, excluded=np.arange(8_000))


def test_the_last_rows_are_found_however_hidden(indexed, clustered):
    left = np.random.default_rng(9).choice(8_000, 3, replace=False)
    excluded = np.setdiff1d(np.arange(8_000), left)
    vector = np.random.default_rng(10).normal(size=48)
    row, _ = indexed[0].largest_square(vector, clustered, excluded=excluded)
    assert row in left
    assert set(indexed[0].propose(vector, 256, excluded=excluded)) <= set(left)


def test_the_same_rows_and_settings_give_the_same_bytes(indexed, clustered, tmp_path):
    _, file, kind = indexed
    build_index(clustered, IndexSpec(kind), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


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
    with pytest.raises(ValueError, match=r"'annoy'; .* auto, flat, sq8, ivf, ivfsq8, ivfpq, ivfrabitq, hnsw, milvus"):
        IndexSpec("annoy")


def test_an_index_of_another_type_is_refused(clustered, tmp_path):
    faiss.write_index(faiss.index_factory(48, "LSH"), str(tmp_path / "index"))
    with pytest.raises(ValueError, match="not one of natscope's"):
        InnerProductIndex.load(tmp_path / "index")
