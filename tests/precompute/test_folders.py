import hashlib
import io
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natscope.core.errors import DataError
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.folders import FolderSpec, fingerprint, load_folder
from tests.conftest import one_sentence

_SPEC = FolderSpec(image_size=8)
_SKIP = FolderSpec(image_size=8, skip_broken=True)


def _picture(value, mode="RGB", size=(10, 10)):
    """Return a picture of one colour, red where the mode has colours."""
    return Image.new("RGB", size, (value, 0, 0)).convert(mode) if mode != "L" else Image.new("L", size, value)


def _save(file, value=100, **arguments):
    file.parent.mkdir(parents=True, exist_ok=True)
    _picture(value, **arguments).save(file)
    return file


@pytest.fixture
def split(tmp_path):
    """A folder with train and test of two classes."""
    for part, count in (("train", 4), ("test", 2)):
        for place, name in enumerate(("cat", "dog")):
            for i in range(count):
                _save(tmp_path / part / name / f"{i}.png", 20 + 100 * place + i)
    return tmp_path


@pytest.fixture
def single(tmp_path):
    """A folder of two classes without train and test."""
    for name in ("cat", "dog"):
        for i in range(10):
            _save(tmp_path / name / f"{i}.png", i, mode="L")
    return tmp_path


def test_train_and_test_are_read_in_the_order_of_names(split):
    _save(split / "train" / "cat" / "deep" / "er" / "z.PNG", 7)
    (split / "train" / "cat" / ".hidden.png").write_text("no image")
    (split / "train" / ".git").mkdir()
    (split / "train" / "cat" / "notes.txt").write_text("not asked for")
    data, skipped = load_folder(split, _SPEC)
    assert (data.classes, skipped) == (("cat", "dog"), [])
    assert data.name == f"folder:{split.name}"
    assert data.train.images.shape == (9, 8, 8, 3)
    assert data.train_labels.tolist() == [0] * 5 + [1] * 4
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train.images[:, 0, 0, 0].tolist() == [20, 21, 22, 23, 7, 120, 121, 122, 123]
    assert data.train.mean[0] == pytest.approx(data.train.images[..., 0].mean() / 255, abs=1e-4)
    assert data.train.std[0] == pytest.approx(data.train.images[..., 0].std() / 255, abs=1e-4)
    assert data.train.std[1] == 0.001  # a channel that is the same everywhere must not divide by nothing


def test_grey_images_make_a_grey_data_set_and_one_of_colour_makes_it_colour(single):
    assert load_folder(single, _SPEC)[0].train.images.shape == (16, 8, 8)
    _save(single / "cat" / "red.jpg")
    assert load_folder(single, _SPEC)[0].train.images.shape == (17, 8, 8, 3)


def test_a_folder_without_a_split_is_divided_the_same_way_each_time(single):
    first, again = (load_folder(single, FolderSpec(8, test_share=0.3))[0] for _ in range(2))
    assert np.bincount(first.test_labels).tolist() == [3, 3]
    np.testing.assert_array_equal(first.test.images, again.test.images)
    values = {*first.train.images[first.train_labels == 0, 0, 0], *first.test.images[first.test_labels == 0, 0, 0]}
    assert values == set(range(10))


@pytest.mark.parametrize("size", [(8, 8), (200, 50), (3, 4), (500, 500)])
def test_any_size_is_brought_to_one(single, size):
    _save(single / "cat" / "other.png", 90, mode="L", size=size)
    assert load_folder(single, _SPEC)[0].train.images.shape[1:] == (8, 8)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "LA", "RGBA", "I;16", "I", "F"])
def test_every_kind_of_picture_can_be_read(single, mode):
    file = single / "cat" / ("other.png" if mode in ("1", "P", "LA", "RGBA", "I;16") else "other.tif")
    if mode == "I;16":
        Image.fromarray(np.full((10, 10), 200 * 257, np.uint16)).save(file)
    else:
        Image.new("L", (10, 10), 255 if mode == "1" else 200).convert(mode).save(file)
    data, skipped = load_folder(single, _SPEC)
    assert skipped == []
    middles = [int(image[4, 4]) for image in (*data.train.images, *data.test.images)]
    assert max(middles) == {"1": 255}.get(mode, 200)


def _truncated_jpeg(file):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(data, "JPEG")
    file.with_suffix(".jpg").write_bytes(data.getvalue()[:900])


def _bomb(file):
    Image.new("1", (6000, 6000)).save(file)


