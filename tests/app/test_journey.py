import csv
import io
import json
import re
from urllib.parse import urljoin

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import expect

from natscope.app.cli.commands import natscope
from natscope.core.methods import METHODS
from tests.app.conftest import serving

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)  # a busy machine is no failure

_WALK = """found => {
  const wanted = [], walk = root => root.querySelectorAll("*").forEach(e => {
    if (e.shadowRoot) walk(e.shadowRoot);
    if (e.matches(found)) wanted.push(e);
  });
  walk(document);
  return wanted.map(e => ({
    alt: e.getAttribute("alt"),
    name: e.getAttribute("aria-label") || e.textContent.trim() || e.title,
    html: e.outerHTML.slice(0, 200),
  }));
}"""
_FOCUSED = """() => {
  let active = document.activeElement;
  while (active && active.shadowRoot && active.shadowRoot.activeElement) active = active.shadowRoot.activeElement;
  return (active && active.getAttribute("aria-label")) || "";
}"""


@pytest.fixture(scope="module")
def server(bundle_path, tmp_path_factory):
    with serving(bundle_path, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.fixture
def page(visit):
    opened = visit("/explain")
    expect(_sentence(opened)).to_contain_text("nats")
    expect(_cards(opened)).to_have_count(10)
    return opened


def _sentence(page):
    return page.get_by_role("heading", level=5)


def _verdict(page):
    return page.locator(".ns-verdict")


def _cards(page):
    return page.get_by_role("group", name="Training images ranked by").locator(".picture")


def _ranked(page):
    return _cards(page).evaluate_all("cards => cards.map(card => card.getAttribute('aria-label'))")


def _indices(page):
    return [int(re.search(r"training image (\d+):", reported)[1]) for reported in _ranked(page)]


def _choose(page, label, option):
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()


def _settle(page):
    """Wait until nothing is being drawn: a link changes before the answer that it leads to is on the page."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")


def _in_link(text):
    return re.compile(re.escape(text) + r"(&|$)")


def _file(name, content):
    return {"name": name, "mimeType": "image/png", "buffer": content}


def _png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_click_on_an_image_asks_about_it(page):
    expect(_cards(page)).to_have_count(10)
    before, ranked = _sentence(page).inner_text(), _ranked(page)
    page.get_by_text("Find another image").click()
    page.get_by_role("button", name="test image 2,").click()
    expect(_verdict(page)).to_contain_text("Test image 2 ")
    expect(page).to_have_url(_in_link("q=test%3A2"))
    expect(_sentence(page)).not_to_have_text(before)
    _settle(page)
    assert _ranked(page) != ranked


def test_method_and_sigma2_change_the_answer_and_the_link_reopens_it(page, visit):
    asked = [(_sentence(page).inner_text(), _ranked(page))]
    _choose(page, "Method", "InfoGain")
    expect(_sentence(page)).to_contain_text("smaller")
    expect(page.get_by_role("group", name="Training images ranked by InfoGain")).to_be_visible()
    _settle(page)
    asked.append((_sentence(page).inner_text(), _ranked(page)))
    page.get_by_text("More settings").click()
    page.get_by_role("slider", name="σ²").focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(_in_link("sigma2=0.1"))
    _settle(page)  # the slider passes other values on its way, and each may have been answered for a moment
    expect(_sentence(page)).not_to_have_text(asked[1][0])
    asked.append((_sentence(page).inner_text(), _ranked(page)))
    for one, other in [(0, 1), (1, 2), (0, 2)]:
        assert asked[one][0] != asked[other][0]
        assert asked[one][1] != asked[other][1]
    again = visit(page.url)
    expect(_sentence(again)).to_have_text(asked[2][0])
    expect(_cards(again)).to_have_count(10)
    _settle(again)
    assert _ranked(again) == asked[2][1]


def test_settings_survive_methods_that_have_no_use_for_them(visit):
    page = visit("/?m=4&sigma2=100&given=train")
    expect(_sentence(page)).to_contain_text("all training images")
    _settle(page)
    page.get_by_text("More settings").click()
    before, sigma2 = _sentence(page).inner_text(), page.get_by_role("slider", name="σ²")
    place = sigma2.input_value()
    _choose(page, "Method", "RepSim")
    expect(_sentence(page)).to_contain_text("does not measure information")
    expect(sigma2).to_have_count(0)
    # At once, while the page is still being drawn.
    for method in ("Random", "InfoGain", "RepSim", "InfoLoss"):
        _choose(page, "Method", method)
    expect(_sentence(page)).to_have_text(before)
    expect(page).to_have_url(_in_link("sigma2=100"))
    assert sigma2.input_value() == place


def test_an_upload_is_answered_and_reopened_by_its_link_and_a_broken_file_is_a_sentence(page, visit, attributor):
    image = Image.fromarray(np.asarray(attributor.bundle.examples("test").images[40])).resize((280, 280))
    page.get_by_text("Find another image").click()
    page.get_by_text("Upload", exact=True).click()
    chooser = page.locator("input[type=file]")
    chooser.set_input_files(_file("mine.png", _png(image)))
    expect(page.get_by_text("what the model sees", exact=True)).to_be_visible()
    expect(_verdict(page)).to_contain_text("Your image")
    expect(page).to_have_url(re.compile("q=image%3A"))
    # The last answer stays on the page, dimmed, until the new one is there.
    answer = re.escape(page.locator(".ns-answer").inner_text().removeprefix("Predicted "))
    expect(_sentence(page)).to_contain_text(re.compile(f"“{answer}”"))
    expect(_cards(page).first).to_have_attribute("aria-label", re.compile(answer))
    _settle(page)
    said, link, ranked = _sentence(page).inner_text(), page.url, _ranked(page)
    seen = page.get_by_alt_text("the image as the model sees it")
    assert seen.get_attribute("src") == page.locator(".ns-query img").get_attribute("src")

    again = visit(link)
    expect(_verdict(again)).to_contain_text("Your image")
    expect(_sentence(again)).to_have_text(said)
    expect(_cards(again)).to_have_count(10)
    _settle(again)
    assert _ranked(again) == ranked
    assert again.locator(".ns-query img").get_attribute("src") == page.locator(".ns-query img").get_attribute("src")

    chooser.set_input_files(_file("broken.png", _png(image)[:100]))
    expect(page.get_by_role("alert")).to_have_count(1)
    expect(page.get_by_role("alert")).to_contain_text("damaged or incomplete")
    expect(_sentence(page)).to_have_text(said)
    assert (page.url, _ranked(page)) == (link, ranked)


def test_downloads_are_real_files_and_fit_the_command(visit, bundle_path, tmp_path):
    page = visit("/?q=test:5&method=info_gain&sigma2=10&m=7")
    expect(_cards(page)).to_have_count(7)
    files = {}
    for kind in ("PNG", "CSV", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind).click()
        name = "natscope-test-5-Trouser-info_gain-sigma2-10-M7"
        assert download.value.suggested_filename == f"{name}.{kind.lower()}"
        files[kind] = tmp_path / kind
        download.value.save_as(files[kind])
    with Image.open(files["PNG"]) as figure:
        figure.load()
        assert figure.format == "PNG"
        assert figure.width > 2000
        assert np.asarray(figure.convert("L")).std() > 10
    rows = list(csv.DictReader(files["CSV"].read_text(encoding="utf-8").splitlines()))
    shown = _indices(page)
    assert [int(row["rank"]) for row in rows] == list(range(1, 8))
    assert [int(row["train_index"]) for row in rows] == shown
    assert {(row["query"], row["method"], float(row["sigma2"])) for row in rows} == {("test:5", "info_gain", 10.0)}
    saved = json.loads(files["JSON"].read_text(encoding="utf-8"))
    asked = ["--test-index", "5", "--method", "info_gain", "--sigma2", "10", "--budget", "7", "--json"]
    printed = CliRunner().invoke(natscope, ["attribute", "--bundle", str(bundle_path), *asked], catch_exceptions=False)
    reported = json.loads(printed.stdout)
    assert [item["train_index"] for item in saved["items"]] == shown
    assert saved.keys() == reported.keys()
    assert saved["query"] | {"probability": None} == reported["query"] | {"probability": None}
    assert saved["query"]["probability"] == pytest.approx(reported["query"]["probability"], rel=1e-5)
    assert saved["total_nats"] == pytest.approx(reported["total_nats"], rel=1e-5)
    assert saved["redundancy"] == pytest.approx(reported["redundancy"], rel=1e-5)
    exact = saved.keys() - {"query", "items", "seconds", "total_nats", "redundancy"}
    assert {key: saved[key] for key in exact} == {key: reported[key] for key in exact}
    for ours, theirs in zip(saved["items"], reported["items"], strict=True):
        assert ours.pop("source") == theirs.pop("source") == f"train row {ours['train_index']}"
        assert ours.pop("label_name") == theirs.pop("label_name")
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_ranked_image_tells_more_and_either_button_makes_it_the_query(page):
    index = _indices(page)[2]
    _cards(page).nth(2).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".ns-pair figure").last).to_contain_text(f"Training image {index}")
    expect(dialog).to_contain_text("Rank 3 · ")
    dialog.get_by_role("button", name="Next").click()
    expect(dialog).to_contain_text("Rank 4 · ")
    dialog.get_by_role("button", name="Previous").click()
    expect(dialog).to_contain_text("Rank 3 · ")
    dialog.get_by_role("button", name="Explain this image").click()
    expect(dialog).to_have_count(0)
    expect(_verdict(page)).to_contain_text(f"Training image {index} ")
    expect(page).to_have_url(_in_link(f"q=train%3A{index}"))
    expect(page.get_by_role("button", name=f"training image {index}:")).to_have_count(0)
    expect(_cards(page)).to_have_count(10)
    _settle(page)
    index = _indices(page)[0]
    _cards(page).first.hover()
    page.get_by_role("button", name="Explain this image: rank 1,").click()
    expect(_verdict(page)).to_contain_text(f"Training image {index} ")
    expect(page).to_have_url(_in_link(f"q=train%3A{index}"))


def test_the_keyboard_reaches_a_card_and_opens_and_closes_it(page):
    page.get_by_role("button", name="Help for M", exact=True).focus()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate(_FOCUSED).startswith("rank 1,"):
            break
    focused = page.evaluate(_FOCUSED)
    assert focused.startswith("rank 1,")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Rank 1 · ")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    _settle(page)
    expect(_cards(page)).to_have_count(10)
    page.wait_for_timeout(1500)
    assert page.evaluate(_FOCUSED) == focused


def test_a_point_of_the_curve_says_what_it_is_and_a_click_selects_its_image(page):
    point = page.locator(".js-plotly-plot .points path").nth(3)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    expect(page.locator(".hoverlayer").first).to_contain_text(f"training example {_indices(page)[3]}")
    page.mouse.click(*middle)
    expect(page.get_by_role("dialog")).to_contain_text("Rank 4 · ")


@pytest.mark.parametrize(
    ("address", "scheme", "background"),
    [
        ("/explain", "light", "rgb(251, 250, 247)"),
        ("/explain", "dark", "rgb(18, 22, 28)"),
        ("/methods", "dark", "rgb(18, 22, 28)"),
    ],
)
def test_a_phone_shows_the_whole_width_and_everything_has_a_name(visit, address, scheme, background):
    page = visit(address, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True, is_mobile=True)
    if address == "/explain":
        expect(_cards(page)).to_have_count(10)
        expect(page.get_by_role("button", name="JSON")).to_be_visible()
    else:
        expect(page.get_by_role("heading", name="How far to trust it")).to_be_visible()
    expect(page.get_by_test_id("stApp")).to_have_css("background-color", background)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth <= innerWidth + 1")
    images, buttons = page.evaluate(_WALK, "img"), page.evaluate(_WALK, "button, [role=button]")
    assert images
    assert [image["html"] for image in images if image["alt"] is None] == []
    assert [button["html"] for button in buttons if not button["name"]] == []
    assert len(buttons) > 40 or address == "/methods"


def test_the_methods_page_opens_by_its_address(visit):
    page = visit("/methods")
    for method in METHODS.values():
        expect(page.get_by_role("heading", name=method.title, exact=True)).to_be_visible()
    expect(page.locator(".katex-display")).to_have_count(
        sum(1 + method.formula.count(r",\qquad ") for method in METHODS.values())
    )
    assert page.locator(".katex-error").count() == 0


def test_the_navigation_leads_to_the_methods_and_back_to_the_same_answer(page):
    _choose(page, "Method", "InfoGain")
    expect(_sentence(page)).to_contain_text("smaller")
    _settle(page)
    said, link = _sentence(page).inner_text(), page.url
    page.get_by_role("link", name="Paper", exact=True).click()
    page.get_by_text("Methods", exact=True).click()
    expect(page.get_by_role("heading", name="Glossary")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/paper\?tab=methods$"))
    page.get_by_role("link", name="Explain", exact=True).click()
    expect(_sentence(page)).to_have_text(said)
    expect(page).to_have_url(link)


def test_every_method_is_compared_and_taken_away(visit, tmp_path):
    page = visit("/compare?q=test:5")
    rows = page.locator(".row")
    expect(rows).to_have_count(len(METHODS), timeout=90_000)
    expect(page.locator(".tile")).to_have_count(10 * len(METHODS))
    page.get_by_role("button", name="Pin").click()
    expect(page).to_have_url(re.compile("pins=test%3A5"), timeout=90_000)
    expect(rows).to_have_count(len(METHODS))
    page.get_by_role("button", name="Next image").click()
    expect(rows).to_have_count(2 * len(METHODS), timeout=90_000)
    assert "q=test%3A6" in page.url
    assert "pins=test%3A5" in page.url
    starts = {"PNG": b"\x89PNG", "SVG": b"<?xml", "PDF": b"%PDF"}
    for kind, start in starts.items():
        assert _taken(page, kind, tmp_path).startswith(start)
    lines = list(csv.DictReader(io.StringIO(_taken(page, "CSV", tmp_path).decode())))
    assert len(lines) == 2 * 10 * len(METHODS)
    assert len(json.loads(_taken(page, "JSON", tmp_path))["queries"]) == 2
    first = page.locator(".tile .picture").first
    picked = first.get_attribute("data-image")
    first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"Training image {picked}")
    dialog.get_by_role("button", name="Who else relies on it?").click()
    expect(dialog).to_contain_text(
        re.compile(r"Among the first 10 picks of \d+ of the \d+ test images"), timeout=90_000
    )


def test_a_comparison_is_reopened_by_its_link_on_a_phone(visit):
    link = "/compare?q=test:5&methods=repsim,random&m=5"
    page = visit(link, viewport={"width": 390, "height": 844})
    expect(page.locator(".tile")).to_have_count(10, timeout=90_000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_curves_are_computed_and_taken_away(visit, tmp_path):
    page = visit("/curves?q=test:5&m=10&sigma2s=1,100000")
    page.get_by_role("button", name="Compute the curves").wait_for()
    _settle(page)
    page.get_by_role("button", name="Compute the curves").click()
    expect(page.get_by_text("of what").or_(page.get_by_text("is found at every M")).first).to_be_visible(timeout=90_000)
    assert _taken(page, "PDF", tmp_path).startswith(b"%PDF")
    lines = list(csv.DictReader(io.StringIO(_taken(page, "CSV", tmp_path).decode())))
    assert {int(line["m"]) for line in lines} == set(range(1, 11))


def test_long_work_can_be_stopped(visit):
    page = visit("/curves?n=50&m=300")
    page.get_by_role("button", name="Compute the curves").wait_for()
    _settle(page)
    page.get_by_role("button", name="Compute the curves").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible(timeout=60_000)


def test_controls_that_a_slow_network_brings_late_keep_their_values(visit):
    page, late = visit("/paper"), []
    page.route(re.compile(r"/(Slider|Multiselect)\.[^/]*\.js"), lambda route: late.append(route))
    page.goto(urljoin(page.url, "/curves?n=3&m=300"))
    page.get_by_role("switch", name="Mean over many test images").click(force=True)
    _settle(page)
    assert late
    for script in late:
        script.continue_()
    expect(page.get_by_role("slider", name="Largest M")).to_have_value("300")
    page.get_by_role("switch", name="Mean over many test images").click(force=True)
    _settle(page)
    expect(page.get_by_role("slider", name="Largest M")).to_have_value("300")
    expect(page.get_by_text("Choose at least one")).to_have_count(0)


def _taken(page, kind, folder):
    with page.expect_download(timeout=60_000) as download:
        page.get_by_role("button", name=kind, exact=True).click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file.read_bytes()


def test_a_coreset_is_shown_class_by_class_and_any_image_opens(visit):
    page = visit("/coreset?n=12&m=20")
    expect(page.get_by_text("These 20 images tell")).to_be_visible()
    page.get_by_role("button", name=re.compile("Bag, training image")).first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("labelled Bag")
    expect(dialog.get_by_role("img", name=re.compile(r"Training image \d+, enlarged"))).to_be_visible()
    address = dialog.get_by_role("link", name="Explain this image").get_attribute("href")
    page.goto(urljoin(page.url, address))
    expect(page.get_by_text(re.compile(r"^Training image \d+"))).to_be_visible()
    expect(page.get_by_role("button", name="JSON")).to_be_visible()
    expect(page.get_by_text("Page not found")).to_have_count(0)
