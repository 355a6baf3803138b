"""A method of somebody else's: one file and an entry point, and builds, commands and pages serve it."""

import json

import pytest

from tests.conftest import with_package

_METHOD = """
import numpy as np

from natscope.core.methods import Artifacts, method, rank


@method(
    "mean_pixel",
    "Mean pixel",
    summary="Looks for images as bright as this one.",
    formula="-(m_x - m_*)^2",
    advice="Never.",
    score="closeness",
    sketched=False,
    artifacts=Artifacts(
        numbers=("mean_pixels",),
        compute=lambda source: {"mean_pixels": _means(source.inputs(slice(None)))},
        settings=lambda source: {"of": "pixels"},
        bytes=lambda size: 4 * size.count,
        obstacle=lambda size: "Mean pixel needs ten images." if size.count < 10 else None,
    ),
)
def _mean_pixel(candidates, query, settings):
    return rank(-(candidates.array("mean_pixels") - _means(query.input)) ** 2, settings)


def _means(inputs):
    return inputs.flatten(1).mean(1).numpy().astype(np.float32)
"""
_PAGE = """
from streamlit.testing.v1 import AppTest

page = AppTest.from_string("from natscope.app.main import EARLIER; EARLIER['{page}']()", default_timeout=60)
page.query_params.update({{"method": "mean_pixel"}} if "{page}" == "attribute" else {{}})
page = page.run()
assert not page.exception, page.exception
print(" ".join(str(element.value) for element in [*page.markdown, *page.caption, *page.subheader]))
print([box.options for box in page.selectbox])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python with the method installed, in a folder of its own; return what is printed."""
    return with_package(tmp_path_factory, "tenth", _METHOD, "[natscope.methods]\ntenth = tenth\n")


@pytest.fixture(scope="module")
def built(run):
    """Build a small bundle without naming any method."""
    return run("-m", "natscope.app.cli", "precompute", *_SPEC, "--out", "bundle")


_SPEC = ("--per-class", "20", "--epochs", "1", "--dim", "16")


def test_builds_and_their_check_know_it(run, built):
    assert "Ready" in run("-m", "natscope.app.cli", "precompute", "--check", *_SPEC)
    manifest = json.loads(run("-c", "print(open('bundle/manifest.json').read())"))
    assert manifest["methods"]["mean_pixel"] == {"needs": ["mean_pixels"], "of": "pixels"}
    assert manifest["files"]["mean_pixels"]["shape"] == [200]
    assert "is whole" in run("-m", "natscope.app.cli", "verify", "--bundle", "bundle")


def test_the_command_ranks_by_it(run, built):
    asked = (
        "attribute",
        "--bundle",
        "bundle",
        "--train-index",
        "3",
        "--method",
        "mean_pixel",
        "--budget",
        "5",
        "--json",
    )
    items = json.loads(run("-m", "natscope.app.cli", *asked))["items"]
    assert len(items) == 5
    assert sorted(items, key=lambda item: -item["score"]) == items


@pytest.mark.parametrize("page", ["attribute", "methods"])
def test_pages_offer_and_explain_it(run, built, page):
    reported = run("-c", _PAGE.format(page=page))
    assert "Mean pixel" in reported
    if page == "methods":
        assert "as bright as this one" in reported
