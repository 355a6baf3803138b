"""Two of the three journeys from the front page; the third, the backdoor on a phone, is in test_backdoor_journey."""

import csv
import re

import pytest
from playwright.sync_api import expect

from tests.app.conftest import serving

pytestmark = pytest.mark.browser
_FOCUSED = """() => {
  let found = document.activeElement;
  while (found?.shadowRoot?.activeElement) found = found.shadowRoot.activeElement;
  if (!found || found === document.body || found.textContent.length > 300) return "";
  return [found.getAttribute("aria-label"), found.textContent, found.tagName].join(" ");
}"""


@pytest.fixture(scope="module")
def server(bundle_path, tmp_path_factory):
    with serving(bundle_path, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


def _settle(page):
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=60_000)
    page.wait_for_timeout(700)


def _tab_to(page, pattern):
    """Press Tab until what has the focus has a name that fits."""
    for _ in range(120):
        page.keyboard.press("Tab")
        if re.search(pattern, page.evaluate(_FOCUSED)):
            return
    raise AssertionError(f"Tab never reached {pattern}.")


def test_a_wrong_prediction_is_debugged_by_keyboard_alone_and_the_list_handed_over(visit, tmp_path):
    page = visit("/")
    _settle(page)
    _tab_to(page, "Debug a prediction")
    page.keyboard.press("Enter")
    expect(page.locator(".ns-verdict")).to_contain_text("✗", timeout=60_000)
    ranked = page.get_by_role("group", name="Training images ranked by").locator(".picture")
    expect(ranked).to_have_count(10, timeout=60_000)
    _settle(page)
    _tab_to(page, "^rank 1,")
    index = re.search(r"training image (\d+)", page.evaluate(_FOCUSED))[1]
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Rank 1 · ", timeout=60_000)
    _settle(page)
    _tab_to(page, "^Other tag")
    page.keyboard.type("looks mislabelled")
    page.keyboard.press("Enter")
    _settle(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0, timeout=60_000)
    _settle(page)
    tray = page.get_by_text("Tagged images (1)")
    expect(tray).to_be_visible(timeout=60_000)
    for _ in range(120):
        page.keyboard.press("Shift+Tab")
        if "Tagged images" in page.evaluate(_FOCUSED):
            break
    page.keyboard.press("Enter")
    _tab_to(page, "CSV")
    with page.expect_download(timeout=60_000) as download:
        page.keyboard.press("Enter")
    (row,) = csv.DictReader(download.value.path().read_text(encoding="utf-8").splitlines())
    assert (row["image"], row["tag"]) == (f"train:{index}", "looks mislabelled")


def test_the_papers_figures_and_table_are_downloaded_as_pdf(visit):
    page = visit("/")
    page.get_by_role("link", name=re.compile("See the paper’s results")).click()
    expect(page.get_by_role("heading", name="The paper’s experiments, measured")).to_be_visible(timeout=60_000)
    _settle(page)

    def take(button, name):
        with button.page.expect_download(timeout=60_000) as download:
            button.click()
        assert download.value.suggested_filename == name
        assert download.value.path().read_bytes().startswith(b"%PDF")

    for file in ("figure-2-cifar10", "figure-3-fashion-mnist", "figures-5-and-6-fashion-mnist", "table-1-cifar10"):
        take(page.locator(f".st-key-results_{file}_PDF button:visible"), f"natscope-{file}.pdf")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=re.compile("^Figure 7:")).click()
    page = opened.value
    expect(page.locator(".row").first).to_be_visible(timeout=90_000)
    _settle(page)
    (image,) = re.findall(r"q=test%3A(\d+)", page.url)
    take(page.get_by_role("button", name="PDF", exact=True), f"natscope-comparison-test-{image}.pdf")
