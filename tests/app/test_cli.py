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
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natscope.app.cli import commands, experiments
from natscope.app.cli.commands import main
from natscope.app.figures import experiments as drawn
from natscope.core.bundle.format import MANIFEST, WEIGHTS, Bundle
from natscope.core.methods import METHODS
from natscope.precompute.bundles import background
from natscope.precompute.bundles.demo import FIRST, POISONED, SLOW
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
_QUERY = {"origin", "index", "label", "predicted", "probability", "unlike_training"}
_ITEM = {"rank", "train_index", "label", "score", "nats", "sign"}
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
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("natscope: ")
    assert lines[0][-1] in ".?)"  # click ends a few of its own with a question or a bracket
    assert "Traceback" not in err
    return lines[0].removeprefix("natscope: ")


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
    assert (first["method"], first["sigma2"], len(first["items"])) == ("info_loss", 1.0, 10)
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
    Image.fromarray(np.asarray(Bundle(bundle_path).array("test_images")[_TEST_IMAGE])).save(tmp_path / "shoe.png")
    plain = attribute("--image", tmp_path / "shoe.png", "--no-invert")
    assert _ranking(plain) == _ranking(attribute("--test-index", _TEST_IMAGE))
    query = plain["query"]
    assert (query["origin"], query["index"], query["label"]) == ("upload", None, None)
    assert query["unlike_training"] is False


def test_invert_swaps_light_and_dark(attribute, bundle_path, tmp_path):
    image = np.asarray(Bundle(bundle_path).array("test_images")[_TEST_IMAGE])
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
    assert commands._class_number(target, ("cat", "bee", "Cat", "1", "Straße")) == label


def test_a_name_that_could_be_two_classes_is_refused(refused, tiny_path, tmp_path):
    path = shutil.copytree(tiny_path, tmp_path / "bundle")
    edited(path, lambda raw: raw["dataset"].update(classes=["cat", "bee", "Cat"]))
    said = refused("attribute", "--bundle", path, "--test-index", 0, "--target", "CAT")
    assert said == (
        "Several classes are called 'CAT' but for their capitals; name one by its number: 0 (cat), 2 (Cat)."
    )


def test_the_pool_of_all_ranks_images_of_every_class(attribute, bundle_path):
    answer = attribute("--test-index", _TEST_IMAGE, "--pool", "all", "--method", "random", "--budget", "500")
    assert (answer["pool"], answer["pool_size"]) == ("all", 15000)
    labels = Bundle(bundle_path).array("train_labels")
    assert all(i["label"] == labels[i["train_index"]] for i in answer["items"])
    assert {i["label"] for i in answer["items"]} == set(range(10))


def test_the_pool_of_all_tells_more_than_the_images_of_one_class(attribute):
    own, everything = (
        attribute("--test-index", _TEST_IMAGE, "--method", "info_gain", "--pool", p) for p in ("same-class", "all")
    )
    assert everything["items"][0]["nats"] >= own["items"][0]["nats"]


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
    assert head == f"Predicted {name} ({answer['query']['probability']:.1%}); attributed: {name}."
    if METHODS[method].information:
        share = answer["items"][-1]["nats"] / answer["total_nats"]
        said = f"These 4 images carry {answer['items'][-1]['nats']:.3f} nats, {share:.0%} of what the pool tells."
        assert rest.pop(0) == said
    assert rest.pop(0).split() == ["rank", "image", "label", "score", "nats", "sign"]
    for line, i in zip(rest, answer["items"], strict=True):
        rank, image, label, score, *nats, sign = re.split(r"\s{2,}", line.strip())
        assert (int(rank), int(image), label) == (i["rank"], i["train_index"], classes[i["label"]])
        assert float(score) == pytest.approx(i["score"], rel=1e-3)
        assert sign == {-1: "-", 0: "0", 1: "+"}[i["sign"]]
        assert nats == ([] if i["nats"] is None else [f"{i['nats']:.4f}"])


# What is refused


