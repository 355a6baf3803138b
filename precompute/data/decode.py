"""Pictures: from the bytes of a file, a stranger's too, to pixels of the data set's form, or a sentence on why not."""

import base64
import io
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from natscope.core.errors import DataError, NatscopeError, QueryError

LARGEST_PIXELS = 25_000_000
LARGEST_ASPECT = 10
_MOST_SCANS = 100  # of a progressive JPEG, which usually has about ten; each is a pass over the whole image

_BY_FORMAT = {
    "PNG": {".png", ".apng"},
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "WEBP": {".webp"},
    "GIF": {".gif"},
    "BMP": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"},
    "AVIF": {".avif"},
}
EXTENSIONS = frozenset().union(*_BY_FORMAT.values())
_READABLE = ", ".join(name for name in _BY_FORMAT if name != "AVIF") + " or AVIF"
_SAVE = "open it in an image editor, save it as PNG or JPEG, and upload that"
_NOT_READ = {
    b"%PDF": "a PDF",
    b"%!PS": "a PostScript file",
    b"\xc5\xd0\xd3\xc6": "a PostScript file",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile",
    b"PK\x03\x04": "a ZIP archive or an office document",
    b"MZ": "a program",
    b"\x7fELF": "a program",
    b"<": "a text such as HTML or SVG",
}
_FULL_RANGE = 65535
_REDUCED = 1024  # shortest side in pixels to which the decoder may reduce a JPEG that is larger than usual
_KEPT, _SMALL = 4096, 2**13  # encoded images that are remembered, and bytes of the largest such image
_decoding = threading.Lock()  # warnings.catch_warnings is not safe between threads

CHOICES: dict[str, Sequence[str | int]] = {
    "orientation": ("upright", "stored"),
    "background": ("auto", "white", "black", "grey", "ignore"),
    "bits": range(8, 17),
    "fit": ("pad", "crop"),
    "channels": ("auto", "grey", "colour"),
    "largest": range(1, 151),  # beyond it Pillow refuses
}
_GREY = {"white": 255, "black": 0, "grey": 128}


@dataclass(frozen=True)
class Decoding:
    """How files become pixels; the defaults suit pictures from anywhere.

    Args:
        orientation: "upright", as the EXIF data of a photo says, or "stored", as torchvision's ImageFolder reads it.
        background: behind what is transparent: "auto", white if what is visible is dark, else black; "white", "black"
            or "grey"; or "ignore" for the colours that are stored under it, as `convert("RGB")` gives them.
        bits: depth of grey values in files of 16 bits, such as 12 if white is 4,095.
        fit: "pad", the whole picture with its border's colour around it, or "crop", its middle.
        channels: "grey" for one channel, "colour" for three, or "auto", one if no picture of the folder has colour.
        largest: megapixels of a picture at most.
        by_content: read files whose names do not fit their content, such as a PNG named .jpg.
        first_frame: take the first picture of an animation or of several pages.
    """

    orientation: str = "upright"
    background: str = "auto"
    bits: int = 16
    fit: str = "pad"
    channels: str = "auto"
    largest: int = LARGEST_PIXELS // 10**6
    by_content: bool = False
    first_frame: bool = False

    def check(self) -> None:
        """Raise DataError for a value that is no choice."""
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise DataError(f"There is no {name} '{value}'; choose from {', '.join(map(str, choices))[:100]}.")

    @classmethod
    def of_settings(cls, settings: object) -> "Decoding":
        """Return how a bundle's settings, perhaps a stranger's, read pixels; what files may be is not theirs."""
        folder = settings.get("folder") if isinstance(settings, Mapping) else None
        given = folder.get("reading") if isinstance(folder, Mapping) else None
        known = given if isinstance(given, Mapping) else {}
        chosen: dict[str, Any] = {}
        for name in ("orientation", "background", "bits", "fit"):
            if isinstance(value := known.get(name), str | int) and value in CHOICES[name]:
                chosen[name] = value
        return cls(**chosen)


USUAL = Decoding()


