"""The tab Map: the training images in the plane."""

import io
import json
import re
import threading
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from natscope.app import tasks
from natscope.app.figures.chart import PointMap, Points
from natscope.app.figures.on_page import map_figure
from natscope.app.figures.thumbnails import LARGEST, sheet
from natscope.app.links import COLOURINGS, PLANTED, Limits, MapView, parameters, read
from natscope.app.serve import BUNDLES
from natscope.app.theme import CATEGORIES, DARK, LIGHT
from natscope.app.views.map_groups import planted
from natscope.core.analysis.embedding import embed
from natscope.precompute.bundles.opening import open_attributor
from tests.app.conftest import serving
from tests.app.test_figures import _SEEN, _contrast, _lab

_MAIN = Path(__file__).parents[2] / "app" / "main.py"


@pytest.fixture
def tab(here, tiny_path, monkeypatch):
    """Return a function that opens the tab, and waits until the map is there."""
    monkeypatch.setenv(BUNDLES, str(tiny_path))

    def open_tab(**link):
        page = AppTest.from_file(str(_MAIN), default_timeout=60)
        page.query_params.update({"q": "test:0", "tab": "map"} | link)
        page.run()
        open_tab.complaints = [warning.value for warning in page.warning]
        for _ in range(100):
            if page.get("plotly_chart"):
                break
            time.sleep(0.1)
            page.run()
        assert [error.message for error in page.exception] == []
        return page

    return open_tab


