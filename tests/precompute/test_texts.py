import csv
import dataclasses
import gzip
import io
import json
import re
import sys
import types

import numpy as np
import pandas
import pytest

from natscope import assets
from natscope.assets.make_austen import NOVELS, chapters, make, passages
from natscope.core.bundle.verify import check_bundle
from natscope.core.errors import BuildError, DataError, QueryError
from natscope.core.progress import silent
from natscope.precompute.answer import open as open_bundle
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.text_sources import TextSpec, fingerprint
from natscope.precompute.data.texts import text_dataset
from natscope.precompute.data.tokenizing import trained
from natscope.precompute.training.models import ModelSpec
from tests.tiny import build_tiny_texts, saved

_ROWS = [
    (f"A {word} film, number {n}.", label) for n in range(10) for word, label in (("fine", "good"), ("dull", "bad"))
]


def _tsv(path, rows=_ROWS, titles=("text", "label")):
    path.write_text("".join("\t".join(row) + "\n" for row in (titles, *rows)), encoding="utf-8")
    return path


def _read(path, **settings):
    return text_dataset(f"text:{path}", TextSpec(**settings))[0]


def _refused(path, message, **settings):
    with pytest.raises(DataError, match=message) as caught:
        _read(path, **settings)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


def _texts(data):
    return [data.train.text(n) for n in range(len(data.train))] + [data.test.text(n) for n in range(len(data.test))]