def decode(data: bytes, filename: str, reading: Decoding = USUAL) -> Image.Image:
    """Decode a file to an RGB picture.

    Args:
        data: the file's bytes.
        filename: its name; the extension must fit the content.
        reading: how; by default upright, and a transparent one on white if its content is dark, else on black.

    Raises:
        QueryError: if the file cannot be used; the sentence tells what to do.
    """
    if not data:
        raise QueryError("The file is empty; choose another one.")
    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(data, filename, reading)
        except QueryError:
            raise
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(reading) from error
        except MemoryError as error:
            raise QueryError("The image does not fit in memory; save it smaller and upload that.") from error
        except Exception as error:  # decoders raise nearly anything on hostile bytes
            raise QueryError(f"The image is damaged or incomplete; {_SAVE}.") from error


def rgb_of(image: Image.Image, reading: Decoding = USUAL) -> Image.Image:
    """Return a picture that somebody opened or made as RGB, as `decode` does with a file's.

    Raises:
        QueryError: if it cannot be used.
    """
    try:
        image.load()
        return _rgb(image, str(image.format), reading)
    except QueryError:
        raise
    except Exception as error:  # as above: the file behind it may be damaged, or gone
        raise QueryError(f"The picture cannot be used; {_SAVE}.") from error


def fit(picture: Image.Image, size: tuple[int, int], channels: int, how: str = "pad") -> np.ndarray:
    """Bring a picture to a size; the aspect ratio is kept.

    Args:
        picture: RGB.
        size: (H, W).
        channels: 1 for grey, 3 for colour.
        how: "pad" to fill the rest with the border's median colour, "crop" to cut off what is too much on both sides.

    Returns:
        (H, W) or (H, W, 3) uint8.
    """
    source = picture.convert("L") if channels == 1 else picture
    height, width = size
    if (source.height, source.width) == size:
        return np.array(source)
    if how == "crop":
        return np.array(ImageOps.fit(source, (width, height), Image.Resampling.LANCZOS))
    scale = min(height / source.height, width / source.width)
    inner = max(1, round(source.width * scale)), max(1, round(source.height * scale))
    canvas = np.empty(size if channels == 1 else (*size, 3), dtype=np.uint8)
    canvas[:] = border_colour(np.asarray(source))
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = np.asarray(source.resize(inner, Image.Resampling.LANCZOS))
    return canvas


def border_colour(pixels: np.ndarray) -> np.ndarray:
    """Return the median colour along the border of an image (H, W) or (H, W, 3), a number or (3,)."""
    return np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)


def deepest(data: bytes) -> int | None:
    """Return the largest grey value of a file of 16 bits; None for other files, and those that cannot be read."""
    with _decoding, warnings.catch_warnings(), suppress(Exception):  # as in `decode`, which says what is wrong
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=["PNG", "TIFF", "PPM"]) as image:
            if image.mode.startswith("I") and image.width * image.height <= LARGEST_PIXELS:
                return int(np.asarray(image).max())
    return None


