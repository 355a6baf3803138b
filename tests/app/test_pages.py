import gc
import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from natscope.app import bundles, garbage, words
from natscope.app.components import clicked
from natscope.app.escape import sentence
from natscope.app.links import SIGMA2_EXPONENTS
from natscope.app.listen import Listening
from natscope.app.serve import BUNDLES, settings
from natscope.app.views import frame
from natscope.app.views import query as query_view
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import Request
from natscope.core.methods import METHODS, rank
from tests.app.conftest import pack_image, serving
from tests.conftest import EACH, one_sentence
from tests.tiny import edited

_MAIN = Path(__file__).parents[2] / "app" / "main.py"


@pytest.fixture
def served(bundle_path, monkeypatch):
    monkeypatch.setenv(BUNDLES, str(bundle_path.parent))


@pytest.fixture
def two_bundles(bundle_path, tmp_path, monkeypatch):
    """Return a folder with the bundle under two names and titles; the files themselves are shared."""
    for name in ("first", "second"):
        _copy(bundle_path, tmp_path / name)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        manifest["name"] = f"The {name} one"
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv(BUNDLES, str(tmp_path))
    return tmp_path


def _copy(bundle, folder):
    shutil.copytree(bundle, folder, copy_function=os.link)
    (folder / "manifest.json").unlink()
    shutil.copy(bundle / "manifest.json", folder)


def _open(**link):
    page = AppTest.from_file(str(_MAIN), default_timeout=60)
    page.query_params.update({"q": "test:0"} | link)  # else it is the front page
    return _whole(page.run())


def _whole(page):
    assert [error.message for error in page.exception] == []
    return page


def _set(page, kind, key, value):
    getattr(page, kind)(key=key).set_value(value)
    return _whole(page.run())


def _click(page, key):
    page.button(key=key).click()
    return _whole(page.run())


def _sentence(page):
    return next(text.value for text in page.markdown if text.value.startswith("##### ")).removeprefix("##### ")


def _cards(page, key):
    """Return what a screen reader says of each card of a grid."""
    grids = [grid for grid in page.get("bidi_component") if grid.key == key]
    return [card["alt"] for card in json.loads(grids[0].proto.json)["items"]] if grids else []


def _ranked(page):
    return [int(alt.split("training image ")[1].split(":")[0]) for alt in _cards(page, "ranking")]


def _gallery(page, split="test"):
    return [int(re.search(r"image (\d+)", alt)[1]) for alt in _cards(page, f"{split}_gallery")]


def _captions(page):
    return [caption.value for caption in page.caption]


def _html(page):
    return " ".join(element.value for element in page.get("html"))


def test_the_page_opens_with_an_answer_in_nats(served, attributor):
    page = _open()
    assert len(page.title) == 1
    assert "nats)" in _sentence(page)
    assert len(_ranked(page)) == 10
    assert [page.error.len, page.warning.len] == [0, 0]
    assert "Test image 0" in _html(page)


def test_the_page_shows_what_the_attributor_answers(served, attributor):
    page = _open(q="test:21", m="4")
    sigma2 = attributor.bundle.sigma2("info_loss")
    result = attributor.attribute(attributor.query("test", 21), Request(sigma2=sigma2, budget=4))
    assert _ranked(page) == [item.train_index for item in result.items]
    assert f"({result.nats:.3g} nats)" in _sentence(page)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers(served, name):
    page = _set(_open(m="5"), "selectbox", "method", name)
    method = METHODS[name]
    assert len(_ranked(page)) == 5
    assert page.query_params.get("method", "info_loss") == name
    assert ("nats)" in _sentence(page)) == bool(method.information)
    assert any(words.informative() in caption for caption in _captions(page)) != bool(method.information)
    assert ("exponent" in [control.key for control in page.select_slider]) == method.uses_sigma2
    assert ("conditioning" in [control.key for control in page.segmented_control]) == method.conditions


