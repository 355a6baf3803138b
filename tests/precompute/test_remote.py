"""Data that URLs name: fetched once, read like what lies here, and nothing secret of a URL is kept or shown."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from PIL import Image

from natscope.app.cli.commands import main
from natscope.core.bundle.format import Bundle
from natscope.core.errors import DataError
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.remote import displayed, fetch, name_in, url_in
from natscope.precompute.data.text_sources import TextSpec
from natscope.precompute.training.train import train
from tests.conftest import one_sentence

_OPTIONS = ("--image-size", 8, "--epochs", 1, "--dim", 16, "--methods", "repsim")


class _Faulty(MemoryFileSystem):
    """A place whose listings and files are as a test says."""

    protocol, cachable, store, pseudo_dirs = "faulty", False, {}, [""]
    listing, error = None, None

    @classmethod
    def _strip_protocol(cls, path):
        return f"/{path.removeprefix('faulty://').lstrip('/')}"

    def find(self, path, **_):
        if self.error is not None:
            raise self.error
        assert path == "/birds"
        return self.listing

    def ukey(self, path):
        return path

    def get_file(self, path, place, **_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """natscope's own folder."""
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def memory():
    """The file system in memory, emptied afterwards."""
    system = fsspec.filesystem("memory")
    yield system
    for path in system.ls("/"):
        system.rm(path["name"], recursive=True)


@pytest.fixture
def faulty():
    """A file system that fails as a test says."""
    fsspec.register_implementation("faulty", _Faulty, clobber=True)
    yield _Faulty
    _Faulty.listing = _Faulty.error = None


