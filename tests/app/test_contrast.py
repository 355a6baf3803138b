"""Text can be read: 4.5:1 against what is behind it, 3:1 where it is large, in light and dark."""

import re

import pytest
from playwright.sync_api import expect

from tests.app.conftest import serving

pytestmark = pytest.mark.browser

_FAINT = """() => {
  const linear = v => (v /= 255, v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const colour = text => {
    const numbers = text.match(/[\\d.]+(?:e-?\\d+)?/g)?.map(Number);
    if (!numbers) return null;
    const whole = text.startsWith("color(") ? numbers.map((v, i) => (i < 3 ? 255 * v : v)) : numbers;
    return [...whole.slice(0, 3), whole[3] ?? 1];
  };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const parent = e => e.parentElement || e.getRootNode().host || null;
  const line = e => { const found = []; for (; e; e = parent(e)) found.push(e); return found; };
  const faint = [], all = [], walk = root => root.querySelectorAll("*").forEach(e => {
    all.push(e);
    if (e.shadowRoot) walk(e.shadowRoot);
  });
  walk(document);
  for (const e of all) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join(" ").trim();
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (!text || box.width < 2 || box.height < 2 || style.visibility === "hidden") continue;
    if (e.closest("style, script, [disabled]") || /Material/.test(style.fontFamily)) continue;
    const above = line(e), opacity = above.reduce((o, x) => o * parseFloat(getComputedStyle(x).opacity), 1);
    let behind = [255, 255, 255, 1];
    for (const x of above.reverse()) behind = over(colour(getComputedStyle(x).backgroundColor) || [0, 0, 0, 0], behind);
    const own = colour(e instanceof SVGElement ? style.fill : style.color);
    if (!own || opacity < 0.05) continue;
    const [a, b] = [light(over([...own.slice(0, 3), own[3] * opacity], behind)), light(behind)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (ratio > 1.01 && ratio < least) faint.push(`${ratio.toFixed(2)}: ${text}`);
  }
  return faint;
}"""


@pytest.fixture(scope="module")
def server(bundle_path, tmp_path_factory):
    with serving(bundle_path, tmp_path_factory.mktemp("server") / "log") as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(visit, scheme):
    page = visit("/explain?q=test:5&method=graddot", color_scheme=scheme)
    for tab, shown in (("Attribution", "ranked first by"), ("Compare", "InfoGain (approx)")):
        page.get_by_role("radio", name=tab).click(force=True)
        expect(page.get_by_text(re.compile(re.escape(shown))).first).to_be_visible(timeout=60_000)
        expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=60_000)
        page.wait_for_timeout(500)
        assert page.evaluate(_FAINT) == []