def test_a_method_that_the_bundle_lacks_is_offered_and_says_how_to_add_it(two_bundles):
    manifest = json.loads((two_bundles / "first" / "manifest.json").read_text())
    for name in METHODS["trak"].artifacts.names:
        del manifest["files"][name]
    (two_bundles / "first" / "manifest.json").write_text(json.dumps(manifest))
    page = _open()
    assert [o for o in page.selectbox(key="method").options if "not in this bundle" in o] == [
        "TRAK (not in this bundle)"
    ]
    page = _set(page, "selectbox", "method", "trak")
    (error,) = page.error
    assert "TRAK" in error.value
    assert "--methods trak" in error.value
    assert _ranked(page) == []
    page = _set(page, "selectbox", "method", "graddot")
    assert len(page.error) == 0
    assert len(_ranked(page)) == 10


def test_equal_scores_share_a_rank(served, attributor, here, monkeypatch):
    def tied(candidates, query, settings):
        return rank(np.round(np.linspace(3, 0, len(candidates.pool))), settings)

    monkeypatch.setitem(METHODS, "tied", replace(METHODS["repsim"], name="tied", title="Tied", select=tied))
    page = _set(_open(m="3"), "selectbox", "method", "tied")
    assert [alt.split(",")[0] for alt in _cards(page, "ranking")] == ["rank 1="] * 3
    page = _set(page, "selectbox", "method", "repsim")
    assert [alt.split(",")[0] for alt in _cards(page, "ranking")] == ["rank 1", "rank 2", "rank 3"]


def test_what_is_chosen_on_one_tab_is_shown_on_the_others(two_bundles):
    page = _set(_open(q="test:7", bundle="second"), "selectbox", "method", "info_gain")
    page = _set(page, "select_slider", "exponent", 1.75)
    page = _set(page, "segmented_control", "tab", "remove")
    assert {
        "q": "test:7",
        "method": "info_gain",
        "bundle": "second",
        "tab": "remove",
    }.items() <= page.query_params.items()
    assert page.selectbox(key="counterfactual_method").value == "info_gain"
    assert page.select_slider(key="counterfactual_exponent").value == 1.75
    page = _set(page, "text_input", "image_search", "30")
    page = _set(page, "select_slider", "counterfactual_exponent", 2.0)
    page = _set(page, "segmented_control", "tab", "compare")
    assert page.query_params["q"] == "test:30"
    assert "info_gain:100" in page.query_params["own"]
    page = _set(page, "segmented_control", "tab", "attribution")
    assert (page.query_params["q"], page.query_params["method"]) == ("test:30", "info_gain")
    assert page.select_slider(key="exponent").value == 2.0
    page = _set(page, "select_slider", "exponent", 3.0)
    page = _set(page, "segmented_control", "tab", "compare")
    assert "info_gain:1000" in page.query_params["own"]
    again = _open(**page.query_params)
    assert again.query_params == page.query_params
    assert again.segmented_control(key="tab").value == "compare"


def test_another_method_ranks_other_images(served):
    page = _open()
    before = _ranked(page), _sentence(page)
    page = _set(page, "selectbox", "method", "info_gain")
    assert _ranked(page) != before[0]
    assert "smaller" in _sentence(page)
    assert "larger" in before[1]


def test_settings_survive_a_method_that_has_no_use_for_them(served):
    page = _open(sigma2="100", given="train")
    before = _ranked(page), _sentence(page)
    page = _set(page, "selectbox", "method", "repsim")
    page = _set(page, "slider", "budget", 11)
    page = _set(page, "slider", "budget", 10)
    page = _set(page, "selectbox", "method", "info_loss")
    assert (_ranked(page), _sentence(page)) == before
    assert page.select_slider(key="exponent").value == 2


def test_a_gain_after_conditioning_on_everything_is_shared_out_among_its_candidates(served):
    page = _set(_open(given="train"), "selectbox", "method", "info_gain")
    assert f"the {EACH} candidates" in _sentence(page)