_QUERY_NEEDED = "Name one query: --test-index I, --train-index I or --image FILE."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], re.escape(_QUERY_NEEDED)),
        (["--test-index", "1", "--train-index", "1"], re.escape(_QUERY_NEEDED)),
        (["--test-index", "1", "--image", "x.png"], re.escape(_QUERY_NEEDED)),
        (["--test-index", "10000"], r"There is no test image 10000; choose a number from 0 to 9999\."),
        (["--train-index", "15000"], r"There is no train image 15000; choose a number from 0 to 14999\."),
        (["--test-index", "-1"], r"There is no test image -1; .*"),
        (["--train-index", "-1"], r"There is no train image -1; .*"),
        (["--test-index", "9" * 30], r"There is no test image 9{30}; .*"),
        (["--test-index", "1.5"], r"Invalid value for '--test-index': '1\.5' is not a valid integer\."),
        (["--method", "magic"], rf"There is no method 'magic'; choose one of {', '.join(METHODS)}\."),
        (["--method", ""], r"There is no method ''; .*"),
        *(
            (["--sigma2", value], r"σ² is a variance and must be a positive number, .*")
            for value in ("0", "-1", "nan", "inf", "-inf")
        ),
        (["--sigma2", "much"], r"Invalid value for '--sigma2': 'much' is not a valid float\."),
        (["--budget", "0"], r"Invalid value for '--budget': 0 is not in the range x>=1\."),
        (["--budget", "-3"], r"Invalid value for '--budget': -3 is not in the range x>=1\."),
        (["--budget", "many"], r"Invalid value for '--budget': 'many' is not a valid integer\."),
        (["--seed", "-1", "--method", "random"], r"Invalid value for '--seed': -1 is not in the range x>=0\."),
        (["--target", "cat"], r"There is no class 'cat'; choose a number from 0 to 9 or one of T-shirt/top, .*"),
        (["--target", "10"], r"There is no class '10'; .*"),
        (["--target", "-1"], r"There is no class '-1'; .*"),
        (["--target", ""], r"There is no class ''; .*"),
        (["--pool", "half"], r"Invalid value for '--pool': 'half' is not one of 'same-class', 'all'\."),
        (["--conditioning", "half"], r"Invalid value for '--conditioning': 'half' is not one of 'pool', 'train'\."),
        (["--magic"], r"No such option '?--magic'?\..*"),
        (["surplus"], r"Got unexpected extra argument \(surplus\)\.?"),
    ],
)
def test_what_cannot_be_attributed_is_one_sentence(run, bundle_path, arguments, sentence):
    asks = any(word.endswith("-index") for word in arguments) or not arguments
    question = arguments if asks else ["--test-index", "1", *arguments]
    code, out, err = run("attribute", "--bundle", bundle_path, *question)
    assert (code, out) == (2, "")
    assert re.fullmatch(sentence, _sentence(err)), err


def test_an_image_that_is_none_is_one_sentence(refused, bundle_path, tmp_path):
    def said(file):
        return refused("attribute", "--bundle", bundle_path, "--image", file)

    (tmp_path / "letter.txt").write_text("Dear Sir or Madam,")
    (tmp_path / "letter.png").write_text("Dear Sir or Madam,")
    (tmp_path / "empty.png").touch()
    missing = tmp_path / "missing.png"
    assert said(missing) == f"{missing} is missing."
    assert said(tmp_path) == f"{tmp_path} is a folder and no regular file."
    for name in ("letter.txt", "letter.png"):
        assert said(tmp_path / name).startswith("The file is no image of a kind that natscope reads")
    assert said(tmp_path / "empty.png") == "The file is empty; choose another one."


