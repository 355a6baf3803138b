import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata

from natscope.core.analysis.stability import across_networks, across_sketches, differ_by_seed, kin, rank_correlation
from natscope.core.bundle.format import Manifest
from natscope.core.bundle.request import Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS

SILENT = lambda stage, done, total: None  # noqa: E731


@pytest.fixture(scope="module")
def query(attributor):
    return attributor.query("test", 5)


def test_rank_correlation_ties_what_a_list_lacks_below_its_last():
    first, second = [5, 1, 9], [1, 5, 7]
    # Over 1, 5, 7, 9: ranks 2, 1, 4, 3 and 1, 2, 3, 4.
    a, b = rankdata([1, 0, 3, 2]), rankdata([0, 1, 2, 3])
    assert rank_correlation(first, second) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert rank_correlation([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert np.isnan(rank_correlation([1], [1]))


def test_other_sketches_change_what_depends_on_them_alone(attributor, query):
    requests = [Request(name, budget=40) for name in METHODS]
    found = across_sketches(attributor, query, requests, (1,), SILENT)
    assert [each.request for each in found] == requests
    for each in found:
        assert each.repeats == (1 if METHODS[each.request.method].sketched else 0)
        assert each.original.items == attributor.attribute(query, each.request).items
        if each.repeats:
            assert each.stayed.shape == (40,)
            assert each.stayed.sum() > 0
            assert each.stayed.max() <= 1
            assert (each.correlations < 1).all()  # the same images may stay, but not in the very same order


def test_counts_are_those_of_attributors_of_other_seeds(attributor, query):
    request = Request("info_gain", budget=8)
    (found,) = across_sketches(attributor, query, [request], (1, 2, 3), SILENT)
    lists = [
        {item.train_index for item in attributor.resketched(seed).attribute(query, request).items} for seed in (1, 2, 3)
    ]
    mine = [item.train_index for item in found.original.items]
    assert found.stayed.tolist() == [sum(image in each for each in lists) for image in mine]
    np.testing.assert_allclose(found.overlaps, [len({*mine} & each) / len({*mine} | each) for each in lists])
    assert found.always == sum(count == 3 for count in found.stayed)


def test_the_same_seed_gives_the_same_ranking(attributor, query):
    """Asked again with the bundle's own seed, everything stays: what changes elsewhere is due to the sketch."""
    for name in ("info_loss", "graddot", "trak"):
        again = attributor.resketched(attributor.bundle.sketch_spec.seed).attribute(query, Request(name, budget=8))
        assert again.items == attributor.attribute(query, Request(name, budget=8)).items


def test_progress_counts_the_repeats_and_may_stop_the_work(attributor, query):
    steps = []
    requests = [Request("info_gain", budget=3), Request("random", budget=3)]
    across_sketches(attributor, query, requests, (1, 2), lambda *step: steps.append(step))
    assert [(done, total) for stage, done, total in steps if stage.endswith("InfoGain")] == [(0, 2), (0, 2), (1, 2)]
    assert steps[-1] == ("Done", 2, 2)

    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if stage.startswith("Sketch 2"):
            raise Stopped

    with pytest.raises(Stopped):
        across_sketches(attributor, query, requests, (1, 2), stop)


def test_progress_within_a_method_may_stop_the_work_too(attributor, query):
    """GradDot under another sketch reads all training images again, in steps."""
    reported = []
    with pytest.raises(KeyboardInterrupt):
        across_sketches(
            attributor, query, [Request("graddot")], (1,), lambda stage, done, total: _third(reported, stage)
        )
    assert reported[-1].startswith("Sketch 1: GradDot, ")


def _third(reported, stage):
    reported.append(stage)
    if len(reported) == 3:
        raise KeyboardInterrupt


def test_an_upload_is_seen_by_each_network_itself(attributor):
    image = np.asarray(attributor.bundle.examples("test").images[5])
    seen = []

    class Twin:
        """The attributor again, which notes the images that it is shown."""

        def asked(self, example, label):
            seen.append(example.images[0])
            return attributor.asked(example, label)

        def attribute(self, query, request, progress):
            return attributor.attribute(query, request, progress)

    (found,) = across_networks(attributor, attributor.given(image), [Request(budget=5)], [Twin()], SILENT)
    np.testing.assert_array_equal(seen[0], image)
    assert found.overlaps.tolist() == [1.0]


def test_a_method_that_fails_says_so_and_the_others_stay(attributor, query, monkeypatch):
    def fail(candidates, query, settings):
        raise ValueError("It cannot be had.")

    monkeypatch.setitem(METHODS, "broken", replace(METHODS["graddot"], name="broken", select=fail))
    broken, other = across_sketches(attributor, query, [Request("broken"), Request("graddot", budget=3)], (1,), SILENT)
    assert (broken.original, broken.failure) == (None, "It cannot be had.")
    assert other.repeats == 1


def test_the_same_network_agrees_with_itself_under_the_same_target(attributor, query):
    asked = []

    class Twin:
        """The attributor again, which notes the target that it is requested."""

        def query(self, *which):
            return attributor.query(*which)

        def attribute(self, query, request, progress):
            asked.append(request.target)
            return attributor.attribute(query, request, progress)

    (found,) = across_networks(attributor, query, [Request(budget=5)], [Twin()], SILENT)
    assert asked == [query.predicted]
    assert found.stayed.tolist() == [1] * 5
    assert found.correlations.tolist() == [pytest.approx(1)]


def test_another_network_that_cannot_answer_says_so(attributor, query):
    class Mute:
        def query(self, *which):
            return attributor.query(*which)

        def attribute(self, query, request, progress):
            raise QueryError("This bundle lacks it.")

    (found,) = across_networks(attributor, query, [Request(budget=5)], [Mute()], SILENT)
    assert found.repeats == 0
    assert found.failure == "This bundle lacks it."


def test_bundles_differ_by_their_seed_alone(attributor):
    manifest = attributor.bundle.manifest

    def changed(change):
        raw = json.loads(manifest.to_json())
        change(raw)
        return Manifest.from_json(json.dumps(raw))

    def seed(raw):
        raw["name"], raw["training"]["seed"], raw["results"]["settings"]["training"]["seed"] = "Other", 7, 7

    def seed_and_rate(raw):
        seed(raw)
        raw["results"]["settings"]["training"]["learning_rate"] = 0.1

    assert differ_by_seed(kin(manifest), kin(changed(seed)))
    assert not differ_by_seed(kin(manifest), kin(manifest))
    assert not differ_by_seed(kin(manifest), kin(changed(seed_and_rate)))