def test_why_not_another_class_ranks_that_class(served, attributor):
    page = _open()
    predicted = attributor.query("test", 0).predicted
    other = next(c for c in range(10) if c != predicted)
    name = attributor.bundle.classes[other]
    assert name not in _sentence(page)
    page = _set(page, "selectbox", "target", other)
    assert f"“{name}”" in _sentence(page)
    assert {int(attributor.train_labels[i]) for i in _ranked(page)} == {other}
    assert page.query_params["target"] == str(other)


def test_a_link_to_why_not_its_own_answer_shows_its_answer(served, attributor):
    predicted = attributor.query("test", 0).predicted
    page = _open(target=str(predicted))
    assert f"“{attributor.bundle.classes[predicted]}”" in _sentence(page)
    assert "target" not in page.query_params


def test_another_query_is_asked_for_its_own_answer(served, attributor):
    other = next(c for c in range(10) if c != attributor.query("test", 0).predicted)
    page = _set(_open(target=str(other)), "text_input", "image_search", "30")
    assert "target" not in page.query_params
    assert f"“{attributor.bundle.classes[attributor.query('test', 30).predicted]}”" in _sentence(page)


def test_all_classes_may_be_ranked(served, attributor):
    page = _set(_open(), "segmented_control", "pool", "all")
    assert f"the {10 * EACH:,} candidates" in _sentence(page)
    assert page.query_params["pool"] == "all"
    page = _set(page, "segmented_control", "pool", "same-class")
    assert f"the {EACH} candidates" in _sentence(page)


def test_conditioning_on_all_training_data_changes_the_amount(served):
    page = _open()
    before = _sentence(page)
    page = _set(page, "segmented_control", "conditioning", "train")
    assert "all training images" in _sentence(page)
    assert _sentence(page).split("**")[1] != before.split("**")[1]
    assert page.query_params["given"] == "train"


@pytest.mark.parametrize("budget", [1, 23, 100])
def test_the_budget_is_the_length_of_the_ranking(served, budget):
    page = _set(_open(), "slider", "budget", budget)
    assert len(_ranked(page)) == len(set(_ranked(page))) == budget
    assert _sentence(page).startswith("This image contributes" if budget == 1 else f"These {budget} images contribute")
    assert page.query_params["m"] == str(budget)


def test_sigma2_changes_the_amount_and_the_link(served):
    page = _open()
    before = _sentence(page)
    page = _set(page, "select_slider", "exponent", SIGMA2_EXPONENTS[-1])
    assert _sentence(page) != before
    assert page.query_params["sigma2"] == "100000"
    page = _set(page, "select_slider", "exponent", SIGMA2_EXPONENTS[0] + 1)  # mean k(x, x) is nearest to 10
    assert page.query_params["sigma2"] == "1e-05"


@pytest.mark.parametrize("sigma2", ["1e-06", "0.3", "1.04", "100000"])
def test_any_sigma2_of_the_range_can_be_linked_to(served, sigma2):
    page = _open(sigma2=sigma2)
    offered = page.select_slider(key="exponent").options
    assert len(set(offered)) == len(offered)
    assert page.warning.len == 0
    assert page.query_params["sigma2"] == sigma2


def test_plain_words_name_the_controls_without_symbols(served):
    page = _open()
    assert [page.slider(key="budget").label, page.select_slider(key="exponent").label] == ["M", "σ²"]
    ranked = _ranked(page)
    page = _set(page, "toggle", "plain_words", True)
    assert [page.slider(key="budget").label, page.select_slider(key="exponent").label] == [
        "How many examples",
        "How noisy a single example is",
    ]
    assert "of what the network learnt about it" in _sentence(page)
    assert _ranked(page) == ranked
    assert page.query_params["words"] == "plain"
    assert "of what the network learnt about it" in _sentence(_open(words="plain"))


