"""A page shows what follows from the bundle that it opened, whatever lies at its path, or elsewhere, by then."""

import ast
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from natscope.app import bundles, lanes, tasks
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

    return tasks.Place.of(path), swap


@pytest.fixture(autouse=True)
def nothing_opened():
    """Let no test find what another one opened."""
    tasks._kept.cache_clear()
    tasks._coresets.cache_clear()


def silent(stage, done, total):
    pass


@pytest.mark.parametrize(
    "ask",
    [
        lambda place: tasks.linear(silent, place),
        lambda place: tasks.coreset(silent, place, np.arange(2), "random", "free", 3, 1.0),
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
    own = tasks.Place.of(tiny_path)
    asked = tasks.query(silent, own, "test", 0)
    swap()
    with pytest.raises(BundleError, match=_REPLACED):
        tasks.networks(silent, own, asked, [], [place])


def test_what_is_kept_of_a_bundle_is_never_anothers(here, swapped):
    place, swap = swapped
    good, request = bundles.served(place.path), Request(budget=3)
    query = good.query("test", 1)
    swap()
    tasks._kept.cache_clear()  # as in the worker of another lane
    with pytest.raises(BundleError, match=_REPLACED):
        good.attribute(query, request, bar=False)
    other = bundles.served(place.path)
    assert other.bundle.identity != place.identity
    swap()
    assert bundles.served(place.path).bundle.identity == place.identity
    assert good.attribute(query, request, bar=False).items


def test_a_page_that_opens_a_bundle_is_told_when_it_was_replaced_meanwhile(here, swapped):
    place, swap = swapped
    swap()
    with pytest.raises(BundleError, match=_REPLACED):
        bundles.Served(place)


def test_a_damaged_copy_of_a_bundle_spoils_no_other(here, tiny_path, tmp_path):
    """Its manifest is the same, so that only the folder tells their jobs apart."""
    copy = shutil.copytree(tiny_path, tmp_path / "copy")
    damaged, good, request = bundles.served(copy), bundles.served(tiny_path), Request(budget=3)
    file = copy / "features.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    query = good.query("test", 1)
    tasks._kept.cache_clear()
    with pytest.raises(BundleError, match="copy is damaged"):
        damaged.attribute(query, request, bar=False)
    failed = ("attribute", damaged.place, ("test", 1), request)
    assert lanes.shared().quick.get(failed).error is not None
    assert lanes.shared().quick.get(("attribute", good.place, ("test", 1), request)) is None
    assert good.attribute(query, request, bar=False).items


@pytest.mark.parametrize("file", sorted((Path(bundles.__file__).parent / "views").glob("*.py")), ids=lambda f: f.name)
def test_no_page_keeps_a_job_by_identity_alone(file):
    keys = [ast.unparse(found) for found in ast.walk(syntax_of(file)) if isinstance(found, ast.Tuple)]
    assert not [key for key in keys if "identity" in key]


def test_a_manifest_that_was_written_anew_is_another_bundle_even_at_the_same_time(here, swapped):
    place, _ = swapped
    manifest = place.path / "manifest.json"
    found = manifest.stat()
    first = bundles.served(place.path)
    edited(place.path, lambda raw: raw.update(name="Tinier"))

    os.utime(manifest, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert bundles.served(place.path).bundle.manifest.name == "Tinier"
    assert first.bundle.manifest.name == "Tiny"


def _overwritten(path, name):
    """Write other numbers into an array's file, in place, and return what it held."""
    file = path / f"{name}.npy"
    held = file.read_bytes()
    with file.open("r+b") as opened:
        opened.seek(-8 * 4, os.SEEK_END)
        opened.write(np.zeros(4, dtype=np.int64).tobytes())
    return held


@pytest.mark.parametrize("name", ["train_labels", "test_labels", "test_logits", "train_images"])
def test_a_file_that_is_cut_short_in_place_is_told_by_a_page_that_is_open(here, swapped, name):
    """Were it mapped, the system would end the server."""
    path = swapped[0].path
    open_page = bundles.served(path)
    os.truncate(path / f"{name}.npy", 0)
    assert len(open_page.train_labels) + len(open_page.test_labels) == 72
    with pytest.raises(BundleError, match=rf"'{name}.npy' has 0 bytes"):
        open_page.bundle.array(name)
    with pytest.raises(BundleError, match=rf"'{name}.npy' has 0 bytes"):
        bundles.served(path)


@pytest.mark.parametrize("name", ["train_labels", "penultimate", "features"])
def test_no_answer_follows_from_a_file_that_was_overwritten_in_place_even_after_its_repair(here, swapped, name):
    path, request = swapped[0].path, Request("repsim", budget=3)
    first = bundles.served(path)
    before = first.attribute(first.query("test", 1), request, bar=False)
    held = _overwritten(path, name)
    with pytest.raises(BundleError, match="was replaced or changed"):
        first.attribute(first.query("test", 2), request, bar=False)
    with pytest.raises(BundleError, match=rf"is damaged: '{name}.npy'"):
        bundles.served(path).query("test", 1)
    (path / f"{name}.npy").write_bytes(held)
    again = bundles.served(path)
    assert again.place != first.place
    assert again.attribute(again.query("test", 1), request, bar=False).items == before.items