@pytest.mark.parametrize("kind", ["tsv", "csv", "semicolons", "utf-16", "jsonl", "jsonl.gz", "parquet"])
def test_tables_of_all_kinds_give_the_same_data(tmp_path, kind):
    rows = [(f'{text} He said: "Go, Émile; go"', label) for text, label in _ROWS]
    path = tmp_path / f"films.{kind if '.' in kind or kind in ('tsv', 'jsonl', 'parquet') else 'csv'}"
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()
    if kind == "tsv":
        _tsv(path, rows)
    elif kind == "jsonl":
        path.write_bytes(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif kind == "parquet":
        pandas.DataFrame(rows, columns=["text", "label"]).to_parquet(path)
    else:
        found = io.StringIO()
        csv.writer(found, delimiter=";" if kind == "semicolons" else ",").writerows([("text", "label"), *rows])
        path.write_bytes(found.getvalue().encode("utf-16" if kind == "utf-16" else "utf-8-sig"))
    data = _read(path)
    assert data.classes == ("bad", "good")
    assert sorted(_texts(data)) == sorted(text for text, _ in rows)
    assert (len(data.train), len(data.test)) == (16, 4)
    assert np.bincount(data.test_labels).tolist() == [2, 2]
    number = int(data.train_sources[3].split()[-1])
    assert data.train.text(3) == rows[number - (0 if kind == "parquet" else 1 if "json" in kind else 2)][0]
    assert data.train.tokenizer == data.test.tokenizer == trained(_texts(data)[:16], vocabulary=10_000)


def test_lines_of_a_table_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text('text,label\n"two\nlines",a\n\nthree,b\nfour,a\nfive,b\n', encoding="utf-8")
    data = _read(path)
    where = dict(zip(_texts(data), data.train_sources + data.test_sources, strict=True))
    assert where == {"two\nlines": "films.csv, line 2", "three": "films.csv, line 5", "four": "films.csv, line 6",
                     "five": "films.csv, line 7"}  # fmt: skip


def test_two_columns_make_a_pair(tmp_path):
    rows = [(str(n // 2), f"One is {n}.", f"Two is {n}.", str(n % 2)) for n in range(10)]
    path = _tsv(tmp_path / "pairs.tsv", rows, ("index", "sentence1", "sentence2", "label"))
    data = _read(path)
    assert data.train.columns == ("sentence1", "sentence2")
    assert data.classes == ("0", "1")
    number = int(data.train_sources[0].split()[-1]) - 2
    assert data.train.parts(0) == rows[number][1:3]
    assert int(data.train_labels[0]) == number % 2
    other = _read(path, columns=("sentence2",), label="index", test=path)
    assert other.train.parts(0) == ("Two is 0.",)
    assert other.classes == tuple(map(str, range(5)))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([2, 10, -1], ("-1", "2", "10")),
        ([True, False], ("False", "True")),
        ([1.0, 0.0], ("0", "1")),
        (["b", "a"], ("a", "b")),
    ],
)
def test_labels_may_be_words_or_whole_numbers(tmp_path, labels, classes):
    path = tmp_path / "films.jsonl"
    rows = [{"text": f"film {n}", "label": labels[n % len(labels)]} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert _read(path).classes == classes


def test_a_test_set_beside_the_training_set_is_taken(tmp_path):
    train = _tsv(tmp_path / "my_train.tsv")
    _tsv(tmp_path / "my_test.tsv", [row[:1] for row in _ROWS], ("text",))
    _tsv(tmp_path / "my_dev.tsv", [("A fresh film.", "good"), *_ROWS[:2]])
    _tsv(tmp_path / "my_val.tsv")
    data = _read(train)
    assert (len(data.train), len(data.test)) == (20, 3)
    assert data.test_sources[0] == "my_dev.tsv, line 2"
    assert data.remarks == (
        "my_test.tsv is not used, having no labels",
        "my_dev.tsv is the test split",
        "my_val.tsv is not used",
        "2 test texts are also training texts: my_dev.tsv, line 3 = my_train.tsv, line 2, my_dev.tsv, line 4 = "
        "my_train.tsv, line 3",
    )
    other = _read(train, test=_tsv(tmp_path / "other.tsv", [("A fresh film.", "good")]))
    assert len(other.test) == 1
    assert other.remarks == ("without a test text: bad",)
    _refused(train, "other.tsv, line 2 is of the class awful", test=_tsv(tmp_path / "other.tsv", [("A", "awful")]))


def test_the_same_text_is_never_on_both_sides(tmp_path):
    rows = [(f" Film {n // 3}" + " " * (n % 2), "ab"[n // 3 % 2]) for n in range(60)]
    data = _read(_tsv(tmp_path / "films.tsv", rows))
    train, test = ({part.text(n) for n in range(len(part))} for part in (data.train, data.test))
    assert not train & test
    assert (len(train), len(test)) == (16, 4)
    assert len(data.test) == 12
    again, other = _read(tmp_path / "films.tsv"), _read(tmp_path / "films.tsv", seed=1)
    assert again.test_sources == data.test_sources != other.test_sources


@pytest.mark.parametrize(
    ("titles", "rows", "settings", "message"),
    [
        (("text", "mood"), _ROWS, {}, r"No column of .* is called label, .* by --label: it has text, mood"),
        (("text", "label"), _ROWS, {"label": "mood"}, r"no column 'mood', and --label .* 'text', 'label'"),
        (("text", "label"), _ROWS, {"columns": ("body",)}, r"no column 'body', and --text names one"),
        (("text", "label"), _ROWS, {"columns": ("label",)}, "name the column label twice"),
        (("a", "b", "label"), [("x", "y", "1")], {}, r"Several columns of .* may be the text: a, b; name it by --text"),
        (("text", "text"), _ROWS, {}, "two columns of the title 'text'"),
        (("text", "label"), [*_ROWS, ("a", "b", "c")], {}, "2 columns in its first line and 3 in line 22"),
        (("text", "label"), [*_ROWS, ("a",)], {}, "2 columns in its first line and 1 in line 22"),
        (("text", "label"), [], {}, "has no rows"),
        (("text", "label"), [("a", "x"), ("b", "x")], {}, "has 1 class: x, and a classifier needs at least two"),
        (("text", "label"), [("a", "x"), ("b", "X"), ("c", "x")], {}, "X and x of .* upper and lower case"),
        (("text", "label"), [(f"{n}", f"label {n}") for n in range(9)], {}, "9 different labels for 9 texts"),
        (("text", "label"), [("a", "x"), ("b", "y")], {}, "a single text, and none is left for testing"),
        (("text", "label"), [*_ROWS, ("a", "x\u202ey")], {}, "no title of a class"),
        (("text", "label"), [*_ROWS, (" ", "good")], {}, "1 of 21 texts .* used: films.tsv, line 22 is empty"),
        (("text", "label"), [*_ROWS, ("\u200b", "good")], {}, "line 22 is empty"),
        (("text", "label"), [*_ROWS, ("fine", " ")], {}, "line 22 has no label"),
        (("text", "label"), [*_ROWS, ("a" * 100_001, "good")], {}, "line 22 has more than 100,000 characters"),
        (("text", "label"), [*_ROWS, ("a" * 10**7, "good")], {}, "line 22, holds more than 100,000 characters"),
        (("text", "label"), _ROWS, {"test_share": 1.0}, "test share must lie between"),
        (("text", "label"), _ROWS, {"longest": 3}, "cut to 4 to 8,192 tokens, not 3; change --longest"),
        (("text", "label"), _ROWS, {"vocabulary": 3}, "A vocabulary has 4 to"),
        (("text", "label"), _ROWS, {"columns": ("a", "b", "c")}, "one column or two, not 3"),
    ],
)  # fmt: skip
def test_odd_tables_are_refused_in_a_sentence(tmp_path, titles, rows, settings, message):
    _refused(_tsv(tmp_path / "films.tsv", rows, titles), message, **settings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("films.tsv", b"", "is empty; its first line"),
        ("films.tsv", "text\tlabel\na\tx\nété\ty\n".encode("latin-1"), r"not UTF-8 throughout \(line 3 is not\)"),
        ("films.csv", b'text,label\n"a,x\nb,y\n', "no table from line 2 on"),
        ("films.jsonl", b'{"text": "a", "label": "x"}\n{"text": "a"\n', "Line 2 of .* is not JSON"),
        (
            "films.jsonl",
            b'{"text": "a", "label": "x"}\n{"text": "a"}\n',
            "Line 2 of .* has other names than the first, which has text, label",
        ),
        ("films.jsonl", b'["a"]\n', "Line 1 of .* is no JSON object with a name for each column"),
        ("films.jsonl", b"{}\n", "Line 1 of .* is no JSON object with a name for each column"),
        ("films.jsonl", b'{"text": "\\ud800", "label": "x"}\n', "Line 1 of .* holds half a character"),
        ("films.jsonl", b'{"text": "a", "label": 0.5}\n', "line 1, has a label that is neither"),
        ("films.jsonl", b'{"text": "a", "label": [1]}\n', "line 1, has a label that is neither"),
        ("films.jsonl", b'{"text": 3, "label": 1}\n', "line 1, has no text in text but an int"),
        ("films.jsonl.gz", b"text", "no complete gzip file"),
        ("films.parquet", b"text", "no parquet file that can be read"),
        ("films.xlsx", b"text", r"no table that can be read; name a file of \.tsv, \.csv, \.jsonl, \.parquet"),
        ("films", b"text", "no table that can be read"),
    ],
)
def test_odd_files_are_refused_in_a_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    _refused(tmp_path / name, message)


def test_what_is_not_there_is_refused_in_a_sentence(tmp_path):
    _refused(tmp_path / "films.tsv", "films.tsv is missing")
    _refused(_tsv(tmp_path / "films.tsv"), "other.tsv is missing", test=tmp_path / "other.tsv")
    with pytest.raises(DataError, match=r"no data set of texts 'x'; choose austen or rte, or .* text:PATH"):
        text_dataset("x", TextSpec())


def test_texts_that_cannot_be_used_may_be_skipped(tmp_path):
    path = _tsv(tmp_path / "films.tsv", [*_ROWS, (" ", "good"), ("a" * 100_001, "good"), ("fine", "")])
    data, skipped = text_dataset(f"text:{path}", TextSpec(skip_broken=True))
    assert len(_texts(data)) == 20
    assert skipped == [
        "films.tsv, line 22 is empty",
        "films.tsv, line 23 has more than 100,000 characters",
        "films.tsv, line 24 has no label",
    ]


def _folder(path, splits=("",)):
    for split in splits:
        for number in range(5):
            for label in ("bad", "good"):
                file = path / split / label / f"{number}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"A {label} film, number {number} {split}.\r\n", encoding="utf-8")
    return path


def test_a_folder_holds_a_class_in_each_subfolder(tmp_path):
    (_folder(tmp_path / "films") / "good" / "notes.md").write_text("no text of a class")
    data = _read(tmp_path / "films")
    assert data.name == "text:films"
    assert data.classes == ("bad", "good")
    assert (len(data.train), len(data.test)) == (8, 2)
    assert all(
        data.classes[label] in source for label, source in zip(data.train_labels, data.train_sources, strict=True)
    )
    split = _read(_folder(tmp_path / "split", ("train", "test")))
    assert (len(split.train), len(split.test)) == (10, 10)
    assert split.test_sources[0] == "test/bad/0.txt"
    assert split.test.text(0) == "A bad film, number 0 test."
    assert split.remarks == ()


def test_odd_folders_are_refused_in_a_sentence(tmp_path):
    path = _folder(tmp_path / "films", ("train", "test"))
    _refused(path, "--text, --label and --test are for tables", label="mood")
    (path / "test" / "good").rename(path / "test" / "fair")
    _refused(path, "test has a class fair that .*train does not have")
    (path / "test" / "fair").rename(path / "test" / "good")
    (path / "train" / "good" / "5.txt").write_bytes("été".encode("latin-1"))
    _refused(path, r"5.txt is not UTF-8 throughout \(line 1 is not\)")
    (path / "train" / "good" / "5.txt").write_bytes(b"a" * 10_000_000)
    _refused(path, "5.txt is larger than")
    (path / "train" / "good" / "5.txt").write_bytes(b" ")
    _refused(path, "train/good/5.txt is empty")
    assert len(_read(path, skip_broken=True).train) == 10
    (tmp_path / "one" / "good").mkdir(parents=True)
    _refused(tmp_path / "one", "has 1 class, and a classifier needs at least two")
    (tmp_path / "one" / "bad").mkdir()
    _refused(tmp_path / "one", "no .txt file in a folder of a class")
    (tmp_path / "one" / "bad" / "1.txt").write_text("a")
    (tmp_path / "one" / "bad" / "2.txt").write_text("b")
    _refused(tmp_path / "one", "class good without a training text")


def test_a_folder_of_tables_is_told_to_name_one(tmp_path):
    _tsv(tmp_path / "films.tsv")
    _refused(tmp_path, "holds no folders of classes but tables; name one of them, as in --dataset text:.*films.tsv")


def test_a_tokenizer_may_be_brought(tmp_path):
    path, own = _tsv(tmp_path / "films.tsv"), tmp_path / "tokenizer.json"
    own.write_bytes(trained(["a film", "a film"], vocabulary=10))
    data = _read(path, tokenizer=own)
    assert data.train.vocabulary == 5
    assert data.train.tokenizer == own.read_bytes()
    own.write_bytes(b"{}")
    _refused(path, "tokenizer.json does not have the form of", tokenizer=own)
    own.write_bytes(
        trained(["film film"], vocabulary=4).replace(b'"film":3', b'"film":3,"a":0').replace(b'"[PAD]":0,', b"")
    )
    _refused(path, r"The text of films.tsv, line \d+ is cut into tokens of the number 0", tokenizer=own)
    _refused(path, "missing.json is missing", tokenizer=tmp_path / "missing.json")


@pytest.mark.parametrize("name", ["austen", "text:"])
def test_a_build_notices_another_tokenizer(name, tmp_path):
    own, table = tmp_path / "tokenizer.json", _tsv(tmp_path / "films.tsv")
    name = f"text:{table}" if name == "text:" else name
    found = [fingerprint(name, TextSpec())]
    for content in (b"{}", b"{} "):
        own.write_bytes(content)
        found.append(fingerprint(name, TextSpec(tokenizer=own)))
    assert len(set(found)) == 3


def test_settings_can_be_written(tmp_path):
    spec = TextSpec(columns=("a", "b"), tokenizer=tmp_path / "tokenizer.json")
    found = json.loads(json.dumps(spec.to_dict()))
    assert found["columns"] == ["a", "b"]
    assert found["tokenizer"] == str(tmp_path / "tokenizer.json")
    assert found.keys() == {field.name for field in dataclasses.fields(spec)}


# RTE


def test_rte_is_read_from_the_files_of_glue(tmp_path, monkeypatch):
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path))
    folder = tmp_path / "datasets" / "RTE"
    folder.mkdir(parents=True)
    titles = ("index", "sentence1", "sentence2", "label")
    rows = [(str(n), f'He said "{n}.', "So it is.", ("entailment", "not_entailment")[n % 2]) for n in range(6)]
    _tsv(folder / "train.tsv", rows, titles)
    _tsv(
        folder / "dev.tsv",
        [("0", "It is.", "Is it?", "entailment"), ("1", "It is.", "It is.", "not_entailment")],
        titles,
    )
    data, _ = text_dataset("rte", TextSpec())
    assert data.name == "rte"
    assert data.classes == ("entailment", "not_entailment")
    assert data.train.parts(1) == ('He said "1.', "So it is.")
    assert (len(data.train), len(data.test)) == (6, 2)


def test_without_the_files_rte_comes_through_the_library(tmp_path, monkeypatch):
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    wanted = r"datasets, which is missing; install it, or put GLUE's train.tsv and dev.tsv into .*RTE, or name"
    with pytest.raises(DataError, match=wanted):
        text_dataset("rte", TextSpec())

    def unreachable(*name):
        raise ConnectionError("Couldn't reach the Hub")

    class Split(list):
        features = types.SimpleNamespace(names=["entailment", "not_entailment"])
        features = {"label": features}  # noqa: RUF012

    rows = [{"sentence1": f"It is {n}.", "sentence2": "So it is.", "label": n % 2} for n in range(4)]
    splits = {"train": Split(rows), "validation": Split(rows[:2])}
    library = types.ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", library)
    library.load_dataset = unreachable
    with pytest.raises(DataError, match=r"could not be downloaded; check the network and the disk, or put GLUE's"):
        text_dataset("rte", TextSpec())
    library.load_dataset = lambda *name: splits if name == ("nyu-mll/glue", "rte") else {}
    data, _ = text_dataset("rte", TextSpec())
    assert data.train.parts(1) == ("It is 1.", "So it is.")
    assert data.train_labels.tolist() == [0, 1, 0, 1]
    assert data.test_sources == ("validation, row 0", "validation, row 1")


# Jane Austen's novels


@pytest.fixture(scope="module")
def austen():
    data, skipped = text_dataset("austen", TextSpec())
    assert not skipped
    return data


def test_the_novels_ship_divided_by_chapter(austen):
    assert austen.classes == tuple(sorted(NOVELS.values()))
    assert (len(austen.train), len(austen.test)) == (9777, 2166)
    assert austen.train_sources[20] == "Emma, chapter 1, passage 21"
    chapters_of = [
        {source.rsplit(",", 1)[0] for source in sources} for sources in (austen.train_sources, austen.test_sources)
    ]
    assert not chapters_of[0] & chapters_of[1]
    assert len(chapters_of[0] | chapters_of[1]) == 55 + 48 + 31 + 24 + 61 + 50
    assert np.bincount(austen.test_labels).min() > 200
    assert austen.train.text(0).startswith("Emma Woodhouse, handsome, clever, and rich")
    assert austen.remarks == ()
    assert sum(f.stat().st_size for f in assets.path("austen").iterdir()) < 1.6e6


def test_most_words_of_the_held_out_chapters_are_known(austen):
    ids = austen.test.inputs[:]
    assert ((ids == 1).sum() / (ids > 0).sum()) < 0.03


def test_passages_end_with_sentences_and_lose_no_word():
    text = "Mr. Knightley was _there_. " * 4 + "He spoke, and she listened to him: " * 30 + "And so it was. " * 40
    found = passages(text)
    assert " ".join(found) == " ".join(text.replace("_", "").split())
    assert [len(part.split()) for part in found] == pytest.approx([len(text.split()) / len(found)] * len(found), abs=40)
    assert found[-2].endswith("was.")
    assert not any(part.endswith("Mr.") for part in found)
    assert passages("Short. " * 3) == ["Short. Short. Short."]


def test_the_novels_are_made_again(tmp_path):
    for name in NOVELS:
        novel = [f"CHAPTER {n}\n\nIn {name} there is a chapter {n}.\n" for n in range(1, 7)]
        (tmp_path / f"{name}.txt").write_text("Title\n\n" + "\n".join(novel) + "\n\nFINIS\n", encoding="utf-8")
    make(tmp_path, tmp_path / "out")
    rows = [
        json.loads(line) for line in gzip.decompress((tmp_path / "out" / "test.jsonl.gz").read_bytes()).splitlines()
    ]
    assert [row["novel"] for row in rows] == list(NOVELS.values())
    assert rows[0] == {"text": "In emma there is a chapter 5.", "novel": "Emma", "chapter": 5}
    first = (tmp_path / "out" / "train.jsonl.gz").read_bytes()
    make(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "train.jsonl.gz").read_bytes() == first
    assert len(gzip.decompress(first).splitlines()) == 30
    volumes = (
        "VOLUME I\n\nChapter 1\n\nOne.\n\n[End volume one\nof it.]\n\nVOLUME II\n\nCHAPTER II.\n\nTwo.\n\nTHE END\n"
    )
    assert [chapter.strip() for chapter in chapters(volumes)] == ["One.", "Two."]


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [("text:", {}, "Name the table or folder"), ("austen", {"label": "novel"}, "leave them out with austen")],
)
def test_a_name_without_a_path_and_columns_of_what_ships_are_refused(name, settings, sentence):
    with pytest.raises(DataError, match=sentence):
        text_dataset(name, TextSpec(**settings))


def test_weights_want_the_tokenizer_that_belongs_to_them(tmp_path):
    spec = BuildSpec(dataset="austen", model=ModelSpec("attention", None), weights=tmp_path / "a.safetensors")
    with pytest.raises(BuildError, match="by --tokenizer"):
        spec.load(silent)


def test_verify_cuts_the_texts_again(tmp_path):
    path = tmp_path / "reviews"
    bundle = build_tiny_texts(path)
    assert check_bundle(path) == []
    saved(path, "test_spans", np.zeros_like(bundle.array("test_spans")))
    (fault,) = check_bundle(path)
    assert re.search(
        r"^The test set of the bundle .* is damaged: it holds \d+ texts that its tokenizer does not", fault
    )
    assert fault.endswith("To fix it, delete the folder and build it again with the command that made it.")


def test_python_asks_about_a_text_in_quotes(tmp_path):
    explainer = open_bundle(build_tiny_texts(tmp_path / "reviews"))
    for query in ("The film is lovely.", ("The film is lovely.", "good")):
        answer = explainer.explain(query, budget=2)
        assert answer.query.example.text(0) == "The film is lovely."
    assert answer.query.label == explainer.classes.index("good")
    assert explainer.explain("test:1", budget=1).query.index == 1
    with pytest.raises(QueryError, match=r"has one text .text., not 3"):
        explainer.explain(("a", "b", "c"))
