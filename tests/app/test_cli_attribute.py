"""`natscope attribute` about many queries, as tables, JSON lines and scores of every candidate."""

import csv
import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import natscope
from natscope.app import rankings
from natscope.app.cli.commands import main
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import Request
from natscope.core.errors import QueryError
from natscope.precompute.bundles.opening import open_attributor
from tests.conftest import one_sentence
from tests.tiny import build_tiny_texts

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(capsys, tiny_path):
    def call(*arguments):
        with pytest.raises(SystemExit, match=r"^\d+$") as exited:
            main(["attribute", "--bundle", str(tiny_path), *map(str, arguments)])
        return exited.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def attributor(tiny_path):
    return open_attributor(tiny_path)


def _table(out):
    return list(csv.DictReader(io.StringIO(out)))


@pytest.mark.parametrize("pool", ["same-class", "all"])
def test_many_queries_are_answered_in_the_order_asked_as_each_alone(ask, pool):
    asked, options = ["7", "0", "3", "4", "5"], ["--budget", 2, "--pool", pool, "--json"]
    code, out, err = ask("--test-index", "7,0,3-5,0,4", *options)
    assert code == 0
    assert one_sentence(err) == "natscope: --test-index names images 0, 4 more than once; each is asked about once."
    found = [json.loads(line) for line in out.splitlines()]
    assert [answer["query"]["index"] for answer in found] == list(map(int, asked))
    for index, answer in zip(asked, found, strict=True):
        alone = json.loads(ask("--test-index", index, *options)[1])
        assert [i["train_index"] for i in answer["items"]] == [i["train_index"] for i in alone["items"]]
        assert [i["score"] for i in answer["items"]] == pytest.approx([i["score"] for i in alone["items"]])


def test_a_table_names_query_source_and_settings_on_every_line(ask, attributor):
    code, out, err = ask("--train-index", "0,40,41", "--target", 0, "--budget", 2, "--method", "repsim", "--csv")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == ",".join(rankings.columns(attributor.bundle))
    rows = _table(out)
    assert [row["query"] for row in rows] == ["train:0", "train:0", "train:40", "train:40", "train:41", "train:41"]
    for row in rows:
        own = int(row["query"].removeprefix("train:"))
        assert int(row["train_index"]) != own
        assert row["query_source"] == attributor.bundle.sources("train")[own]
        assert row["source"] == attributor.bundle.sources("train")[int(row["train_index"])]
        assert (row["method"], row["pool"]) == ("repsim", "same-class")


@pytest.mark.parametrize("option", ["--invert", "--no-invert"])
def test_light_and_dark_of_nothing_but_an_image_can_be_swapped(ask, option):
    code, out, err = ask("--test-index", 0, option)
    assert (code, out) == (2, "")
    assert "--invert and --no-invert are for --image; leave them out." in err


def test_all_wrong_asks_about_every_test_image_predicted_wrong(ask, attributor, monkeypatch):
    predicted = np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1)
    wrong = np.flatnonzero(predicted != attributor.test_labels)
    code, out, _ = ask("--all-wrong", "--budget", 1, "--csv")
    assert code == 0
    assert [row["query"] for row in _table(out)] == [f"test:{index}" for index in wrong]
    assert len(wrong)
    own = Attributor.__init__

    def faultless(self, *given, **options):
        own(self, *given, **options)
        self.test_labels = predicted

    monkeypatch.setattr(Attributor, "__init__", faultless)
    code, out, err = ask("--all-wrong", "--csv")
    assert (code, out) == (2, "")
    assert "every test example right" in one_sentence(err)


@pytest.mark.parametrize("kind", ["npy", "csv"])
@pytest.mark.parametrize("pool", ["same-class", "all"])
def test_scores_are_those_of_every_candidate_in_the_order_asked(ask, attributor, tmp_path, kind, pool):
    file = tmp_path / "new" / f"scores.{kind}"
    code, out, err = ask("--test-index", "4,1,2", "--method", "info_gain", "--pool", pool, "--scores", file)
    assert (code, out) == (0, "")
    count = len(attributor.train_labels)
    assert f"{count} training examples × 3 queries" in err
    if kind == "npy":
        found = np.load(file)
    else:
        rows = _table(file.read_text())
        assert list(rows[0]) == ["train_index", "source", "label", "test:4", "test:1", "test:2"]
        assert [row["source"] for row in rows] == list(attributor.bundle.sources("train"))
        found = np.array([[float(row[f"test:{i}"] or "nan") for i in (4, 1, 2)] for row in rows])
    assert found.shape == (count, 3)
    for column, index in enumerate((4, 1, 2)):
        rows, scores = attributor.score_each(attributor.query("test", index), Request("info_gain", pool=pool))
        assert found[rows, column] == pytest.approx(scores, rel=1e-6)
        assert np.isnan(np.delete(found[:, column], rows)).all()


