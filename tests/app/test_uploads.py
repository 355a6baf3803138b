import io
import random
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from streamlit.runtime.uploaded_file_manager import DeletedFile

from natscope.app import uploads
from natscope.app.uploads import TOO_MUCH, Upload, read_apart, read_image
from natscope.app.views import own_image
from natscope.core.errors import QueryError
from natscope.precompute.data import decode as pictures
from natscope.precompute.data.datasets import load_dataset
from natscope.precompute.data.form import form_of, usual_background
from tests.conftest import one_sentence

_GREY = {"size": (28, 28), "channels": 1}
_COLOUR = {"size": (32, 32), "channels": 3}


def _bytes(image, form="PNG", **settings):
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def _ramp(mode="L", size=(40, 30)):
    """Return a dark frame around a ramp."""
    array = np.zeros(size[::-1], np.uint8)
    array[4:-4, 4:-4] = np.linspace(60, 250, size[0] - 8)[None]
    return Image.fromarray(array).convert(mode)


def _noise(size=(40, 30)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_that_says(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _frames(form):
    return _bytes(_ramp(), form, save_all=True, append_images=[_ramp().rotate(90), _ramp().rotate(180)])


def _text_bomb():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 5_000_000, zip=True)
    return _bytes(_ramp(), pnginfo=text)


def _many_scans(count=3000):
    """Return a progressive JPEG whose last pass over the image is there many times."""
    data = _bytes(_noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def _nan():
    return Image.fromarray(np.full((20, 20), np.nan, np.float32))


def _flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


_HTML = b"<!DOCTYPE html><html><script>alert(1)</script></html>"
_EMF = b"\x01\0\0\0" + b"\0" * 36 + b" EMF" + b"\0" * 60

HOSTILE = {
    "empty": (lambda: b"", "a.png", "is empty"),
    "too many bytes": (lambda: b"\0" * 10_000_001, "a.png", "larger than 10 MB"),
    "too many pixels": (lambda: _png_that_says(6000, 5000), "a.png", "more than 25 megapixels"),
    "bomb": (lambda: _png_that_says(100_000, 100_000), "a.png", "more than 25 megapixels"),
    "huge real image": (lambda: _bytes(Image.new("1", (7000, 7000))), "a.png", "more than 25 megapixels"),
    "text bomb": (_text_bomb, "a.png", "damaged or incomplete"),
    "no pixels": (lambda: _png_that_says(0, 0), "a.png", "damaged|no image|crop it"),
    "truncated PNG": (lambda: _bytes(_noise())[:1500], "a.png", "damaged or incomplete"),
    "truncated JPEG": (lambda: _bytes(_noise(), "JPEG")[:900], "a.jpg", "damaged or incomplete"),
    "truncated GIF": (lambda: _bytes(_noise(), "GIF")[:-400], "a.gif", "damaged or incomplete"),
    "truncated BMP": (lambda: _bytes(_noise(), "BMP")[:-400], "a.bmp", "damaged or incomplete"),
    "truncated TIFF": (lambda: _bytes(_noise(), "TIFF")[:700], "a.tif", "damaged"),
    "truncated WEBP": (lambda: _bytes(_noise(), "WEBP")[:-400], "a.webp", "damaged"),
    "truncated PPM": (lambda: _bytes(_noise(), "PPM")[:-400], "a.ppm", "damaged or incomplete"),
    "header only": (lambda: _bytes(_noise())[:33], "a.png", "damaged"),
    "signature only": (lambda: b"\x89PNG\r\n\x1a\n", "a.png", "damaged|no image"),
    "broken checksum": (lambda: _flipped(_bytes(_noise()), 200), "a.png", "damaged or incomplete"),
    "HTML": (lambda: _HTML, "a.png", "HTML or SVG"),
    "SVG": (lambda: b'\n <svg xmlns="http://www.w3.org/2000/svg"/>', "a.svg", "HTML or SVG"),
    "ZIP": (lambda: b"PK\x03\x04" + b"\0" * 100, "a.png", "a ZIP archive"),
    "EXE": (lambda: b"MZ\x90\0" + b"\0" * 100, "a.png", "a program, not an image"),
    "ELF": (lambda: b"\x7fELF" + b"\0" * 100, "a.jpg", "a program, not an image"),
    "PDF": (lambda: b"%PDF-1.7\n" + b"\0" * 100, "a.pdf", "a PDF, not an image"),
    "PDF by Pillow": (lambda: _bytes(_noise(), "PDF"), "a.png", "a PDF, not an image"),
    "EPS": (lambda: _bytes(_noise(), "EPS"), "a.eps", "a PostScript file"),
    "EPS named PNG": (lambda: _bytes(_noise(), "EPS"), "a.png", "a PostScript file"),
    "WMF": (lambda: b"\xd7\xcd\xc6\x9a" + b"\0" * 100, "a.wmf", "a Windows metafile"),
    "EMF": (lambda: _EMF, "a.emf", "a Windows metafile"),
    "JPEG named PNG": (lambda: _bytes(_noise(), "JPEG"), "a.png", "which is JPEG"),
    "PNG named JPEG": (lambda: _bytes(_noise()), "a.JPG", "which is PNG"),
    "PNG named PDF": (lambda: _bytes(_noise()), "a.pdf", "which is PNG"),
    "PNG named EXE": (lambda: _bytes(_noise()), "a.png.exe", "which is PNG"),
    "icon": (lambda: _bytes(_noise(), "ICO"), "a.ico", "not a supported image"),
    "noise": (lambda: random.Random(0).randbytes(5000), "a.png", "not a supported image"),
    "zeros": (lambda: bytes(5000), "a.jpg", "not a supported image"),
    "animated GIF": (lambda: _frames("GIF"), "a.gif", "an animation"),
    "animated PNG": (lambda: _frames("PNG"), "a.png", "an animation"),
    "animated WEBP": (lambda: _frames("WEBP"), "a.webp", "an animation"),
    "pages": (lambda: _frames("TIFF"), "a.tiff", "an animation"),
    "a line": (lambda: _bytes(Image.new("L", (1, 20_000))), "a.png", "crop it"),
    "a lying line": (lambda: _bytes(Image.new("L", (20_000, 1))), "a.png", "crop it"),
    "all transparent": (lambda: _bytes(Image.new("RGBA", (20, 20))), "a.png", "transparent everywhere"),
    "passes": (_many_scans, "a.jpg", "more than 100 passes"),
    "not numbers": (lambda: _bytes(_nan(), "TIFF"), "a.tiff", "not numbers"),
}


@pytest.mark.parametrize("form", [_GREY, _COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_get_one_sentence(case, form):
    make, name, message = HOSTILE[case]
    with pytest.raises(QueryError, match=message) as caught:
        read_image(make(), name, **form)
    text = one_sentence(str(caught.value))
    assert any(word in text for word in ("save", "choose", "crop"))


@pytest.mark.parametrize(
    "name", ["a.png", "A.PNG", "upload", "", "../../etc/a.png", "\0<b>\n.png", "é" * 5000 + ".png"]
)
def test_the_name_matters_for_its_extension_alone(name):
    assert read_image(_bytes(_ramp()), name, **_GREY).image.shape == (28, 28)


def test_a_file_is_read_apart_as_it_is_read_here():
    form = form_of(np.zeros((5, 28, 28), np.uint8))
    here, apart = read_image(_bytes(_ramp()), "a.png", **form), read_apart(_bytes(_ramp()), "a.png", form)
    assert np.array_equal(here.image, apart.image)
    assert here.original.tobytes() == apart.original.tobytes()
    with pytest.raises(QueryError, match="which is PNG"):
        read_apart(_bytes(_ramp()), "a.jpg", form)


@pytest.mark.parametrize("limit", [{"SECONDS": 0.0}, {"MEMORY": 60_000_000}], ids=str)
def test_a_file_that_takes_too_much_is_a_sentence(monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(uploads, name, value)
    large = _bytes(_noise((3000, 2500)), "JPEG")
    with pytest.raises(QueryError, match=re.escape(TOO_MUCH)):
        read_apart(large, "a.jpg", form_of(np.zeros((5, 28, 28), np.uint8)))


def test_an_image_that_does_not_fit_in_memory_is_a_sentence(monkeypatch):
    def fail(data, filename, reading):
        raise MemoryError

    monkeypatch.setattr(pictures, "_decode", fail)
    with pytest.raises(QueryError, match="fit in memory"):
        read_image(b"x", "a.png", **_GREY)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"P6"]),
)
def test_random_bytes_only_ever_raise_query_errors(data, start):
    _survives(start + data, "upload")


_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_SAMPLES = {form: _bytes(_noise((12, 10)), form) for form in _FORMATS} | {
    "P": _bytes(_noise((12, 10)).quantize(7), "PNG", transparency=2),
    "EXIF": _bytes(
        _noise((12, 10)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
}


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(_SAMPLES)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    st.one_of(st.none(), st.integers(0, 10_000)),
    st.booleans(),
)
def test_mutated_images_only_ever_raise_query_errors(form, changes, cut, repair):
    data = bytearray(_SAMPLES[form])
    for at, value in changes:
        data[at % len(data)] = value
    content = bytes(data[:cut])
    _survives(_with_checksums(content) if repair else content, "upload")


def _with_checksums(data):
    """Repair the checksums of a PNG's chunks so that changes reach the decoder."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        out.append(_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(out) + data[at:]


def _survives(data, name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for form in (_GREY, _COLOUR):
            sentence = ""
            try:
                assert read_image(data, name, **form).image.dtype == np.uint8
            except QueryError as error:
                sentence = str(error)
            assert "\n" not in sentence
    assert not [w for w in caught if not issubclass(w.category, ResourceWarning)]


_MODES = {
    "1": lambda: (_ramp().point(lambda v: 255 * (v > 99)).convert("1"), "PNG"),
    "L": lambda: (_ramp("L"), "PNG"),
    "LA": lambda: (_ramp("LA"), "PNG"),
    "P": lambda: (_ramp("P"), "PNG"),
    "RGB": lambda: (_ramp("RGB"), "PNG"),
    "RGBA": lambda: (_ramp("RGBA"), "PNG"),
    "CMYK": lambda: (_ramp("RGB").convert("CMYK"), "TIFF"),
    "YCbCr": lambda: (_ramp("YCbCr"), "TIFF"),
    "LAB": lambda: (_ramp("RGB").convert("LAB"), "TIFF"),
    "I;16": lambda: (Image.fromarray(np.asarray(_ramp()).astype(np.uint16) * 257), "PNG"),
    "I": lambda: (Image.fromarray(np.asarray(_ramp()).astype(np.int32) * 257), "TIFF"),
    "F": lambda: (Image.fromarray(np.asarray(_ramp()).astype(np.float32) / 255), "TIFF"),
}


@pytest.mark.parametrize("mode", _MODES)
def test_every_mode_reads_as_the_same_picture(mode):
    image, form = _MODES[mode]()
    data = _bytes(image, form)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == mode
    found = read_image(data, f"a.{form.lower()}", size=(30, 40), channels=1)
    expected = np.asarray(image if mode == "1" else _ramp()).astype(float) * (255 if mode == "1" else 1)
    assert np.abs(found.image - expected).max() <= 3
    assert not found.inverted
    colour = read_image(data, f"a.{form.lower()}", size=(30, 40), channels=3).image
    assert np.abs(colour - expected[..., None]).max() <= 6


@pytest.mark.parametrize("mode", ["HSV", "RGBX", "La", "RGBa", "PA"])
def test_modes_that_no_file_here_holds_are_converted(mode):
    image = Image.new(mode, (3, 2), 255 if mode == "PA" else (0, 0, 200, 255)[-2 if mode == "La" else 0 :][: len(mode)])
    assert pictures._to_bytes(image, "TIFF").mode in ("RGB", "RGBA")


def test_cmyk_jpeg_keeps_its_colours():
    found = read_image(_bytes(Image.new("RGB", (20, 20), (200, 30, 60)).convert("CMYK"), "JPEG"), "a.jpg", **_COLOUR)
    assert np.abs(found.image.astype(int) - (200, 30, 60)).max() <= 4


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535, 32768]], np.uint16), [0, 255, 128]),
        (np.array([[0, 255, 128]], np.int32), [0, 255, 128]),
        (np.array([[0, 65535, 32768]], np.int32), [0, 255, 128]),
        (np.array([[-100, 100, 0]], np.int32), [0, 255, 128]),
        (np.array([[0, 2**31 - 1, 2**30]], np.int32), [0, 255, 128]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 254, 100]], np.float32), [0, 254, 100]),
        (np.array([[-1, 1, 0]], np.float32), [0, 255, 128]),
        (np.array([[-7, -7, -7]], np.float32), [0, 0, 0]),
        (np.array([[0, 3e38, 0]], np.float32), [0, 255, 0]),
    ],
)
def test_deep_values_are_scaled_to_their_range(values, expected):
    assert pictures._scaled(values, full_range=False)[0].tolist() == expected


def test_a_dark_16_bit_png_stays_dark():
    data = _bytes(Image.fromarray(np.full((28, 28), 200, np.uint16)))
    assert read_image(data, "a.png", **_GREY).image.max() <= 1


@pytest.mark.parametrize(("ink", "ground", "inverted"), [(0, 255, True), (255, 0, False)])
def test_transparent_images_keep_their_object_visible(ink, ground, inverted):
    image = Image.new("RGBA", (28, 28), (255 - ink,) * 3 + (0,))
    image.paste((ink, ink, ink, 255), (8, 8, 20, 20))
    found = read_image(_bytes(image), "a.png", **_GREY)
    assert found.inverted is inverted
    assert found.image[0, 0] == 0
    assert found.image[14, 14] == 255
    assert found.original.getpixel((0, 0)) == (ground,) * 3


def test_palette_transparency_is_laid_on_a_background():
    image = Image.new("P", (28, 28), 0)
    image.putpalette([255, 0, 255, 10, 10, 10])
    image.paste(1, (8, 8, 20, 20))
    found = read_image(_bytes(image, transparency=0), "a.png", size=(28, 28), channels=3)
    assert found.image[0, 0].tolist() == [255, 255, 255]
    assert found.image[14, 14].tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("ground", "invert", "inverted"),
    [
        (255, None, True),
        (0, None, False),
        (255, False, False),
        (0, True, True),
        (255, True, True),
        (0, False, False),
    ],
)
def test_inversion_follows_the_border_unless_told(ground, invert, inverted):
    image = Image.new("L", (56, 56), ground)
    image.paste(255 - ground, (16, 16, 40, 40))
    found = read_image(_bytes(image), "a.png", **_GREY, invert=invert)
    assert found.inverted is inverted
    assert found.image[0, 0] == (255 - ground if inverted else ground)
    assert found.image[14, 14] == (ground if inverted else 255 - ground)
    assert found.original.getpixel((0, 0)) == (ground,) * 3


@pytest.mark.parametrize(
    ("ground", "background", "inverted"),
    [
        (0, "dark", False),
        (255, "dark", True),
        (0, "light", True),
        (255, "light", False),
        (0, "mixed", False),
        (255, "mixed", False),
    ],
)
def test_an_upload_is_brought_to_the_ground_of_the_data_set(ground, background, inverted):
    array = np.full((28, 28), ground, np.uint8)
    array[10:18, 10:18] = 128
    found = read_image(_bytes(Image.fromarray(array)), "a.png", **_GREY, background=background)
    assert found.inverted is inverted
    assert found.image[0, 0] == (255 - ground if inverted else ground)
    for reported in (True, False):
        assert read_image(_bytes(Image.fromarray(array)), "a.png", **_GREY, invert=reported).inverted is reported


def test_the_usual_ground_is_that_of_nearly_all_images():
    dark = load_dataset("fashion-mnist-quarter").train.images
    assert usual_background(dark) == "dark"
    assert usual_background(255 - dark) == "light"
    for share, expected in ((0.1, "dark"), (0.5, "mixed"), (0.9, "light")):
        images = dark[:100].copy()
        images[: round(100 * share)] = 255 - images[: round(100 * share)]
        assert usual_background(images) == expected
    assert usual_background(np.full((5, 8, 8, 3), 255, np.uint8)) == "mixed"
    assert usual_background(np.zeros((0, 8, 8), np.uint8)) == "mixed"


def test_colour_is_inverted_only_when_told():
    data = _bytes(Image.new("RGB", (32, 32), (250, 240, 230)))
    kept, turned = read_image(data, "a.png", **_COLOUR), read_image(data, "a.png", **_COLOUR, invert=True)
    assert (kept.inverted, kept.image[5, 5].tolist()) == (False, [250, 240, 230])
    assert (turned.inverted, turned.image[5, 5].tolist()) == (True, [5, 15, 25])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(orientation):
    upright = np.zeros((30, 40), np.uint8)
    upright[3:12, 3:12] = 250
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(Image.fromarray(np.ascontiguousarray(turned)), "PNG", exif=exif)
    assert np.array_equal(read_image(data, "a.png", size=(30, 40), channels=1).image, upright)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("width", "height"), [(100, 50), (50, 100), (90, 9), (7, 5), (1, 1), (33, 32)])
def test_the_aspect_ratio_is_kept_and_the_rest_is_background(width, height, channels):
    image = Image.new("RGB", (width, height), (40, 40, 40))
    found = read_image(_bytes(image), "a.png", size=(28, 36), channels=channels)
    assert found.image.shape == ((28, 36) if channels == 1 else (28, 36, 3))
    assert (found.image == 40).all()


def test_a_wide_object_stays_wide():
    image = Image.new("L", (200, 100), 0)
    image.paste(255, (40, 20, 160, 80))
    rows, columns = np.nonzero(read_image(_bytes(image), "a.png", **_GREY).image > 127)
    assert (np.ptp(columns) + 1) / (np.ptp(rows) + 1) == pytest.approx(2, rel=0.15)


def test_shrinking_is_antialiased():
    board = np.indices((280, 280)).sum(axis=0) % 2 * 255
    found = read_image(_bytes(Image.fromarray(board.astype(np.uint8))), "a.png", **_GREY, invert=False).image
    assert np.abs(found[2:-2, 2:-2].astype(int) - 127).max() <= 3


def test_an_image_of_the_data_set_comes_back_bit_for_bit():
    data = load_dataset("fashion-mnist-quarter")
    for image in data.test.images[:50]:
        found = read_image(_bytes(Image.fromarray(image)), "a.png", **_GREY)
        assert np.array_equal(found.image, image)
        assert not found.inverted


def test_a_phones_jpeg_with_previews_is_one_picture():
    data = _bytes(_noise(), "MPO", save_all=True, append_images=[_noise()])
    assert read_image(data, "a.jpg", **_COLOUR).image.shape == (32, 32, 3)


def test_the_original_is_a_thumbnail_and_the_array_is_read_only():
    found = read_image(_bytes(_noise((1200, 600))), "a.png", **_GREY)
    assert isinstance(found, Upload)
    assert (found.original.mode, found.original.size) == ("RGB", (512, 256))
    with pytest.raises(ValueError, match="read-only"):
        found.image[0, 0] = 1


def test_channels_are_one_or_three():
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        read_image(_bytes(_ramp()), "a.png", size=(28, 28), channels=4)


@pytest.mark.parametrize("file", [None, DeletedFile("gone")])
def test_a_file_that_the_server_does_not_have_any_more_is_as_none(file, monkeypatch):
    kept, taken = {"file": file, "upload": "the last one"}, []
    monkeypatch.setattr(own_image.st, "session_state", kept)
    own_image._read(None, taken.append)
    assert kept == {"file": file, "upload": None, "upload_error": None}
    assert taken == []
