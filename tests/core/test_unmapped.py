"""A server reads a bundle's files and maps none: one that changes is a sentence, and never the end of the process."""

import os
import shutil

import numpy as np
import pytest

from natscope.core.bundle import file_checks
from natscope.core.bundle.file_checks import checked
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.unmapped import UnmappedBundle
from natscope.core.errors import BundleError, FileError
from natscope.core.rows import FileRows
from tests.tiny import saved

_SERVED = ("train_images", "test_images", "train_labels", "test_labels", "train_logits", "test_logits", "penultimate")


@pytest.fixture
def path(tiny_path, tmp_path):
    return shutil.copytree(tiny_path, tmp_path / "tiny")


@pytest.mark.parametrize("name", _SERVED)
def test_every_array_is_that_of_the_file_without_a_map(path, name):
    found, mapped = UnmappedBundle(path).array(name), Bundle(path).array(name)
    (path / f"{name}.npy").unlink()  # a copy in memory stays, and rows of images are read when they are requested
    assert not isinstance(found, np.memmap)
    if name.endswith("_images"):
        assert isinstance(found, FileRows)
        with pytest.raises(BundleError, match=f"'{name}.npy' is missing"):
            found[0]
    else:
        assert np.array_equal(found, mapped)


@pytest.mark.parametrize("rows", [0, -1, np.int64(3), slice(None, None, 7), slice(5, 2), [], [3, 1, 3], np.arange(4)])
def test_rows_of_images_are_read_in_the_requested_order(path, rows):
    images, mapped = UnmappedBundle(path).examples("train").images, Bundle(path).examples("train").images
    rows = np.array(rows, dtype=np.int64) if isinstance(rows, list) else rows
    assert np.array_equal(images[rows], mapped[rows])
    assert (images.shape, images.ndim, images.dtype, len(images)) == (mapped.shape, 3, mapped.dtype, len(mapped))
    assert np.array_equal(np.asarray(images), mapped)


def test_there_are_no_rows_beyond_the_last(path):
    with pytest.raises(IndexError):
        UnmappedBundle(path).examples("train").images[60]


def test_images_whose_columns_come_first_are_read_too(path):
    images = np.array(Bundle(path).examples("test").images)
    saved(path, "test_images", np.asfortranarray(images))
    assert np.array_equal(UnmappedBundle(path).examples("test").images[[2, 0]], images[[2, 0]])


@pytest.mark.parametrize("size", [0, 200])
@pytest.mark.parametrize("name", _SERVED)
def test_a_file_that_is_cut_short_in_place_is_damaged(path, name, size):
    bundle = UnmappedBundle(path)
    found = bundle.array(name)
    os.truncate(path / f"{name}.npy", size)
    with pytest.raises(BundleError, match=rf"'{name}.npy' has {size} bytes where"):
        np.asarray(bundle.array(name))
    if name.endswith("_images"):
        with pytest.raises(BundleError, match=rf"'{name}.npy' has {size} bytes where"):
            found[[0, 1]]


def test_rows_of_a_file_that_is_overwritten_in_place_are_not_shown(path):
    images = UnmappedBundle(path).examples("train").images
    with (path / "train_images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x07")
    with pytest.raises(BundleError, match=r"'train_images\.npy' does not have the recorded checksum"):
        images[0]


def test_a_file_that_is_cut_short_while_it_is_read_is_damaged(path):
    record = Bundle(path).manifest.files["train_images"]
    rows = FileRows(lambda: checked(path, record, 3), record.bytes - 16, (9, 4, 4), np.dtype("uint8"))
    assert rows[0].shape == (4, 4)
    with pytest.raises(FileError, match=r"train_images\.npy was cut short"):
        rows[1]


def test_a_file_that_is_cut_short_within_a_number_before_it_is_read_is_damaged(path, monkeypatch):
    bundle = UnmappedBundle(path)
    os.truncate(path / "test_labels.npy", 128 + 5)
    monkeypatch.setattr(file_checks, "size_fault", lambda folder, record: "")  # as when it was whole a moment ago
    with pytest.raises(BundleError, match=r"'test_labels\.npy' does not have the recorded checksum"):
        bundle.array("test_labels")
