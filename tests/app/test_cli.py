import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natscope.app.cli import experiments
from natscope.app.cli.attribute import _class_number
from natscope.app.cli.commands import main
from natscope.app.figures import experiments as drawn
from natscope.app.words import percent
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import MANIFEST, WEIGHTS, Bundle
from natscope.core.methods import METHODS
from natscope.precompute.bundles import background
from natscope.precompute.bundles.background import PROOF
from natscope.precompute.bundles.demo import FIRST, POISONED, SLOW, TEXTS
from tests.conftest import EACH, one_sentence
from tests.tiny import edited

_ROOT = Path(__file__).parents[2]
_TOP = {
    "query",
    "target",
    "target_name",
    "method",
    "sigma2",
    "pool",
    "pool_size",
    "conditioning",
    "index",
    "seconds",
    "total_nats",
    "redundancy",
    "items",
}
_QUERY = {"origin", "index", "source", "probability", "unlike_training"}
_QUERY |= {"label", "label_name", "predicted", "predicted_name"}
_ITEM = {"rank", "train_index", "source", "label", "label_name", "score", "nats", "sign"}
_TEST_IMAGE = 11


@pytest.fixture
def run(capsys):
    """Run the command in this process; give exit code, stdout and stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit, match=r"^\d+$") as exited:
            main([str(a) for a in arguments])
        return exited.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def attribute(run, bundle_path):
    """Return the JSON object of `attribute`."""

    def call(*arguments):
        code, out, err = run("attribute", "--bundle", bundle_path, *arguments, "--json")
        assert (code, err) == (0, "")
        assert out.count("\n") == 1
        return json.loads(out)

    return call


@pytest.fixture
def refused(run):
    """Return the one sentence with which a command is refused."""

    def call(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        return _sentence(err)

    return call


def _sentence(err):
    assert err.startswith("natscope: ")
    return one_sentence(err).removeprefix("natscope: ")


def _process(*arguments, **options):
    command = [sys.executable, "-m", "natscope.app.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, timeout=120, **options)


def _ranking(answer):
    return [(i["train_index"], i["score"]) for i in answer["items"]]


@pytest.fixture
def damaged(bundle_path, tmp_path):
    """A copy with hard links, to replace files in: writing into one would damage the bundle of all tests."""
    return shutil.copytree(bundle_path, tmp_path / "damaged", copy_function=os.link)


def _replace(file, data):
    file.unlink()
    file.write_bytes(data)


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# The command itself


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from natscope.app.cli import commands as cli\n"
        "for words in (['--help'], ['precompute', '--help'], ['attribute', '--help'], ['demo', '--help']):\n"
        "    assert cli.natscope.main(words, standalone_mode=False) == 0\n"
        "heavy = {'torch', 'torchvision', 'streamlit', 'faiss', 'numpy', 'scipy', 'matplotlib', 'plotly', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Build a bundle; after an interruption" in done.stdout


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(run, option):
    code, out, err = run(option)
    assert (code, err) == (0, "")
    for name in ("demo", "app", "precompute", "attribute", "verify"):
        assert re.search(rf"^  {name}  ", out, re.MULTILINE)


@pytest.mark.parametrize("name", ["demo", "app", "precompute", "attribute", "verify"])
def test_every_command_has_help(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage:")
    assert "--help" in out


def test_without_arguments_help_is_printed(run):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert out.startswith("Usage:")
    assert "attribute" in out


def test_the_version_is_that_of_the_package(run):
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert re.search(r"\d+\.\d+\.\d+$", out.strip())


# attribute --json


@pytest.mark.parametrize("method", METHODS)
def test_the_json_of_every_method_keeps_its_contract(attribute, bundle_path, method):
    answer = attribute("--test-index", _TEST_IMAGE, "--method", method, "--sigma2", "0.5", "--budget", "7")
    assert set(answer) == _TOP
    assert set(answer["query"]) == _QUERY
    bundle = Bundle(bundle_path)
    labels = bundle.array("train_labels")
    predicted = int(bundle.array("test_logits")[_TEST_IMAGE].argmax())
    assert (answer["method"], answer["sigma2"], answer["pool"], answer["conditioning"]) == (
        method,
        0.5,
        "same-class",
        "pool",
    )
    query = answer["query"]
    assert (query["origin"], query["index"], query["unlike_training"]) == ("test", _TEST_IMAGE, False)
    assert query["label"] == bundle.array("test_labels")[_TEST_IMAGE]
    assert query["predicted"] == answer["target"] == predicted
    assert answer["target_name"] == bundle.classes[predicted]
    logits = bundle.array("test_logits")[_TEST_IMAGE].astype(float)
    chances = np.exp(logits - logits.max())
    assert query["probability"] == pytest.approx(chances.max() / chances.sum(), rel=1e-4)
    assert answer["pool_size"] == (labels == predicted).sum()
    assert answer["seconds"] > 0

    items = answer["items"]
    assert all(set(i) == _ITEM for i in items)
    assert [i["rank"] for i in items] == [1, 2, 3, 4, 5, 6, 7]
    rows = [i["train_index"] for i in items]
    assert len(set(rows)) == 7
    assert all(type(row) is int and i["label"] == labels[row] == predicted for row, i in zip(rows, items))
    assert all(i["sign"] in (-1, 0, 1) for i in items)
    nats = [i["nats"] for i in items]
    if METHODS[method].information:
        assert nats == sorted(nats)
        assert nats[0] > 0
        assert all(i["sign"] in (-1, 1) for i in items)
        assert answer["total_nats"] >= nats[-1]
    else:
        assert nats == [None] * 7
        assert answer["total_nats"] is None
        scores = [i["score"] for i in items]
        assert scores == sorted(scores, reverse=True)


def test_the_same_question_has_the_same_answer_and_other_noise_another(attribute):
    first = attribute("--test-index", _TEST_IMAGE)
    assert (first["method"], first["sigma2"], len(first["items"])) == ("info_loss", 10.0, 10)
    assert _ranking(attribute("--test-index", _TEST_IMAGE)) == _ranking(first)
    assert _ranking(attribute("--test-index", _TEST_IMAGE, "--sigma2", "100")) != _ranking(first)


def test_random_follows_its_seed(attribute):
    first, again, other = (
        attribute("--test-index", _TEST_IMAGE, "--method", "random", "--seed", seed) for seed in (3, 3, 4)
    )
    assert _ranking(first) == _ranking(again) != _ranking(other)


@pytest.mark.parametrize("method", ["info_loss", "info_gain", "relatif", "repsim", "random"])
def test_a_training_image_never_lists_itself(attribute, bundle_path, method):
    index = 42
    answer = attribute("--train-index", index, "--method", method, "--budget", "2000")
    labels = Bundle(bundle_path).array("train_labels")
    query = answer["query"]
    assert (query["origin"], query["index"], query["label"]) == ("train", index, labels[index])
    others = set(np.flatnonzero(labels == answer["target"])) - {index}
    assert {i["train_index"] for i in answer["items"]} == others
    assert answer["pool_size"] == len(others)


@pytest.mark.parametrize("method", ["info_gain", "repsim"])
def test_a_budget_larger_than_the_pool_gives_the_whole_pool(attribute, bundle_path, method):
    answer = attribute("--test-index", _TEST_IMAGE, "--method", method, "--budget", "100000")
    labels = Bundle(bundle_path).array("train_labels")
    assert sorted(i["train_index"] for i in answer["items"]) == list(np.flatnonzero(labels == answer["target"]))
    assert [i["rank"] for i in answer["items"]] == list(range(1, answer["pool_size"] + 1))


def test_an_image_file_is_asked_like_the_test_image_it_shows(attribute, bundle_path, tmp_path):
    Image.fromarray(np.asarray(Bundle(bundle_path).examples("test").images[_TEST_IMAGE])).save(tmp_path / "shoe.png")
    plain = attribute("--image", tmp_path / "shoe.png", "--no-invert")
    assert _ranking(plain) == _ranking(attribute("--test-index", _TEST_IMAGE))
    query = plain["query"]
    assert (query["origin"], query["index"], query["label"]) == ("upload", None, None)
    assert query["unlike_training"] is False


def test_invert_swaps_light_and_dark(attribute, bundle_path, tmp_path):
    image = np.asarray(Bundle(bundle_path).examples("test").images[_TEST_IMAGE])
    Image.fromarray(255 - image).save(tmp_path / "negative.png")
    expected = _ranking(attribute("--test-index", _TEST_IMAGE, "--method", "repsim"))
    inverted, decided, plain = (
        attribute("--image", tmp_path / "negative.png", "--method", "repsim", *option)
        for option in (["--invert"], [], ["--no-invert"])
    )
    assert _ranking(inverted) == _ranking(decided) == expected
    assert _ranking(plain) != expected
    assert plain["query"]["unlike_training"] is True


@pytest.mark.parametrize("target", ["8", "Bag", "bag"])
def test_a_target_is_named_or_numbered(attribute, bundle_path, target):
    answer = attribute("--test-index", _TEST_IMAGE, "--target", target, "--method", "info_gain")
    assert (answer["target"], answer["target_name"]) == (8, "Bag")
    assert answer["query"]["predicted"] != 8
    assert {i["label"] for i in answer["items"]} == {8}


@pytest.mark.parametrize(
    ("target", "label"), [("cat", 0), ("Cat", 2), ("bee", 1), ("BEE", 1), ("2", 2), ("1", 3), ("01", 1), ("STRASSE", 4)]
)
def test_a_class_is_what_is_called_exactly_so_before_what_is_alike(target, label):
    assert _class_number(target, ("cat", "bee", "Cat", "1", "Straße")) == label


def test_a_name_that_could_be_two_classes_is_refused(refused, tiny_path, tmp_path):
    path = shutil.copytree(tiny_path, tmp_path / "bundle")
    edited(path, lambda raw: raw["dataset"].update(classes=["cat", "bee", "Cat"]))
    said = refused("attribute", "--bundle", path, "--test-index", 0, "--target", "CAT")
    assert "'CAT'" in said
    assert "0 (cat), 2 (Cat)" in said


def test_the_pool_of_all_ranks_images_of_every_class(attribute, bundle_path):
    answer = attribute("--test-index", _TEST_IMAGE, "--pool", "all", "--method", "random", "--budget", "500")
    assert (answer["pool"], answer["pool_size"]) == ("all", 10 * EACH)
    labels = Bundle(bundle_path).array("train_labels")
    assert all(i["label"] == labels[i["train_index"]] for i in answer["items"])
    assert {i["label"] for i in answer["items"]} == set(range(10))


def test_the_pool_of_all_tells_more_than_the_images_of_one_class(attribute):
    own, everything = (
        attribute("--test-index", _TEST_IMAGE, "--method", "info_gain", "--pool", p) for p in ("same-class", "all")
    )
    assert everything["items"][0]["nats"] >= own["items"][0]["nats"] * (1 - 1e-4)  # stored as float16


def test_conditioning_on_all_training_images_changes_what_is_lost(attribute):
    own = attribute("--test-index", _TEST_IMAGE)
    everything = attribute("--test-index", _TEST_IMAGE, "--conditioning", "train")
    assert everything["conditioning"] == "train"
    assert {i["label"] for i in everything["items"]} == {everything["target"]}
    assert _ranking(everything) != _ranking(own)
    # Where all training images are known, a few of one class are missed less.
    assert 0 < everything["items"][-1]["nats"] < own["items"][-1]["nats"]


# attribute for people


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_what_the_json_says(run, attribute, bundle_path, method):
    question = ("--test-index", _TEST_IMAGE, "--method", method, "--budget", "4")
    answer, classes = attribute(*question), Bundle(bundle_path).classes
    code, out, err = run("attribute", "--bundle", bundle_path, *question)
    assert (code, err) == (0, "")
    head, *rest = out.splitlines()
    name = answer["target_name"]
    assert head.count(name) == 3  # predicted, labelled, attributed
    assert f"({answer['query']['probability']:.1%})" in head
    if METHODS[method].uses_sigma2:
        ratio = answer["sigma2"] / Bundle(bundle_path).mean_kernel()
        assert f"σ² = {answer['sigma2']:.3g}, {ratio:.2g} × mean k(x, x)" in rest.pop(0)
    if METHODS[method].information:
        share = answer["items"][-1]["nats"] / answer["total_nats"]
        assert f" 4 images contribute {percent(share)} ({answer['items'][-1]['nats']:.3f} nats) of" in rest.pop(0)
    assert rest.pop(0).split() == ["rank", "image", "label", "score", "nats", "sign", "source"]
    if answer["items"][0]["nats"] is not None:
        assert rest.pop().startswith("Nats are those of a line and all above it")
    for line, i in zip(rest, answer["items"], strict=True):
        rank, image, label, score, *nats, sign, source = re.split(r"\s{2,}", line.strip())
        assert (int(rank), int(image), label) == (i["rank"], i["train_index"], classes[i["label"]])
        assert float(score) == pytest.approx(i["score"], rel=1e-3)
        assert (sign, source) == ({-1: "-", 0: "0", 1: "+"}[i["sign"]], i["source"])
        assert nats == ([] if i["nats"] is None else [f"{i['nats']:.4f}"])


# What is refused


_QUERIES = ["--test-index", "--train-index", "--all-wrong", "--image"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], _QUERIES),
        (["--test-index", "1", "--train-index", "1"], _QUERIES),
        (["--test-index", "1", "--image", "x.png"], _QUERIES),
        (["--test-index", "10000"], ["test image 10000", "0 to 9999"]),
        (["--train-index", "15000"], ["train image 15000", f"0 to {10 * EACH - 1}"]),
        (["--test-index", "-1"], ["test image -1"]),
        (["--train-index", "-1"], ["train image -1"]),
        (["--test-index", "9" * 30], [f"test image {'9' * 30}"]),
        (["--test-index", "1.5"], ["'--test-index'", "'1.5'"]),
        (["--method", "magic"], ["'magic'", ", ".join(METHODS)]),
        (["--method", ""], ["method ''"]),
        *((["--sigma2", value], ["σ²", "positive"]) for value in ("0", "-1", "nan", "inf", "-inf")),
        (["--sigma2", "much"], ["'--sigma2'", "'much'"]),
        (["--budget", "0"], ["'--budget'", "x>=1"]),
        (["--budget", "-3"], ["'--budget'", "-3", "x>=1"]),
        (["--budget", "many"], ["'--budget'", "'many'"]),
        (["--seed", "-1", "--method", "random"], ["'--seed'", "x>=0"]),
        (["--target", "cat"], ["class 'cat'", "0 to 9", "T-shirt/top, "]),
        (["--target", "10"], ["class '10'"]),
        (["--target", "-1"], ["class '-1'"]),
        (["--target", ""], ["class ''"]),
        (["--pool", "half"], ["'--pool'", "'half'", "'same-class', 'all'"]),
        (["--conditioning", "half"], ["'--conditioning'", "'half'", "'pool', 'train'"]),
        (["--magic"], ["--magic"]),
        (["surplus"], ["surplus"]),
    ],
)
def test_what_cannot_be_attributed_is_one_sentence(refused, bundle_path, arguments, named):
    asks = any(word.endswith("-index") for word in arguments) or not arguments
    question = arguments if asks else ["--test-index", "1", *arguments]
    said = refused("attribute", "--bundle", bundle_path, *question)
    assert all(name in said for name in named), said


def test_an_image_that_is_none_is_one_sentence(refused, bundle_path, tmp_path):
    def said(file):
        return refused("attribute", "--bundle", bundle_path, "--image", file)

    (tmp_path / "letter.txt").write_text("Dear Sir or Madam,")
    (tmp_path / "letter.png").write_text("Dear Sir or Madam,")
    (tmp_path / "empty.png").touch()
    missing = tmp_path / "missing.png"
    assert said(missing) == f"{missing} is missing."
    assert said(tmp_path).startswith(f"{tmp_path} is a folder")
    for name in ("letter.txt", "letter.png"):
        assert "not a supported image" in said(tmp_path / name)
    assert "empty" in said(tmp_path / "empty.png")


@pytest.mark.parametrize("command", [["attribute", "--test-index", "1"], ["verify"]])
def test_a_missing_bundle_is_one_sentence(refused, tmp_path, command):
    missing = tmp_path / "missing"
    said = refused(*command, "--bundle", missing)
    assert f"`natscope precompute --out {missing}`" in said
    assert refused(*command, "--bundle", tmp_path).startswith(f"{tmp_path} is not a bundle")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (MANIFEST, b"{"),
        ("test_labels.npy", b""),
        ("test_images.npy", None),
        ("index_9.faiss", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        (WEIGHTS, lambda data: bytes(len(data))),
        ("train_labels.npy", lambda data: bytes(len(data))),
    ],
)
def test_a_damaged_bundle_is_one_sentence_that_says_how_to_mend_it(refused, damaged, file, damage):
    if damage is None:
        (damaged / file).unlink()
    else:
        _replace(damaged / file, damage((damaged / file).read_bytes()) if callable(damage) else damage)
    asked = ("attribute", "--bundle", damaged, "--test-index", "1", "--target", "9", "--method", "info_gain_approx")
    said = refused(*asked)
    assert f"{damaged} is damaged" in said
    assert file in said
    assert "To fix it" in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dataset", "cats"], ["'cats'", "folder:PATH"]),
        (["--dataset", "folder:missing"], ["no folder missing"]),
        (["--sketch", "pencil"], ["'pencil'", "countsketch, countsketch_rows, tensorsketch, dense, exact"]),
        (["--sketch", "tensorsketch", "--dim", "7"], ["TensorSketch", "not 7"]),
        (["--sketch", "exact", "--outputs", "all"], ["exact kernel"]),
        (["--sketch", "exact", "--bias"], ["exact kernel"]),
        (["--dataset", "austen", "--bias"], ["--bias is for --model mlp, not for attention"]),
        *((["--widths", widths], ["--widths", f"not {widths}"]) for widths in ("wide", "784,1.5,10", "784,,10")),
        *((["--widths", widths], ["Widths", "two or more"]) for widths in ("784,0,10", "784")),
        (["--widths", "100,10"], ["first width", "784"]),
        (["--widths", "784,11"], ["11 outputs", "10 classes"]),
        (["--model", "oracle"], ["architecture 'oracle'", "mlp, resnet9"]),
        (["--weights", "missing.safetensors"], ["no file", "missing.safetensors"]),
        (["--model", "nowhere:net"], ["module nowhere"]),
        (["--weights", __file__], [__file__, "neither a safetensors file"]),
        (["--mean", "0"], ["--mean and --std"]),
        *((["--learning-rate", rate], ["learning rate must be"]) for rate in ("0", "-1", "nan", "inf")),
        (["--momentum", "1"], ["momentum in [0, 1)"]),
        (["--weight-decay", "-1"], ["weight decay 0"]),
        (["--epochs", "0"], ["'--epochs'", "x>=1"]),
        (["--dim", "0"], ["'--dim'", "x>=1"]),
        (["--seed", "-1"], ["'--seed'"]),
        (["--index", "annoy"], ["'annoy'", "auto, flat, sq8, ivf, ivfsq8, ivfpq, ivfrabitq, hnsw, milvus"]),
        (["--index", "milvus", "--milvus-index", "flat"], ["'flat'", "ivf_sq8, ivf_flat, hnsw, diskann, ivf_rabitq"]),
        (["--milvus-index", "hnsw"], ["--milvus-index", "leave it out"]),
        (["--index", "milvus"], ["NATSCOPE_MILVUS_URI"]),
        (["--outputs", "some"], ["'--outputs'", "'some'", "'own', 'all'"]),
        (["--magic"], ["--magic"]),
    ],
)
def test_what_cannot_be_built_is_one_sentence(refused, tmp_path, options, named):
    out = tmp_path / "bundle"
    said = refused("precompute", "--out", out, *options)
    assert all(name in said for name in named), said
    assert not out.exists()


def test_a_place_that_is_taken_is_one_sentence(refused, bundle_path, tmp_path):
    said = refused("precompute", "--out", bundle_path, "--epochs", "1")
    assert str(bundle_path) in said
    assert "other settings" in said
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file is in the way" in refused("precompute", "--out", tmp_path / "file")
    assert f"{tmp_path}/file/x cannot" in refused("precompute", "--out", tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["magic"], ["'magic'"]),
        (["--magic"], ["--magic"]),
        (["attribute"], ["Missing", "'--bundle'"]),
        (["verify"], ["Missing", "'--bundle'"]),
        (["app"], ["Missing", "'--bundles'"]),
        (["precompute"], ["Missing", "'--out'"]),
        (["app", "--bundles", ".", "--port", "0"], ["'--port'", "1<=x<=65535"]),
        (["demo", "--port", "http"], ["'--port'", "'http'"]),
    ],
)
def test_usage_errors_are_one_sentence(refused, arguments, named):
    said = refused(*arguments)
    assert all(name in said for name in named), said


class _Found:
    def to_dict(self):
        return {"finding": "It works.", "setting": {}}


def test_what_a_network_prints_is_not_in_the_answer(run, tiny_path, monkeypatch):
    own = Attributor.attribute
    monkeypatch.setattr(Attributor, "attribute", lambda *given, **options: (print("hello"), own(*given, **options))[1])
    code, out, err = run("attribute", "--bundle", tiny_path, "--test-index", 1, "--method", "repsim", "--json")
    assert (code, json.loads(out)["method"]) == (0, "repsim")
    assert "hello" in err


def test_figures_beside_a_result_are_not_written_through_links(monkeypatch, tmp_path):
    (tmp_path / "thesis").write_text("mine")
    for kind in ("png", "json"):
        (tmp_path / f"result.{kind}").symlink_to("thesis")
    monkeypatch.setattr(drawn, "experiment_files", lambda result: [("png", b"a figure")])
    experiments._measured(tmp_path / "result.json", lambda **keeping: _Found(), {"budget": None})
    assert (tmp_path / "thesis").read_text() == "mine"
    assert (tmp_path / "result.png").read_bytes() == b"a figure"


def test_a_folder_without_a_name_or_an_end_is_no_bundle_to_tune(refused, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for folder in ("/", tmp_path / "loop"):
        said = refused("tune", "--bundle", folder, "--out", tmp_path / "result.json")
        assert "bundle" in said or "manifest" in said, said
        refused("tune", "--bundle", folder)


def test_the_app_without_bundles_is_one_sentence(refused, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for folder in (tmp_path, tmp_path / "missing"):
        said = refused("app", "--bundles", folder, "--port", free)
        assert f"no bundle in {folder};" in said


def test_the_demo_serves_the_bundles_that_are_not_damaged(run, tiny_path, tmp_path, monkeypatch):
    served, folder = [], tmp_path / "bundles"
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path))
    monkeypatch.setattr("natscope.app.serve.serve", lambda bundles, *rest, **more: served.append(bundles))
    monkeypatch.setattr(background, "start", lambda folder: served.append(background.unfinished(folder)))
    for name in (FIRST, "mine", "other"):
        shutil.copytree(tiny_path, folder / name)
    for name in (FIRST, "other"):
        (folder / name / "features.npy").unlink()
    code, out, err = run("demo", "--port", 8999, "--no-browser")
    assert (code, out, served) == (
        0,
        "",
        [
            [(POISONED, ""), (POISONED, PROOF), (TEXTS, "")]
            + [(name, method) for name in (POISONED, TEXTS) for method in SLOW],
            folder,
        ],
    )
    first, other = err.splitlines()
    assert f"{folder / FIRST} is damaged: 'features.npy' is missing." in first
    assert f"{folder / 'other'} is damaged: 'features.npy' is missing." in other


def test_a_port_in_use_is_said_before_anything_is_built(refused, bundle_path, tmp_path, busy_port, monkeypatch):
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "home"))
    sentence = refused("demo", "--port", busy_port, "--no-browser")
    assert f"Port {busy_port} " in sentence
    assert not (tmp_path / "home").exists()
    assert refused("app", "--bundles", bundle_path, "--port", busy_port, "--no-browser") == sentence
    assert refused("app", "--bundles", bundle_path, "--host", "0.0.0.0", "--port", busy_port) == sentence
    for command in (["demo"], ["app", "--bundles", bundle_path]):
        said = refused(*command, "--host", "203.0.113.1")
        assert "cannot listen at '203.0.113.1' (Cannot assign requested address): --host" in said


# verify


def _faults(err):
    return [line for line in re.split(r"[\r\n]+", err) if line.strip() and not line.startswith("Reading")]


def test_a_whole_bundle_is_verified(run, bundle_path):
    code, out, err = run("verify", "--bundle", bundle_path)
    files = len(Bundle(bundle_path).manifest.files)
    assert (code, _faults(err)) == (0, [])
    assert out.startswith(f"{bundle_path} is whole: {files} files")


def test_every_fault_of_a_bundle_is_a_sentence(run, damaged):
    data = (damaged / "test_labels.npy").read_bytes()
    _replace(damaged / "test_labels.npy", data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
    (damaged / "gram_3.npy").unlink()
    code, out, err = run("verify", "--bundle", damaged)
    assert (code, out) == (1, "")
    assert [fault.split()[0] for fault in _faults(err)] == ["'gram_3.npy'", "'test_labels.npy'"]
    assert "checksum" in err


# Real processes


def test_a_real_process_keeps_the_same_contract(bundle_path, attribute):
    done = _process("attribute", "--bundle", bundle_path, "--test-index", _TEST_IMAGE, "--method", "repsim", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    expected = attribute("--test-index", _TEST_IMAGE, "--method", "repsim")
    assert [i["train_index"] for i in json.loads(done.stdout)["items"]] == [i["train_index"] for i in expected["items"]]
    done = _process("verify", "--bundle", bundle_path / "missing")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no bundle at {bundle_path}/missing;" in _sentence(done.stderr)


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_building_is_told_and_told_again(run, bundle_path, tmp_path, monkeypatch):
    weights, out = tmp_path / "the weights", tmp_path / "bundle"
    shutil.copy(bundle_path / WEIGHTS, weights)
    options = ("--out", out, "--weights", weights, "--dim", "256", "--ntk", "off", "--name", "A title")
    accuracy = f"{Bundle(bundle_path).manifest.results['test_accuracy']:.1%}"
    terminal = _Terminal()
    with monkeypatch.context() as shown:
        shown.setattr(sys, "stderr", terminal)
        code, built, _ = run("precompute", *options)
    assert code == 0
    assert built.startswith(f"Built: {out} (test accuracy {accuracy})")
    assert f"`natscope app --bundles {out}`" in built
    err = terminal.getvalue()
    for stage in ("Jacobians", "Grams and indexes"):
        assert re.search(rf"{stage}[^%]*: 100%", err)
    there = built.replace("Built", "Already there")
    assert run("precompute", *options) == (0, there, "")

    # The command in the manifest, typed again, is the one that made the bundle.
    manifest = Bundle(out).manifest
    words = shlex.split(manifest.command)
    assert words[:2] == ["natscope", "precompute"]
    assert sorted(words[2:]) == sorted(map(str, options[2:]))
    assert (manifest.name, manifest.ntk, manifest.model["bias"]) == ("A title", False, False)
    assert run(*words[1:], "--out", out) == (0, there, "")


def test_ctrl_c_stops_with_a_sentence_and_keeps_what_was_built(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "natscope.app.cli",
            "precompute",
            "--out",
            str(tmp_path / "bundle"),
            "--dim",
            "8",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "bundle.partial" / "training.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("natscope: stopped")
    assert "Traceback" not in err
    assert (tmp_path / "bundle.partial" / "training.safetensors").exists()


_STOPPED = """
import os, signal
from natscope.app.cli import commands
from natscope.precompute.engines.local import LocalEngine

