import json
from pathlib import Path

import pytest

from docs.pages import render
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.search import search_charts, search_title
from natscope.app.results import load_benchmark

_PAGE = Path(__file__).parents[2] / "docs" / "results.md"


@pytest.fixture(scope="module")
def result():
    return load_benchmark("search")


def _row(result, search, sigma2):
    return next(r for r in result["rows"] if (r["n"], r["search"], r["sigma2"]) == (10**6, search, sigma2))


def test_the_result_that_ships_reaches_its_goal_at_a_million(result):
    flat = _row(result, "flat", 1.0)
    found = _row(result, "ivf", 1.0)
    assert flat["recall"] == 1.0
    assert flat["seconds"] >= 20 * found["seconds"]
    for sigma2 in (1.0, 1000.0):
        assert _row(result, "ivf", sigma2)["information"] >= 0.98


def test_what_the_documentation_says_of_hnsw_at_a_million(result):
    found = {sigma2: _row(result, "hnsw", sigma2) for sigma2 in (1.0, 1000.0)}
    text = " ".join(render(_PAGE).split())
    assert f"{found[1.0]['seconds']:.2f} ({found[1.0]['information']:.3f}) |" in text
    assert f"finds {found[1.0]['information']:.3f} of the nats" in text
    assert f"({found[1000.0]['information']:.3f} at 1,000)" in text
    assert f"takes {found[1.0]['build_seconds'] / 60:.0f} minutes" in text


def test_the_figure_has_every_search_and_only_what_is_not_exact_in_its_second_panel(result):
    times, nats = search_charts(result)
    assert len(times.series) == 8
    assert [line.name for line in nats.series] == ["IVF index", "IVF-SQ8 index", "IVF-PQ index", "HNSW index"]
    assert next(line for line in times.series if line.name == "IVF index").y[-1] == _row(result, "ivf", 1.0)["seconds"]
    assert search_title(result) == "K = 1,024, σ² = 1, 1 thread"


def test_a_result_with_one_size_and_one_index_is_drawn(result):
    part = result | {"rows": [r for r in result["rows"] if r["search"] == "ivf" and r["n"] == 10**6]}
    assert chart_file(*search_charts(json.loads(json.dumps(part))), kind="svg", columns=2).startswith(b"<?xml")