@pytest.mark.parametrize("command", [["attribute", "--test-index", "1"], ["verify"]])
def test_a_missing_bundle_is_one_sentence(refused, tmp_path, command):
    missing = tmp_path / "missing"
    said = refused(*command, "--bundle", missing)
    assert said == f"There is no bundle at {missing}; `natscope precompute --out {missing}` makes one."
    assert refused(*command, "--bundle", tmp_path).startswith(f"{tmp_path} is no bundle: ")


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
    assert said.startswith(f"The bundle {damaged} is damaged: ")
    assert file in said
    assert said.endswith(". To fix it, delete the folder and build it again with the command that made it.")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--dataset", "cats"],
            r"There is no data set 'cats'; choose one of .*, or a folder of yours as folder:PATH\.",
        ),
        (["--dataset", "folder:missing"], r"There is no folder missing; --dataset folder:PATH names one that holds .*"),
        (
            ["--sketch", "pencil"],
            r"There is no sketch 'pencil'; choose one of countsketch, tensorsketch, dense, exact\.",
        ),
        (["--sketch", "tensorsketch", "--dim", "7"], r"TensorSketch needs an even number of dimensions, not 7\."),
        (["--sketch", "exact", "--outputs", "all"], r"The exact kernel needs .*"),
        (["--sketch", "exact", "--bias"], r"The exact kernel needs .*"),
        (["--widths", "wide"], r"--widths takes whole numbers with commas, such as 784,512,256,10, not wide\."),
        (["--widths", "784,1.5,10"], r"--widths takes whole numbers .*"),
        (["--widths", "784,,10"], r"--widths takes whole numbers .*"),
        (["--widths", "784,0,10"], r"Widths must be two or more positive whole numbers, .*"),
        (["--widths", "784"], r"Widths must be two or more positive whole numbers, .*"),
        (["--widths", "100,10"], r"The network does not take images of 784 pixels; the first width must be 784\."),
        (["--widths", "784,11"], r"The network has 11 outputs and the data set 10 classes\."),
        (["--model", "oracle"], r"There is no architecture 'oracle'; choose one of mlp, resnet9, or .*\."),
        (["--weights", "missing.safetensors"], r"There is no file of weights at missing\.safetensors\."),
        (
            ["--model", "nowhere:net"],
            r"There is no module nowhere here; run natscope in the folder that holds it, or .*\.",
        ),
        (["--weights", __file__], r".* is no safetensors file of weights, nor one of torch\.save\."),
        (["--mean", "0"], r"--mean and --std go together: give both, or neither\."),
        *((["--learning-rate", rate], r"The learning rate must be positive, .*") for rate in ("0", "-1", "nan", "inf")),
        (["--momentum", "1"], r".* the momentum in \[0, 1\) .*"),
        (["--weight-decay", "-1"], r".* the weight decay 0 or more\."),
        (["--epochs", "0"], r"Invalid value for '--epochs': 0 is not in the range x>=1\."),
        (["--dim", "0"], r"Invalid value for '--dim': 0 is not in the range x>=1\."),
        (["--seed", "-1"], r"Invalid value for '--seed': .*"),
        (["--index", "annoy"], r"There is no index 'annoy'; choose one of auto, flat, sq8, ivf, ivfsq8, ivfpq, hnsw\."),
        (["--outputs", "some"], r"Invalid value for '--outputs': 'some' is not one of 'own', 'all'\."),
        (["--magic"], r"No such option '?--magic'?\..*"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(refused, tmp_path, options, sentence):
    out = tmp_path / "bundle"
    assert re.fullmatch(sentence, refused("precompute", "--out", out, *options))
    assert not out.exists()


def test_a_place_that_is_taken_is_one_sentence(refused, bundle_path, tmp_path):
    said = refused("precompute", "--out", bundle_path, "--epochs", "1")
    assert said == f"{bundle_path} holds a bundle with other settings; choose another folder, or delete that one first."
    (tmp_path / "file").touch()
    assert refused("precompute", "--out", tmp_path / "file").startswith(f"{tmp_path}/file is in the way")
    assert refused("precompute", "--out", tmp_path / "file" / "x").startswith(f"The bundle {tmp_path}/file/x cannot")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["magic"], r"No such command 'magic'\..*"),
        (["--magic"], r"No such option '?--magic'?\..*"),
        (["attribute"], r"Missing option '--bundle'\."),
        (["verify"], r"Missing option '--bundle'\."),
        (["app"], r"Missing option '--bundles'\."),
        (["precompute"], r"Missing option '--out'\."),
        (["app", "--bundles", ".", "--port", "0"], r"Invalid value for '--port': 0 is not in the range 1<=x<=65535\."),
        (["demo", "--port", "http"], r"Invalid value for '--port': 'http' is not a valid integer range\."),
    ],
)
def test_usage_errors_are_one_sentence(refused, arguments, sentence):
    assert re.fullmatch(sentence, refused(*arguments))


class _Found:
    def to_dict(self):
        return {"finding": "It works."}


def test_figures_beside_a_result_are_not_written_through_links(monkeypatch, tmp_path):
    (tmp_path / "thesis").write_text("mine")
    for kind in ("png", "json"):
        (tmp_path / f"result.{kind}").symlink_to("thesis")
    monkeypatch.setattr(drawn, "experiment_files", lambda result: [("png", b"a figure")])
    experiments._measured(tmp_path / "result.json", lambda **keeping: _Found())
    assert (tmp_path / "thesis").read_text() == "mine"
    assert (tmp_path / "result.png").read_bytes() == b"a figure"


