import csv
import io
import json
import os
import shutil

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from natscope.app.figures.coreset import class_balance
from natscope.app.links import CoresetView, Limits, parameters, read
from natscope.app.serve import BUNDLES
from natscope.app.tasks import Chosen
from natscope.app.views import coreset as view
from natscope.app.views import coreset_queries, coreset_results
from natscope.core.methods import METHODS

SIZES = Limits(images=10_000, classes=10, train_images=15_000)


@pytest.fixture
def page(bundle_path, monkeypatch, tmp_path):
    monkeypatch.setenv(BUNDLES, str(bundle_path))
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "home"))
    return _open


def _open(**link):
    def draw():
        from natscope.app.views import coreset

        coreset.page()

    app = AppTest.from_function(draw, default_timeout=120)
    app.query_params.update({"n": "12", "m": "20"} | link)
    return _whole(app.run())


def _whole(app):
    assert [error.message for error in app.exception] == []
    return app


def _texts(app):
    return " ".join(element.value for element in [*app.markdown, *app.caption])


def _sheets(app):
    grids = [json.loads(g.proto.json) for g in app.get("bidi_component")]
    return {g["label"]: g["items"] for g in grids if g["label"].startswith("Chosen images")}


def _at_once(key, task, *arguments, **about):
    return task(lambda *step: None, *arguments)


def test_a_sentence_comes_first_and_the_sheet_has_every_image_by_its_class(page):
    app = page()
    said = app.markdown[1].value
    assert "These 20 images" in said
    assert "each of 12 test images" in said
    assert "random images" in said
    sheets = _sheets(app)
    assert [len(items) for items in sheets.values()] == [2] * 10
    own = [chart.key for chart in app.get("plotly_chart") if "measured" not in chart.key]
    assert own == ["coreset_balance", "coreset_information"]
    assert dict(app.query_params) == {"n": "12", "m": "20", "bundle": "fashion-mnist"}


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"ask": "class", "class": "3"}, "test images of class Dress"),
        ({"ask": "wrong"}, "that the model gets wrong"),
        ({"ask": "marked", "marked": "5,9,1"}, "the 3 test images"),
        ({"choice": "free", "method": "repsim"}, "12 test images, on average"),
        ({"choice": "quotas", "method": "info_loss"}, "12 test images, on average"),
    ],
)
def test_each_way_of_choosing_queries(page, link, said):
    app = page(**link)
    assert said in app.markdown[1].value
    assert sum(len(items) for items in _sheets(app).values()) == 20
    assert dict(app.query_params) == {"n": "12", "m": "20", "bundle": "fashion-mnist"} | link


def test_queries_are_those_that_were_asked_for(attributor):
    labels = attributor.test_labels
    predicted = np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1)
    of_class = view.asked(attributor, CoresetView(group="class", label=4, count=500))
    assert (labels[of_class] == 4).all()
    assert len(of_class) == 500
    wrong = view.asked(attributor, CoresetView(group="wrong", count=50))
    assert (labels[wrong] != predicted[wrong]).all()


def test_marking_and_letting_go(page):
    app = page(ask="marked")
    assert "at least one" in app.error[0].value
    app.text_input(key="test_search").set_value("7")
    app = _whole(app.run())
    assert "that you marked" in _texts(app)
    assert app.query_params["marked"] == "7"
    app.button(key="coreset_unmark").click()
    assert "at least one" in _whole(app.run()).error[0].value


def test_as_many_are_asked_about_as_there_are(page, attributor):
    wrong = int((np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1) != attributor.test_labels).sum())
    app = page()
    assert "mean k(x, x) of the margin" in _texts(app)
    assert app.slider(key="coreset_count").max == 500
    assert f"Of the {wrong:,};" in page(ask="wrong").slider(key="coreset_count").help


@pytest.mark.parametrize(("there", "shown"), [(7, [(7, 7)]), (2, [(2, 2)]), (1, []), (0, [])])
def test_a_small_group_has_a_slider_of_its_own_size_or_none(page, monkeypatch, there, shown):
    whole = coreset_queries._group
    few = lambda attributor, group, label: whole(attributor, group, label)[: there if group == "wrong" else None]  # noqa: E731
    monkeypatch.setattr(coreset_queries, "_group", few)
    app = page(ask="wrong")
    found = [(each.value, each.max) for each in app.slider if each.key == "coreset_count"]
    assert found == shown
    assert app.query_params["n"] == "12"
    if there:
        assert f"about each of {there} test images" in _texts(app) or f"{there} test image that" in _texts(app)
    app = _whole(app.selectbox(key="coreset_group").set_value("random").run())
    assert app.slider(key="coreset_count").value == 12  # what was chosen comes back


