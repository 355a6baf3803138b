import csv
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from natscope import assets
from natscope.app import escape, words
from natscope.app.examples import examples
from natscope.app.figures import printed
from natscope.app.figures.data import numbers
from natscope.app.figures.experiments import charts, columns, panels, table
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.style import blank
from natscope.app.figures.tables import TABLES, Table
from natscope.app.paper import SECTIONS
from natscope.app.results import conditioning, load_result, provenance_missing
from natscope.app.views import frame
from tests.app.conftest import serving

FILES = {name: file for section in SECTIONS for name, file in section.names.items()}
INSTALLED = [name for section in SECTIONS for name in section.names if assets.path("results", f"{name}.json").is_file()]
_TITLE = "The paper’s experiments, measured"


@pytest.fixture(scope="module")
def server(bundle_path, tmp_path_factory):
    with serving(bundle_path, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


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


@pytest.mark.parametrize("missing", ["experiment", "date", "command", "versions", "bundles", "seed"])
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


@pytest.mark.parametrize("name", INSTALLED)
def test_every_result_has_figure_and_numbers_under_a_name_that_says_of_what(name):
    result = load_result(name)
    data = words.data_of(result["setting"])
    shown = {"CIFAR-10": "cifar10", "Fashion-MNIST": "fashion-mnist", "Jane Austen": "austen"}
    assert [part for title, part in shown.items() if title in data and part in FILES[name]], data
    assert chart_file(*panels(result), kind="PDF", columns=columns(result)).startswith(b"%PDF")
    lines = list(csv.DictReader(io.StringIO(numbers(result))))
    assert all("method" in line for line in lines)
    means = {float(value) for line in lines for value in line.values() if re.fullmatch(r"-?[\d.e-]+", value or "")}
    for chart in charts(result):
        for series in getattr(chart, "series", []):
            scale = 100 if "%" in chart.y.title else 1
            assert all(np.isclose(value / scale, list(means), rtol=1e-9).any() for value in series.y)
    assert conditioning(result) == ("pool" if "--conditioning pool" in result["command"] else "train")


def test_no_two_results_have_files_of_one_name():
    assert len(set(FILES.values())) == len(FILES)


@pytest.mark.parametrize("name", [name for name in INSTALLED if load_result(name)["experiment"] in TABLES])
def test_a_table_in_a_file_has_every_value_within_its_width(name):
    found = table(load_result(name))
    figure = blank(printed.width(found), printed.height(found))
    axes = figure.subplots()
    printed.draw(axes, found, printed.width(found))
    drawn = [text.get_text() for text in axes.texts]
    assert {cell for row in [*found.rows, found.last] for cell in row} <= set(drawn)
    assert " ".join(drawn).count("±") >= sum("±" in cell for row in found.rows for cell in row)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.width
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])


def test_tables_are_what_a_table_of_the_paper_is_downloaded_as():
    assert [type(panel).__name__ for panel in panels(load_result("backdoor-cifar10"))] == ["Bars", "Table"]
    assert [type(panel) for panel in panels(load_result("lds"))] == [Table]


def test_examples_are_mistakes_of_several_classes(attributor):
    labels, predicted = attributor.bundle.array("test_labels"), attributor.bundle.array("test_logits").argmax(axis=1)
    shown = SimpleNamespace(bundle=attributor.bundle, test_labels=labels)
    found = examples(shown, 3)
    assert len({predicted[index] for index in found}) == 3
    mistaken = len(set(predicted[predicted != labels].tolist()))
    assert [predicted[index] != labels[index] for index in found] == [place < mistaken for place in range(3)]
    assert sorted(examples(shown, len(labels))) == list(range(len(labels)))


@pytest.mark.parametrize(("address", "title"), [({}, "The paper’s"), ({"tab": "methods"}, "Methods")])
def test_back_shows_the_tab_of_the_address(page, address, title, monkeypatch):
    page.session_state["paper_tab"] = "results" if address else "methods"
    page.query_params.update(address)
    monkeypatch.setattr(frame, "_navigates_history", lambda: True)
    page.run()
    assert page.title[0].value.startswith(title)


@pytest.mark.browser
def test_back_returns_to_the_tab_before_and_to_where_a_link_was_followed(visit):
    page = visit("/paper")
    results, methods = (page.get_by_role("heading", name=name, exact=True) for name in (_TITLE, "Methods"))
    scrolled = "document.querySelector('[data-testid=stMain]').scrollTop"
    expect(page.locator("#tuning")).to_be_attached(timeout=60_000)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)
    assert not page.locator("h1 a:visible, h3 a:visible").count()
    page.get_by_text("Methods", exact=True).click()
    expect(methods).to_be_visible(timeout=30_000)
    page.go_back()
    expect(results).to_be_visible(timeout=30_000)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)
    page.get_by_role("link", name=re.compile("^Table 1: ")).click()
    expect(page.locator("#backdoor")).to_be_in_viewport()
    assert page.evaluate(scrolled) > 1000
    page.go_back()
    expect(results).to_be_in_viewport(timeout=30_000)
    assert page.evaluate(scrolled) < 300
