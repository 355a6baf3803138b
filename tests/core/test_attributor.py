import gc
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from natscope.core import greedy, pool
from natscope.core.analysis.reliance import reliance
from natscope.core.bundle.request import Request
from natscope.core.errors import BundleError, QueryError
from natscope.core.methods import METHODS
from natscope.core.metrics import loss_of_each
from natscope.core.pool import Pool
from natscope.core.posterior import FeatureConditioning, FeatureSpectrum
from natscope.core.progress import silent
from natscope.core.rows import RowView
from natscope.precompute.bundles.opening import open_attributor
from tests.conftest import EACH
from tests.tiny import build_tiny


@pytest.fixture(scope="module")
def query(attributor):
    return attributor.query("test", 5)


def own_features(attributor, label):
    rows = np.flatnonzero(attributor.train_labels == label)
    return rows, np.asarray(attributor.bundle.array("features")[rows])


@pytest.mark.parametrize("name", METHODS)
def test_items_are_training_images_of_the_predicted_class(attributor, query, name):
    result = attributor.attribute(query, Request(name, budget=6))
    assert [item.rank for item in result.items] == [1, 2, 3, 4, 5, 6]
    assert {int(attributor.train_labels[item.train_index]) for item in result.items} == {query.predicted}
    assert result.pool_size == EACH
    assert (result.total_nats is not None) == (METHODS[name].information is not None)
    if result.nats is not None:
        assert 0 < result.nats <= result.total_nats


@pytest.mark.parametrize("sigma2", [1e-6, 1.0, 1e5])
def test_the_nats_are_those_of_the_greedy_rules_on_the_bundles_features(attributor, query, sigma2):
    rows, features = own_features(attributor, query.predicted)
    phi = attributor.query_features(query, query.predicted)
    for name, rule in (("info_gain", greedy.info_gain), ("info_loss", greedy.info_loss)):
        wanted = rule(features, phi, sigma2, 4)
        found = attributor.attribute(query, Request(name, sigma2, 4))
        assert [item.train_index for item in found.items] == rows[wanted.indices].tolist()
        np.testing.assert_allclose([item.nats for item in found.items], wanted.nats, rtol=1e-6)


def test_a_training_image_is_taken_out_of_what_it_leans_on(attributor):
    image = attributor.query("train", 11)
    label = int(attributor.train_labels[11])
    rows, features = own_features(attributor, label)
    kept = rows != 11
    wanted = greedy.info_loss(features[kept], attributor.query_features(image, label), 1.0, 5)
    found = attributor.attribute(image, Request(sigma2=1.0, budget=5, target=label))
    assert [item.train_index for item in found.items] == rows[kept][wanted.indices].tolist()
    np.testing.assert_allclose([item.nats for item in found.items], wanted.nats, rtol=1e-6)
    assert found.pool_size == EACH - 1


def test_an_upload_of_a_test_image_is_attributed_like_the_test_image(attributor, query):
    upload = attributor.given(query.example.images[0])
    first, second = (attributor.attribute(q, Request(budget=5)) for q in (query, upload))
    assert first.items == second.items
    assert upload.label is None
    assert upload.ood < 1


def test_noise_is_unlike_anything_in_training(attributor):
    noise = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    assert attributor.given(noise).ood > 1


def test_another_target_is_attributed_among_its_own_images(attributor, query):
    other = (query.predicted + 1) % 10
    result = attributor.attribute(query, Request(target=other))
    assert result.target == other
    assert {item.label for item in result.items} == {other}


def test_the_pool_of_all_classes_holds_every_training_image_under_the_targets_logit(attributor, query):
    result = attributor.attribute(query, Request("info_gain", 1.0, pool="all", budget=5))
    images = attributor.bundle.inputs("train")
    features = attributor.features.features(images, np.full(len(images), query.predicted))
    wanted = greedy.info_gain(Pool(features), attributor.query_features(query, query.predicted), 1.0, 5)
    assert [item.train_index for item in result.items] == wanted.indices.tolist()
    assert result.pool_size == 10 * EACH


