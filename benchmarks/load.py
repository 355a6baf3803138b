"""Many visitors of the app at once: how long a click waits for its answer, and what it costs the server.

Each visitor thinks for 1 to 3 s, types the number of another image and waits until its ranking is on the page:
the one of the image that was asked for, the same for every visitor, and the library's own.
The server is started here and listens on the loopback interface; no other host can be named.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from urllib.parse import parse_qsl

import click
import numpy as np

from benchmarks.network import Say
from benchmarks.served import Served, serving
from benchmarks.visitor import Answer, VisitError, Visitor
from natscope.app.links import AttributeView, Limits, open_query, read
from natscope.precompute.bundles.opening import open_attributor

_THINK = (1.0, 3.0)  # seconds between an answer and the next click
_STAY = (1.0, 5.0)  # seconds after which a visitor of a heavy page leaves it unanswered
_POPULAR = 20  # images that popular visits are about
_MOST, _LONGEST = 200, 600  # visitors, seconds
_HEAVY = (
    "compare?q={}&pins={},{},{},{},{}&pool=all&given=train",
    "compare?q={}&pins={},{},{},{},{}&pool=all&m=20",
    "curves?n=50&m=300",
    "counterfactual?q={}",
)


@dataclass(frozen=True)
class Load:
    """What is measured.

    Args:
        distinct: visitors whose images nobody has seen before.
        popular: visitors of a few images that all look at, by Zipf's law.
        heavy: visitors of links that cost the server much, beside either.
        leave: whether these leave before they are answered.
        warm: clicks of one visitor before the others come: the first look at a class takes longer than later ones.
        seconds: for which either group clicks.
        timeout: seconds after which a click counts as unanswered.
        checked: answers of either group that are compared with the library's.
        seed: seed of the images and of the pauses.
    """

    distinct: int = 25
    popular: int = 50
    heavy: int = 0
    leave: bool = False
    warm: int = 40
    seconds: float = 60.0
    timeout: float = 60.0
    checked: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if max(self.distinct, self.popular) + self.heavy > _MOST or self.seconds > _LONGEST or self.timeout > _LONGEST:
            raise click.ClickException(f"At most {_MOST} visitors and {_LONGEST} s: this is a test, not an attack.")


@dataclass(frozen=True)
class Targets:
    """What must hold of each group: seconds of the 95th percentile, errors, MiB from half-time to the end."""

    p95: float | None = None
    errors: int | None = None
    growth: float | None = None


@dataclass
class _Seen:
    """What the visitors of one group have met so far."""

    opened: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    heavy: dict[str, int] = field(default_factory=lambda: {"opened": 0, "answered": 0})
    heavy_errors: list[str] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)  # seconds that clicks waited for no answer
    crashes: list[str] = field(default_factory=list)  # the last lines of tracebacks in the server's log
    memory: list[tuple[float, float]] = field(default_factory=list)
    processor: float = 0.0


def run(say: Say, *, bundle: Path | None = None, load: Load | None = None, targets: Targets | None = None) -> None:
    """Measure either group against a server of its own.

    Raises:
        ClickException: if a target is missed.
    """
    load, targets = load or Load(), targets or Targets()
    if bundle is None:
        say("Nothing to measure: name a bundle with --bundle, or build the demo's with `natscope demo`.")
        return
    missed = []
    for name, count in (("distinct", load.distinct), ("popular", load.popular)):
        if count:
            say(
                f"{name}: {count} visitors for {load.seconds:g} s, {load.heavy} on heavy links; other work on these "
                f"{os.cpu_count()} cores: load {os.getloadavg()[0]:.1f}"
            )
            started = time.process_time()
            with serving(bundle) as served:
                seen = asyncio.run(_group(served, load, name, count))
                seen.crashes = served.crashes()
            own = time.process_time() - started
            seen.errors.extend(_wrong(bundle, seen.answers, load.checked))
            _report(say, seen, own)
            missed += [f"{name}: {sentence}" for sentence in _missed(seen, targets)]
    if missed:
        raise click.ClickException(" ".join(missed))


async def _group(served: Served, load: Load, name: str, count: int) -> _Seen:
    seen, rng = _Seen(), random.Random(load.seed)
    try:
        unseen = await _first(served.port, load, rng)
    except VisitError as error:
        raise click.ClickException(f"The first visitor was not answered: {error}") from error
    numbers = iter(unseen) if name == "distinct" else _popular(rng, unseen)
    before, started = served.seconds(), time.monotonic()
    end = started + load.seconds
    watch = asyncio.create_task(_watch(served, seen))
    await asyncio.gather(
        *(_click(served.port, numbers, random.Random(rng.random()), end, load, seen) for _ in range(count)),
        *(_burden(served.port, len(unseen), random.Random(rng.random()), end, load, seen) for _ in range(load.heavy)),
    )
    seen.processor = served.seconds() - before
    watch.cancel()
    seen.memory.append(served.memory())
    return seen


async def _first(port: int, load: Load, rng: random.Random) -> list[int]:
    """Click as the first visitor, without a pause; return the test images that are left, in random order."""
    async with Visitor(port, "explain") as first:
        await first.drawn(load.timeout)
        unseen = rng.sample(range(first.images), first.images)
        for _ in range(min(load.warm, first.images // 2)):
            await first.ask(unseen.pop(), load.timeout)
    return unseen


def _popular(rng: random.Random, unseen: list[int]) -> Iterator[int]:
    chosen = unseen[:_POPULAR]
    weights = list(accumulate(1 / rank for rank in range(1, len(chosen) + 1)))
    while True:
        yield rng.choices(chosen, cum_weights=weights)[0]


async def _watch(served: Served, seen: _Seen) -> None:
    while True:
        seen.memory.append(served.memory())
        await asyncio.sleep(1)


async def _click(port: int, numbers: Iterator[int], rng: random.Random, end: float, load: Load, seen: _Seen) -> None:
    """One visitor: click, look, think, once at least; after an error, come back as another session until the end."""
    await asyncio.sleep(rng.uniform(0, _THINK[1]))
    while True:
        try:
            async with Visitor(port, "explain") as visitor:
                seen.opened.append(await visitor.drawn(load.timeout))
                await _clicks(visitor, numbers, rng, end, load, seen)
        except VisitError as error:
            seen.errors.append(str(error))
        if time.monotonic() >= end:
            return
        await asyncio.sleep(rng.uniform(*_THINK))


async def _clicks(
    visitor: Visitor, numbers: Iterator[int], rng: random.Random, end: float, load: Load, seen: _Seen
) -> None:
    last = -1
    while last < 0 or time.monotonic() < end:
        await asyncio.sleep(rng.uniform(*_THINK))
        index = next(numbers)
        while index == last:
            index = next(numbers)
        started = time.monotonic()
        try:
            seen.answers.append(await visitor.ask(index, load.timeout))
        except VisitError:
            seen.lost.append(time.monotonic() - started)
            raise
        last = index


async def _burden(port: int, images: int, rng: random.Random, end: float, load: Load, seen: _Seen) -> None:
    """One visitor of heavy links, one after the other; who leaves does so while the server is at work."""
    while time.monotonic() < end:
        link = rng.choice(_HEAVY).format(*(f"test:{number}" for number in rng.sample(range(images), 6)))
        page, _, query = link.partition("?")
        stay = rng.uniform(*_STAY) if load.leave else end - time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(stay, 0.1)):
                seen.heavy["opened"] += 1
                try:
                    async with Visitor(port, page, query) as visitor:
                        await visitor.drawn(load.timeout)
                        if await visitor.press("job_start"):
                            await visitor.drawn(load.timeout)
                        seen.heavy["answered"] += 1
                except VisitError as error:
                    seen.heavy_errors.append(f"{page}: {error}")
                await asyncio.sleep(rng.uniform(*_THINK))


def _wrong(bundle: Path, answers: list[Answer], checked: int) -> list[str]:
    """Return a sentence on each image that two visitors got different answers for, or not the library's."""
    found: dict[tuple[int, str], tuple[int, ...]] = {}
    wrong = []
    for answer in answers:
        if found.setdefault((answer.index, answer.address), answer.ranking) != answer.ranking:
            wrong.append(f"Test image {answer.index} had two answers.")
    if not checked or not found:
        return wrong
    attributor = open_attributor(bundle)
    for (index, address), ranking in list(found.items())[:: max(1, len(found) // checked)][:checked]:
        view, _ = read(AttributeView(), dict(parse_qsl(address)), Limits(len(attributor.bundle.classes)))
        items = attributor.attribute(open_query(view.query, attributor), view.request()).items
        if tuple(item.train_index for item in items) != ranking or view.query != f"test:{index}":
            wrong.append(f"Test image {index}: the page's ranking is not the library's.")
    return wrong


def _waits(seen: _Seen) -> np.ndarray:
    return np.array([answer.seconds for answer in seen.answers] + seen.lost or [np.nan])


def _report(say: Say, seen: _Seen, own: float) -> None:
    waits, clicks = _waits(seen), len(seen.answers) + len(seen.lost)
    half, last = seen.memory[len(seen.memory) // 2], seen.memory[-1]
    say(f"{'clicks':>8} {'errors':>7} {'p50, s':>7} {'p95, s':>7} {'most, s':>8} {'processor, s':>13} {'a click':>8}")
    say(
        f"{clicks:>8} {len(seen.errors):>7} {np.percentile(waits, 50):>7.2f} {np.percentile(waits, 95):>7.2f} "
        f"{waits.max():>8.2f} {seen.processor:>13.1f} {seen.processor / max(clicks, 1):>8.3f}"
    )
    opened = f"{np.percentile(seen.opened, 95):.2f} s" if seen.opened else "never"
    say(f"first page drawn, p95: {opened}; the visitors themselves took {own:.1f} s of processor time")
    say(
        "memory, MiB (held / pages of files): "
        + ", ".join(
            f"{when} {held:,.0f} / {files:,.0f}"
            for when, (held, files) in (
                ("start", seen.memory[0]),
                ("half", half),
                ("end", last),
                ("most", max(seen.memory)),
            )
        )
    )
    if seen.heavy["opened"]:
        say(
            f"heavy links: {seen.heavy['opened']} opened, {seen.heavy['answered']} answered, "
            f"{len(seen.heavy_errors)} errors"
        )
    for sentence, times in Counter(seen.errors + seen.heavy_errors + seen.crashes).most_common(10):
        say(f"  {times} × {sentence[:200]}")


def _missed(seen: _Seen, targets: Targets) -> list[str]:
    p95, growth = float(np.percentile(_waits(seen), 95)), seen.memory[-1][0] - seen.memory[len(seen.memory) // 2][0]
    missed = []
    if targets.p95 is not None and not p95 <= targets.p95:
        missed.append(f"95 of 100 clicks were answered within {p95:.2f} s, not {targets.p95:g} s.")
    if targets.errors is not None and len(seen.errors) > targets.errors:
        missed.append(f"{len(seen.errors)} errors, where at most {targets.errors} are allowed.")
    if targets.growth is not None and growth > targets.growth:
        missed.append(f"Memory grew by {growth:.0f} MiB in the second half, more than {targets.growth:g}.")
    return missed