def test_several_answers_for_people_each_have_a_heading(ask, attributor):
    _, out, _ = ask("--test-index", "2,6", "--budget", 1)
    first, second = out.split("\n\n")
    for index, text in ((2, first), (6, second)):
        assert text.startswith(f"test:{index}  {attributor.bundle.sources('test')[index]}\nPredicted ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--test-index", "5-3"], "ends before it begins; write 3-5"),
        (["--test-index", "0,,1"], "neither a number nor a range"),
        (["--test-index", "1-2-3"], "neither a number nor a range"),
        (["--test-index", ""], "neither a number nor a range"),
        (["--test-index", "0-99999999999999999999"], "no test image 99999999999999999999; choose a number from 0 to"),
        (["--train-index", "-1"], "no train image -1"),
        (["--test-index", "1", "--all-wrong"], "one of them"),
        (["--test-index", "1", "--scores", "scores.txt"], "a .npy or a .csv file to write, not scores.txt"),
        (["--test-index", "1", "--scores", "/proc/no/scores.npy"], "cannot be written to /proc/no/scores.npy"),
        (["--test-index", "0,1", "--method", "magic"], "no method 'magic'"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(ask, arguments, said):
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert said in one_sentence(err)


def test_a_query_among_many_that_cannot_be_answered_is_named(ask, monkeypatch):
    monkeypatch.setattr(Attributor, "query_features", _refusing(Attributor.query_features))
    code, _, err = ask("--test-index", "4-6", "--csv")
    assert code == 2
    assert one_sentence(err).startswith("natscope: test:5: ")


def _refusing(own):
    def features(self, query, target):
        if query.index == 5:
            raise QueryError("The network does not respond to this image at all.")
        return own(self, query, target)

    return features


def test_a_reader_that_ends_stops_it_with_a_sentence(tiny_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "natscope.app.cli", "attribute", "--bundle", str(tiny_path), "--test-index", "0-9"]
    done = subprocess.run(
        [*command, "--csv"], stdout=write, stderr=subprocess.PIPE, text=True, cwd=_ROOT, timeout=120, check=False
    )
    os.close(write)
    assert done.returncode == 141
    assert one_sentence(done.stderr) == "natscope: stopped after 0 of 10 queries: nothing reads the output now."


def test_ctrl_c_says_how_far_it_came(ask, monkeypatch):
    own = Attributor.attribute

    def interrupted(self, query, *given, **options):
        if query.index == 6:
            signal.raise_signal(signal.SIGINT)
        return own(self, query, *given, **options)

    monkeypatch.setattr(Attributor, "attribute", interrupted)
    monkeypatch.setattr("natscope.app.cli.attribute._TOGETHER", 1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        code, out, err = ask("--test-index", "1,6", "--budget", 1, "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out.count("\n")) == (130, 1)
    assert one_sentence(err) == "natscope: stopped after 1 of 2 queries."


def test_classes_are_attributed_together_so_that_nothing_is_computed_twice(ask, monkeypatch):
    own, targets = Attributor.candidates, []
    monkeypatch.setattr(
        Attributor, "candidates", lambda self, target, *given: (targets.append(target), own(self, target, *given))[1]
    )
    assert ask("--test-index", "0-9", "--budget", 1, "--pool", "all", "--csv")[0] == 0
    changes = sum(one != other for one, other in itertools.pairwise(targets))
    assert changes == len(set(targets)) - 1 > 0


def test_answers_come_as_soon_as_those_before_them_have(ask, attributor, monkeypatch):
    logits = np.asarray(attributor.bundle.array("test_logits"))
    first, other = 0, int(np.flatnonzero(logits.argmax(axis=1) != logits[0].argmax())[0])
    own, asked, said = Attributor.attribute, [], []

    def attribute(self, query, *given, **options):
        asked.append((query.index, len(said)))
        return own(self, query, *given, **options)

    monkeypatch.setattr(Attributor, "attribute", attribute)
    monkeypatch.setattr("natscope.app.cli.attribute.say", lambda line, **_: said.append(line))
    assert ask("--test-index", f"{first},{other}", "--pool", "all", "--json")[0] == 0
    assert asked == [(first, 0), (other, 1)]


@pytest.mark.parametrize("options", [("--pool", "all"), ("--pool", "same-class")])
def test_a_terminal_shows_how_far_it_is_from_the_first_moment(ask, monkeypatch, options):
    seen = []
    monkeypatch.setattr("natscope.app.cli.progress.Bars.__call__", lambda self, *step: seen.append(step))
    assert ask("--test-index", "0-5", *options, "--csv")[0] == 0
    assert (seen[0], seen[-1]) == (("Queries", 0, 6), ("Queries", 6, 6))
    assert any(stage.startswith("Reading every training example") for stage, _, _ in seen) is ("all" in options)


@pytest.mark.parametrize("kind", ["npy", "csv"])
def test_scores_are_written_as_they_come_and_whole_or_not_at_all(ask, tmp_path, monkeypatch, kind):
    file, own = tmp_path / f"scores.{kind}", Attributor.score_each

    def failing(self, query, *given):
        if query.index == 5:
            raise QueryError("The network does not respond to this image at all.")
        return own(self, query, *given)

    monkeypatch.setattr(Attributor, "score_each", failing)
    assert ask("--test-index", "0-9", "--scores", file)[0] == 2
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("natscope.app.cli.scores._ROWS", 7)
    monkeypatch.setattr(Attributor, "score_each", own)
    assert ask("--all-wrong", "--method", "repsim", "--scores", file)[0] == 0
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


def test_what_cannot_be_read_is_not_blamed_on_the_file_of_scores(ask, tmp_path, monkeypatch):
    def gone(self, query, *given):
        raise OSError(errno.EIO, "Input/output error", "features.npy")

    monkeypatch.setattr(Attributor, "score_each", gone)
    code, _, err = ask("--test-index", "0-2", "--scores", tmp_path / "scores.npy")
    assert (code, one_sentence(err)) == (2, "natscope: features.npy cannot be used: Input/output error.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("attribute --test-index 0 --scores", "features.npy"),
        ("evaluate brittleness --out", "manifest.json"),
        ("tune --out", "new.json"),
    ],
)
def test_nothing_is_written_into_a_bundle(capsys, tmp_path, command, file):
    bundle = build_tiny_texts(tmp_path / "reviews").path
    before = {each.name: each.read_bytes() for each in bundle.iterdir() if each.is_file()}
    name, *options = command.split()
    with pytest.raises(SystemExit, match=r"^2$"):
        main([name, "--bundle", str(bundle), *options, str(bundle / file)])
    assert f"{bundle / file} would lie in a bundle" in one_sentence(capsys.readouterr().err)
    assert {each.name: each.read_bytes() for each in bundle.iterdir() if each.is_file()} == before


def test_scores_for_which_there_is_no_space_are_a_sentence(ask, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array_header_1_0", full)
    code, _, err = ask("--test-index", "0-2", "--scores", tmp_path / "scores.npy")
    assert code == 2
    assert "cannot be written to" in one_sentence(err)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_about_a_text_says_what_the_network_does_not_read(capsys, tmp_path):
    build_tiny_texts(tmp_path / "reviews")

    def answer(*options):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["attribute", "--bundle", str(tmp_path / "reviews"), "--text", "The film is zxqv.", *options])
        return capsys.readouterr().out

    said, found = answer(), json.loads(answer("--json"))
    assert "1 word is unknown to the network: “zxqv”." in said.splitlines()
    assert found["query"]["reading"] == {"words": 4, "read": 4, "unknown": ["zxqv"]}
    assert ("out of distribution" in said) == found["query"]["unlike_training"]
    train = Bundle(tmp_path / "reviews").examples("train")
    for item in found["items"]:  # each with the text itself
        assert f"{item['source']}: {train.text(item['train_index'])[:20]}" in said


def test_json_tables_and_python_quote_each_text_up_to_a_limit(capsys, tmp_path, monkeypatch):
    bundle = build_tiny_texts(tmp_path / "reviews")
    train = bundle.examples("train")

    def answer(kind):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["attribute", "--bundle", str(bundle.path), "--test-index", "0", kind])
        return capsys.readouterr().out

    said = json.loads(answer("--json"))
    asked, found = said["query"], said["items"]
    assert asked["text"] == bundle.examples("test").text(0)
    assert (asked["label_name"], asked["predicted_name"]) == tuple(
        bundle.classes[asked[name]] for name in ("label", "predicted")
    )
    assert [item["text"] for item in found] == [train.text(item["train_index"]) for item in found]
    assert [item["label_name"] for item in found] == [bundle.classes[item["label"]] for item in found]
    rows = _table(answer("--csv"))
    assert [row["text"] for row in rows] == [item["text"] for item in found]
    for row in rows:
        assert row["query_text"] == asked["text"]
        assert row["query_label_name"] == asked["label_name"]
        assert row["query_predicted_name"] == asked["predicted_name"]
        assert float(row["query_probability"]) == asked["probability"]
    explained = natscope.open(bundle.path).explain(0)
    assert [item.text for item in explained.items] == [item["text"] for item in found]
    assert explained.to_pandas()["text"].tolist() == [item["text"] for item in found]
    monkeypatch.setattr("natscope.core.bundle.request.QUOTED", 12)
    explainer = natscope.open(bundle.path)
    assert len(explainer.explain(0).to_dict()["query"]["text"]) <= 14
    for item in explainer.explain(0).items:
        whole = train.text(item.train_index)
        assert len(item.text) <= 14 < len(whole)
        assert whole.startswith(item.text.removesuffix(" …"))


def test_a_query_is_shown_in_a_line_and_a_missing_file_is_no_text(tmp_path):
    explainer = natscope.open(build_tiny_texts(tmp_path / "reviews").path)
    assert len(repr(explainer.explain(0).query)) < 500
    for name in ("missing.txt", "my reviews/1.txt"):
        with pytest.raises(QueryError, match=f"There is no file '{name}'"):
            explainer.explain(name)
    assert explainer.explain("The film is fine.").query.origin == "upload"
