import io
import json
import time

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from natscope import assets
from natscope.app.figures.curves import relative, relative_charts
from natscope.app.figures.experiments import experiment_files
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.style import FORMATS
from natscope.app.links import CurvesView, Limits, parameters, read
from natscope.app.serve import BUNDLES
from natscope.core.analysis.curves import Curve, Line
from natscope.core.sketch_error import SketchError


@pytest.fixture
def page(request, monkeypatch):
    def draw():
        from natscope.app.views import explain

        explain.drawn()

    def open_page(bundle=None, **link):
        monkeypatch.setenv(BUNDLES, str(bundle or request.getfixturevalue("bundle_path").parent))
        app = AppTest.from_function(draw, default_timeout=90)
        app.query_params.update(link)
        return _whole(app.run())

    return open_page


def _whole(app):
    assert [error.message for error in app.exception] == []
    return app


def _charts(app):
    return [chart.proto.id.rsplit("-", 1)[-1] for chart in app.get("plotly_chart")]


def test_the_curves_of_one_image_are_chosen_before_the_address_names_it(page):
    app = page(n="3")
    app.query_params.clear()  # as a browser sends it that has not heard of the image yet
    app.toggle(key="curves_mean").set_value(False)
    _whole(app.run())
    assert app.query_params["q"] == "test:0"


def test_curves_are_computed_when_asked_for_and_said_in_words(page):
    app = page(q="test:5", m="10", sigma2s="1,100000")
    before = len(_charts(app))
    app.button(key="curves_job_start").click()
    app = _whole(app.run())
    for _ in range(100):
        if len(_charts(app)) > before:
            break
        time.sleep(0.2)
        app = _whole(app.run())
    assert len(_charts(app)) == before + 2
    said = " ".join(text.value for text in app.markdown)
    assert "at least 99%" in said
    assert "stays within" in said


def test_the_sketchs_error_and_the_papers_setting_are_shown(page):
    said = " ".join(text.value for text in page(q="test:5").markdown)
    assert "relative Frobenius" in said
    assert "(paper#relative-information)" in said


def test_no_sigma2_is_said(page):
    app = page(q="test:5")
    app.multiselect(key="curves_sigma2s").set_value([])
    assert "at least one σ²" in _whole(app.run()).info[0].value


def test_a_view_survives_its_link():
    view = CurvesView("test:3", 7, sigma2s=(1.0, 10.0), fixed=1e2, others=("trak", "random"), largest=40)
    assert read(CurvesView(), parameters(view), Limits()) == (view, [])
    assert parameters(CurvesView()) == {}
    _, complaints = read(CurvesView(), {"q": "nothing", "m": "9000", "others": "magic"}, Limits())
    assert len(complaints) == 3


@pytest.mark.parametrize("kind", FORMATS)
def test_files_open(kind):
    curves = [Curve(Line("info_gain", s), np.random.default_rng(0).uniform(0.5, 1, (4, 20))) for s in (1.0, 1e3)]
    charts = relative("One", curves, by_method=False), relative("Two", curves[:1], by_method=True)
    data = chart_file(*charts, kind=kind)
    assert data == chart_file(*charts, kind=kind)
    assert data.startswith({"PNG": b"\x89PNG", "SVG": b"<?xml", "PDF": b"%PDF"}[kind])
    if kind == "PNG":
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.info["dpi"][0] == pytest.approx(300, abs=1)


def test_the_shipped_result_says_how_it_was_made_and_can_be_drawn_again():
    from pathlib import Path

    result = json.loads((Path(assets.__file__).parent / "results" / "relative-information.json").read_text("utf-8"))
    assert result["bundles"][0]["command"].startswith("natscope precompute --classes 0,1")
    assert result["command"].startswith("natscope evaluate relative-information")
    assert {"versions", "date", "finding"} <= set(result)
    assert len(result["setting"]["query_indices"]) == result["setting"]["queries"]
    upper, lower = (chart.series for chart in relative_charts(result))
    assert [line.name for line in upper] == [f"σ² = {value}" for value in ("1", "10", "100", "10³", "10⁴", "10⁵")]
    first = result["panels"][0]["curves"][0]
    np.testing.assert_allclose(upper[0].y, 100 * np.array(first["mean"]))
    np.testing.assert_allclose(upper[0].error, 100 * np.array(first["standard_error"]))
    assert len(lower) == 2
    assert {kind for kind, _ in experiment_files(result)} == {"png", "svg"}


def test_images_to_which_the_network_does_not_respond_do_not_count_in_the_sketchs_error(here, page, tiny_path):
    """Three training images of this bundle are such ones."""
    app = page(tiny_path)
    assert any(text.value.startswith("Over 57 training images") for text in app.markdown)


def test_where_the_network_responds_to_no_image_the_page_says_so(here, page, tiny_path, monkeypatch):
    nothing = SketchError(0.0, np.empty(0), 0.35, exact=True)
    monkeypatch.setattr("natscope.core.bundle.attributor.measure", lambda *_, **__: nothing)
    app = page(tiny_path)
    assert any("does not respond to the training images" in caption.value for caption in app.caption)
    assert "lengths" not in _charts(app)
