import re
import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from natscope.core.errors import BuildError, BundleError, DataError, NatscopeError
from natscope.core.peak import bytes_each
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles import check as checking
from natscope.precompute.bundles import measure
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.check import check
from natscope.precompute.bundles.measure import seconds_each
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.datasets import DATASETS
from natscope.precompute.data.folders import FolderSpec
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.engines.local import LocalEngine
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec
from tests.tiny import image_data

_DiskUsage = namedtuple("_DiskUsage", "total used free")
_SPEC = BuildSpec(
    dataset="tiny", model=ModelSpec("mlp", None), training=TrainingSpec(epochs=2), sketch=SketchSpec(dim=32)
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Register a tiny data set, and be content with less time to measure."""
    rng = np.random.default_rng(0)

    def tiny(root):
        return image_data(
            name="tiny",
            classes=("a", "b", "c", "d", "e"),
            train_images=rng.integers(0, 256, (100, 6, 6), dtype=np.uint8),
            train_labels=np.repeat(np.arange(5), [10, 10, 10, 10, 60]),
            test_images=rng.integers(0, 256, (10, 6, 6), dtype=np.uint8),
            test_labels=np.arange(10) % 5,
            mean=(0.5,),
            std=(0.25,),
        )

    monkeypatch.setitem(DATASETS, "tiny", tiny)
    monkeypatch.setattr(measure, "_LONG_ENOUGH", 0.05)


def _report(spec, out=None):
    return [(title, text) for title, text in check(spec, out)]


def _text(spec, out=None):
    return "\n".join(f"{title}: {text}" for title, text in check(spec, out))


def test_the_report_says_what_there_is_and_what_it_costs(tmp_path):
    report = _report(_SPEC, tmp_path / "bundle")
    assert [title for title, _ in report] == [
        "Data",
        "Network",
        "Methods",
        "Training",
        "Kernel",
        "Jacobians",
        "Products",
        "Time",
        "Disk",
        "Memory",
    ]
    reported = dict(report)
    for name, part in {
        "Data": r"tiny: 100 training .* 10 test .* 6 × 6 .*; 5 classes \(a, …, e\), 10 to 60 ",
        "Network": r"mlp 36-512-256-5: 150,784 parameters",
        "Training": r"2 epochs .* 2 steps, .* 64, float32: .* examples a second, .* s; only 4 steps in all",
        "Jacobians": r"countsketch, K = 32: [\d,]+ examples a second, 2 passes .* (about \d+|less than 1) s$",
        "Products": r"Grams, indexes, distances, TRAK: (about|less)",
        "Methods": "InfoLoss, .*TRAK, .*; kronfluence can be added by --methods$",
        "Time": r"(about \d+|less than 1) s in all$",
        "Disk": rf".* [\d.]+ MB; [\d.]+ GB are free at {tmp_path}$",
        "Memory": r"about [\d.]+ [MG]B ",
    }.items():
        assert re.match(part, reported[name]), name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": (0, 1)}, "2 classes (a, b), 10 training images each"),
        ({"poison": PoisonSpec(rate=0.05)}, "Training: "),
        ({"model": ModelSpec("resnet9", None), "folder": FolderSpec()}, "Conv2d '12'"),
        ({"outputs": "all"}, "7 passes"),
        ({"sketch": SketchSpec("exact")}, "exact, no sketch: "),
        ({"methods": ()}, "1 pass "),
        ({"methods": ("kronfluence",)}, "and Kronfluence, not timed"),
    ],
)
def test_the_report_follows_the_settings(changes, said):
    try:
        text = _text(replace(_SPEC, **changes))
    except NatscopeError as error:
        text = str(error)
    assert said in text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": "cats"}, DataError, "data set 'cats'"),
        ({"classes": (0, 9)}, DataError, "tiny has no class 9"),
        ({"poison": PoisonSpec(rate=0.9)}, DataError, "A poisoned share of 0.9 makes"),
        ({"scaling": ((0.0,), (0.0,))}, DataError, "--mean"),
        ({"model": ModelSpec(widths=(784, 10))}, BuildError, "width must be 36"),
        ({"model": ModelSpec(widths=(36, 10))}, BuildError, "10 outputs"),
        ({"training": TrainingSpec(learning_rate=-1)}, BuildError, "learning rate must be"),
        ({"training": TrainingSpec(decay_epochs=-1)}, BuildError, "decay and warm-up"),
        ({"sketch": SketchSpec("tensorsketch", 33)}, BuildError, "TensorSketch"),
        ({"sketch": SketchSpec("exact"), "outputs": "all"}, BuildError, "The exact kernel"),
        ({"methods": ("magic",)}, BuildError, "method 'magic'"),
        ({"name": "x" * 301}, BuildError, "cannot be recorded"),
        ({"name": "\0"}, BuildError, "cannot be recorded"),
        ({"training": TrainingSpec(learning_rate=1e31)}, BuildError, "learning_rate"),
        ({"sketch": SketchSpec(dim=200), "methods": ("trak",)}, BuildError, "TRAK needs"),
    ],
)
def test_what_build_would_refuse_is_refused_in_the_same_words(tmp_path, changes, error, message):
    spec = replace(_SPEC, **changes)
    with pytest.raises(error, match=re.escape(message)) as checked:
        _report(spec)
    with pytest.raises(error, match=re.escape(message)) as built:
        build(spec, tmp_path / "bundle")
    assert str(checked.value) == str(built.value)


def test_too_little_disk_and_memory_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    assert "of 1 MB in this machine; that is MORE than this machine has" in dict(_report(_SPEC))["Memory"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _DiskUsage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(BuildError, match=rf"about [\d.]+ MB .* only 1 MB .* {tmp_path};"):
        _report(_SPEC, tmp_path / "deep" / "bundle")


def test_a_bundle_that_is_there_is_told(tmp_path):
    build(_SPEC, tmp_path / "bundle")
    name, said = _report(_SPEC, tmp_path / "bundle")[0]
    assert name == "Bundle"
    assert said.startswith(f"{tmp_path}/bundle is there already")
    with pytest.raises(BundleError, match="other settings"):
        _report(replace(_SPEC, ntk=False), tmp_path / "bundle")


def test_a_large_folder_is_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr("natscope.precompute.bundles.check._SAMPLED", 12)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(50):
            Image.new("L", (5, 5), 1 + i).save(tmp_path / name / f"{i:02}.png")
    spec = replace(_SPEC, dataset=f"folder:{tmp_path}", folder=FolderSpec(6, test_share=0.1))
    report = _report(spec)
    assert re.match(rf"folder:{tmp_path.name}: 90 training .* 10 test .* 6 × 6 ", report[0][1])
    assert report[1][1].startswith("12 of 100 files")
    for file in tmp_path.glob("cat/1*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"^\d+ of 12 images .* cat/1\d\.png: The file is empty"):
        _report(spec)
    report = _report(replace(spec, folder=FolderSpec(6, test_share=0.1, skip_broken=True)))
    assert re.match(r"12 of 100 files .*; \d cannot be used .* cat/1\d\.png: ", report[1][1])


def test_time_is_extrapolated_from_work_that_takes_long_enough(monkeypatch):
    clock, calls = [0.0], []

    def run(number):
        calls.append(number)
        clock[0] += 0.01 + 0.001 * number

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure, "_LONG_ENOUGH", 0.6)
    assert seconds_each(run, 10_000) == pytest.approx((0.01, 0.001), rel=0.01)
    assert calls[:2] == [2, 2]
    calls.clear()
    assert seconds_each(run, 5) == pytest.approx((0.01, 0.001))
    assert max(calls) == 5


def test_what_is_done_once_is_not_counted_for_every_image_and_epoch(monkeypatch):
    clock = [0.0]

    def slow(model, images, labels, spec, **_):
        clock[0] += 10 + spec.epochs * (0.02 + 1e-3 * len(images))

    monkeypatch.setattr(checking, "train", slow)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    said = dict(_report(replace(_SPEC, training=TrainingSpec(epochs=50))))
    assert "about 16 s" in said["Training"]  # 10 + 50 · (0.02 + 0.1)


def test_memory_begins_with_what_the_process_takes(monkeypatch):
    monkeypatch.setattr(checking, "resident", lambda: 3e9)
    assert dict(_report(_SPEC))["Memory"].startswith("about 3 GB at the peak")
    assert 5e7 < measure.resident() < 1e11


def test_memory_is_that_of_the_tensors_that_live_at_the_same_time():
    def run(number):
        total = torch.zeros(())
        for _ in range(5):  # one after the other
            total = total + (torch.ones(number, 1000) * 2).sum()
        cache = [torch.ones(number, 500) for _ in range(3)]
        return total, cache

    # ones and their double: 2 · 4,000 bytes an image, freed before the 3 · 2,000 that are kept
    assert bytes_each(run) == pytest.approx(8000, rel=0.01)


def test_several_processes_take_memory_each(monkeypatch):
    monkeypatch.setattr(checking, "IDLE", 2**33)
    found = dict(check(_SPEC, None, engine=LocalEngine(2)))
    assert found["Engine"] == "2 processes of this machine"
    assert re.match(r"about 1[789] GB at the peak", found["Memory"])
    assert "Engine" not in dict(check(_SPEC, None, engine=LocalEngine()))
