"""How long a person waits: from a click in a real browser to the drawn page; how far pages move by themselves; memory.

The server is started here, with a folder of its own for what it would keep, and listens on the loopback interface.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import numpy as np

from benchmarks.browser import PATIENCE, Drawn, Part, Person, chromium, visitor
from benchmarks.network import Say
from benchmarks.served import Served, serving
from benchmarks.visitor import VisitError, Visitor
from natscope.app.lanes import IDLE
from natscope.core.bundle.capabilities import Capabilities
from natscope.core.bundle.format import Bundle, find_bundles
from natscope.core.methods import METHODS, REFERENCE
from natscope.precompute.paths import home

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTHS = (1440, 390)  # pixels
PAGES = (
    "",
    "explain?tab=attribution",
    "explain?tab=compare",
    "explain?tab=remove",
    "explain?tab=curves",
    "backdoor",
    "coreset",
    "paper",
)
_LONGEST = "explain?bundle={}&tab=curves&of=many&n=50&m=300"  # the longest job that a visitor can start
_ENDING = 3.0  # seconds for a process to end
_FIRST, _LATER = 40, 540  # test images from which visitors go on: with an idle server, and with a busy one

_RANKING = Part(".st-key-ranking", ".picture")
_CLOSER = Part("[role=dialog]", ".ns-pair figcaption")
_ROWS = Part("[class*=st-key-compare_figure_]", ".tiles .picture")
_DOORS = Part("[data-testid=stMain]", ".ns-example, .ns-door")
_TITLE = Part("[data-testid=stMain]", "h1")


@dataclass(frozen=True)
class Targets:
    """What must hold: seconds of the median click, layout shift of a page, MiB in memory.

    Args:
        click: next image, method, σ², M.
        closer: a closer look at an image of the ranking.
        compare: all methods that answer a click.
        first: the first answer of an unusual question.
        front: the front page while another visitor retrains.
        busy: by how much the server may be slower while another visitor's longest job runs.
        shift: cumulative layout shift of a page.
        memory: what all processes of the server hold themselves, see `Served.memory`.
    """

    click: float = 0.5
    closer: float = 0.3
    compare: float = 2.0
    first: float = 5.0
    front: float = 1.0
    busy: float = 2.0
    shift: float = 0.1
    memory: float = 1.5e9 / 2**20


@dataclass
class _Seconds:
    """What one kind of click took: until the page was drawn, and of the server's processors."""

    target: float
    waited: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)