def build(args, standalone_mode):
    engine = LocalEngine(2)
    pool = engine._processes()
    pool.submit(os.getpid).result()
    print("ready", flush=True)
    try:
        signal.pause()
    finally:
        engine.close()

commands.natscope.main = build
if __name__ == "__main__":
    commands.main([])
"""


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("end", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_ends_a_command_with_workers_in_order(tmp_path, end, alone):
    (tmp_path / "stopped.py").write_text(_STOPPED)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "stopped.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)],
    )
    try:
        assert process.stdout.readline() == "ready\n"
        (os.kill if alone else os.killpg)(process.pid, end)
        _, err = process.communicate(timeout=30)  # until the last process that writes there has ended
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "natscope: stopped; what was built so far is kept.\n"


def test_a_command_whose_terminal_is_gone_ends_as_one_that_is_stopped(tmp_path):
    (tmp_path / "stopped.py").write_text(_STOPPED)
    ours, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "stopped.py")],
        stdout=terminal,
        stderr=terminal,
        cwd=_ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which nohup ignores
    )
    os.close(terminal)
    try:
        assert b"ready" in os.read(ours, 100)
        os.close(ours)  # what it writes from now on fails
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 130
    finally:
        process.kill()


def test_commands_run_in_any_thread(capsys):
    with ThreadPoolExecutor() as pool, pytest.raises(SystemExit, match=r"^0$"):
        pool.submit(main, ["--version"]).result()


@pytest.mark.parametrize(("browser", "end"), [(False, signal.SIGTERM), (True, signal.SIGHUP)])
def test_the_app_serves_bundles_and_stops(bundle_path, tmp_path, browser, end):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "natscope.app.cli",
            "app",
            "--bundles",
            str(bundle_path.parent),
            "--port",
            str(port),
            *([] if browser else ["--no-browser"]),
        ],
        stdin=subprocess.DEVNULL,  # on a machine that has never run Streamlit, whose first start would ask something
        env=os.environ | {"HOME": str(tmp_path), "BROWSER": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=_ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which nohup ignores
    )
    try:
        deadline, status = time.monotonic() + 60, None
        while status is None:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer:
                    status = answer.status
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        assert status == 200
        process.send_signal(end)
        assert process.wait(30) == 0
    finally:
        process.kill()
