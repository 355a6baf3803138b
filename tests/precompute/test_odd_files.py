"""Odd image files and folders: each has the pixels it must give, or the sentence with which it is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from natscope.app.cli.commands import natscope
from natscope.app.uploads import read_image
from natscope.core.errors import DataError
from natscope.precompute.data.decode import CHOICES, Reading, decode
from natscope.precompute.data.folders import FolderSpec, fingerprint, load_folder
from natscope.precompute.data.form import form_of
from natscope.precompute.data.remarks import remarks
from tests.conftest import one_sentence

_SIDE = 8


def _noise(size=(_SIDE, _SIDE, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def _bytes(pixels, kind="PNG", **options):
    data = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(data, kind, **options)
    return data.getvalue()


def _turned():
    exif = Image.Exif()
    exif[274] = 6
    return _bytes(_noise((4, 8, 3)), exif=exif)


def _glass():
    """Dark red on the left; on the right invisible green."""
    pixels = np.zeros((_SIDE, _SIDE, 4), np.uint8)
    pixels[:, :4], pixels[:, 4:] = (90, 0, 0, 255), (0, 200, 0, 0)
    return _bytes(pixels)


def _deep(most=4095):
    return _bytes(np.linspace(0, most, _SIDE * _SIDE).astype(np.uint16).reshape(_SIDE, _SIDE))


def _stripes():
    """Twice as wide as high: red, white, blue."""
    pixels = np.full((8, 16, 3), 255, np.uint8)
    pixels[:, :4], pixels[:, 12:] = (255, 0, 0), (0, 0, 255)
    return _bytes(pixels)


def _film():
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    return _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])


def _left(image):
    return tuple(int(v) for v in image[4, 0])


def _right(image):
    return tuple(int(v) for v in image[4, 7])


def _upright(image):
    return np.array_equal(image[:, 2:6], np.rot90(_noise((4, 8, 3)), -1))


def _stored(image):
    return np.array_equal(image[2:6], _noise((4, 8, 3)))


FILES = [
    ("plain.png", lambda: _bytes(_noise()), {}, lambda i: np.array_equal(i, _noise())),
    ("plain.bmp", lambda: _bytes(_noise(), "BMP"), {}, lambda i: np.array_equal(i, _noise())),
    ("plain.tif", lambda: _bytes(_noise(), "TIFF"), {}, lambda i: np.array_equal(i, _noise())),
    ("plain.ppm", lambda: _bytes(_noise(), "PPM"), {}, lambda i: np.array_equal(i, _noise())),
    ("plain.webp", lambda: _bytes(_noise(), "WEBP", lossless=True), {}, lambda i: np.array_equal(i, _noise())),
    ("turned.png", _turned, {}, _upright),
    ("turned.png", _turned, {"orientation": "stored"}, _stored),
    ("glass.png", _glass, {}, lambda i: (_left(i), _right(i)) == ((90, 0, 0), (255, 255, 255))),
    ("glass.png", _glass, {"background": "white"}, lambda i: _right(i) == (255, 255, 255)),
    ("glass.png", _glass, {"background": "black"}, lambda i: _right(i) == (0, 0, 0)),
    ("glass.png", _glass, {"background": "grey"}, lambda i: _right(i) == (128, 128, 128)),
    ("glass.png", _glass, {"background": "ignore"}, lambda i: _right(i) == (0, 200, 0)),
    ("deep.png", _deep, {}, lambda i: i.max() == 16),
    ("deep.png", _deep, {"bits": 12}, lambda i: (i.min(), i.max()) == (0, 255)),
    ("deep.png", lambda: _deep(65535), {}, lambda i: (i.min(), i.max()) == (0, 255)),
    ("deep.png", _deep, {"bits": 10}, "values up to 4,095, above 1,023"),
    ("wide.png", _stripes, {}, lambda i: _left(i)[0] > 200 > 60 > _right(i)[0]),
    ("wide.png", _stripes, {"fit": "crop"}, lambda i: (_left(i), _right(i)) == ((255, 255, 255), (255, 255, 255))),
    ("png.jpg", lambda: _bytes(_noise()), {}, "name does not fit its content, which is PNG.*--by-content"),
    ("png.jpg", lambda: _bytes(_noise()), {"by_content": True}, lambda i: np.array_equal(i, _noise())),
    ("film.gif", _film, {}, "animation.*--first-frame"),
    ("film.gif", _film, {"first_frame": True}, lambda i: abs(int(i.mean()) - 10) < 2),
    ("large.jpg", lambda: _bytes(Image.new("L", (5300, 5000), 77), "JPEG"), {}, "25 megapixels.*--largest"),
    ("large.jpg", lambda: _bytes(Image.new("L", (5300, 5000), 77), "JPEG"), {"largest": 30}, lambda i: i.max() == 77),
    ("large.png", lambda: _bytes(Image.new("1", (5300, 5000), 1)), {"largest": 30}, lambda i: i.min() == 255),
    ("large.jpg", lambda: _bytes(Image.new("L", (5300, 5000), 7), "JPEG"), {"largest": 26}, "more than 26 megapixels"),
    ("long.png", lambda: _bytes(np.zeros((2, 40), np.uint8)), {}, "10 times as long"),
    ("empty.png", lambda: b"", {}, "The file is empty"),
    ("cut.png", lambda: _bytes(_noise((64, 64, 3)))[:900], {}, "damaged or incomplete"),
    ("page.png", lambda: b"<html>", {}, "a text such as HTML"),
    ("invisible.png", lambda: _bytes(np.zeros((8, 8, 4), np.uint8)), {}, "transparent everywhere.*--background ignore"),
    ("invisible.png", lambda: _bytes(np.zeros((8, 8, 4), np.uint8)), {"background": "ignore"}, lambda i: i.max() == 0),
    (
        "grey.png",
        lambda: _bytes(Image.fromarray(_noise((8, 8)))),
        {},
        lambda i: np.array_equal(i[..., 0], _noise((8, 8))),
    ),
    ("palette.gif", lambda: _bytes(Image.new("P", (8, 8), 0), "GIF"), {}, lambda i: np.ptp(i) == 0),
]


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes images into train and other splits of two classes."""

    def write(*splits, count=4, classes=("a", "b")):
        for split in splits:
            for place, name in enumerate(classes):
                (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    data = _bytes(_noise(seed=[*split.encode(), place, i]))
                    (tmp_path / split / name / f"{i}.png").write_bytes(data)
        return tmp_path

    return write


@pytest.mark.parametrize(("name", "make", "options", "wanted"), FILES)
def test_a_file_gives_its_pixels_or_a_sentence(folder, name, make, options, wanted):
    path, data = folder("train", "test"), make()
    (path / "train" / "a" / f"0{name}").write_bytes(data)
    spec = FolderSpec(_SIDE, reading=Reading(**options))
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=f"train/a/0{name}: .*{wanted}") as caught:
            load_folder(path, spec)
        one_sentence(str(caught.value))
    else:
        found, _ = load_folder(path, spec)
        assert wanted(found.train_images[found.train_sources.index(f"train/a/0{name}")])