def test_conditioning_on_all_training_data_is_that_of_its_whole_gram(attributor, query):
    reported = []
    request = Request(sigma2=1.0, conditioning="train", budget=4)
    result = attributor.attribute(query, request, lambda *step: reported.append(step))
    assert reported
    images = attributor.bundle.inputs("train")
    everyone = attributor.features.features(images, np.full(len(images), query.predicted))
    rows, features = own_features(attributor, query.predicted)
    conditioning = FeatureConditioning.of(FeatureSpectrum.of([everyone]), features)
    phi = attributor.query_features(query, query.predicted)
    wanted = greedy.info_loss(features, phi, 1.0, 4, conditioning=conditioning)
    assert [item.train_index for item in result.items] == rows[wanted.indices].tolist()
    np.testing.assert_allclose([item.nats for item in result.items], wanted.nats, rtol=1e-6)
    # The second look is available: nothing is computed again.
    reported.clear()
    attributor.attribute(query, replace(request, sigma2=0.1), lambda *step: reported.append(step))
    assert reported == []


def test_bundles_together_keep_all_images_features_for_one_class_and_a_classs_own_are_read(tiny_path):
    one, other = open_attributor(tiny_path), open_attributor(tiny_path)
    kept = weakref.ref(one._sets.of(0, "all", "none", silent)[0].pool)
    assert kept() is one._sets.of(0, "all", "none", silent)[0].pool
    other._sets.of(0, "all", "none", silent)
    gc.collect()
    assert kept() is None
    assert isinstance(one._sets.of(0, "same-class", "pool", silent)[0].pool.features, RowView)


@pytest.mark.parametrize("name", ["info_loss", "relatif", "info_gain"])
def test_a_class_too_large_for_its_gram_is_conditioned_on_itself(tiny_path, monkeypatch, name):
    """And not on all training data, which is another question."""
    request, answers = Request(name, sigma2=0.1, budget=5), []
    for largest in (pool.LARGEST_GRAM, 3):  # classes of 20 images, features of 16 numbers
        monkeypatch.setattr(pool, "LARGEST_GRAM", largest)
        tiny = open_attributor(tiny_path)
        answers.append(tiny.attribute(tiny.query("test", 1), request))
    small, large = answers
    assert [item.train_index for item in large.items] == [item.train_index for item in small.items]
    if name != "relatif":
        np.testing.assert_allclose([i.nats for i in large.items], [i.nats for i in small.items], rtol=1e-6)
    assert large.total_nats == (pytest.approx(small.total_nats) if name == "info_loss" else None)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request("magic"), "'magic'; .* info_loss"),
        (Request(sigma2=0.0), "positive number, not 0"),
        (Request(sigma2=float("nan")), "positive number, not nan"),
        (Request(budget=0), "at least 1, not 0"),
        (Request(pool="some"), "'some'; .* same-class, all"),
        (Request(conditioning="none"), "choose one of pool, train"),
        (Request(target=10), "class 10; .* 0 to 9"),
        (Request(target=-1), "no class -1"),
    ],
)
def test_settings_that_cannot_be_used_get_a_sentence(attributor, query, request_, sentence):
    with pytest.raises(QueryError, match=sentence):
        attributor.attribute(query, request_)


@pytest.mark.parametrize(
    ("origin", "index", "last"), [("test", 10000, 9999), ("test", -1, 9999), ("train", 15000, 10 * EACH - 1)]
)
def test_an_image_that_is_not_there_gets_a_sentence(attributor, origin, index, last):
    with pytest.raises(QueryError, match=f"{origin} image {index}; .* 0 to {last}"):
        attributor.query(origin, index)


def test_a_network_that_does_not_respond_gets_a_sentence(attributor):
    black = attributor.given(np.zeros((28, 28), dtype=np.uint8))
    state = {name: tensor.clone() for name, tensor in attributor.features.model.state_dict().items()}
    try:
        with torch.no_grad():
            for parameter in attributor.features.model.parameters():
                parameter.zero_()
        with pytest.raises(QueryError, match="does not respond"):
            attributor.query_features(black, 0)
        with torch.no_grad():
            for parameter in attributor.features.model.parameters():
                parameter.fill_(torch.nan)
        with pytest.raises(QueryError, match="not a finite number"):
            attributor.asked(black.example)
    finally:
        attributor.features.model.load_state_dict(state)


