"""Names, addresses and files of a stranger, through every page in a browser: shown as text, and nothing else."""

import itertools
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from natscope.app import escape
from natscope.core.bundle.format import MANIFEST
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.folders import FolderSpec
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec
from tests.app.conftest import serving

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)
_COUNTS = (75, 75, 20)  # images of a class: two that pages can take from, and one that is too small for that

_FOLDER = "a&b <b>bold ![x](y)#%41+"
_TEXTS = (
    *(
        "** lead **",
        "<b>bold</b>",
        "[link](x)",
        ":material/home:",
        ":material_home:",
        ":red[x]",
        ":smile:",
        "$x$",
        "{x}",
    ),
    *(
        "`code`",
        "![x](http://evil.example/x.png)",
        "http://evil.example",
        "www.evil.example",
        "a@evil.example",
        "a@+@.evil",
    ),
    *("<http://evil.example>", "# head", "- item", "1. item", "-->", "a -> b", "a -- b", "a | b", "~~struck~~", "_x_"),
    *(
        "&lt;b&gt;",
        "[^1]",
        ":streamlit:",
        "a\u202eb",
        "\x1b[31m",
        "שלום 1",
        "🙂",
        "<img src=http://evil.example onerror=x>",
    ),
)
_KEYS = {  # the parameters of each page's address
    "": ("q", "method", "sigma2", "m", "pool", "given", "target", "words"),
    "compare": ("q", "pins", "methods", "sigma2", "own", "m", "pool", "given", "target"),
    "backdoor": ("image", "patch", "drawn", "method", "rival"),
    "counterfactual": ("q", "method", "sigma2", "m"),
    "curves": ("q", "n", "method", "sigma2s", "sigma2", "others", "m"),
    "coreset": ("ask", "class", "n", "marked", "method", "choice", "m", "sigma2"),
    "results": (),
    "methods": (),
}
# Finds what a page, its components and charts made of a name: elements that point elsewhere, elements that are there
# for nothing else, and elements that hold a marked word of a name alone.
_LIVE = """(foreign) => {
  const found = [];
  const walk = (root) => root.querySelectorAll("*").forEach((each) => {
    if (each.shadowRoot) walk(each.shadowRoot);
    const address = ["src", "href", "action", "xlink:href"].map((name) => each.getAttribute(name) || "")
      .filter((value) => !value.startsWith("#")).join(" ");
    if (address.includes(foreign) || /evil|mailto:/.test(address) ||
        each.matches(".evil, form, iframe, object, embed, .stMarkdownColoredText, [alt='Streamlit logo'], del") ||
        (each.matches("[role=img]") && each.textContent === "home") ||
        (each.matches(".katex annotation") && each.textContent === "x") ||
        (!each.closest(".katex") && ["bold", "lead", "link", "code", "struck", "x"].includes(each.textContent.trim())))
      found.push(each.outerHTML.slice(0, 200));
  });
  walk(document);
  return found;
}"""
_TEXT = """() => {
  const own = (each) => [...each.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("");
  const walk = (root) => [...root.querySelectorAll("*")]
    .map((each) => (each.shadowRoot ? walk(each.shadowRoot) : "") + own(each) + (each.value || "")).join("\\n");
  return walk(document.body);
}"""


@pytest.fixture(scope="module")
def foreign():
    """A server that no page has any business with: its address, and what it was asked for."""
    asked = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def names(foreign):
    at = f"http://{foreign[0]}"
    return (
        rf"$\frac{{$ ** lead ** <b class=evil>bold</b> <form action={at}/f> :material/home: :red[x] :smile: `code`",
        f"<img src={at}/i onerror=alert(1)> ![x]({at}/m) [link]({at}/l) {at}/a www.evil.example a@evil.example",
        "# head 1. שלום 🙂 " + "w" * 150,
    )


@pytest.fixture(scope="module")
def title(foreign):
    return f"<iframe src=http://{foreign[0]}/t></iframe> ![x](http://{foreign[0]}/title) **lead**"


@pytest.fixture(scope="module")
def server(tmp_path_factory, names, title, foreign):
    folder, random = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0)
    for label, count in enumerate(_COUNTS):
        (folder / "data" / str(label)).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 60, (8, 8)).astype(np.uint8)
            pixels[2 * label : 2 * label + 3, :5] += 150
            Image.fromarray(pixels).save(folder / "data" / str(label) / f"{number}.png")
    first, second, damaged = (folder / "served" / name for name in (_FOLDER, "$x$", "**lead**"))
    spec = BuildSpec(
        dataset=f"folder:{folder / 'data'}",
        folder=FolderSpec(8),
        model=ModelSpec("mlp", (64, 32, 3)),
        training=TrainingSpec(epochs=60, learning_rate=0.05, batch_size=16),
        sketch=SketchSpec(dim=32),
        poison=PoisonSpec(rate=0.25),
    )
    build(spec, first)
    manifest = json.loads((first / MANIFEST).read_text())
    manifest |= {"name": title, "dataset": manifest["dataset"] | {"classes": names}}
    (first / MANIFEST).write_text(json.dumps(manifest))
    shutil.copytree(first, second)
    damaged.mkdir()
    (damaged / MANIFEST).write_text("{")
    failed = {"what": title, "stage": "", "share": 0, "error": f"![x](http://{foreign[0]}/e) **lead**"}
    (folder / "served" / "preparing.json").write_text(json.dumps(failed))
    with pytest.MonkeyPatch.context() as patch, serving_at_home(patch, folder) as address:
        yield address


