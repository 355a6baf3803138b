"""Values that no command can use: each is refused in one short sentence that names its option."""

import click
import pytest

from natscope.app.cli.commands import main, natscope
from natscope.app.cli.values import PATH
from natscope.precompute.experiments import tuning
from tests.conftest import one_sentence

_OPTIONS = [
    (name, option.opts[0], option.type)
    for name, command in natscope.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag
]
_PATHS = [(name, option) for name, option, kind in _OPTIONS if kind is PATH]
_NUMBERS = [(name, option) for name, option, kind in _OPTIONS if isinstance(kind, click.IntRange)]


def refused(capsys, *arguments):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(list(arguments))
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err) < 300
    return one_sentence(err)


@pytest.mark.parametrize("path", ["x" * 5000, "/".join(["x" * 200] * 40), "a\0b", "", "\ud800"])
@pytest.mark.parametrize(("command", "option"), _PATHS)
def test_a_path_that_cannot_be(capsys, command, option, path):
    said = refused(capsys, command, f"{option}={path}")
    assert f"'{option}': " in said


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 4000, "9" * 30, "-1", "²", "nan", "", "1\0"])
@pytest.mark.parametrize(("command", "option"), _NUMBERS)
def test_a_number_that_cannot_be(capsys, command, option, number):
    said = refused(capsys, command, f"{option}={number}")
    assert f"'{option}': " in said


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "-1", "0", "9" * 5000, ""])
@pytest.mark.parametrize("command", ["app", "demo"])
def test_a_size_of_memory_that_cannot_be(capsys, command, number):
    assert "'--memory': " in refused(capsys, command, f"--memory={number}")


def test_every_whole_number_has_bounds():
    assert not [option for _, option, kind in _OPTIONS if kind is click.INT]


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "/proc/nowhere"])
def test_a_folder_of_images_that_cannot_be(capsys, tmp_path, name):
    said = refused(capsys, "precompute", "--out", str(tmp_path / "bundle"), "--dataset", f"folder:{name}")
    assert "older" in said


@pytest.mark.parametrize("value", ["--dataset=" + "x" * 5000, "--classes=" + "9" * 5000])
@pytest.mark.parametrize("way", [["--check"], ["--out", "never"]])
def test_a_word_of_thousands_of_letters_is_cut(capsys, tmp_path, monkeypatch, way, value):
    monkeypatch.chdir(tmp_path)
    refused(capsys, "precompute", *way, value)


@pytest.mark.parametrize("widths", ["1," * 5000 + "1", "9" * 30 + ",1"])
def test_widths_that_no_network_has(capsys, tmp_path, widths):
    said = refused(capsys, "precompute", "--out", str(tmp_path / "bundle"), f"--widths={widths}")
    assert "Widths" in said


@pytest.mark.parametrize("target", ["9" * 5000, "²", "-1", "٣" * 20])
def test_a_class_that_cannot_be(capsys, bundle_path, target):
    said = refused(capsys, "attribute", "--bundle", str(bundle_path), "--test-index", "0", f"--target={target}")
    assert f"no class '{target[:9]}" in said


@pytest.mark.parametrize("place", ["/proc", "/dev/null/x", "/sys/x"])
def test_a_place_where_nothing_can_be_written(capsys, place):
    refused(capsys, "precompute", "--out", place)


@pytest.mark.parametrize("out", ["/proc/x.json", "/dev/null/x.json", "/sys/x.json"])
@pytest.mark.parametrize("command", [["evaluate", "brittleness"], ["tune"]])
def test_a_result_that_cannot_be_written_is_found_out_at_once(capsys, monkeypatch, tmp_path, command, out):
    monkeypatch.setattr(tuning, "tune", lambda *_, **__: pytest.fail("It was computed."))
    said = refused(capsys, *command, "--bundle", str(tmp_path), "--out", out)
    assert f"written to {out}: " in said


def test_a_result_never_takes_the_place_of_a_folder(capsys, tmp_path):
    (tmp_path / "result.json").mkdir()
    out = tmp_path / "result.json"
    said = refused(capsys, "tune", "--bundle", str(tmp_path), "--out", str(out))
    assert f"{out} is a folder, and --out" in said


def test_a_figure_never_takes_the_place_of_a_folder_and_a_long_name_is_refused(capsys, tmp_path):
    (tmp_path / "result.svg").mkdir()
    said = refused(capsys, "tune", "--bundle", str(tmp_path), "--out", str(tmp_path / "result.json"))
    assert "result.svg is a folder" in said
    said = refused(capsys, "tune", "--bundle", str(tmp_path), "--out", str(tmp_path / f"{'r' * 240}.json"))
    assert "too long" in said


def test_values_are_taken_without_other_options(capsys, tmp_path):
    said = refused(capsys, "tune", "--bundle", str(tmp_path), "--take", "r.json", "--methods", "info_loss")
    assert "leave out all but --bundle" in said


@pytest.mark.parametrize("command", ["precompute", "attribute", "evaluate", "tune", "verify", "demo", "app"])
def test_every_command_that_computes_takes_a_device(command):
    assert "--device" in {name for option in natscope.commands[command].params for name in option.opts}


def test_a_device_that_is_not_there_is_one_sentence_and_wins_over_the_variable(capsys, bundle_path, monkeypatch):
    monkeypatch.setenv("NATSCOPE_DEVICE", "cpu")
    said = refused(capsys, "attribute", "--bundle", str(bundle_path), "--test-index", "0", "--device", "cuda:77")
    assert "no device cuda:77 here" in said
