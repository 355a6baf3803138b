import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import parse_qsl

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from natscope.app import bundles
from natscope.app.components.comparison import marks
from natscope.app.figures.sheets import comparison_file
from natscope.app.links import LARGEST_COMPARED, AttributeView, ComparisonView, Limits, parameters, read
from natscope.app.serve import BUNDLES
from natscope.app.theme import FRAME, FRAMES
from natscope.app.views import compare, compare_results, frame
from natscope.core.analysis.comparison import compare_one
from natscope.core.bundle.capabilities import Capabilities
from natscope.core.bundle.request import Request
from natscope.core.methods import METHODS

SILENT = lambda stage, done, total: None  # noqa: E731


@pytest.fixture
def served(bundle_path, monkeypatch):
    monkeypatch.setenv(BUNDLES, str(bundle_path.parent))


@pytest.fixture
def page(served):
    """The Compare page alone, as the app's navigation would draw it."""

    def draw():
        from natscope.app.views import explain

        explain.compared()

    def open_page(**link):
        app = AppTest.from_function(draw, default_timeout=90)
        app.query_params.update(link)
        return _whole(app.run())

    return open_page


def _whole(app):
    assert [error.message for error in app.exception] == []
    return app


def _figures(app):
    return [json.loads(g.proto.json) for g in app.get("bidi_component") if "strips" in g.proto.json]


def test_a_method_that_becomes_ready_joins_the_others_unless_they_were_chosen(page, monkeypatch):

    everything = tuple(METHODS)
    monkeypatch.setattr(Capabilities, "usable", lambda self, fast=False: everything[:3])
    app = page(q="test:5")
    assert len(_figures(app)[0]["strips"]) == 3
    monkeypatch.setattr(Capabilities, "usable", lambda self, fast=False: everything[:4])
    assert len(_figures(_whole(app.run()))[0]["strips"]) == 4
    _whole(app.pills(key="compare_methods").set_value(list(everything[:2])).run())
    monkeypatch.setattr(Capabilities, "usable", lambda self, fast=False: everything)
    assert len(_figures(_whole(app.run()))[0]["strips"]) == 2


def test_every_method_has_its_row(page):
    (figure,) = _figures(page(q="test:5"))
    assert [strip["title"] for strip in figure["strips"]] == [method.title for method in METHODS.values()]
    for strip, method in zip(figure["strips"], METHODS.values(), strict=True):
        assert len(strip["tiles"]) == 10
        assert bool(strip["note"]) == method.uses_sigma2


def test_shared_images_have_one_colour_and_letter_everywhere(page):
    (figure,) = _figures(page(q="test:5"))
    seen = {}
    for strip in figure["strips"]:
        for tile in strip["tiles"]:
            seen.setdefault(tile["image"], []).append((tile["tag"], tile["colour"]))
    for looks in seen.values():
        assert len(set(looks)) == 1
        assert (looks[0] != ("", "")) == (len(looks) > 1)
    assert [tile["rank"] for tile in figure["strips"][0]["tiles"]] == [str(rank) for rank in range(1, 11)]
    letters = [looks[0][0] for looks in seen.values() if looks[0][0]]
    assert len(letters) == len(set(letters)) > 3


def test_pinned_queries_stay_while_others_are_stepped_through(page):
    app = page(q="test:5", methods="repsim,random")
    app.button(key="compare_pin").click()
    app = _whole(app.run())
    app.button(key="next_image").click()
    app = _whole(app.run())
    assert [figure["query"]["name"] for figure in _figures(app)] == ["test image 6", "test image 5"]
    assert [strip["title"] for strip in _figures(app)[1]["strips"]] == ["RepSim", "Random"]
    assert app.query_params["q"] == "test:6"
    assert app.query_params["pins"] == "test:5"


def test_each_method_can_have_its_own_sigma2(page):
    app = page(q="test:5", methods="info_loss,info_gain")
    app.toggle(key="compare_same").set_value(False)
    app = _whole(app.run())
    app.select_slider(key="compare_own_info_gain").set_value(3.0)
    (figure,) = _figures(_whole(app.run()))
    assert [strip["note"] for strip in figure["strips"]] == ["σ² = 10", "σ² = 10³"]
    assert app.query_params["own"] == "info_loss:10,info_gain:1000"