def _loaded(path, **options):
    spec = FolderSpec(_SIDE, **options)
    data, skipped = load_folder(path, spec)
    return data, skipped, remarks(path, spec, train=data.train_sources, test=data.test_sources)


@pytest.mark.parametrize("other", ["eval", "val", "valid", "validation", "dev", "holdout", "testing", "Eval"])
def test_the_other_split_may_have_any_usual_name_and_is_told(folder, other):
    data, _, told = _loaded(folder("train", other))
    assert data.classes == ("a", "b")
    assert (len(data.train_labels), len(data.test_labels)) == (8, 8)
    assert told == [f"{other} is the test split"]


def test_two_candidates_are_refused_until_one_is_named(folder):
    path = folder("train", "eval", "holdout")
    with pytest.raises(DataError, match="has eval and holdout beside train; choose one by --test-folder eval"):
        _loaded(path)
    data, _, told = _loaded(path, test_folder="holdout")
    assert set(data.test_sources) == {f"holdout/{name}/{i}.png" for name in "ab" for i in range(4)}
    assert told[0] == "holdout is the test split, and eval is not used"
    assert "8 files are not used, no image of a class: eval/a/0.png" in told[1]
    with pytest.raises(DataError, match=r"no folders train and test\d, as --test-folder"):
        _loaded(path, test_folder="test1")


def test_train_alone_is_divided(folder):
    data, _, told = _loaded(folder("train", count=10), test_share=0.3)
    assert data.classes == ("a", "b")
    assert (np.bincount(data.train_labels).tolist(), np.bincount(data.test_labels).tolist()) == ([7, 7], [3, 3])
    assert told == []


def test_classes_that_are_missing_on_a_side_are_gone_on_without_when_told(folder):
    path = folder("train", "test")
    folder("train", classes=("alone",))
    folder("test", classes=("unseen",))
    with pytest.raises(DataError, match=r"class unseen that .*--missing-classes"):
        _loaded(path)
    data, _, told = _loaded(path, missing_classes=True)
    assert data.classes == ("a", "alone", "b")
    assert np.bincount(data.test_labels, minlength=3).tolist() == [4, 0, 4]
    assert told[:2] == ["without a test image: alone", "left out, having no training image: unseen"]