def test_the_json_form_has_every_contracted_field(attributor, query):
    result = attributor.attribute(query, Request("repsim", budget=2))
    record = result.to_dict(query, attributor.bundle.classes)
    assert {"query", "method", "sigma2", "pool", "seconds", "items"} <= set(record)
    fields = {"rank", "train_index", "source", "label", "label_name", "score", "nats", "sign"}
    assert [set(item) for item in record["items"]] == [fields] * 2
    assert record["items"][0]["nats"] is None


def test_queries_that_are_prepared_together_get_the_same_answers(bundle_path):
    one, many = open_attributor(bundle_path), open_attributor(bundle_path)
    method = METHODS["kronfluence"]
    target = one.query("test", 0).predicted
    queries = [one.query("test", int(i)) for i in np.flatnonzero(one.test_labels == target)[:3]]
    stages, seen = [], []
    many.ahead(method, queries, target, lambda stage, *_: stages.append(stage))
    assert stages
    for query in queries:
        request = Request("kronfluence", target=target)
        apart = one.attribute(query, request)
        prepared = many.attribute(query, request, lambda stage, *_: seen.append(stage))
        assert [i.train_index for i in prepared.items] == [i.train_index for i in apart.items]
        np.testing.assert_allclose([i.score for i in prepared.items], [i.score for i in apart.items], rtol=1e-4)
    assert not seen  # nothing was computed again
    many.ahead(METHODS["repsim"], queries, target, lambda stage, *_: pytest.fail("nothing to prepare"))


def test_what_takes_minutes_on_a_network_is_named(attributor, monkeypatch):
    assert "kronfluence" in attributor.usable(fast=True)
    monkeypatch.setattr(attributor, "linear", False)
    assert "kronfluence" not in attributor.usable(fast=True)
    assert set(attributor.usable()) - set(attributor.usable(fast=True)) == {"kronfluence"}


def test_an_index_is_read_by_methods_that_search_alone(tiny_path, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(tiny_path, path)
    for file in path.glob("index_*.faiss"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    attributor = open_attributor(path)
    query = attributor.query("test", 0)
    for name, method in METHODS.items():
        if not method.searches:
            assert len(attributor.attribute(query, Request(name, budget=3)).items) == 3
            continue
        with pytest.raises(BundleError, match=r"'index_\d\.faiss' .* checksum"):
            attributor.attribute(query, Request(name, budget=3))


def _overwrite(file):
    """Write one number of an array's file anew, in place."""
    with file.open("r+b") as opened:
        opened.seek(-8, os.SEEK_END)
        opened.write((0).to_bytes(8, "little"))


@pytest.mark.parametrize(
    "ask",
    [
        lambda a, query: a.query("test", 0),
        lambda a, query: a.query("train", 0),
        lambda a, query: a.given(query.example.images[0]),
        lambda a, query: a.attribute(query, Request("repsim", budget=2)),
        lambda a, query: a.ahead(next(m for m in METHODS.values() if m.ekfac), [query], 0),
        lambda a, query: a.candidates(0, "all", "none", silent),
        lambda a, query: a.margin_query(np.arange(2)),
        lambda a, query: a.margin_candidates(np.arange(2), silent),
        lambda a, query: a.resketched(1).query("test", 0),
        lambda a, query: a.sketch_error(4),
        lambda a, query: a.check(),
    ],
)
def test_nothing_is_read_of_a_bundle_of_which_a_file_changed_while_it_was_open(tiny_path, tmp_path, ask):
    path = shutil.copytree(tiny_path, tmp_path / "tiny")
    attributor = open_attributor(path)
    query = attributor.query("test", 0)
    ask(attributor, query)
    _overwrite(path / "trak_features.npy")  # which nothing of this reads
    with pytest.raises(BundleError, match="changed while it was open; open it, or"):
        ask(attributor, query)


@pytest.mark.parametrize("change", [lambda file: os.truncate(file, 9), Path.unlink])
def test_a_file_that_is_cut_short_or_gone_has_changed(tiny_path, tmp_path, change):
    path = shutil.copytree(tiny_path, tmp_path / "tiny")
    attributor = open_attributor(path)
    change(path / "trak_features.npy")
    with pytest.raises(BundleError, match="changed while it was open"):
        attributor.query("test", 0)


def test_what_is_kept_of_a_file_is_a_copy(tiny_path, tmp_path):
    path = shutil.copytree(tiny_path, tmp_path / "tiny")
    attributor = open_attributor(path)
    query = attributor.query("train", 59)
    kept = {
        "train_labels": [attributor.train_labels, attributor._sets._labels, attributor._artifacts._labels],
        "test_labels": [attributor.test_labels],
        "penultimate": [attributor._sets.penultimate],
        "train_images": [query.example.images[0]],
    }
    for name, arrays in kept.items():
        before = [array.copy() for array in arrays]
        _overwrite(path / f"{name}.npy")
        assert all(map(np.array_equal, arrays, before))


def test_a_bundle_that_is_given_the_parts_of_more_methods_stays_open(tmp_path):
    build_tiny(tmp_path / "tiny", methods=("repsim",))
    attributor = open_attributor(tmp_path / "tiny")
    assert build_tiny(tmp_path / "tiny").identity != attributor.bundle.identity
    assert attributor.attribute(attributor.query("test", 0), Request("repsim", budget=2)).items


def test_without_a_sigma2_the_bundles_usual_one_is_used(attributor, query):
    usual = attributor.bundle.sigma2("info_gain")
    assert usual == 10 * attributor.bundle.scale()
    found = attributor.attribute(query, Request("info_gain", budget=3))
    assert found.sigma2 == usual == found.to_dict(query, attributor.bundle.classes)["sigma2"]
    assert found.items == attributor.attribute(query, Request("info_gain", usual, budget=3)).items


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.at_random])
def test_every_candidate_is_scored_by_itself_as_the_ranking_scores_it(attributor, query, name):
    asked = Request(name, 1.0, 1)
    rows, scores = attributor.score_each(query, asked)
    assert rows.tolist() == np.flatnonzero(attributor.train_labels == query.predicted).tolist()
    (first,) = attributor.attribute(query, asked).items
    own = scores[rows == first.train_index][0]
    if METHODS[name].information:
        best = np.abs(scores).max()
        assert abs(own) >= best * (1 - 1e-6) or METHODS[name].approximates
        assert abs(own) == pytest.approx(first.nats, rel=1e-6)
    else:
        assert own == first.score == scores.max()


