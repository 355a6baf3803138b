import errno
import os
import socket
from pathlib import Path

import pytest
from filelock import Timeout

from natscope.core import files
from natscope.core.errors import FileError
from natscope.core.files import opened, read_regular, reading, size
from natscope.core.locks import locked


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    return file


def test_a_regular_file_is_read_up_to_its_bound(file):
    assert read_regular(file, 10) == b"0123456789"
    with opened(file) as handle:
        assert handle.read(4) == b"0123"
    with pytest.raises(FileError, match=rf"^{file} is larger than 9 bytes"):
        read_regular(file, 9)


def test_a_lock_that_is_held_is_told_from_one_that_cannot_be_made(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(Timeout, match="could not be acquired"), locked(tmp_path / "lock"):
        pass
    with locked(tmp_path / "lock"):
        pass
    if Path("/proc/self").exists():
        with pytest.raises(OSError, match="no file can be made in /proc"), locked(Path("/proc/lock")):
            pass


def test_a_large_file_is_refused_before_it_is_read(file):
    os.truncate(file, 2**40)  # a hole: it takes no room
    with pytest.raises(FileError, match=r"is larger than 10 MB"):
        read_regular(file, 10_000_000)


def test_a_file_that_grows_while_it_is_read_is_refused(file, monkeypatch):
    monkeypatch.setattr(files.os, "fstat", lambda descriptor: file.with_name("small").stat())
    file.with_name("small").touch()
    with pytest.raises(FileError, match=r"is larger than 9 bytes"):
        read_regular(file, 9)


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "missing"])
def test_what_is_no_regular_file_is_named_at_once(tmp_path, kind, links, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "it"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("it")
    fault = "is missing" if kind == "missing" else f"is a {kind}"
    with pytest.raises(FileError, match=rf"^{path} {fault}"):
        read_regular(path, 10, links=links)


def test_a_link_is_followed_only_where_it_may_be_and_never_to_a_device(file, tmp_path):
    link, zero = tmp_path / "link", tmp_path / "zero"
    link.symlink_to(file)
    zero.symlink_to("/dev/zero")
    assert read_regular(link, 10, links=True) == b"0123456789"
    with pytest.raises(FileError, match=rf"^{link} is a link"):
        read_regular(link, 10)
    with pytest.raises(FileError, match=rf"^{zero} is a link"):
        read_regular(zero, 10)
    with pytest.raises(FileError, match=rf"^{zero} is a device"):
        read_regular(zero, 10, links=True)


def test_a_file_swapped_between_looking_and_opening_is_named(file, monkeypatch):
    def swapped(path, flags):
        file.unlink()
        os.mkfifo(file)
        return os_open(path, flags)

    os_open = os.open
    monkeypatch.setattr(files.os, "open", swapped)
    with pytest.raises(FileError, match=rf"^{file} is a pipe"):
        read_regular(file, 10)


@pytest.mark.parametrize(("name", "fault"), [("a\0b", "has no name"), ("a" * 5000, "cannot be read")])
def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path, name, fault):
    with pytest.raises(FileError, match=fault):
        read_regular(tmp_path / name, 10)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1234, "1.2 kB"),
        (12_345, "12 kB"),
        (999_700, "1 MB"),
        (3_400_000, "3.4 MB"),
        (123_000_000, "123 MB"),
        (1.24e9, "1.2 GB"),
        (8.2e12, "8.2 TB"),
    ],
)
def test_a_size_has_the_unit_that_fits_it(number, words):
    assert size(number) == words


@pytest.mark.parametrize("error", [ValueError("theirs"), FileNotFoundError("theirs"), PermissionError("theirs")])
def test_what_is_raised_while_a_file_is_open_passes(file, error):
    with pytest.raises(type(error), match=r"^theirs$"), opened(file):
        raise error


def test_a_file_that_cannot_be_read_is_named_unless_memory_is_what_lacks(file):
    with pytest.raises(FileError, match=rf"^{file} cannot be read \(Input/output error\)\.$"), reading(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(OSError, match="Cannot allocate memory"), reading(file):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_file_that_is_no_regular_one_after_all_is_closed(file, monkeypatch):
    made, os_open = [], os.open
    monkeypatch.setattr(files.os, "open", lambda *all: made.append(os_open(*all)) or made[-1])
    monkeypatch.setattr(files.os, "fstat", lambda descriptor: file.parent.stat())
    with pytest.raises(FileError, match="is a folder"):
        read_regular(file, 10)
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])