@dataclass
class _Seen:
    """Everything that was measured: seconds by what was done, shifts by page and width, and memory."""

    clicks: dict[str, _Seconds] = field(default_factory=dict)
    shifts: dict[tuple[str, int], tuple[float, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, target: float, waited: float, worked: float) -> None:
        """Add a click."""
        kind = self.clicks.setdefault(what, _Seconds(target))
        kind.waited.append(waited)
        kind.worked.append(worked)


def run(
    say: Say,
    *,
    bundles: Path | None = None,
    repeats: int = 5,
    memory_clicks: int = 300,
    check: bool = False,
    targets: Targets | None = None,
) -> None:
    """Measure against a server of its own.

    Args:
        say: prints a line.
        bundles: a bundle or a folder of bundles; the user's own when None.
        repeats: how often each click is made on each bundle.
        memory_clicks: clicks through all bundles after which memory is measured again.
        check: whether a missed target is an error.
        targets: what must hold.

    Raises:
        ClickException: if a target is missed and that is checked, or a page shows an error.
    """
    folder = bundles or home() / "bundles"
    paths = {path.name: path for path in find_bundles(folder)} if folder.is_dir() else {}
    if not paths:
        say("Nothing to measure: name a folder of bundles with --bundles, or build the demo's with `natscope demo`.")
        return
    targets, seen = targets or Targets(), _Seen()
    say(f"{', '.join(paths)}; {_load()} at the start")
    with TemporaryDirectory() as own, serving(folder, home=Path(own)) as served:
        address = f"http://localhost:{served.port}"
        with chromium() as browser:
            with visitor(browser, address) as person:
                person.open("", _DOORS)
            memory = [served.memory()]
            for path in paths.values():
                _one_bundle(_Watch(served, seen), browser, address, path, repeats, targets)
            missed = _report_clicks(say, seen)
            for page in PAGES:
                for width in WIDTHS:
                    with visitor(browser, address, width) as person:
                        person.open(page, _TITLE)
                        seen.shifts[page, width] = person.shift()
            missed += _report_shifts(say, seen, targets.shift)
        memory.append(served.memory())
        asyncio.run(_through(served.port, tuple(paths), memory_clicks))
        memory.append(served.memory())
        time.sleep(IDLE + _ENDING)
        memory.append(served.memory())
        crashes = served.crashes()
    missed += _report_memory(say, memory, memory_clicks, targets.memory)
    say(f"{_load()} at the end")
    for note in (*seen.notes, *crashes):
        say(f"  {note[:200]}")
    if crashes:
        missed.append("The server's log has tracebacks.")
    if missed and check:
        raise click.ClickException(" ".join(missed))


@dataclass
class _Watch:
    """Takes the time of clicks, and the processor time that they cost the server."""

    served: Served
    seen: _Seen

    def __call__(self, what: str, target: float, work: Callable[[], Drawn]) -> Drawn:
        before = self.served.seconds()
        try:
            drawn = work()
        except click.ClickException as error:
            raise click.ClickException(f"{what}: {error.message}") from error
        self.seen.add(what, target, drawn.all, self.served.seconds() - before)
        return drawn


def _one_bundle(watch: _Watch, browser: "Browser", address: str, path: Path, repeats: int, targets: Targets) -> None:
    """Click through a bundle: first as the only visitor, then beside one who has something long computed."""
    fast = [name for name in Capabilities(Bundle(path)).usable() if not METHODS[name].ekfac]
    with visitor(browser, address) as person:
        _unusual(watch, person, path, targets)
        _clicks(watch, person, path.name, fast, repeats, targets, start=_FIRST)
    with visitor(browser, address) as other, visitor(browser, address) as person:
        with _job(watch.seen, other, _LONGEST.format(path.name), "curves_job"):
            _clicks(watch, person, path.name, fast, repeats, targets, start=_LATER, busy=" beside curves")
        with _job(watch.seen, other, f"explain?bundle={path.name}&tab=remove&q=test:{_FIRST}", "counterfactual_job"):
            _front(watch, person, repeats, targets.front)


def _unusual(watch: _Watch, person: Person, path: Path, targets: Targets) -> None:
    """Ask what is rarely asked, by its address, and then the same of other images of the same predicted class."""
    bundle, predicted = path.name, np.asarray(Bundle(path).array("test_logits")).argmax(axis=1)
    alike = [number for number in np.flatnonzero(predicted == predicted[_FIRST]).tolist() if number > _FIRST]
    field = person.page.get_by_role("textbox", name="Go to image number or file")
    for what, link in (("all training data given", "given=train"), ("all classes", "pool=all")):
        place = f"explain?bundle={bundle}&tab=attribution&method={REFERENCE}&q=test:{_FIRST}&{link}"
        watch(f"{what}: first answer", targets.first, lambda place=place: person.open(place, _RANKING))
        for number in alike[:2]:
            field.fill(str(number))
            watch(f"{what}: next of the class", targets.click, lambda: person.timed(field, _RANKING, key="Enter"))


def _next(person: Person) -> Drawn:
    return person.timed(person.page.get_by_role("button", name="Next image"), _RANKING)


def _clicks(
    watch: _Watch,
    person: Person,
    bundle: str,
    fast: Sequence[str],
    repeats: int,
    targets: Targets,
    *,
    start: int,
    busy: str = "",
) -> None:
    page, slower = person.page, targets.busy if busy else 1
    person.open(f"explain?bundle={bundle}&tab=attribution&q=test:{start}", _RANKING)

    def choose(method: str) -> Drawn:
        page.locator(".st-key-method").get_by_role("combobox").click()
        return person.timed(page.get_by_role("option", name=METHODS[method].title, exact=True), _RANKING)

    def slide(key: str) -> Drawn:
        thumb = page.locator(f".st-key-{key}").get_by_role("slider")
        if not thumb.is_visible():
            page.get_by_text("More settings", exact=True).click()
        return person.timed(thumb, _RANKING, key="ArrowRight")

    for number in range(repeats):
        watch(f"next image{busy}", slower * targets.click, lambda: _next(person))
        picture = page.locator(".st-key-ranking .picture").nth(number % 10)
        watch(f"closer look{busy}", slower * targets.closer, lambda picture=picture: person.timed(picture, _CLOSER))
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="detached", timeout=1000 * PATIENCE)
        method = fast[(number + 1) % len(fast)]
        watch(f"method{busy}", slower * targets.click, lambda method=method: choose(method))
        if METHODS[method].uses_sigma2:
            watch(f"σ²{busy}", slower * targets.click, lambda: slide("exponent"))
        watch(f"M{busy}", slower * targets.click, lambda: slide("budget"))
    tabs = page.locator(".st-key-tab")
    for _ in range(repeats):
        _next(person)
        compared = watch(
            f"Compare{busy}",
            slower * targets.compare,
            lambda: person.timed(tabs.get_by_text("Compare", exact=True), _ROWS),
        )
        watch.seen.add(f"Compare{busy}: first row", slower * targets.compare, compared.first, 0.0)
        person.timed(tabs.get_by_text("Attribution", exact=True), _RANKING)


