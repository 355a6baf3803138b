import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import filelock
import numpy as np
import pytest
import torch

from natscope import assets
from natscope.core.bundle.artifacts import missing
from natscope.core.bundle.format import MANIFEST, Bundle, sha256_of
from natscope.core.bundle.request import Request
from natscope.core.bundle.verify import check_bundle
from natscope.core.errors import BuildError, QueryError
from natscope.core.methods import METHODS
from natscope.core.methods.artifacts import FACTOR_FILES, EkfacSpec, Size
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles import background
from natscope.precompute.bundles import demo as embedded
from natscope.precompute.bundles.background import PROOF, preparing, ready, unfinished
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec, wanted
from natscope.precompute.data.datasets import DATASETS, load_dataset, of_classes
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec

_SPEC = BuildSpec(
    dataset="two",
    model=ModelSpec(widths=(784, 12, 2)),
    training=TrainingSpec(epochs=1),
    sketch=SketchSpec(dim=48),
    methods=(),
    ekfac=EkfacSpec(covariance_directions=400, lambda_directions=100, batch_size=100),
)


@pytest.fixture(scope="module", autouse=True)
def data():
    """Register two classes of the embedded data, 300 images of each, as the data set "two"."""
    two = of_classes(load_dataset("fashion-mnist-quarter"), (3, 1))
    rows = np.concatenate([np.flatnonzero(two.train_labels == label)[:300] for label in (0, 1)])
    two = replace(
        two,
        name="two",
        train=two.train[rows],
        train_labels=two.train_labels[rows],
        test=two.test[:100],
        test_labels=two.test_labels[:100],
        train_sources=(),
        test_sources=(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "two", lambda root: two)
        yield two


def sums(folder):
    return {str(f.relative_to(folder)): sha256_of(f) for f in folder.rglob("*") if f.is_file()}


def test_methods_are_added_later_and_nothing_else_is_written_again(tmp_path):
    bare, full = tmp_path / "bare", tmp_path / "full"
    build(_SPEC, bare)
    before, written = sums(bare), {f: f.stat().st_mtime_ns for f in bare.iterdir() if f.name != "manifest.json"}
    with pytest.raises(QueryError, match=r"TRAK .*`--methods trak`"):
        open_attributor(bare).attribute(open_attributor(bare).query("test", 0), Request("trak"))
    build(replace(_SPEC, methods=("trak",)), bare)
    build(replace(_SPEC, methods=tuple(METHODS)), bare)
    build(replace(_SPEC, methods=tuple(METHODS)), full)
    assert {f: f.stat().st_mtime_ns for f in written} == written
    after = sums(bare)
    assert {name: digest for name, digest in after.items() if name in before and name != "manifest.json"} == {
        name: digest for name, digest in before.items() if name != "manifest.json"
    }
    assert check_bundle(bare) == check_bundle(full) == []
    assert after == sums(full)
    assert set(FACTOR_FILES) <= set(Bundle(bare).manifest.files)
    assert not (tmp_path / "bare.adding").exists()
    attributor = open_attributor(bare)
    query = attributor.query("test", 0)
    assert all(len(attributor.attribute(query, Request(name, budget=3)).items) == 3 for name in METHODS)


def test_factors_whose_file_was_cut_off_are_fitted_again(tmp_path):
    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if stage.startswith("Kronfluence") and done == 2:
            raise Stopped

    asked = replace(_SPEC, methods=("kronfluence",))
    whole = build(asked, tmp_path / "whole")
    with pytest.raises(Stopped):
        build(asked, tmp_path / "cut", stop)
    written = sorted((tmp_path / "cut.partial" / "methods" / "fitting").rglob("*.safetensors"))
    assert written
    for file in written:
        file.write_bytes(file.read_bytes()[:100])
    assert build(asked, tmp_path / "cut").identity == whole.identity


def test_a_method_that_was_not_asked_for_and_cannot_be_had_is_left_out_with_a_sentence(tmp_path):
    spec = replace(_SPEC, model=ModelSpec(widths=(784, 2, 2)), sketch=SketchSpec(dim=64), methods=None)
    bundle = build(spec, tmp_path / "bundle")
    (sentence,) = bundle.manifest.results["left_out"].values()
    assert "this network's gradients span" in sentence
    assert "trak" not in bundle.manifest.methods
    recorded = {record.file for record in bundle.manifest.files.values()}
    assert {path.name for path in bundle.path.iterdir()} == {MANIFEST, *recorded}
    assert "graddot" in bundle.manifest.methods
    before = bundle.identity
    assert build(spec, tmp_path / "bundle").identity == before
    with pytest.raises(BuildError, match="this network's gradients span"):
        build(replace(spec, methods=("trak",)), tmp_path / "bundle")
    assert wanted(None, Size(5000, 4096, parameters=4000)) == ("graddot",)
    with pytest.raises(BuildError, match=r"--dim below 4,001"):
        wanted(("trak",), Size(5000, 4096, parameters=4000))


def test_a_method_that_was_added_with_other_threads_says_so(tmp_path):
    bundle = build(replace(_SPEC, methods=("random",)), tmp_path / "bundle")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        added = build(replace(_SPEC, methods=("graddot",)), tmp_path / "bundle")
    finally:
        torch.set_num_threads(before)
    assert bundle.manifest.versions == added.manifest.versions
    assert bundle.manifest.versions["threads"] == str(before)
    assert added.manifest.methods["graddot"]["threads"] == str(before + 1)


def test_adding_goes_on_where_it_was_stopped(tmp_path):
    class Stopped(Exception):
        pass

    def stop(stage, done, total):
        if stage == "Checksums":
            raise Stopped

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out in (whole, broken):
        build(_SPEC, out)
    asked = replace(_SPEC, methods=("graddot", "trak"))
    with pytest.raises(Stopped):
        build(asked, broken, stop)
    assert check_bundle(broken) == []
    assert Bundle(broken).manifest.methods == {}
    steps = []
    build(asked, whole)
    build(asked, broken, lambda *step: steps.append(step))
    assert {done for stage, done, total in steps if stage == "Gradients of the margins"} == {600}
    assert not any(stage.startswith("TRAK") for stage, *_ in steps)
    assert sums(whole) == sums(broken)


def test_what_rules_a_method_out_is_asked_of_the_size_that_a_bundle_has(tiny_path):
    bundle, seen = Bundle(tiny_path), []
    own = replace(METHODS["repsim"].artifacts, obstacle=seen.append)
    assert missing(bundle, replace(METHODS["repsim"], artifacts=own)) is None
    width = bundle.array("penultimate").shape[1]
    assert seen == [Size(len(bundle.array("train_labels")), bundle.sketch_spec.dim, penultimate=width)]


def test_the_usual_methods_are_those_that_can_be_had():
    assert wanted(None, Size(100, 50)) == ("graddot", "trak")
    assert wanted(None, Size(50, 50)) == ("graddot",)
    assert wanted(None, Size(100, 50, vectors=False)) == ("graddot",)
    assert wanted(("trak", "graddot"), Size(100, 50)) == ("graddot", "trak")


@pytest.mark.parametrize(
    ("methods", "kind", "words"),
    [
        (("magic",), "countsketch", "'magic'; .* info_loss"),
        (("trak",), "exact", "the exact kernel"),
        (("trak",), "countsketch", "a --dim below 40"),
    ],
)
def test_methods_that_cannot_be_had_are_refused(methods, kind, words):
    with pytest.raises(BuildError, match=words):
        wanted(methods, Size(40, 50, vectors=kind != "exact"))


def test_what_is_being_prepared_is_told_while_its_process_lives(tmp_path):
    file = tmp_path / "preparing.json"
    assert preparing(tmp_path) is None
    file.write_text(json.dumps({"what": "Kronfluence", "stage": "Fitting", "share": 0.5, "error": ""}))
    assert preparing(tmp_path) is None
    with filelock.FileLock(tmp_path / "preparing.lock"):
        os.utime(file, (time.time() - 1000,) * 2)  # a long step
        assert preparing(tmp_path).share == 0.5
    assert preparing(tmp_path) is None
    file.write_text(json.dumps({"what": "Kronfluence", "stage": "", "share": 0.0, "error": "No room."}))
    os.utime(file, (time.time() - 1000,) * 2)
    assert preparing(tmp_path).error == "No room."
    assert not ready(tmp_path)
    file.unlink()
    assert ready(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 5000,
        '{"what": 5, "stage": "", "share": 0, "error": "x"}',
        '{"what": "", "stage": "", "share": "x", "error": "x"}',
        '{"what": "", "stage": "", "share": NaN, "error": "x"}',
        '{"what": "", "stage": "", "share": 0, "error": "x", "more": 1}',
        '{"what": "", "stage": "", "share": 0, "error": "' + "x" * 20_000 + '"}',
    ],
)
def test_a_status_that_somebody_else_wrote_says_nothing(tmp_path, text):
    (tmp_path / "preparing.json").write_text(text)
    assert preparing(tmp_path) is None