def test_the_gallery_filters_by_label(served, attributor):
    page = _open()
    assert _gallery(page) == list(range(30))
    page = _set(page, "selectbox", "test_class", 4)
    assert _gallery(page) == np.flatnonzero(attributor.test_labels == 4)[:30].tolist()


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("outcome", ["Right", "Wrong", "Unsure"])
def test_the_gallery_filters_by_what_the_model_makes_of_an_image(served, attributor, split, outcome):
    logits = np.asarray(attributor.bundle.array(f"{split}_logits"), dtype=np.float64)
    labels = np.asarray(attributor.bundle.array(f"{split}_labels"))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = logits.argmax(1) == labels
    expected = np.flatnonzero({"Right": right, "Wrong": ~right, "Unsure": shares.max(1) < 0.6}[outcome])
    page = _set(_open(), "segmented_control", "source", split)
    page = _set(page, "selectbox", f"{split}_outcome", outcome)
    assert _gallery(page, split) == expected[:30].tolist()
    assert f"{len(expected):,} images" in _html(page)


def test_the_gallery_turns_its_pages(served):
    page = _open()
    assert page.button(key="test_turn_Back").disabled
    page = _click(page, "test_turn_More")
    assert _gallery(page) == list(range(30, 60))
    assert "page 2 of 334" in _html(page)
    page = _click(page, "test_turn_Back")
    assert _gallery(page) == list(range(30))


def test_a_filter_brings_a_late_page_back_into_range(served):
    page = _open()
    page.session_state["test_page"] = 333
    page = _whole(page.run())
    assert _gallery(page) == list(range(9990, 10000))
    assert page.button(key="test_turn_More").disabled
    page = _set(page, "selectbox", "test_class", 2)
    assert "page 34 of 34" in _html(page)
    assert len(_gallery(page)) == 10


def test_a_filter_that_nothing_fits_says_so(served, monkeypatch):
    monkeypatch.setattr(query_view, "_UNSURE", 0.0)
    page = _set(_open(), "selectbox", "test_outcome", "Unsure")
    assert ["filters" in info.value for info in page.info] == [True]
    assert _gallery(page) == []
    assert page.button(key="test_random").disabled
    assert "nats)" in _sentence(page)


def test_random_takes_an_image_that_fits_the_filters(served, attributor):
    wanted = next(c for c in range(10) if c != attributor.test_labels[0])
    page = _set(_open(), "selectbox", "test_class", wanted)
    page = _click(page, "test_random")
    origin, number = page.query_params["q"].split(":")
    assert origin == "test"
    assert attributor.test_labels[int(number)] == wanted
    assert f"Test image {number}" in _html(page)


def test_a_number_takes_that_image(served):
    page = _open()
    before = _ranked(page)
    page = _set(page, "text_input", "image_search", "17")
    assert page.query_params["q"] == "test:17"
    assert _ranked(page) != before
    page = _set(page, "segmented_control", "source", "train")
    page = _set(page, "text_input", "train_search", "23")
    assert page.query_params["q"] == "train:23"
    assert "Training image 23" in _html(page)


@pytest.mark.parametrize("pool", ["same-class", "all"])
@pytest.mark.parametrize("name", ["info_loss", "repsim"])
def test_a_training_image_never_explains_itself(served, attributor, pool, name):
    own = _open(
        q=pack_image(np.asarray(attributor.bundle.examples("train").images[7])), method="repsim", pool=pool, m="1"
    )
    assert _ranked(own) == [7]
    page = _open(q="train:7", method=name, pool=pool, m="100", target=str(attributor.train_labels[7]))
    assert len(_ranked(page)) == 100
    assert 7 not in _ranked(page)