def test_a_class_of_one_image_is_for_training_when_told(folder):
    path = folder("", count=6)
    (path / "c").mkdir()
    (path / "c" / "0.png").write_bytes(_bytes(_noise()))
    with pytest.raises(DataError, match=r"class c of .* one image; .*--missing-classes"):
        _loaded(path)
    data, _, _ = _loaded(path, missing_classes=True)
    assert np.bincount(data.train_labels).tolist() == [5, 5, 1]


def test_broken_files_are_dropped_before_the_rest_is_divided(folder):
    path = folder("", count=4)
    for i in range(12):
        (path / "a" / f"z{i}.png").touch()
    data, skipped, _ = _loaded(path, skip_broken=True, test_share=0.25)
    assert len(skipped) == 12
    assert (np.bincount(data.train_labels).tolist(), np.bincount(data.test_labels).tolist()) == ([3, 3], [1, 1])
    whole = _loaded(folder("whole", count=4) / "whole", test_share=0.25)[0]
    assert [s.removeprefix("whole/") for s in whole.test_sources] == list(data.test_sources)


def test_files_that_are_no_images_of_a_class_are_counted_and_named(folder):
    path = folder("train", "test")
    (path / "train" / "notes.txt").write_text("notes")
    (path / "train" / "a" / "labels.csv").write_text("1")
    (path / "train" / ".hidden").write_text("1")
    assert _loaded(path)[2] == ["2 files are not used, no image of a class: train/notes.txt, train/a/labels.csv"]


def test_images_of_both_splits_are_reported(folder):
    path = folder("train", "test")
    (path / "test" / "b" / "again.png").write_bytes((path / "train" / "a" / "1.png").read_bytes())
    told = "1 test image is also a training image, byte for byte: test/b/again.png = train/a/1.png"
    assert _loaded(path)[2] == [told]


def test_files_of_twelve_bits_are_reported(folder):
    path = folder("train", "test")
    (path / "train" / "a" / "0.png").write_bytes(_deep())
    assert _loaded(path)[2] == [
        "files of 16 bits hold values of 12 bits, so images are dark; --bits 12 uses them whole"
    ]
    assert _loaded(path, reading=Reading(bits=12))[2] == []


def test_contents_that_change_places_are_noticed(folder):
    path = folder("train", "test")
    first, second = path / "train" / "a" / "0.png", path / "train" / "b" / "0.png"
    before = fingerprint(path, FolderSpec())
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other), second.write_bytes(one)
    assert fingerprint(path, FolderSpec()) != before


def test_settings_are_as_they_were_unless_an_option_is_given():
    assert FolderSpec().to_dict() == {"image_size": 32, "test_share": 0.2, "skip_broken": False}
    spec = FolderSpec(16, missing_classes=True, reading=Reading(bits=12, fit="crop"))
    assert spec.to_dict()["reading"] == {"bits": 12, "fit": "crop"}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Reading()),
        (
            {"folder": {"reading": {"fit": "crop", "bits": 12, "largest": 150, "by_content": True}}},
            Reading(fit="crop", bits=12),
        ),
        ({"folder": {"reading": {"fit": ["crop"], "bits": "12", "background": "x", "orientation": None}}}, Reading()),
        ({"folder": {"reading": 7}}, Reading()),
        ({"folder": []}, Reading()),
    ],
)
def test_uploads_go_the_way_of_the_training_images_within_the_usual_limits(settings, wanted):
    assert Reading.of_settings(settings) == wanted
    upload = read_image(_stripes(), "wide.png", **form_of(np.zeros((5, _SIDE, _SIDE, 3), np.uint8), settings))
    assert (_left(upload.image) == (255, 255, 255)) is (wanted.fit == "crop")


def test_the_command_offers_what_can_be_chosen():
    options = {option.name: option for option in natscope.commands["precompute"].params}
    for name, choices in CHOICES.items():
        kind = options[name].type
        assert tuple(getattr(kind, "choices", ()) or range(kind.min, kind.max + 1)) == tuple(choices)
        assert options[name].default == getattr(Reading(), name)
    with pytest.raises(DataError, match="no fit 'squeeze'; choose from pad, crop"):
        Reading(fit="squeeze").check()


def test_a_photo_is_reduced_while_it_is_decoded():
    picture = decode(_bytes(Image.new("L", (5300, 5000), 77), "JPEG"), "large.jpg", Reading(largest=30))
    assert max(picture.size) < 2700
