"""A page shows what follows from the bundle that it opened, whatever lies at its path, or elsewhere, by then."""

import ast
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from natscope.app import session, tasks
from natscope.core.bundle.format import read_manifest
from natscope.core.bundle.request import Request
from natscope.core.errors import BundleError
from tests.conftest import syntax_of
from tests.tiny import build_tiny, edited

_REPLACED = "was replaced"


@pytest.fixture(scope="module")
def other_path(tmp_path_factory):
    """A bundle with files of the same names and another content."""
    path = tmp_path_factory.mktemp("other") / "other"
    build_tiny(path, name="Other")
    return path


@pytest.fixture
def swapped(tiny_path, other_path, tmp_path):
    """Return a bundle's place, and a function that puts another bundle there, or the first one back."""
    path = shutil.copytree(tiny_path, tmp_path / "served")
    shutil.copytree(other_path, tmp_path / "aside")

    def swap():
        path.rename(tmp_path / "moved")
        (tmp_path / "aside").rename(path)
        (tmp_path / "moved").rename(tmp_path / "aside")

    return tasks.Place(path, read_manifest(path).identity), swap


@pytest.fixture(autouse=True)
def nothing_opened():
    """Let no test find what another one opened."""
    tasks._opened.cache_clear()
    tasks._coresets.cache_clear()


def silent(stage, done, total):
    pass


@pytest.mark.parametrize(
    "ask",
    [
        lambda place: tasks.linear(silent, place),
        lambda place: tasks.coreset(silent, place, np.arange(2), "random", True, 3, 1.0),
        lambda place: tasks.networks(silent, place, tasks.query(silent, place, "test", 0), [], [place]),
    ],
)
def test_a_worker_refuses_a_bundle_that_took_the_place_of_another(swapped, ask):
    place, swap = swapped
    swap()
    with pytest.raises(BundleError, match=_REPLACED):
        ask(place)
    swap()
    ask(place)  # the refusal is not kept


def test_other_networks_are_those_that_the_page_named(tiny_path, swapped):
    place, swap = swapped
    own = tasks.Place(tiny_path, read_manifest(tiny_path).identity)
    asked = tasks.query(silent, own, "test", 0)
    swap()
    with pytest.raises(BundleError, match=_REPLACED):
        tasks.networks(silent, own, asked, [], [place])


def test_what_is_kept_of_a_bundle_is_never_anothers(here, swapped):
    place, swap = swapped
    good, request = session.served(place.path), Request(budget=3)
    query = good.query("test", 1)
    swap()
    tasks._opened.cache_clear()  # as in the worker of another lane
    with pytest.raises(BundleError, match=_REPLACED):
        good.attribute(query, request, bar=False)
    other = session.served(place.path)
    assert other.bundle.identity != place.identity
    swap()
    assert session.served(place.path).bundle.identity == place.identity
    assert good.attribute(query, request, bar=False).items


def test_a_page_that_opens_a_bundle_is_told_when_it_was_replaced_meanwhile(here, swapped):
    place, swap = swapped
    swap()
    with pytest.raises(BundleError, match=_REPLACED):
        session.Served(place)


def test_a_damaged_copy_of_a_bundle_spoils_no_other(here, tiny_path, tmp_path):
    """Its manifest is the same, so that only the folder tells their jobs apart."""
    copy = shutil.copytree(tiny_path, tmp_path / "copy")
    damaged, good, request = session.served(copy), session.served(tiny_path), Request(budget=3)
    file = copy / "features.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    query = good.query("test", 1)
    tasks._opened.cache_clear()
    with pytest.raises(BundleError, match="copy is damaged"):
        damaged.attribute(query, request, bar=False)
    failed = ("attribute", damaged.place, ("test", 1), request)
    assert session.lanes().quick.get(failed).error is not None
    assert session.lanes().quick.get(("attribute", good.place, ("test", 1), request)) is None
    assert good.attribute(query, request, bar=False).items


@pytest.mark.parametrize("file", sorted((Path(session.__file__).parent / "views").glob("*.py")), ids=lambda f: f.name)
def test_no_page_keeps_a_job_by_identity_alone(file):
    keys = [ast.unparse(found) for found in ast.walk(syntax_of(file)) if isinstance(found, ast.Tuple)]
    assert not [key for key in keys if "identity" in key]


def test_a_manifest_that_was_written_anew_is_another_bundle_even_at_the_same_time(here, swapped):
    place, _ = swapped
    manifest = place.path / "manifest.json"
    found = manifest.stat()
    first = session.served(place.path)
    edited(place.path, lambda raw: raw.update(name="Tinier"))

    os.utime(manifest, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert session.served(place.path).bundle.manifest.name == "Tinier"
    assert first.bundle.manifest.name == "Tiny"
