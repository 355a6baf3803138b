import csv

import pytest
from playwright.sync_api import expect

from tests.app.conftest import serving

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def server(poisoned_path, tmp_path_factory):
    with serving(poisoned_path, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


def _framed(page, place):
    return page.get_by_role("group", name="Images that").nth(place).locator(".framed")


def test_the_story_from_the_trick_to_the_suspects(visit, tmp_path):
    page = visit("/backdoor")
    verdicts = page.locator(".trigger-patch .verdict")
    expect(verdicts.nth(0)).to_contain_text("✓")
    expect(verdicts.nth(1)).to_contain_text("✗")

    page.locator(".square").nth(0).click()
    page.get_by_text("Your patch", exact=True).wait_for()
    assert "drawn=" in page.url
    page.get_by_role("button", name="The attacker’s patch").click()
    page.get_by_text("The attacker’s patch for").wait_for()

    expect(page.get_by_role("group", name="Images that").nth(0).locator(".card")).to_have_count(50)
    assert _framed(page, 0).count() == 0
    page.get_by_role("button", name="Reveal who was planted").click()
    page.get_by_text("of the first 50 ").first.wait_for()
    expect(_framed(page, 0).nth(12)).to_be_visible()
    found = _framed(page, 0).count()
    assert page.get_by_text(f"{found} of the first 50 ").count()
    _framed(page, 0).nth(0).locator("button").click()
    page.get_by_text("the attacker planted it").wait_for()

    page.get_by_role("button", name="Remove them").click()
    page.get_by_text("Training without").first.wait_for()
    page.locator(".ns-proof .value").nth(2).wait_for(timeout=200_000)
    shares = [int(text.split()[1].rstrip("%")) for text in page.locator(".ns-proof .value").all_inner_texts()]
    before, without, at_random = shares
    assert without < before / 2
    assert at_random > before / 2

    page.get_by_role("button", name="Audit all").click()
    page.get_by_role("group", name="The first 60 suspects").wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    file = tmp_path / "suspects.csv"
    waiting.value.save_as(file)
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 500
    assert {"rank", "train_index", "label_name", "suspicion"} <= set(rows[0])
    page.get_by_text("Reveal who was planted").last.click()
    page.get_by_text("of the first 500 ").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_whole_width(visit, scheme):
    page = visit("/backdoor", viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    page.locator(".trigger-patch").wait_for()
    page.get_by_role("heading", name="4 ·").wait_for()
    width = page.evaluate("() => document.querySelector('[data-testid=stMain]').scrollWidth")
    assert width <= 390
    box = page.locator(".trigger-patch").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def test_a_link_reopens_what_was_drawn(visit):
    page = visit("/backdoor?drawn=111000111")
    squares = page.locator(".square")
    expect(squares).to_have_count(9)
    pressed = [square.get_attribute("aria-pressed") for square in squares.all()]
    assert pressed == ["true"] * 3 + ["false"] * 3 + ["true"] * 3
