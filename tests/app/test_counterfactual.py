import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from natscope.app.links import CounterfactualView, Limits, parameters, read
from natscope.app.serve import BUNDLES
from natscope.app.views import counterfactual
from natscope.core.methods import METHODS
from natscope.precompute.training.removal import Answer, identity_of, name_of
from natscope.precompute.training.result_cache import ResultCache
from tests.app.conftest import pack_image
from tests.conftest import EACH


@pytest.fixture
def page(bundle_path, tmp_path, monkeypatch):
    monkeypatch.setenv(BUNDLES, str(bundle_path.parent / "fashion-mnist"))
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path))

    def draw():
        from natscope.app.views import explain

        explain.removed()

    def open_page(**link):
        app = AppTest.from_function(draw, default_timeout=180)
        app.query_params.update(link)
        return _whole(app.run())

    return open_page


def _whole(app):
    assert [error.message for error in app.exception] == []
    return app


def _texts(app):
    return " ".join(element.value for element in [*app.markdown, *app.subheader, *app.caption, *app.info])


def _trained(app):
    for _ in range(400):
        if not app.button(key="counterfactual_job_stop") if _has(app, "counterfactual_job_stop") else True:
            break
        import time

        time.sleep(0.5)
        app = _whole(app.run())
    return app


def _has(app, key):
    return any(button.key == key for button in app.button)


def test_a_job_is_known_by_all_that_it_removes(page, attributor, monkeypatch):
    """A training image and an upload of the same pixels are compared with other random images."""
    jobs = []
    monkeypatch.setattr(counterfactual, "run_job", lambda key, task, *about, **_: jobs.append((key, *about)))
    image = np.asarray(attributor.bundle.examples("train").images[3])
    for query in ("train:3", pack_image(image)):
        page(q=query, m="20", method="graddot")
    for key, _, query, stages, _ in jobs:
        assert key[-3:] == tuple(name_of(query.example, query.predicted, rows) for _, rows, _ in stages)
    assert jobs[0][0] != jobs[1][0]


def test_taken_away_trained_again_and_known_the_next_time(page, attributor, tmp_path):
    app = page(q="test:1", m="40")
    assert f"these 40 of {EACH}" in _texts(app)
    app = _whole(app.button(key="counterfactual_job_start").click().run())
    app = _trained(app)
    assert "margin" in _texts(app)
    file = next((tmp_path / "counterfactuals").glob("*.json"))
    assert file.stem == identity_of(attributor.bundle)
    parts = ResultCache(file).parts()
    assert sorted(part["removed"] for part in parts.values()) == [0, 40, 40]
    query = attributor.query("test", 1)
    own = parts[name_of(query.example, query.predicted, ())]["answer"]
    assert own["predicted"] == query.predicted
    assert own["probability"] == pytest.approx(query.probabilities[query.predicted], abs=1e-6)
    again = page(q="test:1", m="40")
    assert not _has(again, "counterfactual_job_start")
    assert "The answer" in _texts(again)


def test_a_link_reopens_what_it_says_and_what_it_cannot_is_said(page):
    app = page(q="test:4", method="repsim", m="30", sigma2="10")
    assert app.selectbox(key="counterfactual_method").value == "repsim"
    assert app.slider(key="counterfactual_budget").value == 30
    view = CounterfactualView("train:7", "trak", 10.0, 50)
    assert read(CounterfactualView(), parameters(view), Limits()) == (view, [])
    app = page(q="test:99999999", m="7")
    assert any("no test image 99999999" in warning.value for warning in app.warning)
    assert any("the default is shown" in warning.value for warning in app.warning)