@pytest.fixture
def photos(tmp_path):
    """A folder of two classes of images."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def _left(home):
    """Return what there is of fetched data, finished or not."""
    return [path.name for path in (home / "fetched").glob("*") if path.suffix != ".lock"]


def _refused(url, match, **others):
    with pytest.raises(DataError, match=match) as found:
        fetch(url, **others)
    assert "secret" not in one_sentence(str(found.value))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://bucket/birds", "s3://bucket/birds"),
        ("folder:s3://bucket/a@b", "folder:s3://bucket/a@b"),
        ("text:https://me:secret@host:8080/a.csv?token=secret#secret", "text:https://host:8080/a.csv"),
        ("https://secret@host/a.csv", "https://host/a.csv"),
        ("https://me:sec@ret@host/a", "https://host/a"),
        ("https://me:sec/ret@host/a", "https://…"),
        ("https://me:1?ret@host/a", "https://…"),
        ("https://[::1]:80/a", "https://[::1]:80/a"),
        ("memory://a\u202eb", "memory://a\ufffdb"),
        ("C:\\data\\x?y", "C:\\data\\x?y"),
        ("folder:/data/s3://x?y", "folder:/data/s3://x?y"),
        ("fashion-mnist", "fashion-mnist"),
    ],
)
def test_what_may_be_secret_is_not_displayed(given, shown):
    assert displayed(given) == displayed(shown) == shown


@pytest.mark.parametrize("name", ["folder:C:\\data", "folder:C://data", "text:/data/x.csv", "folder:a:b", "austen", ""])
def test_paths_are_no_urls(name):
    assert url_in(name) == ("", "")


def test_what_is_fetched_is_named_by_the_end_of_the_url():
    assert [name_in(f"https://host/{end}") for end in ("a%20b.csv?x=/y", "birds/", "..", "%2e%2e", "a%2fb", "")] == [
        "a b.csv",
        "birds",
        "data",
        "data",
        "b",
        "host",
    ]


def test_a_folder_is_fetched_once_and_anew_when_it_changed(memory, home, monkeypatch):
    for name, content in (("cat/1.png", b"one"), ("dog/deep/2.png", b"four")):
        memory.pipe(f"/birds/{name}", content)
    seen = []
    place = fetch("memory://birds", lambda *now: seen.append(now))
    assert place.name == "birds"
    assert {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*.png")} == {
        "cat/1.png": b"one",
        "dog/deep/2.png": b"four",
    }
    assert (seen[0], seen[-1]) == (("Fetching bytes", 0, 7), ("Fetching bytes", 7, 7))
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get", None)
        assert fetch("memory://birds") == place
    memory.pipe("/birds/cat/1.png", b"two")
    again = fetch("memory://birds")
    assert (again / "cat" / "1.png").read_bytes() == b"two"
    assert (again != place, len(_left(home))) == (True, 2)


def test_a_large_file_is_fetched_by_blocks(memory, monkeypatch):
    monkeypatch.setattr("natscope.precompute.data.remote._BLOCK", 4)
    memory.pipe("/reviews.csv", b"0123456789")
    seen = []
    file = fetch("memory://reviews.csv", lambda *now: seen.append(now[1]), table=True)
    assert (file.name, file.read_bytes()) == ("reviews.csv", b"0123456789")
    assert seen == [0, 4, 8, 10, 10]


def test_links_are_followed_and_none_is_left_out_in_silence(photos):
    (photos / "cat" / "link.png").symlink_to(photos / "cat" / "0.png")
    found = fetch(photos.as_uri())
    assert (found / "cat" / "link.png").read_bytes() == (photos / "cat" / "0.png").read_bytes()
    (photos / "cat" / "gone.png").symlink_to(photos / "nothing")
    _refused(photos.as_uri(), "lists 'cat/gone.png', which is no file that can be read")


def test_a_password_in_what_is_no_url_is_not_printed(tmp_path, capsys):
    for name in (
        "text:simplecache::https://bob:hunter2@h/x.csv",
        " folder:https://bob:hunter2@h/x",
        "folder:https:/bob:hunter2@h/x",
    ):
        with pytest.raises(SystemExit):
            main(["precompute", "--dataset", name, "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert "hunter2" not in said
        assert "…@h/x" in said


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "a//b", "a/\0"])
def test_a_listing_that_leaves_the_folder_is_refused(name, faulty, home):
    path = name if name.startswith("/") else f"/birds/{name}"
    faulty.listing = {path: {"name": path, "type": "file", "size": 1}}
    _refused("faulty://birds", "faulty://birds lists a file of the name .*not lie within its folder")
    assert not home.joinpath("fetched").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nosuch://a/b", "fsspec knows no URLs that begin with nosuch://"),
        ("memory://nowhere", "nothing at memory://nowhere, or it cannot be reached"),
        ("memory://nowhere.csv", "nothing at memory://nowhere.csv"),
        ("memory://", "names no bucket"),
        ("file:///nowhere/at/all", "nothing at file:///nowhere/at/all"),
        ("zip://a::s3://me:secret@bucket/x", "is no URL of one place"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(url, sentence, home):
    _refused(url, sentence, table=url.endswith(".csv"))
    assert _left(home) == []


def _caused(error, status):
    """Return an error as fsspec raises it for a web server's answer."""
    error.__cause__ = OSError("secret")
    error.__cause__.status = status
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError("https://me:secret@host"), "There is nothing at faulty://bucket/x"),
        (PermissionError("secret"), "You have no permission to read faulty://bucket/x; check your credentials"),
        (ConnectionRefusedError("secret"), r"cannot be fetched \(ConnectionRefusedError\); check the address"),
        (KeyError("secret"), r"cannot be fetched \(KeyError\)"),
        (
            _caused(FileNotFoundError("secret"), 401),
            "You have no permission to read faulty://bucket/x; check your credentials",
        ),
        (_caused(OSError("secret"), 403), "You have no permission to read faulty://bucket/x"),
        (_caused(FileNotFoundError("secret"), 404), "There is nothing at faulty://bucket/x"),
        (
            _caused(FileNotFoundError("secret"), 503),
            r"The server of faulty://bucket/x answered with an error \(HTTP status 503\)",
        ),
    ],
)
def test_what_a_driver_raises_becomes_a_sentence_without_its_words(error, sentence, faulty):
    faulty.error = error
    _refused("faulty://me:secret@bucket/x?token=secret", sentence)


def test_a_driver_that_is_missing_is_named(monkeypatch):
    missing = {"class": "no_such_module.FileSystem", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "absent", missing)
    _refused("absent://bucket/x", "absent://bucket/x needs a library that is missing: Install s3fs to access S3")


def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(faulty, home, memory, monkeypatch):
    faulty.listing = {f"/birds/{n}": {"name": f"/birds/{n}", "type": "file", "size": 1} for n in "ab"}
    _refused("faulty://birds", "faulty://birds cannot be kept in .*fetched .No space left on device.; make room")
    assert _left(home) == []
    memory.pipe("/x.csv", b"12345")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4))
    _refused("memory://x.csv", "memory://x.csv takes 5 bytes and only 4 bytes are free", table=True)
    assert _left(home) == []


def test_an_interrupted_fetch_leaves_nothing_and_one_that_was_killed_is_begun_again(memory, home):
    memory.pipe("/x.csv", b"12345")

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("memory://x.csv", stop, table=True)
    assert _left(home) == []
    place = fetch("memory://x.csv", table=True)
    place.parent.rename(place.parent.with_name(f"{place.parent.name}.partial"))
    assert fetch("memory://x.csv", table=True) == place
    assert _left(home) == [place.parent.name]