BROKEN = {
    "text": (
        lambda file: file.with_suffix(".jpg").write_text("Dear Sir"),
        "bad.jpg: The file is not a supported image",
    ),
    "empty": (lambda file: file.write_bytes(b""), "bad.png: The file is empty"),
    "truncated": (_truncated_jpeg, "bad.jpg: The image is damaged"),
    "bomb": (_bomb, "bad.png: .*25 megapixels"),
    "misnamed": (lambda file: _picture(1).save(file, "JPEG"), "bad.png: The file's name"),
    "dangling": (lambda file: file.symlink_to("nowhere.png"), "bad.png: No such file or directory"),
    "loop": (lambda file: file.symlink_to(file.name), "bad.png: Too many levels"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_read_is_named_and_skipped_when_told(split, kind):
    make, reason = BROKEN[kind]
    make(split / "train" / "dog" / "bad.png")
    with pytest.raises(DataError, match=rf"^1 of 13 images in {split} .*: train/dog/{reason}.*--skip-broken\.$"):
        load_folder(split, _SPEC)
    data, (skipped,) = load_folder(split, _SKIP)
    assert re.match(f"train/dog/{reason}", skipped)
    assert data.train_labels.tolist() == [0] * 4 + [1] * 4
    files = sorted(
        f"train/{name}/{file.name}" for name in ("cat", "dog") for file in (split / "train" / name).iterdir()
    )
    assert list(data.train_sources) == [file for file in files if not file.startswith("train/dog/bad")]


def test_a_file_larger_than_any_picture_is_not_read_into_memory(split):
    with (split / "train" / "dog" / "bad.tif").open("wb") as file:
        file.truncate(2**28 + 1)  # no room on the disk is taken
    (skipped,) = load_folder(split, _SKIP)[1]
    assert re.match(r"train/dog/bad\.tif: .*268 MB", skipped)


def test_many_unreadable_files_are_counted_and_the_first_named(split):
    for i in range(14):
        (split / "train" / "cat" / f"bad{i:02}.png").touch()
    with pytest.raises(DataError, match=r"^14 of 26 images .*bad09\.png: The file is empty and 4 more\."):
        load_folder(split, _SPEC)
    assert len(load_folder(split, _SKIP)[1]) == 14


def test_a_sample_reads_some_files_of_every_part_and_counts_all(split):
    whole, _ = load_folder(split, _SPEC)
    data, _ = load_folder(split, _SPEC, sample=6)
    np.testing.assert_array_equal(data.train_labels, whole.train_labels)
    known = data.train.images.reshape(8, -1).any(axis=1)
    assert 2 <= known.sum() < 8
    np.testing.assert_array_equal(data.train.images[known], whole.train.images[known])
    assert data.test.images.any()


def test_links_to_folders_are_classes_but_loops_are_not_followed(split, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for part in ("train", "test"):
        _save(elsewhere / part / "0.png")
        (split / part / "owl").symlink_to(elsewhere / part)
        (split / part / "cat" / "up.png").symlink_to(split)
        (split / part / "cat" / "up").symlink_to(split)
    data, skipped = load_folder(split, _SPEC)
    assert (data.classes, skipped) == (("cat", "dog", "owl"), [])
    assert len(data.train.images) == 9
    before = fingerprint(split, _SPEC)
    _save(elsewhere / "train" / "1.png")
    assert fingerprint(split, _SPEC) != before


def test_class_names_may_be_anything_that_can_be_printed(tmp_path):
    names = ["A b", "O'Neil & <b>", "größer", "猫"]
    for name in names:
        for i in range(3):
            _save(tmp_path / name / f"{i} ü.png", i)
    data, _ = load_folder(tmp_path, _SPEC)
    assert list(data.classes) == sorted(names)


def _remove(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: _remove(p / "train" / "cat"), "class cat of {path} has no training image"),
        (lambda p: _remove(p / "test" / "dog"), "class dog of {path} has no test image"),
        (lambda p: (p / "train" / "owl").mkdir(), "class owl of {path} has no training image"),
        (lambda p: (p / "test" / "owl").mkdir(), "{path}/test has a class owl"),
        (
            lambda p: [(p / "test").rename(p / "val"), (p / "eval").mkdir()],
            "{path} has eval and val beside train; choose one by --test-folder eval",
        ),
        (lambda p: _save(p / "train" / "Cat" / "0.png"), "The classes Cat and cat of {path}/train"),
        (
            lambda p: [_save(p / "train" / unicodedata.normalize(f, "é") / "0.png") for f in ("NFC", "NFD")],
            "an accent",
        ),
        (lambda p: (p / "train" / "a\nb").mkdir(), "no printable name"),
    ],
)
def test_folders_that_make_no_data_set_are_one_sentence(split, change, message):
    change(split)
    with pytest.raises(DataError, match=r"\.$") as caught:
        load_folder(split, _SPEC)
    assert message.format(path=split) in one_sentence(str(caught.value))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_classes_are_refused(tmp_path, count):
    for i in range(count):
        _save(tmp_path / f"class{i}" / "0.png")
    with pytest.raises(DataError, match=f"has {count} class"):
        load_folder(tmp_path, _SPEC)


def test_a_class_of_one_image_cannot_be_divided(single):
    _save(single / "owl" / "0.png")
    with pytest.raises(DataError, match=r"class owl of .* one image;"):
        load_folder(single, _SPEC)


def test_a_missing_folder_and_sizes_out_of_range_are_refused(tmp_path, single):
    for call in (load_folder, fingerprint):
        with pytest.raises(DataError, match=r"no folder .*missing;"):
            call(tmp_path / "missing", _SPEC)
    for spec in (FolderSpec(3), FolderSpec(513), FolderSpec(8, 0.0), FolderSpec(8, 1.0)):
        with pytest.raises(DataError, match="4 to 512 pixels"):
            load_folder(single, spec)


def test_a_folder_without_permission_is_named(single, monkeypatch):
    walk = os.walk

    def denied(folder, onerror):
        if folder.name == "dog":
            onerror(PermissionError(13, "Permission denied", str(folder)))
        return walk(folder, onerror=onerror)

    monkeypatch.setattr(os, "walk", denied)
    with pytest.raises(DataError, match=rf"{single}/dog cannot be read: Permission denied"):
        load_folder(single, _SPEC)


def test_a_file_without_permission_is_named(single, monkeypatch):
    read = Path.read_bytes

    def denied(file):
        if file.name == "3.png":
            raise PermissionError(13, "Permission denied", str(file))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert load_folder(single, _SKIP)[1] == [f"{name}/3.png: Permission denied" for name in ("cat", "dog")]


def test_the_fingerprint_follows_names_and_contents(split):
    first = fingerprint(split, _SPEC)
    assert fingerprint(split, _SPEC) == first
    (split / "train" / "notes.txt").write_text("no image")
    assert fingerprint(split, _SPEC) == first
    seen = {first}
    file = split / "train" / "cat" / "0.png"
    file.rename(file.with_name("renamed.png"))
    seen.add(fingerprint(split, _SPEC))
    _save(split / "train" / "cat" / "new.png", size=(30, 30))
    seen.add(fingerprint(split, _SPEC))
    _save(split / "train" / "cat" / "new.png", size=(60, 60))
    seen.add(fingerprint(split, _SPEC))
    content = bytearray(file.with_name("renamed.png").read_bytes())
    content[-20] ^= 1  # of the same size
    file.with_name("renamed.png").write_bytes(content)
    seen.add(fingerprint(split, _SPEC))
    assert len(seen) == 5


def test_files_of_one_size_and_time_that_are_renamed_into_each_others_place_are_noticed(split):
    first, second = split / "train" / "cat" / "0.bmp", split / "train" / "dog" / "0.bmp"
    for file, grey in ((first, 10), (second, 20)):
        Image.new("L", (8, 8), grey).save(file)
        os.utime(file, ns=(10**18, 10**18))
    before = fingerprint(split, _SPEC)
    assert (first.stat().st_size, first.stat().st_mtime_ns) == (second.stat().st_size, second.stat().st_mtime_ns)
    first.rename(split / "kept"), second.rename(first), (split / "kept").rename(second)
    assert fingerprint(split, _SPEC) != before


def test_fingerprints_of_earlier_versions_are_compared_by_their_own_rule(split):
    own = fingerprint(split, _SPEC)
    assert own.startswith("2:")
    files = sorted(file for file in split.rglob("*.png"))
    sizes = "".join(f"{file.relative_to(split).as_posix()}\0{file.stat().st_size}\n" for file in files)
    for earlier in (own.removeprefix("2:"), hashlib.sha256(sizes.encode()).hexdigest()[:16]):
        assert fingerprint(split, _SPEC, like=earlier) == earlier
    assert fingerprint(split, _SPEC, like="0" * 16) == own
    spec = BuildSpec(dataset=f"folder:{split}", folder=_SPEC)
    known = spec.settings() | {"folder": _SPEC.to_dict() | {"files": own.removeprefix("2:")}}
    assert spec.settings(like=known) == known
    assert spec.settings(like={"folder": 7}) == spec.settings(like=[]) == spec.settings()


def test_a_folder_of_any_name_is_named_as_it_can_be_printed(single, tmp_path_factory):
    odd = single.rename(tmp_path_factory.mktemp("odd") / os.fsdecode(b"two\nlines \x1b[2J \xff"))
    (odd / "cat" / "bad\n.png").write_bytes(b"")
    data, skipped = load_folder(odd, _SKIP)
    assert data.name == "folder:two\ufffdlines \ufffd[2J \ufffd"
    assert skipped[0].startswith("cat/bad\ufffd.png: ")