def test_a_status_that_is_no_file_says_nothing(tmp_path):
    os.mkfifo(tmp_path / "preparing.json")
    assert preparing(tmp_path) is None


@pytest.mark.parametrize("killed", [0, 2, 9])
def test_a_process_that_is_killed_is_started_again_a_few_times(tmp_path, killed):
    """The third that is killed was the last, and its banner says so."""
    runs = tmp_path / "runs"
    script = f"echo run >> {runs}; [ $(wc -l < {runs}) -gt {killed} ] || kill -9 $$"
    (tmp_path / "preparing.json").write_text(json.dumps({"what": "This", "stage": "Fitting", "share": 0.5}))
    background._keep_going(tmp_path, ["sh", "-c", script])
    assert runs.read_text().count("run") == min(killed + 1, 3)
    reported = preparing(tmp_path)
    if killed < 3:
        assert reported is None
    else:
        assert reported.what == "This"
        assert " 3 times" in reported.error


def test_the_background_prepares_what_is_missing_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "home"))
    specs = {"first": _SPEC, "second": replace(_SPEC, poison=PoisonSpec(rate=0.1))}
    monkeypatch.setattr(embedded, "EMBEDDED", specs)
    monkeypatch.setattr(embedded, "SLOW", ("graddot",))
    slow = [("first", "graddot"), ("second", "graddot")]
    assert unfinished(tmp_path) == [("first", ""), ("second", ""), ("second", PROOF), *slow]
    build(_SPEC, tmp_path / "first")
    assert unfinished(tmp_path)[0] == ("first", "")  # it has no sigma2 yet
    embedded.build_embedded("first", tmp_path / "first", lambda *_: None)
    assert unfinished(tmp_path) == [("second", ""), ("second", PROOF), *slow]
    monkeypatch.setattr(os, "nice", lambda by: None)
    threads = torch.get_num_threads()
    background.run(tmp_path)
    torch.set_num_threads(threads)
    assert unfinished(tmp_path) == []
    assert preparing(tmp_path) is None
    assert Bundle(tmp_path / "second").manifest.poison["rate"] == 0.1
    assert len(list((tmp_path / "home" / "proofs").iterdir())) == 1
    next((tmp_path / "home" / "proofs").iterdir()).unlink()
    assert unfinished(tmp_path) == [("second", PROOF)]
    chosen = json.loads(assets.path("results", "tuning.json").read_text(encoding="utf-8"))["sigma2"]
    for name in specs:  # the values that ship, kept when a method is added
        bundle = Bundle(tmp_path / name)
        assert {method: bundle.sigma2(method) for method in chosen} == chosen


