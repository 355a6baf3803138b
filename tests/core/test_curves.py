import numpy as np
import pytest

from natscope.core import metrics
from natscope.core.analysis.curves import Curve, Line, relative_curves, sample_queries
from natscope.core.bundle.request import Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, REFERENCE

SILENT = lambda stage, done, total: None  # noqa: E731


@pytest.fixture(scope="module")
def queries(attributor):
    return sample_queries(attributor, 3)


def test_a_curve_is_relative_information_at_every_size(attributor, queries):
    line = Line("info_gain", 10.0)
    (curve,) = relative_curves(attributor, queries, [line], largest=6, progress=SILENT)
    assert curve.values.shape == (3, 6)
    for query, values in zip(queries, curve.values, strict=True):
        pool, rows = attributor.candidates(query.predicted, "same-class", "pool", SILENT)
        features = attributor.query_features(query, query.predicted)
        picks, best = (
            np.searchsorted(rows, [i.train_index for i in attributor.attribute(query, Request(m, 10.0, 6)).items])
            for m in ("info_gain", REFERENCE)
        )
        for size in range(1, 7):
            wanted = metrics.relative_information(pool.pool, features, 10.0, picks[:size], best[:size])
            assert values[size - 1] == pytest.approx(wanted, rel=1e-6)


def test_the_reference_itself_is_at_one_hundred_per_cent_and_random_far_below(attributor, queries):
    reference, random = relative_curves(
        attributor, queries, [Line(REFERENCE, 1.0), Line("random", 1.0)], largest=20, progress=SILENT
    )
    np.testing.assert_allclose(reference.values, 1)
    assert random.mean[-1] < 0.5


def test_at_large_noise_gain_finds_what_loss_finds(attributor, queries):
    """Lemma 1 of the paper."""
    (curve,) = relative_curves(attributor, queries, [Line("info_gain", 1e5)], largest=10, progress=SILENT)
    assert curve.values.min() > 0.98


def test_a_training_image_is_no_part_of_what_is_known_of_it(attributor):
    query = attributor.query("train", 40)
    (curve,) = relative_curves(attributor, [query], [Line(REFERENCE, 1.0)], largest=5, progress=SILENT)
    np.testing.assert_allclose(curve.values, 1)
    assert not curve.error.any()


def test_the_error_is_the_standard_error_of_the_mean():
    values = np.array([[0.2, 0.5], [0.6, 0.5], [0.7, 0.5]])
    curve = Curve(Line("random", 1.0), values)
    np.testing.assert_allclose(curve.mean, [0.5, 0.5])
    np.testing.assert_allclose(curve.error, [np.std([0.2, 0.6, 0.7], ddof=1) / 3**0.5, 0])
    assert curve.to_dict()["queries"] == 3


def test_progress_counts_every_ranking_and_may_stop_the_work(attributor, queries):
    steps = []
    lines = [Line("random", 1.0), Line("repsim", 1.0)]
    relative_curves(attributor, queries, lines, largest=3, progress=lambda *step: steps.append(step[1:]))
    assert steps == [(done, 6) for done in range(7)]

    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        relative_curves(attributor, queries, lines, largest=3, progress=stop)


def test_sampled_queries_are_right_distinct_and_the_same_for_a_seed(attributor):
    drawn = [query.index for query in sample_queries(attributor, 30)]
    assert len(set(drawn)) == 30
    assert drawn == [query.index for query in sample_queries(attributor, 30)]
    assert drawn != [query.index for query in sample_queries(attributor, 30, seed=1)]
    assert all(attributor.query("test", index).predicted == attributor.test_labels[index] for index in drawn)
    with pytest.raises(QueryError, match="fewer than 20000"):
        sample_queries(attributor, 20_000)


def test_the_reference_is_the_method_that_counts_what_is_lost():
    assert METHODS[REFERENCE].information == "loss"