def test_a_method_that_fails_keeps_its_row_and_the_others_theirs(here, page, monkeypatch):
    def fail(candidates, query, settings):
        raise ValueError("No numbers.")

    monkeypatch.setitem(METHODS, "repsim", replace(METHODS["repsim"], select=fail))
    (figure,) = _figures(page(q="test:7", methods="repsim,random"))
    assert figure["strips"][0]["failure"] == "No numbers."
    assert figure["strips"][0]["tiles"] == []
    assert len(figure["strips"][1]["tiles"]) == 10


def test_a_link_that_cannot_be_read_is_said_and_the_rest_is_kept(page):
    app = page(q="test:5", methods="repsim,random", m="900", pins="test:99999")
    said = [warning.value for warning in app.warning]
    assert any("m “900”" in text for text in said)
    assert any("test image 99999" in text for text in said)
    assert [figure["query"]["name"] for figure in _figures(app)] == ["test image 5"]


def test_one_method_is_no_comparison(page):
    app = page(q="test:5", methods="repsim")
    assert "at least two" in app.info[0].value


def test_a_comparison_survives_its_link():
    view = ComparisonView(
        "train:7", ("test:1", "image:abc"), ("info_loss", "trak"), 10.0, {"info_loss": 100.0}, 7, "all", "train", 3
    )
    assert read(ComparisonView(), parameters(view), Limits(classes=10)) == (view, [])
    assert parameters(ComparisonView()) == {"q": "test:0", "m": "10"}


def test_too_many_pins_and_unknown_methods_are_refused():
    address = {"pins": ",".join(f"test:{i}" for i in range(6)), "methods": "magic"}
    _, complaints = read(ComparisonView(), address, Limits(classes=10))
    assert len(complaints) == 2


def test_marks_never_repeat_a_letter_nor_a_colour_but_the_grey_of_those_beyond():
    found = marks(range(60))
    assert len({letter for letter, _ in found.values()}) == 60
    assert [found[number][0] for number in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]
    assert [colour for _, colour in found.values()] == [*FRAMES, *[FRAME] * (60 - len(FRAMES))]


@pytest.mark.parametrize(
    ("picks", "said"),
    [
        ("12 23", "**A** and **B** overlap by 0.33. The texts of **A** matter most"),
        ("12 34", "**A** and **B** share no texts. The"),
        ("12 21", "**A** and **B** choose the same texts."),
        (
            "12 12 12 34",
            "**A**, **B** and **C** choose the same texts. **A** and **D** share no texts. The texts of **A**,",
        ),
        (
            "12 13 45",
            "**A** and **B** agree most (overlap 0.33); **A** and **C**, and **B** and **C**, share no texts.",
        ),
        ("12 34 56 78", "No two methods share any texts. The"),
        (
            "12 12 13 45",
            "**A** and **B** choose the same texts. Beyond that, **A** and **C** agree most (overlap 0.33); ",
        ),
        (
            "12 13 45 46 7",
            "**A** and **B**, and **C** and **D**, agree most (overlap 0.33); 8 of 10 pairs share no texts.",
        ),
        (
            "123 124 156",
            "**A** and **B** agree most (overlap 0.50); **A** and **C**, and **B** and **C**, least (0.20).",
        ),
    ],
)
def test_the_sentence_on_agreement_names_ties(picks, said):
    rows = [SimpleNamespace(picks=tuple(map(int, each)), loss=float("1" in each)) for each in picks.split()]
    found = compare_results._finding([rows], "ABCDE"[: len(rows)], "texts")
    assert found.startswith(said)


def test_a_method_without_an_answer_is_not_compared():
    rows = [SimpleNamespace(picks=(1, 2), loss=1.0), SimpleNamespace(picks=(), loss=None)]
    assert compare_results._finding([rows], "AB", "texts").startswith("Fewer than two methods gave an answer")
    rows.append(SimpleNamespace(picks=(2, 1), loss=1.0))
    assert compare_results._finding([rows], "ABC", "texts") == "**A** and **C** choose the same texts."


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ("12 12 - / 12 - 12 / - 12 34", "**A** and **B** choose the same texts. **A** and **C** overlap by 1.00."),
        ("12 - / - 12", "No two methods answered the same query."),
        ("12 34 - / - 12 34", "The pairs that answered the same query share no texts."),
    ],
)
def test_methods_that_answered_other_queries_are_not_called_alike(queries, said):
    rows = [
        [
            SimpleNamespace(picks=tuple(map(int, each.strip("-"))), loss=None if each == "-" else 1e-9 * (1 + place))
            for place, each in enumerate(line.split())
        ]
        for line in queries.split("/")
    ]
    found = compare_results._finding(rows, "ABC"[: len(rows[0])], "texts")
    assert found.startswith(said)
    assert found.count("matter most") == 1
    assert " and " not in found.rpartition("The texts of")[2].partition(" matter")[0]