def test_each_method_has_its_own_usual_sigma2(page, monkeypatch):
    usual = {"info_loss": 100.0, "info_gain": 10.0}
    monkeypatch.setattr(
        "natscope.core.bundle.format.Bundle.sigma2", lambda bundle, method, purpose="prediction": usual.get(method, 1.0)
    )
    app = page(q="test:1", m="40", method="repsim")
    for method, exponent in (("info_loss", 2), ("info_gain", 1), ("repsim", 0), ("info_loss", 2)):
        app = _whole(app.selectbox(key="counterfactual_method").set_value(method).run())
        shown = [slider.value for slider in app.select_slider if slider.key == "counterfactual_exponent"]
        assert shown == ([exponent] if METHODS[method].uses_sigma2 else [])
        assert "sigma2" not in app.query_params
    app = _whole(app.select_slider(key="counterfactual_exponent").set_value(0).run())
    app = _whole(app.selectbox(key="counterfactual_method").set_value("info_gain").run())
    assert app.select_slider(key="counterfactual_exponent").value == 0  # what a visitor chose stays


def test_a_class_too_small_to_compare_says_so(page, monkeypatch):
    monkeypatch.setattr(counterfactual, "FEWEST_REMOVED", 800)
    app = page(q="test:1")
    assert "too few to remove 800" in _texts(app)
    assert not _has(app, "counterfactual_job_start")


def test_of_a_training_images_class_as_many_others_are_left(page, monkeypatch):
    """All but the query itself can be removed, in two halves."""
    monkeypatch.setattr(counterfactual, "MOST_REMOVED", EACH)
    app = page(q="train:1", m=str(EACH // 2))
    assert not app.exception
    assert app.slider(key="counterfactual_budget").max == (EACH - 1) // 2


def test_the_verdict_says_whether_it_is_more_than_chance():
    def said(found, at_random):
        return counterfactual._verdict(Answer(2, 0.9, 3.0), found, at_random, ("a", "b", "c"), 2)

    assert "flips** to “a”" in said(Answer(0, 0.1, -1), Answer(2, 0.9, 3))
    assert "hangs by a thread" in said(Answer(0, 0.1, -1), Answer(1, 0.1, -1))
    assert "falls by **2.00**" in said(Answer(2, 0.7, 1.0), Answer(2, 0.9, 2.9))
    assert "no more than chance" in said(Answer(2, 0.9, 2.9), Answer(2, 0.9, 2.8))


def test_a_network_that_takes_long_is_not_trained_while_one_waits(page, monkeypatch):
    monkeypatch.setattr("natscope.app.views.counterfactual.too_slow", lambda bundle, **_: "It takes an hour.")
    app = page(q="test:1", m="40")
    assert "It takes an hour." in _texts(app)
    assert not _has(app, "counterfactual_job_start")


def test_nothing_of_an_upload_is_kept_or_listed(page, attributor, monkeypatch):
    started = []
    monkeypatch.setattr("natscope.app.views.counterfactual.run_job", lambda *arguments, **_: started.append(arguments))
    image = np.asarray(attributor.bundle.examples("test").images[3])
    page(q=pack_image(image), m="40")
    page(q="test:3", m="40")
    cache = [[about["query"] for _, _, about in arguments[4]] for arguments in started]
    assert cache == [["an uploaded image"] * 3, ["test:3"] * 3]


def test_what_one_visitor_did_is_listed(page, attributor, tmp_path):
    cache = ResultCache(tmp_path / "counterfactuals" / f"{identity_of(attributor.bundle)}.json")
    answer = {"predicted": 3, "probability": 0.2, "margin": -0.5}
    cache.get(
        "x",
        lambda: {"query": "test:9", "class": "Coat", "method": "trak", "sigma2": 1.0, "removed": 50, "answer": answer},
    )
    (table,) = page(q="test:2", m="40").dataframe
    for name, query in (("y", "image:AAECAwQFBg"), ("z", "an uploaded image")):  # as earlier versions kept it, and now
        cache.get(name, lambda query=query: cache["x"] | {"query": query})
    (table,) = page(q="test:2", m="40").dataframe
    assert table.value["query"].tolist() == ["test:9"]
    assert table.value["then says"].tolist() == ["Dress"]
