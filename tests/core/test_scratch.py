import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from natscope.core import scratch

_HOLDS_ONE = """
import sys
from natscope.core.scratch import temporary_folder
kept = temporary_folder()
print(kept.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of temporary files that only this test uses."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def start():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", _HOLDS_ONE], **pipes)
    return process, Path(process.stdout.readline().strip())


def test_a_process_that_ends_leaves_nothing(elsewhere):
    process, folder = start()
    assert folder.is_dir()
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    process.communicate("")
    assert list(elsewhere.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_uses_stays(elsewhere):
    (killed, gone), (living, used) = start(), start()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert gone.is_dir()
    scratch.sweep()
    assert not gone.parent.exists()
    assert used.is_dir()
    living.communicate("")
    assert list(elsewhere.iterdir()) == []


def test_a_sweep_follows_no_link(elsewhere):
    treasure = elsewhere / "treasure"
    treasure.mkdir()
    (treasure / "file").touch()
    (elsewhere / "natscope-link").symlink_to(treasure)
    (elsewhere / "natscope-link.lock").touch()
    scratch.sweep()
    assert (treasure / "file").exists()


@pytest.mark.parametrize("whose", ["a link", "a pipe", "another user's"])
def test_a_sweep_opens_nothing_but_files_of_ones_own(elsewhere, monkeypatch, whose):
    lock, treasure = elsewhere / "natscope-x.lock", elsewhere / "treasure"
    treasure.write_text("gold")
    if whose == "a link":
        lock.symlink_to(treasure)
    elif whose == "a pipe":
        os.mkfifo(lock)
    else:
        lock.touch()
        monkeypatch.setattr(scratch.os, "getuid", lambda: lock.stat().st_uid + 1)
    monkeypatch.setattr("filelock.FileLock", lambda *_, **__: pytest.fail("opened"))
    scratch.sweep()
    assert lock.lstat()
    assert treasure.read_text() == "gold"
