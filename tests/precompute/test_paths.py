import os
import stat
from pathlib import Path

import pytest

from natscope.core.errors import DataError
from natscope.precompute.paths import configuration, home


def test_a_home_that_is_made_is_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "new" / "home"))
    before = os.umask(0)
    try:
        folder = home()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_home_that_is_there_keeps_its_mode(tmp_path, monkeypatch):
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path))
    tmp_path.chmod(0o755)
    assert home() == tmp_path
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_relative_home_is_beside_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATSCOPE_HOME", "mine")
    assert home() == tmp_path / "mine"


def test_the_home_of_nobody_is_one_sentence(monkeypatch):
    monkeypatch.setenv("NATSCOPE_HOME", "~nosuchuser/natscope")
    with pytest.raises(DataError, match=r"^NATSCOPE_HOME is ~nosuchuser/natscope,"):
        home()


@pytest.mark.parametrize("named", ["/proc/natscope", "/dev/null/natscope", "/" + "x" * 5000])
def test_a_home_that_cannot_be_made_is_left_to_whoever_writes_there(monkeypatch, named):
    monkeypatch.setenv("NATSCOPE_HOME", named)
    assert str(home()) == named


def _homeless(name):
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("path", [_homeless, lambda name: Path("~/x") / name, Path])
def test_settings_without_a_home_are_one_sentence_and_never_in_the_working_directory(monkeypatch, path):
    monkeypatch.setattr("platformdirs.user_config_path", path)
    with pytest.raises(DataError, match=r"no home folder; .*XDG_CONFIG_HOME"):
        configuration()
