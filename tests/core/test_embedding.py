import numpy as np
import pytest

from natscope.core.analysis import embedding
from natscope.core.analysis.embedding import NEAREST, embed, kept
from natscope.core.errors import QueryError


def _islands(each=60, width=20, apart=6.0):
    """Return rows in three groups, and the group of each."""
    random, kinds = np.random.default_rng(0), np.repeat(np.arange(3), each)
    centres = apart * np.linalg.qr(random.normal(size=(width, 3)))[0].T
    return (centres[kinds] + random.normal(scale=0.3, size=(len(kinds), width))).astype(np.float32), kinds


def test_groups_of_alike_rows_are_islands():
    rows, kinds = _islands()
    found = embed(rows)
    assert found.positions.shape == (180, 2)
    assert found.neighbours.shape == (180, NEAREST)
    assert np.array_equal(found.arranged, np.arange(180))
    assert not (found.neighbours == np.arange(180)[:, None]).any()
    assert found.alike(kinds).mean() > 0.99
    shuffled = np.random.default_rng(1).permutation(kinds)
    assert found.alike(shuffled).mean() < 0.5


def test_the_map_follows_the_kernels_cosine_and_not_the_length_of_rows():
    rows, kinds = _islands()
    lengths = np.random.default_rng(2).uniform(0.01, 100, (len(rows), 1)).astype(np.float32)
    assert embed(rows * lengths).alike(kinds).mean() > 0.99


def test_the_same_rows_give_the_same_map():
    rows, _ = _islands()
    first, second = embed(rows), embed(rows.copy())
    assert np.array_equal(first.positions, second.positions)
    assert np.array_equal(first.neighbours, second.neighbours)


def test_a_part_is_arranged_and_the_others_lie_beside_what_they_resemble():
    rows, kinds = _islands()
    found = embed(rows, most=90)
    assert len(found.arranged) == len(np.unique(found.arranged)) == 90
    assert np.array_equal(found.arranged, embed(rows, most=90).arranged)
    assert np.isfinite(found.positions).all()
    others = np.setdiff1d(np.arange(180), found.arranged)
    distances = np.linalg.norm(found.positions[others, None] - found.positions[found.arranged], axis=2)
    assert (kinds[found.arranged][distances.argmin(axis=1)] == kinds[others]).mean() > 0.95


@pytest.mark.parametrize(
    "rows",
    [np.ones((50, 4)), np.zeros((50, 4)), np.eye(2), np.eye(3), np.eye(5), np.repeat(np.eye(4), 30, axis=0)],
    ids=["equal", "zero", "two", "three", "five", "copies"],
)
def test_degenerate_rows_have_a_map(rows):
    found = embed(rows.astype(np.float16))
    assert np.isfinite(found.positions).all()
    assert found.neighbours.shape == (len(rows), min(NEAREST, len(rows) - 1))


def test_numbers_that_are_not_finite_are_refused_in_a_sentence():
    rows, _ = _islands()
    rows[7, 3] = np.nan
    with pytest.raises(QueryError, match="not finite numbers, so there is no map"):
        embed(rows)


def test_progress_is_told_and_stops_it():
    rows, _ = _islands()
    told = []

    def stop(stage, done, total):
        told.append((stage, done, total))
        if done >= 100:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        embed(rows, stop)
    assert all(0 <= done <= total for _, done, total in told)
    assert {stage for stage, *_ in told} >= {"Reading the features", "Arranging the examples"}


def test_a_map_is_kept_in_a_file_and_a_damaged_one_written_again(tmp_path, monkeypatch):
    rows, _ = _islands()
    file, runs = tmp_path / "maps" / "map.npz", []
    monkeypatch.setattr(embedding, "embed", lambda *arguments: runs.append(1) or embed(*arguments))
    first, again = kept(file, rows), kept(file, rows)
    assert len(runs) == 1
    assert np.array_equal(first.positions, again.positions)
    assert np.array_equal(first.neighbours, again.neighbours)
    whole = file.read_bytes()
    other = {"positions": first.positions, "arranged": first.arranged, "neighbours": first.neighbours + 180}
    for number, spoil in enumerate((lambda: file.write_bytes(whole[:900]), lambda: np.savez(file, **other)), 2):
        spoil()
        assert np.array_equal(kept(file, rows).positions, first.positions)
        assert len(runs) == number
        assert file.read_bytes() == whole
    kept(file, rows[:-1])
    assert len(runs) == 4


def test_a_map_is_drawn_where_no_file_can_be_written(tmp_path):
    (tmp_path / "maps").write_bytes(b"")
    rows, kinds = _islands()
    assert kept(tmp_path / "maps" / "map.npz", rows).alike(kinds).mean() > 0.99