def test_what_a_method_does_not_score_has_no_score(attributor, query, monkeypatch):
    own = METHODS["repsim"]

    def three(candidates, asked, settings):
        return own.select(candidates, asked, replace(settings, budget=min(settings.budget, 3)))

    monkeypatch.setitem(METHODS, "repsim", replace(own, select=three))
    first = attributor.attribute(query, Request("repsim", budget=3)).items
    rows, scores = attributor.score_each(query, Request("repsim"))
    assert rows.tolist() == sorted(item.train_index for item in first)
    assert sorted(scores) == sorted(item.score for item in first)


def test_a_training_image_has_no_part_in_what_others_tell_of_it(attributor):
    image, label = attributor.query("train", 11), int(attributor.train_labels[11])
    rows, scores = attributor.score_each(image, Request("info_loss", 1.0, target=label))
    assert 11 not in rows
    pool_rows, features = own_features(attributor, label)
    kept = pool_rows != 11
    wanted = loss_of_each(Pool(features[kept]), attributor.query_features(image, label), 1.0)
    assert rows.tolist() == pool_rows[kept].tolist()
    np.testing.assert_allclose(scores, wanted, rtol=1e-6, atol=1e-12)


def test_who_else_relies_on_an_image_is_what_the_others_answer(attributor):
    asked, label = Request("repsim", budget=3), int(attributor.test_labels[5])
    found = reliance(attributor, label, asked, 4, silent)
    assert 0 < len(found.tests) <= 4
    for test, picks in zip(found.tests.tolist(), found.picks.tolist(), strict=True):
        query = attributor.query("test", test)
        assert query.predicted == label
        assert picks == [item.train_index for item in attributor.attribute(query, asked).items]
    index = int(found.picks[0, 0])
    assert found.of(index).tolist() == [t for t, picks in zip(found.tests, found.picks, strict=True) if index in picks]
    assert found.of(-2).tolist() == []