def test_the_address_is_read(served):
    page = _open(q="train:8", method="relatif", sigma2="10", m="6", pool="all", given="train", target="0")
    assert page.warning.len == 0
    assert "Training image 8" in _html(page)
    assert page.selectbox(key="method").value == "relatif"
    assert page.select_slider(key="exponent").value == 1
    assert page.slider(key="budget").value == 6
    assert page.segmented_control(key="pool").value == "all"
    assert page.segmented_control(key="conditioning").value == "train"
    assert page.segmented_control(key="source").value == "train"
    assert len(_ranked(page)) == 6


def test_a_link_shows_what_it_was_copied_from(served):
    page = _set(_open(), "selectbox", "method", "info_gain")
    page = _set(page, "select_slider", "exponent", 1.75)
    page = _set(page, "text_input", "image_search", "99")
    again = _open(**page.query_params)
    assert (_ranked(again), _sentence(again)) == (_ranked(page), _sentence(page))
    assert again.query_params == page.query_params


def test_wrong_parameters_are_named_and_the_default_is_shown(served):
    wrong = dict.fromkeys(("q", "method", "sigma2", "m", "pool", "given", "target"), "wrong")
    page = _open(**wrong)
    (said,) = [warning.value for warning in page.warning]
    assert re.findall(r"(\w+) “wrong”", said) == list(wrong)
    assert said.endswith("are not valid; the defaults are shown.")
    assert page.query_params == {
        "q": "test:0",
        "sigma2": "10",
        "m": "10",
        "bundle": "fashion-mnist",
        "tab": "attribution",
    }
    assert (_ranked(page), _sentence(page)) == (_ranked(_open()), _sentence(_open()))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("test:10000", "test image 10000"),
        ("train:15000", "train image 15000"),
        ("image:AAAA", "image in this link"),
    ],
)
def test_a_link_to_no_image_is_answered_by_a_sentence_and_the_first_image(served, query, said):
    page = _open(q=query)
    assert [said in one_sentence(warning.value) for warning in page.warning] == [True]
    assert page.query_params["q"] == "test:0"
    assert _ranked(page) == _ranked(_open())