def test_texts_and_their_test_set_come_from_urls(memory):
    memory.pipe("/reviews.csv", b"text,label\n" + b"".join(b"good %d,1\nbad %d,0\n" % (n, n) for n in range(5)))
    memory.pipe("/held.csv", b"text,label\ngood,1\nbad,0\n")
    spec = BuildSpec(dataset="text:memory://reviews.csv?secret", text=TextSpec(test="memory://held.csv?secret"))
    for name in ("reviews.csv", "held.csv"):  # in memory a name ends with its query
        memory.copy(f"/{name}", f"/{name}?secret")
    data, _ = spec.load(lambda *now: None)
    assert (data.name, len(data.train), len(data.test)) == ("text:memory://reviews.csv", 10, 2)
    assert data.test_sources == ("held.csv, line 2", "held.csv, line 3")
    settings = spec.settings()
    assert (settings["dataset"], settings["text"]["test"]) == ("text:memory://reviews.csv", "memory://held.csv")
    assert "secret" not in json.dumps(settings) + repr(spec.here().text)
    memory.pipe("/held.csv?secret", b"text,label\nbad,1\nbad,0\n")
    assert spec.settings()["text"]["files"] != settings["text"]["files"]


def test_what_is_wrong_with_fetched_data_is_said_of_the_url(memory, photos, home):
    memory.pipe("/reviews.csv", b"text,label\ngood,1\n,0\n")
    (photos / "cat" / "0.png").write_bytes(b"no image")
    for url in ("text:memory://reviews.csv", f"folder:{photos.as_uri()}"):
        with pytest.raises(DataError) as found:
            BuildSpec(dataset=url).load(lambda *now: None)
        assert url_in(url)[1] in one_sentence(str(found.value))
        assert str(home) not in str(found.value)


def test_a_command_builds_from_a_url_what_it_builds_from_the_folder(photos, home, tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["precompute", *map(str, (*arguments,))])
        return capsys.readouterr()

    url = f"folder:{photos.as_uri()}"
    assert f"--dataset {url} --image-size 8" in run("--dataset", url, *_OPTIONS, "--check").out
    run("--dataset", url, *_OPTIONS, "--out", tmp_path / "from url")
    run("--dataset", f"folder:{photos}", *_OPTIONS, "--out", tmp_path / "from folder")
    assert "Already there" in run("--dataset", url, *_OPTIONS, "--out", tmp_path / "from url").out
    again = run("--config", tmp_path / "from url", "--out", tmp_path / "again")
    assert f"The settings are those of {tmp_path / 'from url'}." in again.err
    found = [Bundle(tmp_path / name) for name in ("from url", "from folder", "again")]
    sums = [{name: record.sha256 for name, record in bundle.manifest.files.items()} for bundle in found]
    assert sums[0] == sums[1] == sums[2]
    manifest = found[0].manifest
    assert manifest.dataset["name"] == manifest.results["settings"]["dataset"] == url
    assert manifest.name.startswith(f"{url}, ")
    assert f"--dataset {url}" in manifest.command
    assert str(home) not in (tmp_path / "from url" / "manifest.json").read_text(encoding="utf-8")
    assert len(_left(home)) == 1


def test_an_interrupted_build_goes_on_and_keeps_no_secret(photos, memory, home, tmp_path, capsys, monkeypatch):
    memory.put(str(photos), "/me:secret@birds", recursive=True)  # in memory a name is all of the URL
    arguments = ["precompute", "--dataset", "folder:memory://me:secret@birds", *map(str, _OPTIONS)]
    trained = []

    def stopped(*_, **__):
        raise KeyboardInterrupt

    def counted(*given, **others):
        trained.append(given)
        return train(*given, **others)

    monkeypatch.setattr("natscope.precompute.bundles.build.train", counted)
    for name, code in (("gone", 130), ("gone", 0), ("whole", 0)):
        with monkeypatch.context() as patch:
            if code:
                patch.setattr("natscope.precompute.bundles.build._Builder._outputs", stopped)
            with pytest.raises(SystemExit, match=rf"^{code}$"):
                main([*arguments, "--out", str(tmp_path / name)])
    assert len(trained) == 2  # not once more when the first build went on
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*arguments, "--check"])
    gone, whole = (Bundle(tmp_path / name) for name in ("gone", "whole"))
    assert gone.identity == whole.identity
    assert gone.manifest.dataset["name"] == "folder:memory://birds"
    assert len(_left(home)) == 1
    told = capsys.readouterr()
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.is_relative_to(gone.path)]
    assert not [text for text in (told.out.encode(), told.err.encode(), *kept) if b"secret" in text]