@pytest.fixture(scope="module")
def server(tiny_path, tmp_path_factory):
    with serving(tiny_path, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


def _traces(page):
    return json.loads(page.get("plotly_chart")[0].proto.spec)["data"]


def _said(page):
    return " ".join(text.value for text in page.markdown)


def _cards(page):
    grids = [json.loads(g.proto.json) for g in page.get("bidi_component") if g.key == "map_grid"]
    return grids[0]["items"] if grids else []


def test_the_map_starts_by_itself_and_shows_labels(tab):
    page = tab()
    assert [trace["name"] for trace in _traces(page)] == ["ant", "bee", "cat"]
    assert "have the same label" in _said(page)
    assert page.get("plotly_chart")[0].proto.alt.startswith("Map of 60 training images: ant, bee, cat.")
    assert page.query_params["tab"] == "map"


@pytest.mark.parametrize("colour", COLOURINGS)
@pytest.mark.parametrize("by", ["penultimate", "kernel"])
def test_every_colouring_draws_every_image(tab, colour, by):
    page = tab(colour=colour, by=by, q="train:3", method="info_gain", m="5")
    assert not page.error
    assert not tab.complaints
    traces = _traces(page)
    assert traces[-1]["name"] == "this image"
    assert page.selectbox(key="map_colour").value == colour
    assert page.query_params.get("by", "penultimate") == by
    if colour == "share":
        assert "ranks first" in _said(page)


def test_planted_images_are_shown_by_their_patch(tab, tiny_path):
    page, backdoor = tab(colour=PLANTED), open_attributor(tiny_path).bundle.manifest.backdoor
    names = [trace["name"] for trace in _traces(page)]
    assert names[0] == "not planted"
    assert len(names) == 1 + len(np.unique(backdoor.base_labels))
    assert f"{len(backdoor.train_indices)} of 60 training images are planted" in _said(page)
    groups = planted(open_attributor(tiny_path), backdoor)
    assert np.array_equal(np.sort(np.concatenate([g.rows for g in groups[1:]])), backdoor.train_indices)
    assert np.array_equal(np.sort(np.concatenate([g.rows for g in groups])), np.arange(60))


def test_a_selection_is_listed_tagged_and_cleared(tab):
    page = tab()
    assert _cards(page) == []
    page.selectbox(key="map_group").set_value(1)
    page.run()
    assert len(_cards(page)) == 20
    assert {card["caption"] for card in _cards(page)} == {"bee"}
    page.button(key="map_tag_button").click()
    page.run()
    (choice,) = [box for box in page.pills if box.key.startswith("map_tag_")]
    choice.set_value("duplicate")
    page.run()
    assert [box.label for box in page.expander if "Tagged" in box.label] == ["Tagged images (20)"]
    assert {card["tag"] for card in _cards(page)} == {"duplicate"}
    page.selectbox(key="map_colour").set_value("tag")
    page.run()
    assert [trace["name"] for trace in _traces(page)] == ["not tagged", "duplicate"]
    assert "20 training images are tagged" in _said(page)
    page.button(key="map_clear").click()
    page.run()
    assert _cards(page) == []


def test_what_was_stopped_starts_again_only_when_asked(here, tiny_path, monkeypatch):
    monkeypatch.setenv(BUNDLES, str(tiny_path))
    real, stopping = tasks.training_map, threading.Event()

    def slow(progress, *arguments):
        while not stopping.wait(0.01):
            progress("Waiting", 0, 1)
        return real(progress, *arguments)

    monkeypatch.setattr(tasks, "training_map", slow)
    page = AppTest.from_file(str(_MAIN), default_timeout=60)
    page.query_params.update({"q": "test:0", "tab": "map"})
    page.run()
    page.button(key="map_chart_job_stop").click()
    for _ in range(3):
        page.run()
        assert any(caption.value == "Stopped." for caption in page.caption)
        assert page.button(key="map_chart_job_start").label == "Draw the map"
    stopping.set()
    page.button(key="map_chart_job_start").click()
    for _ in range(100):
        page.run()
        if page.get("plotly_chart"):
            break
        time.sleep(0.1)
    assert page.get("plotly_chart")


def test_a_link_with_what_is_not_valid_is_named_and_shows_the_default(tab):
    page = tab(colour="magic", by="nothing", m="9000")
    (said,) = tab.complaints
    assert re.findall(r"(\w+) “", said) == ["m", "by", "colour"]
    assert [trace["name"] for trace in _traces(page)] == ["ant", "bee", "cat"]


def test_a_view_survives_its_link_and_only_a_backdoor_has_planted_images():
    view = MapView("train:3", "info_gain", 10.0, 1, 5, "kernel", PLANTED)
    assert read(MapView(), parameters(view), Limits(2, 9, 9, squares=9)) == (view, [])
    assert parameters(MapView()) == {"q": "test:0"}
    found, complaints = read(MapView(), parameters(view), Limits(2, 9, 9))
    assert found.colour == "label"
    assert complaints == ["colour “planted”"]


def test_names_and_notes_are_escaped_on_the_map():
    kind = Points("<b>x</b>", np.array([3]), np.zeros(1), np.ones(1), notes=["<i>a</i>\nb"], named=True)
    drawn = map_figure(PointMap([kind], "", noun="Image"), LIGHT)
    assert drawn.data[0].name == drawn.layout.annotations[0].text == "&lt;b&gt;x&lt;/b&gt;"
    assert drawn.data[0].text == ("&lt;i&gt;a&lt;/i&gt;<br>b",)


@pytest.mark.parametrize("shape", [(300, 28, 28), (300, 24, 32, 3), (0, 28, 28), (1, 3, 3)])
def test_a_sheet_has_each_picture_in_its_place(shape):
    random = np.random.default_rng(0)
    images = np.broadcast_to(random.integers(0, 256, (shape[0], *[1] * (len(shape) - 1))), shape).astype(np.uint8)
    rows = np.arange(shape[0])[::-1]
    found = sheet(images, rows)
    assert len(found.jpeg) <= LARGEST
    with Image.open(io.BytesIO(found.jpeg)) as picture:
        pixels = np.asarray(picture.convert("L"), dtype=float)
    for place, row in enumerate(rows):
        down, along = divmod(place, found.across)
        middle = pixels[down * found.side + found.side // 3, along * found.side + found.side // 2]
        assert middle == pytest.approx(float(images[row].flat[0]), abs=25)


def test_the_colours_of_kinds_are_told_apart():
    for one, other in combinations(CATEGORIES, 2):
        for sight in _SEEN.values():
            assert np.linalg.norm(_lab(one, np.array(sight)) - _lab(other, np.array(sight))) > 14
    for colour in CATEGORIES:
        assert min(_contrast(colour, back) for back in (LIGHT.background, DARK.background)) >= 3


@pytest.mark.slow
def test_planted_images_are_islands(poisoned):
    backdoor = poisoned.bundle.manifest.backdoor
    chosen = np.isin(np.arange(len(poisoned.train_labels)), backdoor.train_indices)
    for name in ("penultimate", "features"):
        found = embed(poisoned.bundle.array(name))
        assert found.alike(chosen)[chosen[found.arranged]].mean() > 0.6


@pytest.mark.browser
def test_pointing_shows_the_picture_and_a_box_lists_images(visit):
    page = visit("/explain?tab=map&q=test:0")
    chart = page.locator(".st-key-map_chart .js-plotly-plot")
    expect(chart).to_be_visible(timeout=120_000)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=60_000)
    points = chart.locator(".scatterlayer .point")
    expect(points).to_have_count(60)
    box = points.nth(30).bounding_box()
    picture = page.locator("canvas[data-natscope=hover]")
    expect(picture).to_be_hidden()
    for step in (6, 3, 0):
        page.mouse.move(box["x"] + box["width"] / 2 + step, box["y"] + box["height"] / 2)
        page.wait_for_timeout(200)
    expect(picture).to_be_visible(timeout=30_000)
    frame = chart.bounding_box()
    corners = [(0.01, 0.1), (0.95, 0.1), (0.95, 0.99), (0.01, 0.99), (0.01, 0.12)]
    at = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in corners]
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at[1:]:
        page.mouse.move(x, y, steps=8)
    page.mouse.up()
    expect(page.get_by_role("heading", name="Selected images (60)")).to_be_visible(timeout=30_000)
    expect(page.get_by_role("group", name="Selected training images").locator(".picture")).to_have_count(60)
