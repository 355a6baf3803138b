"""The site that `make docs` builds: what its pages say is what the code and the results say, and it loads nothing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import natscope
from docs import pages
from docs.results import read
from natscope.app.figures.tables import coreset_table, flips_table, recall_table, retraining_table
from natscope.app.words import GLOSSARY
from natscope.core.methods import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def measured() -> str:
    """The page of results, with spaces that break."""
    return pages.render(ROOT / "docs" / "results.md").replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("retraining-cifar10", retraining_table),
        ("backdoor", recall_table),
        ("backdoor-cifar10", recall_table),
        ("coreset", coreset_table),
        ("brittleness", flips_table),
        ("coreset-cifar10", coreset_table),
    ],
)
def test_the_page_of_results_has_the_tables_and_the_findings(name, table, measured):
    assert table(read(name)).markdown() in measured
    assert read(name)["finding"] in measured


def test_no_result_is_typed_by_hand_on_the_page_of_results():
    typed = re.sub(
        r"\{\{.*?\}\}|\{%.*?%\}", "", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert re.findall(r"\d+(?:\.\d+)? ?%|\d\.\d+", typed) == []


def test_the_glossary_explains_every_term_in_the_words_of_the_app():
    page = pages.render(ROOT / "docs" / "glossary.md")
    assert all(f"**{term}**\n:   {meaning}" in page for term, meaning in GLOSSARY.items())


@pytest.mark.parametrize("name", ["docs/method.md", "docs/guide/methods.md"])
def test_formulas_have_no_command_that_is_left_as_it_was_typed(name):
    page = pages.render(ROOT / name)
    assert page.count("<math") >= 9
    assert "<mi>\\" not in page
    assert "$`" not in page


def test_links_are_those_of_the_site_and_files_that_are_not_there_stay_words(tmp_path, monkeypatch):
    (tmp_path / "docs" / "guide").mkdir(parents=True)
    page = tmp_path / "docs" / "guide" / "page.md"
    page.write_text(
        "[a](../method.md#b) [c](../../SECURITY.md) [d](../../core/greedy.py) ![e](../../assets/results/f.svg)"
    )
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "_DOCS", tmp_path / "docs")
    assert pages.render(page) == "[a](../method.md#b) [c](../security.md) d ![e](../assets/results/f.svg)"


def test_the_guide_has_a_page_for_each_page_of_the_app_and_every_method():
    main = (ROOT / "app" / "main.py").read_text(encoding="utf-8")
    addresses = re.findall(r'url_path="(\w+)"', main) + re.findall(r'    "(\w+)": \w+\.\w+,', main)
    tabs = {"start": "index", "explain": "attribute", "paper": "results"}  # the first page of a place with several
    addresses = [tabs.get(address, address) for address in addresses]
    assert {"attribute", "compare", "counterfactual", "curves", "backdoor", "coreset", "results"} <= set(addresses)
    assert [address for address in addresses if not (ROOT / f"docs/guide/{address}.md").exists()] == []
    methods = pages.render(ROOT / "docs" / "guide" / "methods.md")
    assert all(method.summary in methods for method in METHODS.values())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does, a warning being an error."""
    folder = tmp_path_factory.mktemp("documentation")
    pages.main(folder / "build" / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    package = folder / "build" / "typing" / "natscope"
    package.mkdir(parents=True)
    for source in (*(ROOT / "natscope").iterdir(), *(ROOT / name for name in ("app", "assets", "core", "precompute"))):
        (package / source.name).symlink_to(source)
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


def test_the_site_loads_nothing_from_elsewhere(site):
    loading = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*?(?:src|srcset|href)=["']?(?:https?:)?//""")
    found = {page.name: loading.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert len(found) > 20
    assert {name: links for name, links in found.items() if links} == {}
    styles = "".join(style.read_text(encoding="utf-8") for style in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//", styles) == []


def test_every_public_name_is_on_the_page_of_the_api(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    assert [name for name in natscope.__all__ if f'id="natscope.{name}"' not in page] == []
    assert "&gt;&gt;&gt;" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)  # an example is code