def test_the_background_leaves_a_damaged_bundle_alone_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "EMBEDDED", dict.fromkeys(("damaged", "linked", "good"), _SPEC))
    monkeypatch.setattr(embedded, "SLOW", ("graddot",))
    monkeypatch.setattr(os, "nice", lambda by: None)
    for name in embedded.EMBEDDED:
        build(_SPEC, tmp_path / name)
    (tmp_path / "damaged" / "features.npy").unlink()
    (tmp_path / "linked" / "margin_features.npy").symlink_to(tmp_path / "nothing")
    before = sums(tmp_path / "damaged")
    threads = torch.get_num_threads()
    background.run(tmp_path)
    torch.set_num_threads(threads)
    assert sums(tmp_path / "damaged") == before
    assert list(Bundle(tmp_path / "good").manifest.methods) == ["graddot"]
    assert unfinished(tmp_path) == [("linked", "graddot")]
    assert "is a link" in preparing(tmp_path).error


def test_classes_are_kept_in_the_order_that_was_asked_for(data):
    whole = load_dataset("fashion-mnist-quarter")
    two = of_classes(whole, (3, 1))
    assert two.classes == (whole.classes[3], whole.classes[1])
    np.testing.assert_array_equal(two.train.images[two.train_labels == 0], whole.train.images[whole.train_labels == 3])
    assert len(two.test_labels) == ((whole.test_labels == 3) | (whole.test_labels == 1)).sum()
    assert BuildSpec().settings().keys() == BuildSpec(classes=(3, 1)).settings().keys() - {"classes"}


def test_two_pages_that_look_at_once_do_not_take_each_other_for_the_process(tmp_path):
    (tmp_path / "lock").touch()
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(background._is_held, [tmp_path / "lock"] * 400))


def test_a_status_that_is_gone_once_it_was_read_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "_read", lambda file: background.Preparing("x", "", 0.0, "It failed."))
    assert background.preparing(tmp_path) is None
