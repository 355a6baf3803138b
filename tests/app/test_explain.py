"""The front page, and what the tabs of Explain have in common."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import expect
from scipy.special import softmax
from streamlit.testing.v1 import AppTest

from natscope.app.serve import BUNDLES
from natscope.app.views.query import _filtered, _sorted
from natscope.app.views.tags import read
from natscope.core.bundle.request import Request
from tests.app.conftest import serving

expect.set_options(timeout=30_000)  # a busy machine is no failure
_MAIN = Path(__file__).parents[2] / "app" / "main.py"
# Waits for what moves within an element.
_AT_REST = "element => Promise.all(element.getAnimations({subtree: true}).map(animation => animation.finished))"


@pytest.fixture
def served(bundle_path, monkeypatch):
    monkeypatch.setenv(BUNDLES, str(bundle_path.parent))


@pytest.fixture(scope="module")
def server(bundle_path, tmp_path_factory):
    with serving(bundle_path, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


def _open(**link):
    page = AppTest.from_file(str(_MAIN), default_timeout=60)
    page.query_params.update(link)
    page.run()
    assert [error.message for error in page.exception] == []
    return page


def _html(page):
    return " ".join(element.value for element in page.get("html"))


def _cards(page, key):
    grids = [json.loads(g.proto.json) for g in page.get("bidi_component") if g.key == key]
    return grids[0]["items"] if grids else None


def _surest_mistake(attributor):
    sure = softmax(np.asarray(attributor.bundle.array("test_logits"), dtype=np.float64), axis=1)
    wrong = sure.argmax(axis=1) != attributor.test_labels
    return int(np.where(wrong, sure.max(axis=1), 0).argmax())


def test_the_front_page_shows_a_wrong_prediction_what_is_behind_it_and_where_to_go(served, attributor):
    page, index = _open(), _surest_mistake(attributor)
    shown, classes = _html(page), attributor.bundle.classes
    query = attributor.query("test", index)
    assert not page.error
    assert f"q=test%3A{index}&amp;" in shown
    assert f"The network predicts <b>{classes[query.predicted]}</b>, but this image is labelled" in shown
    assert f"<b>{classes[query.label]}</b>" in shown
    assert shown.count(f"labelled {classes[query.predicted]}</span>") == 3
    for door in (f"explain?bundle=fashion-mnist&amp;q=test%3A{index}", "paper"):
        assert f'href="{door}"' in shown
    assert "Catch a backdoor" not in shown  # no bundle has one


def test_a_wrong_prediction_shows_what_supports_its_label_beside_what_supports_the_answer(served, attributor):
    index = _surest_mistake(attributor)
    query = attributor.query("test", index)
    page = _open(q=f"test:{index}", m="5")
    asked = Request(sigma2=attributor.bundle.sigma2("info_loss"), budget=5)
    answers = [attributor.attribute(query, Request(**(vars(asked) | {"target": t}))) for t in (None, query.label)]
    cards = [_cards(page, key) for key in ("ranking", "ranking_of_the_label")]
    for answer, drawn in zip(answers, cards, strict=True):
        assert [int(re.search(r"training image (\d+)", card["alt"])[1]) for card in drawn] == [
            item.train_index for item in answer.items
        ]
    assert {card["caption"] for card in cards[1]} == {attributor.bundle.classes[query.label]}
    assert max(card["strength"] for row in cards for card in row) == pytest.approx(1)
    first = [answer.items[0].nats for answer in answers]
    assert cards[1][0]["strength"] / cards[0][0]["strength"] == pytest.approx(first[1] / first[0])
    assert _cards(_open(q="test:0"), "ranking_of_the_label") is None
    assert _cards(_open(q=f"test:{index}", target=str(query.label)), "ranking_of_the_label") is None


def test_images_are_found_by_label_prediction_and_how_sure_it_is(attributor):
    logits, labels = np.asarray(attributor.bundle.array("test_logits")), attributor.test_labels
    found = _filtered(logits, labels, 6, 0, "All")
    assert len(found)
    assert set(labels[found]) == {6}
    assert set(logits[found].argmax(axis=1)) == {0}
    assert np.array_equal(found, _filtered(logits, labels, 6, 0, "Wrong"))
    sure = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    assert np.array_equal(_sorted(found, logits, "By number"), found)
    assert (np.diff(sure[_sorted(found, logits, "Least sure first")]) >= 0).all()
    assert (np.diff(sure[_sorted(found, logits, "Surest first")]) <= 0).all()


@pytest.mark.browser
def test_back_shows_the_image_before_and_reload_keeps_everything(visit):
    page = visit("/explain?q=test:5")

    def shows(image, tab):
        expect(page.locator(".ns-verdict")).to_contain_text(f"Test image {image} ", timeout=30_000)
        expect(page).to_have_url(re.compile(rf"q=test%3A{image}&.*tab={tab}"), timeout=30_000)
        expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)

    shows(5, "attribution")
    for image in (6, 7):
        page.get_by_role("button", name="Next image").click()
        shows(image, "attribution")
    page.get_by_text("Curves", exact=True).click()
    shows(7, "curves")
    page.get_by_role("button", name="Previous image").click()
    shows(6, "curves")
    for image, tab in ((7, "curves"), (7, "attribution"), (6, "attribution"), (5, "attribution")):
        page.go_back()
        shows(image, tab)
    page.go_forward()
    shows(6, "attribution")
    page.reload()
    shows(6, "attribution")


def _listens(page):
    """Wait until the page listens to keys, and draws nothing."""
    page.locator(".st-key-image_keys span").first.wait_for(state="attached", timeout=30_000)
    expect(page.get_by_role("group", name="Training images ranked by").locator(".picture")).to_have_count(10)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)
    page.wait_for_timeout(1000)


@pytest.mark.browser
def test_the_keyboard_goes_to_the_next_image_and_to_a_number(visit):
    page = visit("/explain?q=test:5")
    verdict = page.locator(".ns-verdict")
    expect(verdict).to_contain_text("Test image 5 ", timeout=30_000)
    _listens(page)
    page.keyboard.press("ArrowRight")
    expect(verdict).to_contain_text("Test image 6 ", timeout=30_000)
    page.keyboard.press("ArrowLeft")
    expect(verdict).to_contain_text("Test image 5 ", timeout=30_000)
    page.keyboard.press("/")
    page.keyboard.type("77")
    page.keyboard.press("Enter")
    expect(verdict).to_contain_text("Test image 77 ", timeout=30_000)


@pytest.mark.browser
def test_a_cell_of_the_confusion_matrix_shows_the_images_behind_it(visit, attributor):
    page, logits = visit("/explain?q=test:5"), np.asarray(attributor.bundle.array("test_logits"))
    count = int(((attributor.test_labels == 6) & (logits.argmax(axis=1) == 0)).sum())
    page.get_by_text("Find another image").click()
    cell = page.get_by_role("button", name=f"{count} images labelled Shirt, predicted T-shirt/top", exact=True)
    cell.click()
    expect(page.get_by_text(f"{count:,} images")).to_be_visible(timeout=30_000)
    expect(cell).to_have_attribute("aria-pressed", "true", timeout=30_000)
    cell.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("button", name=re.compile("labelled Shirt, predicted Trouser"))).to_be_focused()
    cell.click()
    expect(page.get_by_text("10,000 images")).to_be_visible(timeout=30_000)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("address", "tab"),
    [
        ("/?q=test:9&method=info_gain", "attribution"),
        ("/attribute?q=test:9", "attribution"),
        ("/compare?q=test:9&methods=repsim,random", "compare"),
        ("/counterfactual?q=test:9", "remove"),
        ("/curves?q=test:9", "curves"),
    ],
)
def test_an_address_of_an_earlier_version_shows_its_tab(visit, address, tab):
    page = visit(address)
    expect(page.locator(".ns-verdict")).to_contain_text("Test image 9 ", timeout=30_000)
    expect(page).to_have_url(re.compile(rf"q=test%3A9&.*tab={tab}"), timeout=30_000)


@pytest.mark.browser
def test_tags_are_collected_survive_a_reload_and_are_exported(visit, attributor):
    page = visit("/explain?q=test:5")
    expect(page.get_by_role("group", name="Training images ranked by").locator(".picture")).to_have_count(10)

    page.get_by_role("button", name="Tag", exact=True).click()
    page.get_by_placeholder("Other tag").fill("=looks wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("radio", name="=looks wrong")).to_be_checked(timeout=30_000)
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text("Tagged images (1)")).to_be_visible(timeout=30_000)
    page.get_by_role("group", name="Training images ranked by").locator(".picture").first.click()
    page.get_by_role("dialog").get_by_role("radio", name="duplicate").click(timeout=30_000)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text("Tagged images (2)")).to_be_visible(timeout=30_000)
    page.reload()
    expect(page.get_by_role("group", name="Training images ranked by").locator(".picture")).to_have_count(10)
    expect(page.get_by_role("group", name="Training images ranked by").locator(".tag")).to_have_text("duplicate")
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)
    page.get_by_text("Tagged images (2)").click()
    expect(page.get_by_role("group", name="Tagged images").locator(".picture")).to_have_count(2)
    # What opens moves for half a second, and with it what is clicked.
    tray = page.get_by_test_id("stExpander").filter(has_text="Tagged images")
    tray.evaluate(_AT_REST)
    with page.expect_download() as download:
        tray.get_by_role("button", name="CSV").click()
    first = attributor.attribute(attributor.query("test", 5), Request(sigma2=attributor.bundle.sigma2("info_loss")))
    lines = Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "data,image,source,tag,label,predicted,confidence,tagged_for,link"
    name = attributor.bundle.manifest.name
    assert lines[1].startswith(f'"{name}",test:5,test row 5,\'=looks wrong,')
    assert lines[2].startswith(f'"{name}",train:{first.items[0].train_index},{first.items[0].source},duplicate,')
    assert f",,{page.url.partition('?')[0]}?q=test%3A5&" in lines[1]
    assert f",test:5,{page.url.partition('?')[0]}?q=test%3A5&" in lines[2]  # tagged for the prediction of this one
    page.get_by_role("button", name="Remove all tags").click()
    expect(page.get_by_text("Tagged images")).to_have_count(0, timeout=30_000)


@given(st.text() | st.dictionaries(st.text(), st.dictionaries(st.text(), st.text() | st.integers())).map(json.dumps))
def test_whatever_a_browser_sends_as_tags_is_no_error(text):
    for tags in read(text).values():
        for image, said in tags.items():
            assert re.fullmatch(r"(train|test):\d{1,9}", image)
            assert 0 < len(said.partition("\t")[0]) <= 60
            assert re.fullmatch(r"((train|test):\d{1,9})?", said.partition("\t")[2])


def test_tags_come_back_as_they_were_kept_without_what_is_none():
    kept = {
        "one": {"train:3": "duplicate", "test:04": " my words ", "train:x": "no", "image:3": "no", "test:5": 7},
        "b": 3,
    }
    asked = {"train:3": "duplicate\ttest:07", "train:4": "x\tjavascript:5", "train:5": "\ttest:5"}
    assert read(json.dumps({"one": asked})) == {"one": {"train:3": "duplicate\ttest:7", "train:4": "x"}}
    assert read(json.dumps(kept)) == {"one": {"train:3": "duplicate", "test:4": "my words"}}
    assert read("[" * 100_000) == {}
    assert len(read(json.dumps({"one": {f"train:{i}": "x" * 99 for i in range(2000)}}))["one"]) == 1000


@pytest.mark.browser
def test_keys_choose_the_method_and_list_themselves(visit):
    page = visit("/explain?q=test:5")
    _listens(page)
    page.keyboard.press("2")
    expect(page).to_have_url(re.compile("method=info_gain"), timeout=30_000)
    expect(page.get_by_role("group", name="Training images ranked by InfoGain")).to_be_visible(timeout=30_000)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("previous and next image", timeout=30_000)


@pytest.mark.browser
def test_back_out_of_another_place_keeps_what_explain_showed(visit):
    page = visit("/explain?q=test:7&sigma2=100&m=7")
    cards = page.get_by_role("group", name="Training images ranked by").locator(".picture")
    expect(cards).to_have_count(7)
    page.get_by_role("link", name="Coreset", exact=True).click()
    expect(page).to_have_url(re.compile(r"/coreset\?bundle=[\w-]+$"), timeout=30_000)  # nothing of Explain's settings
    page.get_by_role("link", name="Explain", exact=True).click()
    expect(page).to_have_url(re.compile(r"/explain\?q=test%3A7&"), timeout=30_000)
    for _ in range(4):  # past Coreset, and addresses of a place alone
        page.go_back()
        page.wait_for_timeout(2500)
        if "/explain?" in page.url:
            break
    expect(page.locator(".ns-verdict")).to_contain_text("Test image 7 ", timeout=30_000)
    expect(page).to_have_url(re.compile(r"/explain\?q=test%3A7&sigma2=100&m=7&"), timeout=30_000)
    expect(cards).to_have_count(7)


def test_curves_of_no_test_image_are_the_mean_and_their_controls_move(served):
    page = _open(q="train:3", tab="curves")
    page.slider(key="curves_count").set_value(30)
    page.run()
    assert page.slider(key="curves_count").value == 30
    assert page.query_params["n"] == "30"
    assert page.toggle(key="curves_mean").disabled


def test_tags_of_surrogates_and_of_other_bundles_are_no_harm(served):
    assert read('{"one": {"test:5": "a\\ud800b"}}')["one"]["test:5"].encode() == b"a\\ud800b"
    page = _open(q="test:5")
    page.button(key="tag_query_button").click()
    page.run()
    page.pills(key="tag_query_test:5_1").set_value("duplicate")
    page.run()
    assert [box.label for box in page.expander if "Tagged" in box.label] == ["Tagged images (1)"]
    page.button(key="untag").click()
    page.run()
    assert not page.pills(key="tag_query_test:5_1").value
    assert not [box for box in page.expander if "Tagged" in box.label]


def test_the_field_goes_to_the_same_number_again(served):
    page = _open(q="test:5")
    for _ in range(2):
        page.text_input(key="image_search").set_value("77")
        page.run()
        assert page.query_params["q"] == "test:77"
        page.button(key="next_image").click()
        page.run()
        assert page.query_params["q"] == "test:78"


def test_the_field_finds_files_one_after_another(served):
    page = _open(q="test:5")

    def search(text):
        page.text_input(key="image_search").set_value(text)
        page.run()
        return page.query_params["q"], [toast.value for toast in page.toast]

    assert search("TEST ROW 12")[0] == "test:12"  # and not 120, which also contains it
    number, said = search("row 12")
    assert number == "test:12"
    assert "of 111 files" in said[0]
    assert search("row 12")[0] == "test:120"
    number, said = search("nowhere*")
    assert number == "test:120"
    assert said == ["No test image has the number or file name “nowhere\\*”."]


def test_a_signed_method_shows_what_speaks_against(served, attributor):
    query, asked = attributor.query("test", 3), Request("relatif", attributor.bundle.sigma2("relatif"))
    page = _open(q="test:3", method="relatif")
    rows, scores = attributor.score_each(query, asked)
    last = rows[np.argsort(scores, kind="stable")[:10]]
    shown = [int(re.search(r"training image (\d+)", card["alt"])[1]) for card in _cards(page, "against")]
    assert shown == [row for row in last.tolist() if scores[rows == row][0] < 0]
    assert all(card["tone"] == "against" for card in _cards(page, "against"))
    assert _cards(_open(q="test:3", method="info_loss"), "against") is None


def test_a_click_opens_the_inspector_of_that_image_alone(served, attributor):
    page = _open(q="test:3")
    assert "A closer look" not in _html(page)
    assert not _cards(page, "neighbours")
    page.session_state["inspected"] = ("attribution", "test:3", (4, 9), 1)
    page.run()
    assert "Training image 9" in _html(page)
    assert len(_cards(page, "neighbours")) == 5
    page.session_state["inspected"] = ("attribution", "test:4", (4, 9), 1)  # of another query, which was left
    page.run()
    assert "Training image 9" not in _html(page)
    page.session_state["inspected"] = ("attribution", "test:3", (10**6,), 0)  # of another bundle
    page.run()
    assert [error.message for error in page.exception] == []


@pytest.mark.browser
def test_a_list_of_pictures_is_one_stop_of_the_tab_key_and_arrows_go_on(visit):
    page = visit("/explain?q=test:5")
    cards = page.get_by_role("group", name="Training images ranked by").locator(".picture")
    expect(cards).to_have_count(10)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    assert [card.get_attribute("tabindex") for card in cards.all()] == ["0"] + ["-1"] * 9
    cards.first.focus()
    for key, place in (("ArrowRight", 1), ("End", 9), ("ArrowLeft", 8), ("Home", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        expect(cards.nth(place)).to_be_focused()
    expect(page).to_have_url(re.compile("q=test(%3A|:)5"))  # the arrows were the list's


@pytest.mark.browser
def test_the_first_tag_leaves_the_focus_where_it_was(visit):
    page = visit("/explain?q=test:5")
    card = page.get_by_role("group", name="Training images ranked by").locator(".picture").nth(2)
    card.focus()
    page.keyboard.press("Enter")
    choice = page.get_by_role("dialog").get_by_role("radio", name="mislabelled")
    choice.focus()
    page.keyboard.press("Space")
    expect(choice).to_be_checked(timeout=30_000)
    expect(choice).to_be_focused()
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    page.keyboard.press("Escape")
    expect(card).to_be_focused(timeout=30_000)
    expect(card.locator(".tag")).to_have_text("mislabelled")


def test_a_blank_is_no_tag_and_takes_none_away(served):
    page = _open(q="test:5")
    page.button(key="tag_query_button").click()
    page.run()
    page.pills(key="tag_query_test:5_1").set_value("duplicate")
    page.run()
    page.text_input(key="tag_query_test:5_1_typed").set_value("  ")
    page.run()
    assert [box.label for box in page.expander if "Tagged" in box.label] == ["Tagged images (1)"]
    page.text_input(key="tag_query_test:5_1_typed").set_value(" my *own* words ")
    page.run()
    assert page.pills(key="tag_query_test:5_1").value == "my *own* words"


@pytest.mark.browser
def test_two_tags_of_one_dialog_are_both_there_after_a_reload_on_another_page(visit):
    page = visit("/explain?q=test:5")
    page.get_by_role("group", name="Training images ranked by").locator(".picture").first.click()
    dialog = page.get_by_role("dialog")
    for word in ("duplicate", "interesting"):
        dialog.get_by_role("radio", name=word).click(timeout=30_000)
        expect(dialog.get_by_role("radio", name=word)).to_be_checked(timeout=30_000)
        dialog.get_by_role("button", name="Next").click()
        expect(dialog.get_by_role("radio", name=word)).not_to_be_checked(timeout=30_000)
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_text("Tagged images (2)")).to_be_visible(timeout=30_000)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=30_000)
    page.wait_for_function("Object.keys(Object.values(JSON.parse(localStorage['natscope tags']))[0]).length == 2")
    page.goto(page.url.partition("/explain")[0] + "/coreset")
    expect(page.locator(".grid").first).to_be_visible(timeout=60_000)
    page.goto(page.url.partition("/coreset")[0] + "/explain?q=test:6")
    expect(page.get_by_text("Tagged images (2)")).to_be_visible(timeout=30_000)


def test_a_tab_that_does_not_exist_is_said_and_the_rest_of_the_link_shown(served):
    page = _open(q="test:7", m="3", tab="bogus")
    assert [warning.value for warning in page.warning] == ["The link's tab “bogus” is not valid; the default is shown."]
    assert (page.query_params["q"], page.query_params["m"]) == ("test:7", "3")
