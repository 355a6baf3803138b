"""A visitor with a browser: how long a click takes until the page is drawn, and how far the page moves by itself.

Times are the browser's own, from its event of the click to the frame in which the answer is painted; what drives the
browser is not counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tests.browser import LAUNCH_FLAGS, find_browser

if TYPE_CHECKING:  # a development dependency
    from playwright.sync_api import Browser, Locator, Page

PATIENCE = 120.0  # seconds until an answer must be on the page
_SETTLED = 1.5  # seconds without work after which a page is taken to be complete
_GAP, _WINDOW = 1000.0, 5000.0  # milliseconds between and of the shifts that count together


@dataclass(frozen=True)
class Drawn:
    """Seconds from a click until the first of the answer is seen, and until all of it is."""

    first: float
    all: float


@dataclass(frozen=True)
class Part:
    """A part of a page that a click changes: the elements that match `each` below `root`, also in shadow roots."""

    root: str
    each: str


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Start the browser that the tests use.

    Raises:
        ClickException: if it, or what drives it, is missing.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise click.ClickException("This needs Playwright: `pip install --editable .[dev]` installs it.") from error
    path = find_browser()
    if path is None:
        raise click.ClickException("This needs Chrome or Chromium: install one, or name it in NATSCOPE_CHROMIUM.")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(LAUNCH_FLAGS))
        try:
            yield opened
        except Error as error:
            raise click.ClickException(f"The browser: {error.message}") from error
        finally:
            opened.close()


@contextmanager
def visitor(browser: "Browser", address: str, width: int = 1440) -> Iterator["Person"]:
    """Open the app at an address as somebody who was never there."""
    context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
    context.add_init_script(_SCRIPT)
    try:
        yield Person(context.new_page(), address)
    finally:
        context.close()


class Person:
    """A visitor with a page of her own."""

    def __init__(self, page: "Page", address: str) -> None:
        """Name the page, and the app's address."""
        self.page, self._address = page, address

    def open(self, place: str, part: Part) -> Drawn:
        """Go to an address below the app's, and wait until a part of the page is drawn.

        Raises:
            ClickException: if an error is shown in its place, or nothing in time.
        """
        self.page.goto(f"{self._address}/{place}", wait_until="commit")
        self.page.evaluate("([part, wait]) => natscope.watch(part, wait, '')", [vars(part), 1000 * PATIENCE])
        return self._seen(place)

    def timed(self, press: "Locator", part: Part, *, key: str = "") -> Drawn:
        """Click something, or press a key on it, and wait until a part of the page is drawn and other than before.

        Raises:
            ClickException: if an error is shown in its place, or nothing in time.
        """
        press.wait_for(timeout=1000 * PATIENCE)
        self.page.evaluate("([part, wait]) => natscope.watch(part, wait)", [vars(part), 1000 * PATIENCE])
        if key:
            press.press(key)
        else:
            press.click(timeout=1000 * PATIENCE)
        return self._seen(part.root)

    def _seen(self, what: str) -> Drawn:
        found = self.page.evaluate("() => natscope.drawn")
        wrong = self.page.locator("[data-testid=stException], [data-testid=stAlertContentError]")
        if wrong.count():
            raise click.ClickException(f"{what}: the page says “{wrong.first.inner_text()}”")
        if found is None:
            raise click.ClickException(f"{what}: not drawn within {PATIENCE:.0f} s.")
        return Drawn(found["first"] / 1000, found["all"] / 1000)

    def shift(self) -> tuple[float, str]:
        """Wait until nothing is drawn any more; return the page's cumulative layout shift, and what moved most.

        The shift is that of the worst window of at most 5 s without a pause of a second, as browsers report it.
        """
        self.page.evaluate("([still, wait]) => natscope.settle(still, wait)", [1000 * _SETTLED, 1000 * PATIENCE])
        shifts: list[dict[str, Any]] = self.page.evaluate("() => natscope.shifts")
        worst, total, began, last = 0.0, 0.0, 0.0, float("-inf")
        for shift in shifts:
            if shift["at"] - last > _GAP or shift["at"] - began > _WINDOW:
                total, began = 0.0, shift["at"]
            total, last = total + shift["value"], shift["at"]
            worst = max(worst, total)
        return worst, max(shifts, key=lambda shift: shift["value"])["moved"] if shifts else ""


_SCRIPT = """
(() => {
  const own = (window.natscope = { began: 0, shifts: [], drawn: null });
  for (const kind of ["click", "keydown"]) addEventListener(kind, (event) => (own.began = event.timeStamp), true);
  new PerformanceObserver((list) => {
    for (const shift of list.getEntries())
      if (!shift.hadRecentInput)
        own.shifts.push({ value: shift.value, at: shift.startTime, moved: shift.sources.map(name).join(", ") });
  }).observe({ type: "layout-shift", buffered: true });

  const shown = (part) => part.getClientRects().length > 0;
  const idle = () =>
    document.querySelector("[data-testid=stApp][data-test-script-state=notRunning]") !== null &&
    ![...document.querySelectorAll("[data-testid=stSkeleton]")].some(shown);

  function name({ node }) {
    const element = node && (node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement);
    const keyed = element && element.closest("[class*=st-key-]");
    const said = element ? element.dataset.testid || element.getAttribute("class") || element.tagName : "gone";
    return (keyed ? /st-key-[\\w-]+/.exec(keyed.className)[0] + " " : "") + said;
  }

  function seen({ root, each }) {
    const found = [];
    const collect = (node) => {
      for (const part of node.querySelectorAll(each))
        if (shown(part)) found.push(part.getAttribute("aria-label") || part.textContent);
      for (const part of node.querySelectorAll("*")) if (part.shadowRoot) collect(part.shadowRoot);
    };
    document.querySelectorAll(root).forEach(collect);
    return found.join("\\n");
  }

  own.watch = (part, wait, before = seen(part)) => {
    const started = performance.now();
    let first = null;
    own.drawn = new Promise((resolve) => {
      const painted = () => resolve({ first: first - own.began, all: performance.now() - own.began });
      const look = () => {
        const now = seen(part);
        if (first === null && now && now !== before) first = performance.now();
        if (first !== null && idle()) requestAnimationFrame(painted);
        else if (performance.now() - started > wait) resolve(null);
        else requestAnimationFrame(look);
      };
      requestAnimationFrame(look);
    });
  };

  own.settle = (still, wait) => {
    const started = performance.now();
    let since = started;
    return new Promise((resolve) => {
      const look = (now) => {
        if (!idle()) since = now;
        if (now - since > still || now - started > wait) resolve();
        else requestAnimationFrame(look);
      };
      requestAnimationFrame(look);
    });
  };
})();
"""
