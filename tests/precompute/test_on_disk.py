"""Images that are too large for memory lie in files without a name, and everything else is as ever."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from natscope.core.errors import DataError
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.check import check
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data import on_disk
from natscope.precompute.data.folders import FolderSpec, load_folder
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec
from tests.conftest import one_sentence

_SPEC = FolderSpec(image_size=8)


@pytest.fixture
def _in_files(monkeypatch, tmp_path):
    monkeypatch.setattr(on_disk, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "home"))


def _folder(path, *, grey, parts=("",), count=12):
    """Make a folder of three classes of images of noise."""
    random = np.random.default_rng(0)
    for part in parts:
        for name in ("ant", "bee", "cat"):
            (path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8) if grey else (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / part / name / f"{number}.png")
    return path


def _spec(path, **others):
    return BuildSpec(
        dataset=f"folder:{path}",
        folder=_SPEC,
        model=ModelSpec("mlp", None),
        training=TrainingSpec(epochs=1, batch_size=8),
        sketch=SketchSpec(dim=16),
        methods=(),
        **others,
    )


_CASES = {
    "grey, divided": ({"grey": True}, {}),
    "colour, with train and test": ({"grey": False, "parts": ("train", "test")}, {}),
    "some classes, limited, poisoned": (
        {"grey": False},
        {"classes": (2, 0), "per_class": 7, "poison": PoisonSpec(rate=0.3, size=2)},
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_a_bundle_has_the_bytes_that_it_has_from_memory(case, tmp_path, monkeypatch):
    made, others = _CASES[case]
    spec = _spec(_folder(tmp_path / "photos", **made), **others)
    whole = build(spec, tmp_path / "in memory")
    monkeypatch.setattr(on_disk, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setenv("NATSCOPE_HOME", str(tmp_path / "home"))
    found = build(spec, tmp_path / "in files")
    digests = [{name: r.sha256 for name, r in bundle.manifest.files.items()} for bundle in (whole, found)]
    assert digests[0] == digests[1]
    assert found.identity == whole.identity
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.usefixtures("_in_files")
@pytest.mark.parametrize("parts", [("",), ("train", "test")])
def test_both_splits_lie_in_files(parts, tmp_path):
    data, _ = load_folder(_folder(tmp_path / "photos", grey=True, parts=parts), _SPEC)
    for images in (data.train.images, data.test.images):
        assert not images.flags.writeable
        while images.base is not None and not isinstance(images, np.memmap):
            images = images.base
        assert isinstance(images, np.memmap)


@pytest.mark.usefixtures("_in_files")
def test_a_sample_that_is_checked_lies_in_files_too(tmp_path):
    spec = _spec(_folder(tmp_path / "photos", grey=False), per_class=5)
    assert "15 training and 6 test images" in dict(check(spec, None))["Data"]


@pytest.mark.usefixtures("_in_files")
def test_images_without_room_are_one_sentence_and_leave_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor, start, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    path = _folder(tmp_path / "photos", grey=True)
    with pytest.raises(DataError, match=r"The inputs take 6\.9 kB .*home cannot hold them \(No space left") as found:
        build(_spec(path), tmp_path / "bundle")
    assert one_sentence(str(found.value))
    assert list((tmp_path / "home").iterdir()) == []
