import gzip
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision.datasets.mnist

from natscope import assets
from natscope.assets.make_fashion_mnist import make, write_idx
from natscope.core.errors import DataError
from natscope.precompute.data import datasets
from natscope.precompute.data.datasets import (
    DATASETS,
    DEBIAN_FOLDER,
    first_of_each,
    load_dataset,
    of_classes,
    read_idx,
)
from tests.conftest import one_sentence
from tests.tiny import image_data

_debian = pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without_debian(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "DEBIAN_FOLDER", tmp_path / "absent")


@pytest.fixture
def tiny(tmp_path):
    """Write a Fashion-MNIST of 20 + 10 images where torchvision would put it, and give the root."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        for name, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels-idx1", np.arange(count, dtype=np.uint8) % 10),
        ):
            write_idx(raw / "array.gz", array)
            (raw / f"{part}-{name}-ubyte").write_bytes(gzip.decompress((raw / "array.gz").read_bytes()))
    return tmp_path


def test_the_embedded_quarter_is_what_it_says():
    data = load_dataset("fashion-mnist-quarter")
    assert (data.train.images.shape, data.test.images.shape) == ((15000, 28, 28), (10000, 28, 28))
    assert data.train.images.dtype == data.test.images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert np.bincount(data.train_labels).tolist() == [1500] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert len(data.classes) == 10
    assert data.classes[9] == "Ankle boot"
    assert np.mean(data.train.images / 255) == pytest.approx(data.train.mean[0], abs=2e-3)
    assert np.std(data.train.images / 255) == pytest.approx(data.train.std[0], abs=2e-3)
    for array in (data.train.images, data.train_labels, data.test.images, data.test_labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_first_of_each_class_keep_their_order():
    data = load_dataset("fashion-mnist-quarter")
    few = first_of_each(data, 7)
    assert np.bincount(few.train_labels).tolist() == [7] * 10
    for label in range(10):
        rows = np.flatnonzero(data.train_labels == label)[:7]
        assert np.array_equal(few.train.images[few.train_labels == label], data.train.images[rows])
    rank = {image.tobytes(): place for place, image in enumerate(data.train.images)}
    assert [rank[image.tobytes()] for image in few.train.images] == sorted(rank[i.tobytes()] for i in few.train.images)
    assert few.test.images is data.test.images
    assert len(first_of_each(data, 10_000).train.images) == 15_000
    with pytest.raises(DataError, match="At least one"):
        first_of_each(data, 0)


def test_the_embedded_quarter_needs_neither_torchvision_nor_the_network():
    code = (
        "import socket, sys\n"
        "def refuse(*arguments): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from natscope.precompute.data.datasets import load_dataset\n"
        "load_dataset('fashion-mnist-quarter')\n"
        "assert 'torchvision' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=_ROOT, check=True)


@_debian
def test_the_embedded_quarter_comes_from_the_whole():
    quarter, whole = load_dataset("fashion-mnist-quarter"), load_dataset("fashion-mnist")
    indices = read_idx(assets.path("fashion_mnist", "train-indices-idx1-int.gz"))
    assert indices.dtype == np.int32
    assert (np.diff(indices) > 0).all()
    assert np.array_equal(whole.train.images[indices], quarter.train.images)
    assert np.array_equal(whole.train_labels[indices], quarter.train_labels)
    assert np.array_equal(whole.test.images, quarter.test.images)
    assert np.array_equal(whole.test_labels, quarter.test_labels)


@_debian
def test_the_script_makes_the_embedded_files_again(tmp_path):
    make(DEBIAN_FOLDER, tmp_path)
    made = sorted(file.name for file in tmp_path.iterdir())
    assert made == sorted(file.name for file in assets.path("fashion_mnist").glob("*.gz"))
    for name in made:
        first, second = (tmp_path / name).read_bytes(), assets.path("fashion_mnist", name).read_bytes()
        assert first[:10] == second[:10] == b"\x1f\x8b\x08\0\0\0\0\0\x02\xff"  # no time, no name, level 9
        assert gzip.decompress(first) == gzip.decompress(second)


def test_idx_files_survive_a_round_trip(tmp_path):
    for array in (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([-1, 0, 2**31 - 1], np.int32)):
        write_idx(tmp_path / "a.gz", array)
        content = (tmp_path / "a.gz").read_bytes()
        found = read_idx(tmp_path / "a.gz")
        assert np.array_equal(found, array)
        assert found.dtype == array.dtype
        write_idx(tmp_path / "a.gz", array)
        assert (tmp_path / "a.gz").read_bytes() == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"not gzip at all",
        lambda data: data[:20] + bytes([data[20] ^ 0xFF]) + data[21:],
        lambda data: gzip.compress(b"\0\0"),
        lambda data: gzip.compress(b"\0\0\x08\x03\0\0"),
        lambda data: gzip.compress(b"<html>captive portal</html>"),
        lambda data: gzip.compress(gzip.decompress(data)[:-1]),
        lambda data: gzip.compress(gzip.decompress(data) + b"\0"),
        lambda data: gzip.compress(b"\0\0\x0d" + gzip.decompress(data)[3:]),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    write_idx(tmp_path / "images.gz", np.random.default_rng(0).integers(0, 256, (9, 5, 5), dtype=np.uint8))
    (tmp_path / "images.gz").write_bytes(damage((tmp_path / "images.gz").read_bytes()))
    with pytest.raises(DataError, match=r"images\.gz is damaged"):
        read_idx(tmp_path / "images.gz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"images\.gz is missing"):
        read_idx(tmp_path / "images.gz")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"'imagenet'; .* cifar10, fashion-mnist, fashion-mnist-quarter,"):
        load_dataset("imagenet")


def test_a_data_set_is_added_in_one_line(monkeypatch, tmp_path):
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64)
    mine = image_data("mine", ("thing",), images, labels, images, labels, (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setitem(DATASETS, "mine", lambda root: mine)
    assert load_dataset("mine", root=tmp_path) is mine


@pytest.mark.parametrize(
    ("labels", "message"), [([0], "2 images and 1 labels"), ([0, 1], "outside"), ([0, -1], "outside"), ([], "0 labels")]
)
def test_parts_that_do_not_fit_are_refused(labels, message):
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array(labels, np.int64)
    with pytest.raises(DataError, match=message):
        image_data("mine", ("thing",), images, labels, images, labels, (0.5,), (0.5,))


def test_a_download_that_is_there_is_read_without_the_network(without_debian, tiny):
    data = load_dataset("fashion-mnist", root=tiny)
    assert data.name == "fashion-mnist"
    assert (len(data.train.images), len(data.test.images)) == (20, 10)


def test_a_damaged_download_is_named(without_debian, tiny):
    file = tiny / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is damaged"):
        load_dataset("fashion-mnist", root=tiny)


def test_files_that_were_exchanged_are_named(without_debian, tiny):
    raw = tiny / "FashionMNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes((raw / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged"):
        load_dataset("fashion-mnist", root=tiny)


@pytest.mark.parametrize("failure", [URLError("no route"), TimeoutError("timed out"), RuntimeError("File corrupted")])
def test_a_failed_download_is_one_sentence(without_debian, monkeypatch, tmp_path, failure):
    def fail(*arguments, **settings):
        raise failure

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"not be downloaded .*fashion-mnist-quarter") as caught:
        load_dataset("fashion-mnist", root=tmp_path)
    one_sentence(str(caught.value))


def test_a_folder_that_cannot_be_made_is_a_sentence(without_debian, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not be downloaded"):
        load_dataset("fashion-mnist", root=tmp_path / "file")


def test_a_missing_torchvision_is_a_sentence(without_debian, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(DataError, match="needs torchvision; install it"):
        load_dataset("fashion-mnist", root=tmp_path)


def test_images_that_are_left_keep_their_rows_as_sources():
    images, labels = np.zeros((6, 2, 2), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    data = image_data("x", ("a", "b", "c"), images, labels, images.copy(), labels.copy(), (0.0,), (1.0,))
    kept = first_of_each(of_classes(data, (2, 0)), 1)
    assert kept.train_sources == ("train row 0", "train row 2")
    assert kept.test_sources == ("test row 0", "test row 2", "test row 3", "test row 5")
    with pytest.raises(DataError, match="6 images, 1 sources"):
        replace(data, train_sources=("one",))