def serving_at_home(patch, folder):
    patch.setenv("NATSCOPE_HOME", str(folder / "home"))
    return serving(folder / "served", folder / "log")


@pytest.fixture
def walk(visit, foreign):
    """Return a function that opens a page with hostile parameters, and one that looks at what is shown then."""
    texts = itertools.cycle(_TEXTS)
    hostile = {page: dict(zip(keys, texts, strict=False)) for page, keys in _KEYS.items()}  # every text once or twice

    def open_page(name, **parameters):
        asked = hostile[name] | {"bundle": "<b>bold</b>"} | parameters
        page = visit(f"/{name}?" + urlencode(asked), bypass_csp=True)
        said = page.get_by_test_id("stAlert").filter(has_text="The link's")
        wrong = [key for key in hostile[name] if key not in parameters]
        expect(said).to_have_count(min(1, len(wrong)))
        for text in said.all_text_contents():
            assert all(f"{key} “{escape.visible(asked[key])}”" in text.replace("\u2060", "") for key in wrong)
        return page

    def look(page, *shown):
        assert page.evaluate(_LIVE, foreign[0]) == []
        assert foreign[1] == []
        text = page.evaluate(_TEXT).replace("\u2060", "")
        for name in shown:
            assert name in text

    return open_page, look


def test_attribute(walk, names, title, foreign):
    open_page, look = walk
    page = open_page("")
    cards = page.get_by_role("group", name="Training images ranked by").locator(".card")
    expect(cards).to_have_count(10)
    look(page, *names[:2], title)
    page.get_by_role("combobox", name="Explain").click()
    expect(page.get_by_role("option")).to_have_count(3)
    look(page, f"why not {names[1]}?", f"why not {names[2]}?")
    page.keyboard.press("Escape")
    cards.nth(0).locator(".picture").click()
    expect(page.get_by_role("dialog")).to_contain_text("Rank 1 · ")
    page.get_by_role("dialog").get_by_text("relies most on").wait_for()
    look(page, *names[:2])
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    with page.expect_download():
        page.get_by_role("button", name="PNG", exact=True).click()
    page.get_by_text("Find another image").click()
    page.get_by_role("radio", name="Upload").click()
    file = {"name": f"![x](http://{foreign[0]}/u) **lead**.png", "mimeType": "image/png", "buffer": b"none"}
    page.locator("input[type=file]").set_input_files(file)
    expect(page.get_by_test_id("stAlert")).to_contain_text("not a supported image")
    look(page, file["name"])


def test_compare(walk, names):
    open_page, look = walk
    page = open_page("compare", q="test:33")  # of the class with a long word for a name
    expect(page.locator(".tile").first).to_be_visible()
    page.get_by_text("How stable is the ranking?").wait_for()
    look(page, names[2])
    assert page.locator(".query figcaption").evaluate("(caption) => caption.scrollWidth <= caption.clientWidth")


def test_backdoor(walk, names):
    open_page, look = walk
    page = open_page("backdoor")
    page.get_by_role("button", name="Reveal who was planted").click()
    planted = page.get_by_role("group", name="Images that").first.locator(".framed button")
    planted.first.click()
    page.get_by_text("the attacker planted it").wait_for()
    look(page, *names[:2])
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Remove them").click()
    page.locator(".ns-proof .value").nth(2).wait_for()
    page.get_by_role("button", name="Audit all").click()
    page.get_by_role("group", name="The first 60 suspects").wait_for()
    for place in range(5):
        page.get_by_text("For experts").nth(place).click()
    page.get_by_text("Average precision here").wait_for()
    page.get_by_text("pool: the").first.wait_for()
    page.get_by_text("Measured over many").wait_for()
    look(page, *names[:2])


def test_counterfactual(walk, names):
    open_page, look = walk
    page = open_page("counterfactual")
    page.get_by_role("button", name="Remove them").click()
    page.get_by_text("Earlier runs on this network").click()
    look(page, names[0])
    page = open_page("counterfactual", q="test:33")  # of the small class
    page.get_by_text("too few to remove").wait_for()
    look(page, names[2])


def test_coreset(walk, names):
    open_page, look = walk
    page = open_page("coreset", ask="class", **{"class": "1", "bundle": _FOLDER})
    expect(page.get_by_test_id("stPlotlyChart").first.locator(".ytick text")).to_have_count(3)
    page.get_by_text("test images of class").wait_for()
    assert parse_qs(urlsplit(page.url).query)["bundle"] == [_FOLDER]
    look(page, *names[:2])
    page.get_by_role("group", name="Chosen images of class").first.locator("button").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("relies most on")
    look(page, *names[:2])


@pytest.mark.parametrize(("name", "ready"), [("curves", "How far"), ("results", "The choice"), ("methods", "Glossary")])
def test_pages_without_names(walk, name, ready):
    open_page, look = walk
    page = open_page(name)
    page.get_by_text(ready).first.wait_for()
    look(page)


def test_a_damaged_bundle(walk, visit):
    page, (_, look) = visit("/?bundle=**lead**", bypass_csp=True), walk
    expect(page.get_by_test_id("stAlert")).to_contain_text("**lead** is damaged")
    look(page, "/**lead** is damaged")
