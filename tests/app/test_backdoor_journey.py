import csv

import pytest
from playwright.sync_api import expect

from natscope.precompute.experiments import proof
from tests.app.conftest import serving

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)
_PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


@pytest.fixture(scope="module")
def server(poisoned_path, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATSCOPE_HOME", str(tmp_path_factory.mktemp("home")))
        proof.prepare(poisoned_path, lambda *step: None)
        with serving(poisoned_path, tmp_path_factory.mktemp("server") / "log") as address:
            yield address


def _framed(page, place):
    return page.get_by_role("group", name="Images that").nth(place).locator(".framed")


def _audited(page):
    """Return the suspects, which all visitors share once one of them had them listed."""
    button, suspects = (
        page.get_by_role("button", name="Audit all"),
        page.get_by_role("group", name="The first 60 suspects"),
    )
    button.or_(suspects).wait_for()
    if button.count():
        button.click()
    suspects.wait_for()
    return suspects


def _values(page):
    """Return what stands beside the bars of the proof."""
    values = page.locator(".ns-proof .value")
    expect(values).to_have_count(3)
    return values.all_inner_texts()


def _top(page, anchor):
    """Return where a heading is, from the top of the page and from the top of the window, in pixels."""
    return page.evaluate(
        """(anchor) => {
          const seen = document.getElementById(anchor).getBoundingClientRect().top;
          return [seen + document.querySelector('[data-testid=stMain]').scrollTop, seen];
        }""",
        anchor,
    )


def test_on_a_phone_the_story_goes_from_the_front_page_to_a_sentence_to_retell(visit):
    page = visit("/", **_PHONE)
    page.get_by_role("link", name="Catch a backdoor").click()
    page.get_by_text("Someone who supplies training pictures wants").wait_for()
    verdicts = page.locator(".trigger-patch .verdict")
    expect(verdicts.nth(0)).to_contain_text("✓")
    expect(verdicts.nth(1)).to_contain_text("✗")
    page.get_by_text("This was run when the model was prepared.").wait_for()  # nothing was clicked
    assert _top(page, "question")[0] < 2 * 844

    bar = page.get_by_role("navigation", name="The four steps")
    for number, anchor in enumerate(("trick", "question", "proof", "audit"), 1):
        link = bar.get_by_role("link", name=f"Step {number}")
        link.focus()
        page.keyboard.press("Enter")
        expect(page.locator(f"#{anchor}")).to_be_in_viewport()
        box = bar.bounding_box()
        assert box["y"] >= 59  # below Streamlit's own header
        assert _top(page, anchor)[1] >= box["y"] + box["height"] or number == 4
        expect(link).to_have_attribute("aria-current", "step")
        expect(bar.locator("[aria-current]")).to_have_count(1)
    assert "#audit" in page.url

    bar.get_by_role("link", name="Step 2").click()
    page.get_by_role("button", name="Reveal who was planted").click()
    page.get_by_text("of the first 50 were planted").first.wait_for()
    first = _framed(page, 0).first
    for part in (page.get_by_text("of the first 50 were planted").first, first):
        expect(part).to_be_in_viewport(ratio=1)
    expect(first).to_contain_text(", labelled ")
    shares = ["0" if text == "never fooled" else text.split()[1].rstrip("%") for text in _values(page)]
    before, without, at_random = map(int, shares)
    assert without < before / 2 < at_random
    _audited(page).locator(".picture").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("labelled ")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(page.locator(".ns-retell")).to_contain_text(
        f"fooled in only {without}% of cases." if without else "is never fooled."
    )


def test_ten_quick_clicks_on_the_patch_all_count(visit):
    page = visit("/backdoor")
    squares = page.locator(".square")
    expect(squares).to_have_count(9)
    page.locator(".ns-retell").wait_for()
    before = [square.get_attribute("aria-pressed") == "true" for square in squares.all()]
    for place in (0, 1, 2, 3, 4, 5, 6, 7, 8, 0):
        squares.nth(place).click(no_wait_after=True)
    wanted = [not white for white in before]
    wanted[0] = before[0]  # clicked twice
    bits = "".join(str(int(white)) for white in wanted)
    page.wait_for_url(f"**drawn={bits}*")
    page.get_by_text("Your patch", exact=True).wait_for()
    pressed = [square.get_attribute("aria-pressed") == "true" for square in squares.all()]
    assert pressed == wanted
    page.locator(".trigger-patch:not(.waiting)").wait_for()


def test_clicks_while_the_server_is_busy_are_shown_at_once_and_kept(visit):
    page = visit("/backdoor")
    squares = page.locator(".square")
    expect(squares).to_have_count(9)
    page.locator(".ns-retell").wait_for()
    before = [square.get_attribute("aria-pressed") for square in squares.all()]
    squares.nth(0).click()
    page.wait_for_timeout(350)  # that one is on its way
    squares.nth(8).click()
    other = {"true": "false", "false": "true"}
    wanted = [other[before[0]], *before[1:8], other[before[8]]]
    assert [square.get_attribute("aria-pressed") for square in squares.all()] == wanted
    page.wait_for_url(f"**drawn={''.join(str(int(white == 'true')) for white in wanted)}*")
    page.locator(".trigger-patch:not(.waiting)").wait_for()
    assert [square.get_attribute("aria-pressed") for square in squares.all()] == wanted
    page.get_by_role("button", name="The attacker’s patch").click()
    page.get_by_text("The attacker’s patch for").wait_for()
    assert [square.get_attribute("aria-pressed") for square in squares.all()] == before


def test_the_proof_is_run_live_and_the_suspects_are_saved(visit, tmp_path):
    page = visit("/backdoor")
    page.get_by_text("This was run when the model was prepared.").wait_for()
    ahead = _values(page)
    page.get_by_role("button", name="Run it live").click()
    page.get_by_text("Retraining without").first.wait_for()
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_text("This run was live.").wait_for(timeout=200_000)
    assert _values(page) == ahead  # the same question, the same answer

    _audited(page)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    file = tmp_path / "suspects.csv"
    waiting.value.save_as(file)
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 500
    assert {"rank", "train_index", "label_name", "suspicion"} <= set(rows[0])
    page.get_by_role("button", name="Reveal who was planted").last.click()
    expect(page.get_by_text("of the first 500 ").first).to_be_in_viewport()


def test_what_is_drawn_just_before_it_is_undone_does_not_come_back(visit):
    page = visit("/backdoor?drawn=111000111")
    squares, undo = page.locator(".square"), page.get_by_role("button", name="Back to the attacker’s patch")
    expect(squares).to_have_count(9)
    page.locator(".ns-retell").wait_for()
    squares.nth(4).click(no_wait_after=True)
    undo.click(no_wait_after=True)
    expect(undo).to_have_count(0)
    page.locator(".trigger-patch:not(.waiting)").wait_for()
    page.wait_for_timeout(600)  # longer than the patch waits before it is sent
    assert "drawn" not in page.url
    expect(page.get_by_text("The attacker’s patch for")).to_be_visible()


def test_the_step_that_is_read_is_marked(visit):
    page = visit("/backdoor")
    page.locator(".ns-retell").wait_for()
    current = page.locator(".ns-steps [aria-current]")
    expect(current).to_contain_text("The trick")
    for anchor, title in (("proof", "The proof"), ("trick", "The trick")):
        page.evaluate("(anchor) => document.getElementById(anchor).scrollIntoView()", anchor)  # as a wheel would
        expect(current).to_have_count(1)
        expect(current).to_contain_text(title)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_whole_width(visit, scheme):
    page = visit("/backdoor", color_scheme=scheme, **_PHONE)
    page.locator(".trigger-patch").wait_for()
    page.get_by_role("heading", name="4 ·").wait_for()
    width = page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollWidth")
    assert width <= 390
    for part in (page.locator(".trigger-patch"), page.locator(".ns-steps")):
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    ground = {"light": "rgb(251, 250, 247)", "dark": "rgb(18, 22, 28)"}[scheme]  # as the page: nothing shines through
    expect(page.locator(".st-key-backdoor_steps")).to_have_css("background-color", ground)


def test_a_link_reopens_what_was_drawn(visit):
    page = visit("/backdoor?drawn=111000111")
    squares = page.locator(".square")
    expect(squares).to_have_count(9)
    pressed = [square.get_attribute("aria-pressed") for square in squares.all()]
    assert pressed == ["true"] * 3 + ["false"] * 3 + ["true"] * 3


def test_one_press_of_back_leads_from_the_story_to_the_front_page(visit):
    page = visit("/")
    page.get_by_role("link", name="Catch a backdoor").click()
    page.get_by_text("Someone who supplies training pictures wants").wait_for()
    page.get_by_role("button", name="Reveal who was planted").first.wait_for()
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    page.go_back()
    expect(page.get_by_role("heading", name="Which training examples is a prediction based on?")).to_be_visible()