@contextmanager
def _job(seen: _Seen, other: Person, place: str, key: str) -> Iterator[None]:
    """Let another visitor start what a page computes, and stop it after the block."""
    other.open(place, _TITLE)
    other.page.locator(f".st-key-{key}_start button").click(timeout=1000 * PATIENCE)
    stop = other.page.locator(f".st-key-{key}_stop button")
    stop.wait_for(timeout=1000 * PATIENCE)
    try:
        yield
    finally:
        if stop.is_visible():
            stop.click()
        else:
            seen.notes.append(f"{place}: the other visitor's job was over before the last click.")


def _front(watch: _Watch, person: Person, repeats: int, target: float) -> None:
    for _ in range(repeats):
        start = person.page.get_by_role("link", name="Start", exact=True)
        watch("front page beside retraining", target, lambda start=start: person.timed(start, _DOORS))
        person.timed(person.page.get_by_role("link", name="Explain", exact=True), _RANKING)


async def _through(port: int, bundles: Sequence[str], clicks: int) -> None:
    """Look at this many images, in turn of each bundle."""
    for position, name in enumerate(bundles):
        try:
            async with Visitor(port, "explain", f"bundle={name}&tab=attribution") as person:
                await person.drawn(PATIENCE)
                for number in range(clicks * position // len(bundles), clicks * (position + 1) // len(bundles)):
                    await person.ask((2 * _LATER + number) % person.images, PATIENCE)
        except VisitError as error:
            raise click.ClickException(f"{name}: {error}") from error


def _load() -> str:
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _met(value: float, target: float) -> str:
    return "yes" if value <= target else "no"


def _report_clicks(say: Say, seen: _Seen) -> list[str]:
    """Print the table of clicks; return a sentence on each target that is missed."""
    say(f"\n{'seconds from click to page':<42} {'n':>3} {'median':>7} {'most':>7} {'server':>7} {'target':>7}  met")
    missed = []
    for what, kind in seen.clicks.items():
        median = statistics.median(kind.waited)
        met = _met(median, kind.target)
        say(
            f"{what:<42} {len(kind.waited):>3} {median:>7.2f} {max(kind.waited):>7.2f} "
            f"{statistics.median(kind.worked):>7.2f} {kind.target:>7.2f}  {met}"
        )
        if met == "no":
            missed.append(f"{what}: {median:.2f} s, not {kind.target:g} s.")
    return missed


def _report_shifts(say: Say, seen: _Seen, target: float) -> list[str]:
    """Print the layout shift of each page at each width, likewise."""
    say(f"\n{'layout shift':<26}" + "".join(f" {f'{width} px':>8}" for width in WIDTHS) + f" {'target':>7}  met")
    missed, moved = [], []
    for page in dict.fromkeys(page for page, _ in seen.shifts):
        found = {width: seen.shifts[page, width] for width in WIDTHS}
        worst = max(shift for shift, _ in found.values())
        cells = "".join(f" {shift:>8.3f}" for shift, _ in found.values())
        say(f"{'/' + page:<26}{cells} {target:>7.2f}  {_met(worst, target)}")
        for width, (shift, what) in found.items():
            if shift > target:
                missed.append(f"/{page} moves by {shift:.3f} at {width} px, not {target:g}.")
                moved.append(f"  moved most on /{page} at {width} px: {what[:150]}")
    for line in moved:
        say(line)
    return missed


def _report_memory(say: Say, memory: Sequence[tuple[float, float]], clicks: int, target: float) -> list[str]:
    """Print the memory at the start, after the browser's clicks, after more of them and at the end, likewise."""
    start, after, more, end = (f"{held:,.0f} + {files:,.0f}" for held, files in memory)
    held = memory[-1][0]
    say(
        f"\nmemory, MiB held + pages of files: {start} at the start, {after} after the browser's clicks, {more} after "
        f"{clicks} more through all bundles, {end} once nothing long was computed for {IDLE:.0f} s; target "
        f"{target:,.0f} held, met: {_met(held, target)}"
    )
    return [f"Memory is {held:,.0f} MiB, not {target:,.0f}."] if held > target else []
