import json

import pytest
from streamlit.testing.v1 import AppTest

from natscope import assets
from natscope.app import escape
from natscope.app.figures.experiments import charts
from natscope.app.figures.tables import TABLES
from natscope.app.paper import SECTIONS
from natscope.app.results import load_result, provenance_missing

INSTALLED = [name for section in SECTIONS for name in section.names if assets.path("results", f"{name}.json").is_file()]


@pytest.fixture
def page():
    def draw():
        from natscope.app.views import paper

        paper.measured()

    app = AppTest.from_function(draw, default_timeout=60).run()
    assert [error.message for error in app.exception] == []
    return app


def test_every_result_that_is_installed_is_shown_with_what_made_it(page):
    reported = " ".join(element.value for element in [*page.markdown, *page.caption, *page.code])
    assert {"relative-information", "backdoor"} <= set(INSTALLED)
    for name in INSTALLED:
        result = load_result(name)
        assert result is not None, name
        assert escape.sentence(result["finding"]) in reported
        assert result["command"] in reported
        assert result["date"] in reported
        assert charts(result) or result["experiment"] in TABLES
    for section in SECTIONS:
        assert section.paper in reported
        assert section.differs in reported


@pytest.mark.parametrize("missing", ["experiment", "date", "command", "versions", "bundle", "seed"])
def test_a_result_that_does_not_say_what_made_it_is_not_shown(missing, tmp_path, monkeypatch):
    result = load_result("relative-information")
    if missing == "seed":
        del result["setting"]["seed"]
    else:
        del result[missing]
    (tmp_path / "r.json").write_text(json.dumps(result))
    monkeypatch.setattr(assets, "path", lambda *parts: tmp_path / parts[-1])
    assert provenance_missing(result) == missing
    assert load_result("r") is None


def test_a_damaged_result_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "path", lambda *parts: tmp_path / parts[-1])
    for text in ("{", "[]", "{}"):
        (tmp_path / "r.json").write_text(text)
        assert load_result("r") is None
    assert load_result("nothing") is None
