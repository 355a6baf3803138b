import json
import os
import re
import shutil
import time

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from natscope.app import tasks
from natscope.app.serve import BUNDLES
from natscope.app.views.stability import finding
from natscope.core.analysis.stability import Stability, across_sketches
from natscope.core.bundle.request import Attribution, Item, Request
from natscope.core.methods import METHODS

SKETCHED = next(name for name, method in METHODS.items() if method.sketched)
PLAIN = next(name for name, method in METHODS.items() if not method.sketched)


@pytest.fixture
def served(bundle_path, monkeypatch, here):
    monkeypatch.setenv(BUNDLES, str(bundle_path.parent))


@pytest.fixture
def siblings(bundle_path, tmp_path, monkeypatch, here):
    """Return a folder with the bundle and one that says it was trained with another seed."""
    for seed in (0, 7):
        folder = tmp_path / f"seed-{seed}"
        shutil.copytree(bundle_path, folder, copy_function=os.link)
        file = folder / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["training"]["seed"] = manifest["results"]["settings"]["training"]["seed"] = seed
        file.unlink()
        file.write_text(json.dumps(manifest))
    monkeypatch.setenv(BUNDLES, str(tmp_path))


def _page(methods, budget=4):
    def script(methods, budget):
        from natscope.app import bundles
        from natscope.app.views.stability import stability
        from natscope.core.bundle.request import Request

        attributor = bundles.served(next(iter(bundles.bundle_paths().values())))
        query = attributor.query("test", 5)
        stability(attributor, "test:5", query, [Request(method, budget=budget) for method in methods])

    return _whole(AppTest.from_function(script, args=(methods, budget), default_timeout=60).run())


def _whole(page):
    assert [error.message for error in page.exception] == []
    return page


def _button(page, word):
    return next((button for button in page.button if word in button.label), None)


def _run(page, word):
    """Press the button and look again until the work has ended."""
    _button(page, word).click()
    for _ in range(300):
        page = _whole(page.run())
        if _button(page, "Stop") is None:
            return page
        time.sleep(0.1)
    pytest.fail("The work did not end.")


def _cards(page, kind, method):
    grids = [each for each in page.get("bidi_component") if each.key == f"compare_stability_{kind}_{method}"]
    return json.loads(grids[0].proto.json)["items"] if grids else []


def _reported(page, method):
    start = f"**{METHODS[method].title}.** "
    return next(text.value.removeprefix(start) for text in page.markdown if text.value.startswith(start))


def _result(stayed, overlaps, correlations, failure=""):
    items = tuple(Item(place + 1, place, 0, -place, None, 1, 1.0) for place in range(len(stayed)))
    original = Attribution(Request(), 1.0, 0, 100, items, None, 0.1, 0.0)
    return Stability(Request(), original, np.array(stayed), np.array(overlaps), np.array(correlations), failure)


def test_nothing_is_repeated_before_it_is_asked_for(served):
    page = _page([SKETCHED])
    assert _button(page, "5 other sketches") is not None
    assert _cards(page, "sketches", SKETCHED) == []


def test_each_image_says_how_often_it_stayed(served, attributor):
    page = _run(_page([SKETCHED, PLAIN]), "sketches")
    own = attributor.bundle.sketch_spec.seed
    seeds = range(own + 1, own + 6)
    query = attributor.query("test", 5)
    (known,) = across_sketches(attributor, query, [Request(SKETCHED, budget=4)], seeds, lambda *step: None)
    cards = _cards(page, "sketches", SKETCHED)
    assert [card["value"] for card in cards] == [f"{count}/5" for count in known.stayed]
    assert [card["strength"] for card in cards] == pytest.approx((known.stayed / 5).tolist())
    for card, item, count in zip(cards, known.original.items, known.stayed, strict=True):
        assert card["alt"].endswith(f"training image {item.train_index}: stayed in {count} of 5")
    assert _reported(page, SKETCHED) == finding(known, "sketches")
    assert "does not use the sketch" in _reported(page, PLAIN)
    assert _cards(page, "sketches", PLAIN) == []


def test_a_running_repeat_can_be_stopped_and_started_again(served, monkeypatch):
    def forever(attributor, query, requests, seeds, progress):
        while True:
            progress("Sketch 1", 2, 9)
            time.sleep(0.005)

    monkeypatch.setattr(tasks, "across_sketches", forever)
    page = _page([SKETCHED])
    _button(page, "sketches").click()
    page = _whole(page.run())
    assert _button(page, "Stop") is not None
    assert _button(page, "sketches") is None
    page = _run(page, "Stop")
    assert any(caption.value.startswith("Stopped.") for caption in page.caption)
    assert _button(page, "sketches") is not None


def test_without_another_training_run_a_sentence_says_how_to_make_one(served):
    page = _page([SKETCHED])
    assert any("natscope precompute" in each.value and "`--seed`" in each.value for each in page.caption)
    assert _button(page, "other network") is None


def test_another_training_run_is_asked_for_the_same_images(siblings):
    page = _run(_page([SKETCHED, PLAIN]), "Ask the other network")
    for method in (SKETCHED, PLAIN):  # the weights are the same here, so everything stays
        assert [card["value"] for card in _cards(page, "networks", method)] == ["1/1"] * 4
        assert re.search(r"^All of its first 4 .*\*\*stable\*\*.* 1\.00", _reported(page, method))


def test_the_sentence_counts_the_images_that_always_stayed():
    said = finding(_result([5, 5, 4, 0], [0.6] * 5, [0.5, 0.7, 0.6, 0.6, 0.6]), "sketches")
    assert re.search(r"^2 of its first 4 .* all 5 .*70%.*\*\*partly stable\*\*", said)
    assert "0.60 (0.60 to 0.60)" in said
    assert "0.60 (0.50 to 0.70)" in said


@pytest.mark.parametrize(
    ("stayed", "verdict"), [([5, 5], "stable"), ([4, 4], "stable"), ([3, 2], "partly stable"), ([1, 0], "unstable")]
)
def test_the_verdict_follows_the_share_that_stayed(stayed, verdict):
    assert f"**{verdict}**" in finding(_result(stayed, [0.5] * 5, [0.5] * 5), "sketches")


def test_all_and_none_are_words():
    assert finding(_result([2, 2], [1.0] * 2, [1.0] * 2), "networks").startswith("All of its first 2 ")
    assert finding(_result([1, 0], [0.3] * 2, [0.1] * 2), "sketches").startswith("None of its first 2 ")


def test_an_order_that_cannot_be_told_is_left_out():
    said = finding(_result([5], [1.0] * 5, [np.nan] * 5), "sketches")
    assert "nan" not in said
    assert "order" not in said


def test_what_failed_is_said_after_what_worked():
    assert finding(_result([1], [1.0], [1.0], "It failed once."), "sketches").endswith(" It failed once.")
    none = np.zeros(0)
    assert finding(Stability(Request(), None, none, none, none, "It cannot be had."), "sketches") == "It cannot be had."
