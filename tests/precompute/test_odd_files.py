"""Odd image files and folders: each has the pixels it must give, or the sentence with which it is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from natscope.app.cli.commands import natscope
from natscope.app.uploads import read_image
from natscope.core.errors import DataError
from natscope.precompute.data.decode import CHOICES, Decoding, decode
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


def _plane(colour):
    return _bytes(Image.new("RGBA", (_SIDE, _SIDE), colour))


def _photo():
    """A JPEG, white on the left, that is to be turned to the right."""
    exif, pixels = Image.Exif(), np.zeros((32, 32), np.uint8)
    exif[274], pixels[:, :16] = 6, 255
    return _bytes(pixels, "JPEG", exif=exif)


def _grey(most):
    return np.linspace(0, most, _SIDE * _SIDE).astype(np.uint16).reshape(_SIDE, _SIDE)


def _deep(most=4095):
    return _bytes(_grey(most))


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
    ("red.png", lambda: _plane((200, 0, 0, 0)), {}, "transparent everywhere.*--background ignore"),
    ("red.png", lambda: _plane((200, 0, 0, 0)), {"background": "ignore"}, lambda i: _left(i) == (200, 0, 0)),
    ("half.png", lambda: _plane((255, 0, 0, 128)), {"background": "black"}, lambda i: _left(i) == (128, 0, 0)),
    ("greyglass.png", lambda: _bytes(Image.new("LA", (8, 8), (90, 255))), {}, lambda i: _left(i) == (90, 90, 90)),
    ("print.jpg", lambda: _bytes(Image.new("CMYK", (8, 8)), "JPEG"), {}, lambda i: i.min() > 250),
    ("bit.png", lambda: _bytes(Image.new("1", (8, 8), 1)), {}, lambda i: i.min() == 255),
    (
        "unit.tif",
        lambda: _bytes(Image.fromarray(np.full((8, 8), 0.2, np.float32)), "TIFF"),
        {},
        lambda i: i.max() == 51,
    ),
    ("nan.tif", lambda: _bytes(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), {}, "are not numbers"),
    ("deep.tif", lambda: _bytes(_grey(4095), "TIFF"), {"bits": 12}, lambda i: (i.min(), i.max()) == (0, 255)),
    ("Loud.PNG", lambda: _bytes(_noise()), {}, lambda i: np.array_equal(i, _noise())),
    ("photo.jpg", _photo, {"orientation": "stored"}, lambda i: i[:, 4:].mean() < 20 < 230 < i[:, :4].mean()),
    ("photo.jpg", _photo, {}, lambda i: i[4:].mean() < 20 < 230 < i[:4].mean()),
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


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_has_the_channels_that_are_asked_for(folder, mode):
    path = folder("train", "test")
    for file in path.rglob("*.png"):
        Image.open(file).convert(mode).save(file)
    found = {name: _loaded(path, reading=Decoding(channels=name))[0] for name in ("auto", "grey", "colour")}
    shapes = {name: data.train.images.shape[3:] for name, data in found.items()}
    assert shapes == {"auto": () if mode == "L" else (3,), "grey": (), "colour": (3,)}
    assert {name: len(data.train.mean) for name, data in found.items()} == {
        n: 3 if shape else 1 for n, shape in shapes.items()
    }
    wanted = [np.asarray(Image.open(path / source).convert("L")) for source in found["grey"].train_sources]
    assert np.array_equal(found["grey"].train.images, wanted)


@pytest.mark.parametrize(("name", "make", "options", "wanted"), FILES)
def test_a_file_gives_its_pixels_or_a_sentence(folder, name, make, options, wanted):
    path, data = folder("train", "test"), make()
    (path / "train" / "a" / f"0{name}").write_bytes(data)
    spec = FolderSpec(_SIDE, reading=Decoding(**options))
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=f"train/a/0{name}: .*{wanted}") as caught:
            load_folder(path, spec)
        one_sentence(str(caught.value))
    else:
        found, _ = load_folder(path, spec)
        assert wanted(found.train.images[found.train_sources.index(f"train/a/0{name}")])


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


@pytest.mark.parametrize("names", [("Train", "TEST"), ("training", "testing"), ("TRAINING", "Val")])
def test_large_letters_and_training_are_the_same_splits(folder, names):
    data, _, told = _loaded(folder(*names))
    assert (data.classes, len(data.train_labels), len(data.test_labels)) == (("a", "b"), 8, 8)
    assert {source.split("/")[0] for source in data.train_sources} == {names[0]}
    assert told == ([] if names[1] == "TEST" else [f"{names[1]} is the test split"])


def test_other_folders_beside_train_are_no_classes(folder):
    path = folder("train", "valid", "__MACOSX")
    (path / "docs").mkdir()
    (path / "docs" / "read.me").write_text("x")
    data, _, told = _loaded(path)
    assert (data.classes, len(data.test_labels)) == (("a", "b"), 8)
    assert told[0] == "valid is the test split, and docs is not used"
    assert told[1].startswith("9 files are not used, no image of a class: __MACOSX/a/0.png")
    (path / "valid").rename(path / ".valid")
    assert _loaded(path)[0].classes == ("a", "b")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "Train"), "folders Train and train of .* upper and lower case"),
        (("train", "Train", "test"), "folders Train and train of .* upper and lower case"),
        (("train", "test", "Test"), "folders Test and test of .* upper and lower case"),
        (("train", "Eval", "eval"), "folders Eval and eval of .* upper and lower case"),
        (("train", "second"), "has second beside train; if it holds the test images, say so by --test-folder second"),
        (("test", "val"), "has test and val and no train"),
        (("test",), "has test and no train"),
    ],
)
def test_splits_that_are_not_clear_are_one_sentence(folder, names, message):
    with pytest.raises(DataError, match=message) as caught:
        _loaded(folder(*names))
    one_sentence(str(caught.value))


def test_classes_may_be_called_as_splits_are(folder, tmp_path):
    for name in ("train", "plane", "test"):
        folder("", classes=(name,), count=6)
    assert _loaded(tmp_path, test_folder=None)[0].classes == ("plane", "test", "train")


def test_a_second_split_of_any_name_is_taken_when_named(folder):
    data, _, told = _loaded(folder("train", "second"), test_folder="Second")
    assert (data.classes, len(data.test_labels), told) == (("a", "b"), 8, ["second is the test split"])


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
    assert _loaded(path, reading=Decoding(bits=12))[2] == []


def test_contents_that_change_places_are_noticed(folder):
    path = folder("train", "test")
    first, second = path / "train" / "a" / "0.png", path / "train" / "b" / "0.png"
    before = fingerprint(path, FolderSpec())
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other), second.write_bytes(one)
    assert fingerprint(path, FolderSpec()) != before


def test_settings_are_as_they_were_unless_an_option_is_given():
    assert FolderSpec().to_dict() == {"image_size": 32, "test_share": 0.2, "skip_broken": False}
    spec = FolderSpec(16, missing_classes=True, reading=Decoding(bits=12, fit="crop"))
    assert spec.to_dict()["reading"] == {"bits": 12, "fit": "crop"}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Decoding()),
        (
            {"folder": {"reading": {"fit": "crop", "bits": 12, "largest": 150, "by_content": True}}},
            Decoding(fit="crop", bits=12),
        ),
        ({"folder": {"reading": {"fit": ["crop"], "bits": "12", "background": "x", "orientation": None}}}, Decoding()),
        ({"folder": {"reading": 7}}, Decoding()),
        ({"folder": []}, Decoding()),
    ],
)
def test_uploads_go_the_way_of_the_training_images_within_the_usual_limits(settings, wanted):
    assert Decoding.of_settings(settings) == wanted
    upload = read_image(_stripes(), "wide.png", **form_of(np.zeros((5, _SIDE, _SIDE, 3), np.uint8), settings))
    assert (_left(upload.image) == (255, 255, 255)) is (wanted.fit == "crop")


def test_the_command_offers_what_can_be_chosen():
    options = {option.name: option for option in natscope.commands["precompute"].params}
    for name, choices in CHOICES.items():
        kind = options[name].type
        assert tuple(getattr(kind, "choices", ()) or range(kind.min, kind.max + 1)) == tuple(choices)
        assert options[name].default == getattr(Decoding(), name)
    with pytest.raises(DataError, match="no fit 'squeeze'; choose from pad, crop"):
        Decoding(fit="squeeze").check()


def test_a_photo_is_reduced_while_it_is_decoded():
    picture = decode(_bytes(Image.new("L", (5300, 5000), 77), "JPEG"), "large.jpg", Decoding(largest=30))
    assert max(picture.size) < 2700