def _file(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return ("picture.png", file.getvalue(), "image/png")


def test_an_upload_is_the_query_and_a_broken_file_leaves_it_so(served, attributor):
    image = Image.fromarray(np.asarray(attributor.bundle.examples("test").images[40])).resize((112, 112), 0)
    page = _set(_open(), "segmented_control", "source", "image")
    page.file_uploader[0].set_value(_file(image)).run()
    assert page.query_params["q"].startswith("image:")
    assert "Your image" in _html(page)
    assert "what the model sees" in _captions(page)
    ranked = _ranked(page)
    assert _ranked(_open(**page.query_params)) == ranked
    page.file_uploader[0].set_value(("broken.png", b"\x89PNG\r\n\x1a\n" + bytes(50), "image/png")).run()
    assert len(_whole(page).error) == 1
    assert _ranked(page) == ranked


def test_an_upload_may_be_inverted_by_hand(served):
    page = _set(_open(), "segmented_control", "source", "image")
    page.file_uploader[0].set_value(_file(Image.linear_gradient("L").point(lambda v: v // 3))).run()
    assert "what the model sees" in _captions(page)
    as_is = page.query_params["q"]
    page = _set(page, "radio", "invert", "Invert")
    assert page.query_params["q"] != as_is
    assert "what the model sees, inverted" in _captions(page)


def test_an_image_unlike_training_is_marked(served):
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    page = _open(q=pack_image(noise))
    assert len(page.warning) == 1
    assert "out of distribution" in page.warning[0].value


def test_one_bundle_needs_no_choice(served):
    page = _open()
    assert "bundle" not in [box.key for box in page.selectbox]


@pytest.fixture
def server(tiny_path, tmp_path):
    shutil.copytree(tiny_path, tmp_path / "served" / "middle")
    with serving(tmp_path / "served", tmp_path / "log") as address:
        yield address


@pytest.mark.browser
def test_the_chosen_bundle_stays_chosen_on_every_page(visit, server, tmp_path):
    def on(page, name, bundle):
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_url(re.compile(rf"{name.split()[-1].lower()}\?.*bundle={bundle}"), timeout=60_000)

    page, folder = visit("/?q=test:5"), tmp_path / "served"
    page.wait_for_url(re.compile("bundle=middle"), timeout=60_000)
    shutil.copytree(folder / "middle", folder / "an earlier one")
    title = "A title of as many letters as a box shows"
    edited(folder / "an earlier one", lambda raw: raw.update(name=title))
    for name in ("Explain", "Coreset"):
        on(page, name, "middle")
    page.get_by_role("combobox", name="Bundle").click()
    page.get_by_role("option", name=title, exact=True).click()
    page.wait_for_url(re.compile(r"coreset\?.*bundle=an\+earlier\+one"), timeout=60_000)
    beside = page.locator(".stHorizontalBlock:has(> .stColumn .st-key-bundle)")
    long = "line => { line.textContent = 'x'.repeat(300); line.style.whiteSpace = 'nowrap'; }"
    beside.locator("p").first.evaluate(long)  # as what is shown beside the box may be
    for width in (1400, 700, 390):
        page.set_viewport_size({"width": width, "height": 900})
        box = page.get_by_role("combobox", name="Bundle")
        assert box.evaluate("each => each.scrollWidth <= each.clientWidth"), width
        ends = [
            place.evaluate("each => each.getBoundingClientRect().right")
            for place in (beside, page.locator(".st-key-bundle"))
        ]
        assert ends[0] >= ends[1] - 1, width
    page.set_viewport_size({"width": 1400, "height": 900})
    on(page, "Explain", r"an\+earlier\+one")
    shutil.rmtree(folder / "an earlier one")
    on(page, "Coreset", "middle")
    page.get_by_text("There is no bundle “an earlier one” here").wait_for()


def test_a_bundle_that_comes_to_lie_beside_the_only_one_takes_nothing_over(two_bundles):
    (two_bundles / "first").rename(two_bundles.parent / "first")
    page = _open(q="test:3")
    link = dict(page.query_params)
    (two_bundles.parent / "first").rename(two_bundles / "first")
    assert _whole(page.run()).query_params == link
    assert _open(**link).query_params == link


def test_a_bundle_that_is_gone_when_it_is_chosen_leaves_the_one_before(two_bundles):
    shutil.copytree(two_bundles / "second", two_bundles / "third", copy_function=os.link)
    page = _open(bundle="second")
    shutil.rmtree(two_bundles / "third")
    page = _set(page, "selectbox", "bundle", "third")
    assert page.selectbox(key="bundle").value == page.query_params["bundle"] == "second"
    assert ["third" in warning.value for warning in page.warning] == [True]


def test_a_title_follows_its_bundle(two_bundles):
    page = _open(bundle="second")
    first, second = two_bundles / "first", two_bundles / "second"
    first.rename(two_bundles.parent / "first")
    second.rename(first)
    (two_bundles.parent / "first").rename(second)
    box = _whole(page.run()).selectbox(key="bundle")
    assert (box.options, box.value) == (["The second one", "The first one"], "second")


def test_among_several_bundles_one_is_chosen(two_bundles):
    page = _open(m="5")
    assert page.selectbox(key="bundle").options == ["The first one", "The second one"]
    assert page.query_params["bundle"] == "first"
    page = _set(page, "selectbox", "bundle", "second")
    assert page.query_params == {"q": "test:0", "sigma2": "10", "m": "10", "bundle": "second", "tab": "attribution"}
    again = _open(bundle="second", q="test:3", m="5")
    assert again.selectbox(key="bundle").value == "second"
    assert again.query_params == {"q": "test:3", "sigma2": "10", "m": "5", "bundle": "second", "tab": "attribution"}


def test_bundles_of_the_same_title_can_be_told_apart(two_bundles):
    shared = (two_bundles / "first" / "manifest.json").read_bytes()
    (two_bundles / "second" / "manifest.json").write_bytes(shared)
    page = _set(_open(), "selectbox", "bundle", "second")
    assert page.selectbox(key="bundle").options == ["The first one", "The first one (second)"]
    assert page.query_params["bundle"] == "second"


def test_a_bundle_that_comes_to_have_the_same_title_is_not_taken_for_the_chosen_one(two_bundles):
    page = _open(bundle="second", q="test:3")
    shutil.copytree(two_bundles / "second", two_bundles / "another", copy_function=os.link)  # sorted before it
    chosen = page.run().selectbox(key="bundle")
    assert chosen.options == ["The second one (another)", "The first one", "The second one"]
    assert (chosen.value, page.query_params["bundle"]) == ("second", "second")


def test_an_unknown_bundle_in_the_link_gives_the_first(two_bundles):
    page = _open(bundle="third")
    assert ["third" in warning.value for warning in page.warning] == [True]
    assert page.selectbox(key="bundle").value == "first"
    assert "nats)" in _sentence(page)


@pytest.mark.parametrize("file", ["model.safetensors", "features.npy", "manifest.json"])
def test_a_damaged_bundle_is_one_sentence_with_its_mend_and_leaves_the_others(two_bundles, file):
    (two_bundles / "first" / file).unlink()
    (two_bundles / "first" / file).write_bytes(b"{}")
    page = _open()
    assert len(page.error) == 1
    assert "is damaged" in page.error[0].value
    assert "To fix it" in page.error[0].value
    assert page.selectbox(key="bundle").options == ["first (damaged)", "The second one"]
    page = _set(page, "selectbox", "bundle", "second")
    assert len(page.error) == 0
    assert "nats)" in _sentence(page)


@pytest.mark.parametrize("missing", [False, True])
def test_no_bundle_at_all_is_a_sentence_that_says_how_to_make_one(tmp_path, monkeypatch, missing):
    folder = tmp_path / "none" if missing else tmp_path
    monkeypatch.setenv(BUNDLES, str(folder))
    page = _open()
    (error,) = page.error
    assert sentence(f"no bundle in {folder};") in error.value
    assert "`natscope demo`" in error.value


def test_the_methods_page_shows_every_method_and_every_term():
    def script():
        from natscope.app.views.paper import explained

        explained()

    page = _whole(AppTest.from_function(script).run())
    titles = [heading.value for heading in page.subheader]
    assert [title for title in titles if title in {m.title for m in METHODS.values()}] == [
        method.title for method in METHODS.values()
    ]
    reported = [text.value for text in page.markdown]
    for method in METHODS.values():
        assert method.summary in reported
        assert any(f"`--method {method.name}`" in caption for caption in _captions(page))
        assert (f"`--methods {method.name}`" in " ".join(_captions(page))) == bool(method.files)
        assert not method.caveat or any(text.endswith(method.caveat) for text in reported)
        assert any(method.advice in text for text in reported)
    lines = [line for method in METHODS.values() for line in method.formula.split(r",\qquad ")]
    assert [formula.value.strip("$\n") for formula in page.latex] == lines
    assert all(f"**{term}.** {meaning}" in reported for term, meaning in words.GLOSSARY.items())
    assert all(f"- {limit}" in reported for limit in words.LIMITS)


def test_the_index_in_use_is_named_where_one_is_searched(served):
    method = next(m for m in METHODS.values() if m.searches)
    said = words.searched("sq8")
    assert said in _captions(_open(method=method.name))
    assert said not in _captions(_open(method=method.name, pool="all"))
    assert said not in _captions(_open(method=method.approximates))


def test_garbage_is_searched_for_once_for_many_runs_and_libraries_are_left_out(monkeypatch):
    calls = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append("collect"))
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    garbage.tidy.clear()
    garbage._settle.cache_clear()
    for _ in range(3):
        garbage.tidy()
    garbage.tidy.clear()
    garbage.tidy()
    assert calls == ["collect", "freeze", "collect"]
    assert settings(Listening("localhost", "127.0.0.1", 8501, (), ""))["runner.postScriptGC"] is False


def test_the_first_look_at_each_class_is_taken_before_anyone_asks(served, bundle_path, monkeypatch):
    asked = []
    attribute = bundles.Served.attribute

    def note(self, query, request, *, bar=True):
        asked.append((query.predicted, request, bar))
        return attribute(self, query, request, bar=bar)

    monkeypatch.setattr(bundles.Served, "attribute", note)
    bundles.warm()
    bundle = Bundle(bundle_path)
    usual = Request("info_loss", bundle.sigma2("info_loss"), 10)
    answers = np.unique(np.asarray(bundle.array("test_logits")).argmax(axis=1))
    assert asked == [(answer, usual, False) for answer in answers]


def test_many_or_large_classes_are_not_looked_at_before_anyone_asks(served, monkeypatch):
    monkeypatch.setattr(bundles.Served, "attribute", lambda *_, **__: pytest.fail("It was asked."))
    monkeypatch.setattr(bundles, "CLASSES_KEPT", 9)
    bundles.warm()


_PAGES = {
    "attribute": ("text_input", "image_search", "3"),
    "compare": ("text_input", "image_search", "3"),
    "counterfactual": ("text_input", "image_search", "3"),
    "coreset": ("selectbox", "coreset_method", "random"),
}


@pytest.fixture
def open_view(two_bundles):
    """Return a function that opens one page, as `main.py` does."""

    def draw(name):
        from natscope.app.main import EARLIER
        from natscope.app.views import coreset
        from natscope.app.views.notice import errors_shown

        with errors_shown():
            (EARLIER | {"coreset": coreset.page})[name]()

    def open_page(name):
        page = AppTest.from_function(draw, default_timeout=60, args=(name,))
        page.query_params["bundle"] = "first"
        return _whole(page.run())

    return open_page


@pytest.mark.parametrize("name", _PAGES)
def test_a_choice_is_lost_with_the_bundle_that_is_left_at_the_same_moment(open_view, name):
    """The callback of the choice runs after that of the bundle, which forgets the view."""
    page, (kind, key, value) = open_view(name), _PAGES[name]
    page.selectbox(key="bundle").set_value("second")
    getattr(page, kind)(key=key).set_value(value)
    assert _whole(page.run()).selectbox(key="bundle").value == "second"
    assert "second" in page.query_params["bundle"]


@pytest.mark.parametrize("name", _PAGES)
@pytest.mark.parametrize("damage", [False, True])
def test_a_bundle_that_is_renamed_or_damaged_under_an_open_page_is_no_traceback(open_view, two_bundles, name, damage):
    page, (kind, key, value) = open_view(name), _PAGES[name]
    if damage:
        (two_bundles / "first" / "test_logits.npy").unlink()
    else:
        (two_bundles / "first").rename(two_bundles / "third")
    for again in (False, True):
        found = [each for each in page.get(kind) if each.key == key]
        if found:
            found[0].set_value(value)
        if again and not damage:
            page.selectbox(key="bundle").set_value("third")
        page = _whole(page.run())
    assert [error.value for error in page.error if "first" in error.value] if damage else not page.error


def test_what_a_page_left_undone_with_its_view_harms_nobody(monkeypatch):
    session_state = {"picks": {"picked": True}}
    monkeypatch.setattr("streamlit.session_state", session_state)
    frame.change("view", query="test:1")
    frame.forget_usual("view", "exponent")
    assert (clicked("picks", "picked"), clicked("gone", "picked")) == (None, None)
    session_state["picks"]["picked"] = 1
    assert clicked("picks", "picked") == 1
    assert "view" not in session_state
