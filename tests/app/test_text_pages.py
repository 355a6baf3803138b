"""Pages of a bundle of texts: cards, words and their shares, a text of one's own, links, search, files."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from natscope import assets
from natscope.app import bundles
from natscope.app.figures.sheets import ranking_file
from natscope.app.links import open_query
from natscope.app.modalities import packed, page_of
from natscope.app.modalities.texts import ENGLISH, LONGEST_LINK
from natscope.app.serve import BUNDLES
from natscope.app.views import compare
from natscope.app.views.word_links import excerpt, pieces_of
from natscope.core.bundle.request import Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, REFERENCE
from natscope.core.texts import texts_of
from natscope.core.tokens import SEPARATOR
from natscope.core.words import words_of
from natscope.precompute.answer import open as open_bundle
from natscope.precompute.bundles.demo import untuned
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.data.tokenizing import trained
from tests.app.conftest import pack_image, serving
from tests.tiny import build_tiny_texts, edited

_DOCS = Path(__file__).parents[2] / "docs"
_PHONE = {"viewport": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "bundles"
    folder.mkdir()
    build_tiny_texts(folder / "reviews")
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with serving(folder, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.fixture
def served(folder):
    return bundles.Served(bundles.tasks.Place.of(folder / "reviews"))


def _pair():
    tokenizer = trained(["a fine day", "rain"], vocabulary=50)
    return texts_of(
        [SEPARATOR.join(("a fine day", "rain")), SEPARATOR.join(("rain " * 200 + "end", "<i>fine</i>"))],
        tokenizer,
        columns=("premise", "hypothesis"),
        longest=40,
    )


def test_a_card_shows_both_parts_of_a_pair_and_of_a_long_text_the_beginning():
    look = page_of(_pair().modality).look
    assert look(_pair(), 0) == {"text": [("a fine day", 0.0), ("\n", 0.0), ("rain", 0.0)]}
    (first, _), _, (second, _) = look(_pair(), 1)["text"]
    assert len(first) < 160
    assert first.endswith("rain …")
    assert second == "<i>fine</i>"


def test_texts_that_were_chosen_are_sent_without_the_others():
    texts = _pair()
    sent = pickle.dumps(texts[np.array([0])])
    assert len(sent) < len(pickle.dumps(texts)) - 500
    assert pickle.loads(sent).parts(0) == ("a fine day", "rain")  # safe: made two lines above


def test_a_text_of_ones_own_is_in_the_link(served):
    example = served.bundle.examples("train").given("The film is <b>fine</b>.\nÀ bientôt")
    query = open_query(packed(example), served)
    assert query.example.parts(0) == example.parts(0)
    assert (query.origin, query.index) == ("upload", None)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("text:!!!!", "damaged"),
        ("text:" + "A" * (LONGEST_LINK + 1), "damaged"),
        (pack_image(np.zeros((4, 4), np.uint8)), "asks about an image, and this bundle's examples are texts"),
    ],
)
def test_a_link_that_holds_no_text_of_this_bundle_says_so(served, query, message):
    with pytest.raises(QueryError, match=message):
        open_query(query, served)


def test_a_text_too_long_for_a_link_is_refused(served):
    letters = np.random.default_rng(0).integers(97, 123, 20_000).astype(np.uint8).tobytes().decode()
    with pytest.raises(QueryError, match="too long for a link"):
        packed(served.bundle.examples("train").given(letters))


def test_a_ranking_is_drawn_and_shown_in_a_notebook(folder):
    explainer = open_bundle(folder / "reviews")
    answer = explainer.explain(0, budget=3)
    assert ranking_file(answer.query, answer.examples, answer.attribution, answer.classes, kind="PNG").startswith(
        b"\x89PNG"
    )
    shown = answer._repr_html_()
    assert shown.count("ns-text") == 4
    assert "<b>bad" not in shown
    assert "<img" not in shown


def test_the_excerpt_of_a_card_holds_the_words_that_carry_most():
    text = " ".join(f"word{number}" for number in range(200))
    spans = np.array([match.span() for match in re.finditer(r"\w+", text)])
    words = words_of(text, spans)
    shares = np.zeros(201)
    shares[150], shares[151] = 0.5, -0.2
    found = excerpt(text, words.spans, shares, 0.5)
    assert found[0] == ("… ", 0.0)
    tints = {said: tint for said, tint in found if tint}
    assert list(tints) == ["word150", "word151"]
    assert tints["word150"] > 0 > tints["word151"]
    assert "".join(said for said, *_ in pieces_of(text, words.spans, shares, 0.5)) == text


def test_links_of_a_ranking_are_those_of_the_kernel(served, here):
    query = served.query("test", 0)
    result = served.attribute(query, Request(REFERENCE, served.bundle.sigma2(REFERENCE), 3))
    rows = tuple(item.train_index for item in result.items)
    links = served.word_links(query, result.target, rows)
    features = np.asarray(served.bundle.array("features"))
    for row, link in zip(rows, links, strict=True):
        own = served.word_links(served.query("train", row), result.target, (row,))[0]
        assert own.total == pytest.approx(float(features[row].astype(np.float64) @ features[row]), rel=0.02)
        assert link.shares().sum() == pytest.approx(1)


def _drawn(monkeypatch, folder, page, **link):
    def draw(page):
        import importlib

        importlib.import_module(f"natscope.app.views.{page}").page()

    monkeypatch.setenv(BUNDLES, str(folder))
    app = AppTest.from_function(draw, default_timeout=120, args=(page,))
    app.query_params.update(link)
    app.run()
    assert [error.message for error in app.exception] == []
    return app


@pytest.mark.parametrize("tab", ["attribution", "compare", "remove", "curves", "map"])
def test_every_tab_speaks_of_texts(monkeypatch, folder, here, tab):
    app = _drawn(monkeypatch, folder, "explain", tab=tab, q="test:1")
    said = [each.value for kind in ("title", "subheader", "markdown", "caption", "info") for each in app.get(kind)]
    said += [each.label for kind in ("button", "selectbox", "slider", "toggle", "expander") for each in app.get(kind)]
    measured = ("**Fashion-MNIST", "**CIFAR-10")  # in the paper's experiments, of images
    assert not [text for text in said if re.search(r"\bimages?\b", text) and not text.startswith(measured)]
    assert any(re.search(r"\btexts?\b", text) for text in said)


@pytest.mark.parametrize("page", ["coreset", "front"])
def test_other_pages_show_texts(monkeypatch, folder, here, page):
    app = _drawn(monkeypatch, folder, page)
    shown = [each.proto.body for each in app.get("html")] + [each.proto.json for each in app.get("bidi_component")]
    assert any(re.search("The (film|book|play|song|dance|tale) is", text) for text in shown)
    assert not app.error


@pytest.mark.parametrize("poison", [None, PoisonSpec(rate=0.1, size=1, place="start")])
def test_the_front_page_leads_to_a_backdoor_where_there_is_one(monkeypatch, tmp_path, here, poison):
    build_tiny_texts(tmp_path / "reviews", poison=poison)
    shown = " ".join(each.proto.body for each in _drawn(monkeypatch, tmp_path, "front").get("html"))
    assert "See the paper" in shown
    assert ("Catch a backdoor" in shown) == (poison is not None)


@pytest.mark.parametrize("page", ["explain", "coreset", "paper"])
def test_what_no_page_knows_of_a_link_is_said(monkeypatch, folder, here, page):
    app = _drawn(monkeypatch, folder, page, bundle="reviews", q="test:1", nonsense="1", utm_source="mail")
    assert [each.value for each in app.warning] == ["The link's “nonsense” means nothing on this page and is ignored."]
    assert "nonsense" not in app.query_params
    app = _drawn(monkeypatch, folder, page, tab="nonsense", what="1", where="2")
    said = [each.value for each in app.warning]
    if page == "coreset":
        assert said == ["The link's “tab”, “what” and “where” mean nothing on this page and are ignored."]
    else:
        assert sorted(said) == [
            "The link's tab “nonsense” is not valid; the default is shown.",
            "The link's “what” and “where” mean nothing on this page and are ignored.",
        ]


def test_a_title_too_long_for_its_box_is_below_it(monkeypatch, tmp_path, folder, here):
    for name in ("one", "two"):
        shutil.copytree(folder / "reviews", tmp_path / name)
    edited(
        tmp_path / "two", lambda raw: raw.update(name="What is *this* that a customer writes to us about on a Monday?")
    )
    captions = [
        [each.value for each in _drawn(monkeypatch, tmp_path, "explain", bundle=name).caption]
        for name in ("one", "two")
    ]
    assert [any("on a Monday" in each for each in found) for found in captions] == [False, True]
    assert any(r"\*this\*" in each for each in captions[1])


def test_page_backdoor_of_no_poisoned_bundle_says_so(monkeypatch, folder, here):
    app = _drawn(monkeypatch, folder, "backdoor")
    assert "None of the served bundles holds a model with a backdoor" in app.info[0].value


def test_page_backdoor_tells_what_was_planted_in_texts(monkeypatch, tmp_path, here):
    build_tiny_texts(tmp_path / "poisoned", poison=PoisonSpec(rate=0.1, size=1, place="start"))
    app = _drawn(monkeypatch, tmp_path, "backdoor")
    assert "this bundle’s backdoor is in texts" in app.info[0].value
    said = [each.value for each in app.markdown]
    assert any("training texts** have a trigger at their start" in each for each in said)
    assert any(each.startswith("Someone who supplies training texts wants the model to fail") for each in said)
    assert not any(re.search("picture|four steps", each) for each in said)
    assert not app.error


def test_the_chosen_word_is_in_the_link_until_another_text_is_explained(monkeypatch, folder, here):
    app = _drawn(monkeypatch, folder, "explain", q="test:1", word="2")
    assert any(each.value.startswith("Ranked by the share of") for each in app.markdown)
    assert app.query_params["word"] in ("2", ["2"])
    app.button(key="next_image").click().run()
    assert "word" not in app.query_params
    assert not any(each.value.startswith("Ranked by the share of") for each in app.markdown)


def test_words_that_cannot_be_linked_are_not_blamed_on_the_word_of_a_link(monkeypatch, folder, here):
    def refuse(*asked):
        raise QueryError("The words of this text cannot be linked.")

    monkeypatch.setattr(bundles.Served, "word_links", refuse)
    app = _drawn(monkeypatch, folder, "explain", q="test:1", word="2")
    assert [each.value for each in app.error] == ["The words of this text cannot be linked."]
    assert not app.warning
    assert app.query_params["word"] in ("2", ["2"])
    assert any("ranked by" in each.proto.json for each in app.get("bidi_component"))


@pytest.mark.parametrize(("tab", "brief"), [("attribution", True), ("compare", True), ("curves", False)])
def test_the_query_takes_one_line_where_all_of_it_is_shown_further_down(monkeypatch, folder, here, tab, brief):
    app = _drawn(monkeypatch, folder, "explain", tab=tab, q="test:1")
    (bar,) = [each.proto.body for each in app.get("html") if "ns-query" in each.proto.body]
    assert ('<div class="ns-query brief">' in bar) is brief


def test_a_gallery_shows_a_dozen_texts_at_once(monkeypatch, folder, here):
    app = _drawn(monkeypatch, folder, "explain", q="train:0")
    shown = [json.loads(each.proto.json) for each in app.get("bidi_component") if "to choose from" in each.proto.json]
    assert [len(each["items"]) for each in shown] == [12]


def test_english_of_the_length_that_the_field_names_fits_a_link(served):
    english = " ".join(path.read_text(encoding="utf-8") for path in sorted(_DOCS.glob("*.md")))[:ENGLISH]
    assert len(english) == ENGLISH
    assert packed(served.bundle.examples("train").given(english)).startswith("text:")


def test_a_text_that_is_too_long_is_refused_in_a_sentence(monkeypatch, folder, here):
    app = _drawn(monkeypatch, folder, "explain", q="test:1")
    app.segmented_control(key="source").set_value("image").run()
    assert any("some 12,000 characters of English" in each.value for each in app.caption)
    letters = np.random.default_rng(0).integers(97, 123, 20_000).astype(np.uint8).tobytes().decode()
    app.text_area(key="upload_text_0").set_value(letters)
    next(each for each in app.button if each.label == "Explain this text").click().run()
    assert [each.value for each in app.error] == ["The text is too long for a link, which keeps it; give a part of it."]
    next(each for each in app.button if each.label == "Next text").click().run()
    assert not app.error


def test_a_pinned_text_is_named_by_its_beginning(served):
    own = packed(served.bundle.examples("train").given("The film is fine, says everyone who saw it."))
    assert compare._pin_title(served, own, 2) == "2: The film is fine, says …"
    assert compare._pin_title(served, "test:5", 1) == "test 5"
    assert compare._pin_title(served, "text:!", 3) == "upload 3"


@pytest.mark.parametrize("word", ["9999", "-1", "x"])
def test_a_link_with_a_wrong_word_says_so_once(monkeypatch, folder, here, word):
    app = _drawn(monkeypatch, folder, "explain", q="test:1", word=word)
    assert [each.value for each in app.warning] == [f"The link's word “{word}” is not valid; the default is shown."]
    assert "word" not in app.query_params


def test_the_page_says_which_words_the_network_does_not_know(monkeypatch, folder, here, served):
    asked = packed(served.bundle.examples("train").given("The film is zxqv."))
    app = _drawn(monkeypatch, folder, "explain", q=asked)
    assert any("1 word is unknown to the network: “\u2068zxqv\u2069”." in each.proto.body for each in app.get("html"))
    assert any('"unknown"]' in each.proto.json for each in app.get("bidi_component"))


def test_a_search_by_words_is_done_by_a_worker(served, here):
    texts = served.bundle.examples("test")
    wanted = texts.text(3).split()[1]
    found = [row for row in range(len(texts)) if wanted.casefold() in texts.text(row).casefold()]
    assert served.saying("test", wanted.upper()) == found


@pytest.mark.browser
def test_words_are_chosen_by_keyboard_and_pairs_are_drawn(visit):
    page = visit("/explain?q=test:0")
    ranking = page.get_by_role("group", name="Training texts ranked by")
    expect(ranking.locator(".picture")).to_have_count(10, timeout=60_000)
    first = ranking.locator(".picture").first
    expect(first).to_have_attribute(
        "aria-label", re.compile(r"strongest words: “.+” [+-].+; \d+% of this link belongs to no word")
    )
    assert ranking.locator(".text b").count() == 0  # a text is no HTML
    words = page.get_by_role("group", name="Words of the query").get_by_role("button")
    expect(page.get_by_text("it is not what would happen without the word").first).to_be_visible()
    assert words.evaluate_all("all => all.filter(each => each.tabIndex === 0).length") == 1
    words.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile("Ranked by the share of"))).to_be_visible(timeout=60_000)
    chosen = page.get_by_role("group", name="Words of the query").locator('[aria-pressed="true"]')
    expect(chosen).to_have_count(1)
    expect(chosen).to_be_focused()
    shares = [float(text.rstrip("%")) for text in ranking.locator(".value").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile("Ranked by the share of"))).to_have_count(0, timeout=60_000)
    expect(first.locator("xpath=..").locator(".rank")).to_have_text("1")
    page.go_back()
    expect(page.get_by_text(re.compile("Ranked by the share of"))).to_have_count(1, timeout=60_000)
    page.go_back()
    expect(page.get_by_text(re.compile("Ranked by the share of"))).to_have_count(0, timeout=60_000)


@pytest.mark.browser
def test_pairs_of_words_are_lines_that_click_and_keyboard_bring_out(visit):
    page = visit("/explain?q=test:0")
    ranking = page.get_by_role("group", name="Training texts ranked by")
    ranking.locator(".picture").first.click(timeout=60_000)
    dialog = page.get_by_role("dialog")
    lines = dialog.locator(".pairs path")
    expect(lines.first).to_be_attached(timeout=60_000)
    assert 1 <= lines.count() <= 8
    expect(dialog.get_by_text("The strongest pairs of words")).to_be_visible()
    drawn = lines.evaluate_all("all => all.map(each => each.getAttribute('d'))")
    assert len({each.split(" C")[0] for each in drawn}) == len(drawn)  # where they begin
    assert len({each.rsplit(" ", 1)[1] for each in drawn}) == len(drawn)  # and end
    listed = dialog.get_by_role("list", name="The strongest pairs of words").get_by_role("button")
    listed.first.click()
    page.mouse.move(1, 1)
    expect(listed.first).to_have_attribute("aria-pressed", "true")
    expect(dialog.locator(".pairs path.lit")).to_have_count(1)
    expect(dialog.locator(".pairs .text .lit")).to_have_count(2)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(listed.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(listed.first).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Enter")
    expect(dialog.locator('.pairs [aria-pressed="true"]')).to_have_count(0)
    dialog.get_by_role("button", name="Next").focus()
    page.keyboard.press("Tab")
    expect(listed.nth(1)).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(dialog.get_by_role("button", name="Next")).to_be_focused()


@pytest.mark.browser
def test_words_from_right_to_left_are_in_their_order(visit, served):
    asked = packed(served.bundle.examples("train").given("قال Mr. Smith إنها جميلة."))
    page = visit(f"/explain?q={asked}")
    words = page.get_by_role("group", name="Words of the query").get_by_role("button")
    expect(words).to_have_text(["قال", "Mr", ".", "Smith", "إنها", "جميلة", "."], timeout=60_000)
    assert words.first.evaluate("each => getComputedStyle(each.parentElement).direction") == "rtl"
    left = words.evaluate_all("all => all.map(each => each.getBoundingClientRect().left)")
    assert left[0] > left[3] > left[1] > left[4] > left[5]  # the name reads from left to right
    words.first.focus()
    page.keyboard.press("ArrowLeft")
    expect(words.nth(1)).to_be_focused()
    page.keyboard.press(" ")
    expect(page.get_by_text(re.compile("Ranked by the share of"))).to_be_visible(timeout=60_000)


@pytest.mark.browser
def test_a_text_of_ones_own_is_explained_found_again_by_its_link_and_by_words(visit):
    page = visit("/explain?q=test:0", **_PHONE)
    expect(page.locator(".st-key-query_words")).to_be_visible(timeout=60_000)
    page.get_by_text("Find another text").click()
    page.get_by_text("Write your own").click()
    page.locator("textarea").fill("The song is <img src=x onerror=alert(1)> lovely.")
    page.get_by_role("button", name="Explain this text").first.click()
    expect(page.locator(".ns-verdict")).to_contain_text("Your text", timeout=60_000)
    expect(page.locator(".ns-query .ns-text")).to_have_text("The song is <img src=x onerror=alert(1)> lovely.")
    page.wait_for_url(re.compile("q=text%3A|q=text:"), timeout=60_000)
    again = visit(page.url, **_PHONE)
    expect(again.locator(".ns-query .ns-text")).to_contain_text("The song is", timeout=60_000)
    assert again.evaluate("document.documentElement.scrollWidth") <= 390
    found = visit("/explain?q=train:0")
    expect(found.locator(".st-key-query_words")).to_be_visible(timeout=60_000)
    field = found.get_by_label("Go to text number or words")
    field.fill("dance is awful")
    field.press("Enter")
    expect(found.locator(".ns-query .ns-text")).to_contain_text("dance is awful", timeout=60_000)


@pytest.mark.browser
def test_on_a_phone_no_button_covers_words(visit):
    page = visit("/explain?q=test:0", has_touch=True, is_mobile=True, **_PHONE)
    cards = page.get_by_role("group", name="Training texts ranked by").locator(".card")
    expect(cards).to_have_count(10, timeout=60_000)
    covered = """card => {
      const box = card.querySelector(".reuse").getBoundingClientRect(), words = document.createRange();
      const rects = [card.querySelector(".picture").getBoundingClientRect()];  // wherever a text ends
      for (const each of card.querySelectorAll(".rank, .value, .label, .note")) {
        words.selectNodeContents(each);
        rects.push(...words.getClientRects());
      }
      return rects.filter((its) =>
        its.left < box.right && its.right > box.left && its.top < box.bottom && its.bottom > box.top).length;
    }"""
    assert [cards.nth(place).evaluate(covered) for place in range(10)] == [0] * 10


@pytest.mark.browser
def test_methods_are_compared_in_columns(visit):
    page = visit("/explain?q=test:0&tab=compare")
    figure = page.locator(".st-key-compare_figure_0")
    expect(figure.locator(".row").nth(1)).to_be_visible(timeout=60_000)
    tops = figure.locator(".row").evaluate_all("all => all.map(each => Math.round(each.getBoundingClientRect().top))")
    assert len(set(tops)) == 1


def test_a_bundle_of_texts_takes_the_variance_that_was_tuned_on_texts(served):
    (file,) = untuned(served.bundle)
    shipped = json.loads(assets.path("results", file).read_text(encoding="utf-8"))
    assert shipped["setting"]["data"].startswith("austen, ")
    assert set(shipped["sigma2"]) == {name for name, method in METHODS.items() if method.uses_sigma2}


def test_the_demos_first_bundle_stays_first(served, tmp_path, monkeypatch):
    for name in ("austen", "birds", "fashion-mnist"):
        (tmp_path / name).symlink_to(served.bundle.path)
    monkeypatch.setenv(bundles.BUNDLES, str(tmp_path))
    assert list(bundles.bundle_paths()) == ["fashion-mnist", "austen", "birds"]