def _decode(data: bytes, filename: str, reading: Decoding) -> Image.Image:
    """Return the picture as RGB."""
    Image.init()
    formats = [name for name in _BY_FORMAT if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise QueryError(f"The file is {_kind(data)}; {_SAVE}.") from error
    with image:
        if image.width * image.height > reading.largest * 10**6:
            raise _too_many_pixels(reading)
        longer, shorter = max(image.size), min(image.size)
        if shorter < 1 or longer > LARGEST_ASPECT * shorter:
            raise QueryError(
                f"The image is more than {LARGEST_ASPECT} times as long as it is wide; crop it around the object."
            )
        content = "JPEG" if image.format == "MPO" else str(image.format)  # a phone's JPEG with previews
        extension = PurePath(filename).suffix.lower()
        if extension and extension not in _BY_FORMAT[content] and not reading.by_content:
            raise QueryError(f"The file's name does not fit its content, which is {content}; {_SAVE}.")
        if content == "JPEG" and data.count(b"\xff\xda") > _MOST_SCANS:
            raise QueryError(f"The image is stored in more than {_MOST_SCANS} passes; {_SAVE}.")
        if image.format != "MPO" and getattr(image, "is_animated", False) and not reading.first_frame:
            raise QueryError(
                "The file holds an animation or several pages; save a single picture as PNG and upload that."
            )
        if image.width * image.height > LARGEST_PIXELS:
            image.draft(None, (_REDUCED, _REDUCED))  # by a JPEG's decoder; other formats are read whole
        image.load()
        return _rgb(image, content, reading)


def _rgb(image: Image.Image, content: str, reading: Decoding) -> Image.Image:
    turned = ImageOps.exif_transpose(image) if reading.orientation == "upright" else image
    return _on_background(_to_bytes(turned, content, reading.bits), reading.background)


def _kind(data: bytes) -> str:
    head = data[:64].lstrip()
    if data[40:44] == b" EMF":
        return "a Windows metafile"
    known = next((kind for magic, kind in _NOT_READ.items() if head.startswith(magic)), "")
    return f"{known}, not an image" if known else f"not a supported image ({_READABLE}), or is damaged"


def _too_many_pixels(reading: Decoding) -> QueryError:
    return QueryError(f"The image has more than {reading.largest} megapixels; save it smaller and upload that.")


def _to_bytes(image: Image.Image, content: str, bits: int = 16) -> Image.Image:
    """Bring any mode to L, RGB or RGBA; deep grey values are scaled to 0..255."""
    if image.mode[0] in "IF":
        return Image.fromarray(
            _scaled(np.asarray(image), 2**bits - 1, full_range=image.mode[0] == "I" and content in ("PNG", "PPM"))
        )
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _scaled(values: np.ndarray, white: int = _FULL_RANGE, *, full_range: bool) -> np.ndarray:
    """Scale grey values to uint8: from 0 to the smallest of 1, 255 and 65535 that holds them, else from min to max.

    Those of 16 bits are scaled from 0 to `white`.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise QueryError(f"The image holds values that are not numbers; {_SAVE}.")
    if full_range or values.dtype == np.uint16:
        if high > white:
            raise QueryError(f"The image holds values up to {high:,.0f}, above {white:,}; {_SAVE}.")
        low, high = 0.0, float(white)
    elif low >= 0 and high <= _FULL_RANGE:
        ceilings = (1, 255, _FULL_RANGE) if values.dtype.kind == "f" else (255, _FULL_RANGE)
        low, high = 0.0, float(next(c for c in ceilings if high <= c))
    span = high - low
    unit = (values.astype(np.float64) - low) / span if span > 0 else np.zeros(values.shape)
    return np.rint(255 * unit).clip(0, 255).astype(np.uint8)


def _on_background(image: Image.Image, background: str) -> Image.Image:
    """Return RGB; transparent parts get the background, by default white if what is visible is dark, else black."""
    if image.mode != "RGBA" or background == "ignore":
        return image.convert("RGB")
    alpha = np.asarray(image.getchannel("A"), dtype=np.float32)
    if not alpha.any():
        raise QueryError("The image is transparent everywhere and shows nothing; choose another one.")
    if background in _GREY:
        grey = _GREY[background]
        return Image.alpha_composite(Image.new("RGBA", image.size, (grey, grey, grey, 255)), image).convert("RGB")
    visible = float(np.average(np.asarray(image.convert("RGB").convert("L")), weights=alpha))
    colour = (255, 255, 255, 255) if visible < 128 else (0, 0, 0, 255)
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def picture(pixels: np.ndarray) -> Image.Image:
    """Return an image (H, W) or (H, W, 3) uint8 as a picture of Pillow."""
    return Image.fromarray(pixels)


def in_colour_or_grey(given: Image.Image, shape: Sequence[int], make: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Return the input that a picture in RGB becomes, or in grey if the network takes one channel and that alone fits.

    Args:
        given: the picture.
        shape: of an input.
        make: makes one of a picture; it may raise NatscopeError.
    """
    grey = tuple(shape[:1]) == (1,)
    try:
        found = make(given)
    except NatscopeError:
        if not grey:
            raise
    else:
        if not grey or found.shape == tuple(shape):
            return found
    return make(given.convert("L"))


def data_uri(image: Image.Image | np.ndarray) -> str:
    """Return a picture, or an image (H, W) or (H, W, 3) uint8, as an inline PNG."""
    if isinstance(image, np.ndarray) and image.nbytes <= _SMALL:
        return _thumbnail(image.tobytes(), image.shape)
    return _encoded(image)


@lru_cache(maxsize=_KEPT)  # a page that shows the same images at every click would encode them each time
def _thumbnail(pixels: bytes, shape: tuple[int, ...]) -> str:
    return _encoded(np.frombuffer(pixels, np.uint8).reshape(shape))


def _encoded(image: Image.Image | np.ndarray) -> str:
    buffer = io.BytesIO()
    (picture(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