def test_the_caption_says_what_letters_colours_and_numbers_are(page, monkeypatch):
    app = page(q="test:5", methods="info_loss,info_gain", m="2")
    (said,) = [caption.value for caption in app.caption if "is its rank" in caption.value]
    assert "grey" not in said
    assert "count anew" not in said
    monkeypatch.setattr(compare, "FRAMES", ("#000000",))
    app = page(q="test:5", pins="test:6", methods="info_loss,info_gain", m="20")
    (said,) = [caption.value for caption in app.caption if "is its rank" in caption.value]
    assert "the others are grey. Letters and colours count anew in each figure." in said


def test_a_wrong_prediction_is_said_in_words(page, attributor):
    classes, labels = attributor.bundle.classes, attributor.test_labels
    predicted = np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1)
    wrong, right = int(np.flatnonzero(predicted != labels)[0]), int(np.flatnonzero(predicted == labels)[0])
    says = [_figures(page(q=f"test:{index}", methods="repsim,random"))[0]["query"]["says"] for index in (wrong, right)]
    assert says == [
        f"Predicted {classes[predicted[wrong]]}, labelled {classes[labels[wrong]]}",
        f"Predicted {classes[predicted[right]]} ✓",
    ]


@pytest.fixture(scope="module")
def rows(attributor):
    query = attributor.query("test", 5)
    names = ("info_loss", "repsim", "trak")
    return query, [
        compare_one(attributor, query, Request(name, budget=4), evaluation_sigma2=1.0, progress=SILENT)
        for name in names
    ]


@pytest.mark.parametrize(("kind", "start"), [("PNG", b"\x89PNG"), ("SVG", b"<?xml"), ("PDF", b"%PDF")])
def test_the_figure_opens_in_every_format(attributor, rows, kind, start):
    query, block = rows
    train = attributor.bundle.examples("train")
    data = comparison_file(
        [query, query], [block, block], np.arange(len(train)), train, attributor.bundle.classes, kind=kind
    )
    assert data.startswith(start)
    if kind == "PNG":
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.info["dpi"][0] == pytest.approx(300, abs=1)
            assert picture.width > 1200
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    if kind == "SVG":
        assert data.count(b"<image") == 2 * (1 + 3 * 4)


def test_the_data_say_what_the_rows_say(attributor, rows):
    query, block = rows
    lines = list(csv.DictReader(io.StringIO(compare_results._table(attributor.bundle, [query], [block]))))
    assert len(lines) == 12
    assert [int(line["train_index"]) for line in lines[:4]] == list(block[0].picks)
    assert [line["sigma2"] for line in lines[::4]] == ["10.0", "", ""]
    view = ComparisonView(methods=("info_loss", "repsim", "trak"))
    everything = json.loads(
        json.dumps(compare_results._everything(attributor, [query], [block], view), allow_nan=False)
    )
    assert everything["queries"][0]["rows"][0]["loss_nats"] == block[0].loss
    assert everything["agreement"]["jaccard"][0][0] == 1
    assert [item["train_index"] for item in everything["queries"][0]["rows"][2]["answer"]["items"]] == [*block[2].picks]


@pytest.mark.parametrize("purpose", ["prediction", "backdoor"])
def test_a_link_to_the_comparison_carries_what_was_shown(attributor, monkeypatch, purpose):
    monkeypatch.setattr(
        "natscope.core.bundle.format.Bundle.sigma2", lambda bundle, method, purpose: {"backdoor": 7.0}.get(purpose, 3.0)
    )
    monkeypatch.setattr(bundles, "bundle_paths", lambda: {"one": attributor.bundle.path, "two": attributor.bundle.path})
    shown = AttributeView("test:5", "info_gain", 50.0, 50, "all", "train", 4)
    page, _, address = frame.comparison(shown, attributor, purpose=purpose).partition("?")
    found, complaints = read(ComparisonView(), dict(parse_qsl(address)), Limits(classes=10))
    assert (page, complaints, dict(parse_qsl(address))["bundle"]) == ("explain", [], attributor.bundle.path.name)
    assert (found.query, found.target, found.pool, found.conditioning) == ("test:5", 4, "all", "train")
    assert (found.sigma2, found.sigma2_of("info_gain"), found.budget) == (50.0, 50.0, LARGEST_COMPARED)
    assert found.sigma2_of("info_loss") == (7.0 if purpose == "backdoor" else 3.0)