def test_sizes_that_are_offered_suit_the_training_set(page, monkeypatch):
    assert view._sizes(6) == (1, 2, 3, 4, 5, 6)
    assert view._sizes(55) == (10, 20, 30, 50, 55)
    assert view._sizes(100) == (10, 20, 30, 50, 75, 100)
    monkeypatch.setattr(view, "largest_coreset", lambda train_images: 1)
    app = page(m="1")
    assert not [each for each in app.select_slider if each.key == "coreset_budget"]
    assert app.markdown[1].value.startswith("##### This image tells")


def test_the_control_for_classes(page):
    app = page(choice="plain")
    classes = app.selectbox(key="coreset_variant")
    assert (classes.value, app.query_params["choice"]) == ("free", "free")
    assert classes.options == ["Freely", "Equal numbers per class", "Each class for its own images"]
    app = _whole(classes.set_value("quotas").run())
    assert [len(items) for items in _sheets(app).values()] == [2] * 10
    assert app.query_params["choice"] == "quotas"


def test_training_on_these_is_live_and_its_result_is_there_the_next_time(page, monkeypatch, tmp_path, bundle_path):
    monkeypatch.setattr(coreset_results, "run_job", lambda *a, **k: None)
    assert "Trained on these" not in _texts(page())
    monkeypatch.setattr(coreset_results, "run_job", _at_once)
    app = page()
    said = next(text.value for text in app.markdown if text.value.startswith("Trained on these"))
    assert "9,988 other test images" in said
    (file,) = (tmp_path / "home" / "coresets").glob("*.json")
    assert len(json.loads(file.read_text())) == 2
    monkeypatch.setattr(view, "others", lambda *a: None)  # it has a job of its own
    monkeypatch.setattr(coreset_results, "run_job", lambda *a, **k: pytest.fail("retrained"))
    assert said in [text.value for text in page().markdown]


def test_a_network_that_takes_long_is_not_trained_while_one_waits(page, monkeypatch):
    monkeypatch.setattr(coreset_results, "too_slow", lambda bundle, **_: "This takes an hour.")
    app = page()
    assert app.info[0].value.startswith("This takes an hour. `natscope evaluate coreset`")
    assert not [button for button in app.button if button.label == "Train on these"]


def test_overlap_with_other_methods_on_demand(page, monkeypatch):
    app = page()
    assert [button.label for button in app.button if button.label in ("Ask them", "Train on these")] == [
        "Train on these",
        "Ask them",
    ]
    monkeypatch.setattr(coreset_results, "run_job", _at_once)
    app.multiselect(key="coreset_others").set_value(["info_gain_approx", "random"])
    said = _texts(_whole(app.run()))
    assert f"**{METHODS['info_gain_approx'].title}** shares most" in said
    assert f"**{METHODS['random'].title}** least" in said


def test_a_bundle_without_the_margins_features_says_how_to_add_them(bundle_path, tmp_path, monkeypatch):
    shutil.copytree(bundle_path, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    del manifest["files"]["margin_features"]
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv(BUNDLES, str(tmp_path))
    app = _open()
    assert "what GradDot needs" in app.info[0].value


def test_the_files_hold_what_is_seen(attributor):
    chosen = Chosen(np.array([4, 2]), np.array([0.5, 0.75]), np.array([1, 3]), np.array([0.1, 0.2]), 2.5, 0.5)
    rows = list(csv.DictReader(io.StringIO(view._table(attributor, chosen))))
    assert [(row["rank"], row["train_index"], row["nats_cumulative"]) for row in rows] == [
        ("1", "4", "0.5"),
        ("2", "2", "0.75"),
    ]
    data = json.loads(view._everything(attributor, CoresetView(), np.array([9]), 1.0, chosen))
    assert data["train_indices"] == [4, 2]
    assert data["test_indices"] == [9]
    assert (data["sigma2"], data["joint_nats"]) == (1.0, 2.5)


def test_the_link_reopens_the_view():
    found = CoresetView("marked", 3, 77, (4, 2), "info_loss", "quotas", 333, 10.0)
    assert read(CoresetView(), parameters(found), SIZES) == (found, [])
    assert parameters(CoresetView()) == {}
    for old, variant in {"plain": "free", "balanced": "per-class"}.items():
        assert read(CoresetView(), {"choice": old}, SIZES) == (CoresetView(variant=variant), [])
    bad = {
        "ask": "everyone", "class": "10", "n": "501", "marked": "1,x", "method": "magic", "choice": "half", "m": "1501",
        "sigma2": "-1",
    }  # fmt: skip
    assert read(CoresetView(), bad, SIZES)[0] == CoresetView()
    assert len(read(CoresetView(), bad, SIZES)[1]) == 8


def test_the_bars_name_every_class():
    chart = class_balance(np.array([3, 0]), ["shoe", "bag"], "repsim")
    assert dict(zip(chart.names, chart.values, strict=True)) == {"shoe": 3, "bag": 0}
