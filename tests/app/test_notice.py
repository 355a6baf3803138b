"""What goes wrong in any part of a page is the same one sentence, and the rest of the page stands."""

import ast
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from natscope.app import bundles
from natscope.app.serve import BUNDLES
from tests.conftest import syntax_of

_APP = Path(bundles.__file__).parent
_VIEWS = sorted((_APP / "views").glob("*.py"))


def _artifacts(kind):
    def page(kind):
        import streamlit as st

        from natscope.app.views.notice import fragment
        from natscope.core.errors import BundleError

        @fragment(run_every=None)
        def part() -> None:
            st.caption("before")
            raise {"ours": BundleError("It is *damaged*."), "memory": MemoryError(), "fault": KeyError("x")}[kind]

        part()
        st.caption("after")

    return AppTest.from_function(page, args=(kind,)).run()


@pytest.mark.parametrize(("kind", "said"), [("ours", r"It is \*damaged\*."), ("memory", "There is not enough memory")])
def test_an_error_in_a_part_of_a_page_is_one_sentence(kind, said):
    page = _artifacts(kind)
    assert not page.exception
    assert [error.value.startswith(said) for error in page.error] == [True]
    assert [caption.value for caption in page.caption] == ["before", "after"]


def test_a_fault_of_natscopes_own_is_not_hidden():
    assert [error.message for error in _artifacts("fault").exception] == ["'x'"]


def test_a_bundle_whose_damage_shows_late_is_one_sentence(here, tiny_path, tmp_path, monkeypatch):
    """All sizes are right, and what is needed to open it is whole."""
    path = shutil.copytree(tiny_path, tmp_path / "tiny")
    for file in path.glob("gram_*.npy"):
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    monkeypatch.setenv(BUNDLES, str(tmp_path))
    page = AppTest.from_file(str(_APP / "main.py"), default_timeout=60).run()
    assert not page.exception
    assert len(page.error) == 1
    assert "is damaged" in page.error[0].value


@pytest.mark.parametrize("file", _VIEWS, ids=lambda file: file.name)
def test_every_part_of_a_page_tells_its_errors(file):
    tree = syntax_of(file)
    made = [found for found in ast.walk(tree) if isinstance(found, ast.Attribute) and found.attr == "fragment"]
    assert not made or file.name == "notice.py"
    for function in ast.walk(tree):
        names = [ast.unparse(each) for each in getattr(function, "decorator_list", [])]
        assert not any(name.startswith("st.dialog") for name in names) or names[-1] == "errors_shown()"