def test_the_app_without_bundles_is_one_sentence(refused, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for folder in (tmp_path, tmp_path / "missing"):
        said = refused("app", "--bundles", folder, "--port", free)
        assert said == f"There is no bundle in {folder}; `natscope demo` or `natscope precompute` makes one."


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
    assert (code, out, served) == (0, "", [[(POISONED, ""), *((POISONED, method) for method in SLOW)], folder])
    first, other = err.splitlines()
    assert first.startswith(f"natscope: The bundle {folder / FIRST} is damaged: 'features.npy' is missing.")
    assert other.startswith(f"natscope: The bundle {folder / 'other'} is damaged: 'features.npy' is missing.")


def test_a_port_in_use_is_said_before_anything_is_built(refused, bundle_path, tmp_path, busy_port, monkeypatch):
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "home"))
    sentence = f"Port {busy_port} is in use; stop what uses it, or choose another with --port."
    assert refused("demo", "--port", busy_port, "--no-browser") == sentence
    assert not (tmp_path / "home").exists()
    assert refused("app", "--bundles", bundle_path, "--port", busy_port, "--no-browser") == sentence
    assert refused("app", "--bundles", bundle_path, "--host", "0.0.0.0", "--port", busy_port) == sentence
    for command in (["demo"], ["app", "--bundles", bundle_path]):
        assert refused(*command, "--host", "203.0.113.1").startswith("The app cannot listen at '203.0.113.1': --host")


# verify


def _faults(err):
    return [line for line in re.split(r"[\r\n]+", err) if line.strip() and not line.startswith("Reading")]


def test_a_whole_bundle_is_verified(run, bundle_path):
    code, out, err = run("verify", "--bundle", bundle_path)
    files = len(Bundle(bundle_path).manifest.files)
    assert (code, _faults(err)) == (0, [])
    assert out == f"{bundle_path} is whole: {files} files, every checksum right.\n"


def test_every_fault_of_a_bundle_is_a_sentence(run, damaged):
    data = (damaged / "test_labels.npy").read_bytes()
    _replace(damaged / "test_labels.npy", data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
    (damaged / "gram_3.npy").unlink()
    code, out, err = run("verify", "--bundle", damaged)
    assert (code, out) == (1, "")
    assert _faults(err) == ["'gram_3.npy' is missing.", "'test_labels.npy' does not have the recorded checksum."]


# Real processes


def test_a_real_process_keeps_the_same_contract(bundle_path, attribute):
    done = _process("attribute", "--bundle", bundle_path, "--test-index", _TEST_IMAGE, "--method", "repsim", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    expected = attribute("--test-index", _TEST_IMAGE, "--method", "repsim")
    assert [i["train_index"] for i in json.loads(done.stdout)["items"]] == [i["train_index"] for i in expected["items"]]
    done = _process("verify", "--bundle", bundle_path / "missing")
    assert (done.returncode, done.stdout) == (2, "")
    assert _sentence(done.stderr).startswith(f"There is no bundle at {bundle_path}/missing; ")


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_building_is_told_and_told_again(run, bundle_path, tmp_path, monkeypatch):
    weights, out = tmp_path / "the weights", tmp_path / "bundle"
    shutil.copy(bundle_path / WEIGHTS, weights)
    options = ("--out", out, "--weights", weights, "--dim", "256", "--no-ntk", "--name", "A title")
    accuracy = f"{Bundle(bundle_path).manifest.results['test_accuracy']:.1%}"
    look = f"{out} (test accuracy {accuracy}). Look at it with `natscope app --bundles {out}`.\n"
    terminal = _Terminal()
    with monkeypatch.context() as shown:
        shown.setattr(sys, "stderr", terminal)
        assert run("precompute", *options) == (0, f"Built: {look}", "")
    err = terminal.getvalue()
    for stage in ("Jacobians of the training images: 100%", "Grams and indexes, class by class: 100%"):
        assert stage in err
    assert run("precompute", *options) == (0, f"Already there: {look}", "")

    # The command in the manifest, typed again, is the one that made the bundle.
    manifest = Bundle(out).manifest
    words = shlex.split(manifest.command)
    assert words[:2] == ["natscope", "precompute"]
    assert sorted(words[2:]) == sorted(map(str, options[2:]))
    assert (manifest.name, manifest.ntk, manifest.model["bias"]) == ("A title", False, False)
    assert run(*words[1:], "--out", out) == (0, f"Already there: {look}", "")


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
    assert err.splitlines()[-1] == "natscope: stopped; what was built so far is kept."
    assert "Traceback" not in err
    assert (tmp_path / "bundle.partial" / "training.safetensors").exists()


@pytest.mark.parametrize("browser", [False, True])
def test_the_app_serves_bundles_and_stops(bundle_path, tmp_path, browser):
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
        process.terminate()
        process.wait(30)
    finally:
        process.kill()
