import faiss
import numpy as np
import pytest

from core.search import InnerProductIndex


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
