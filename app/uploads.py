"""Uploaded images: from the bytes of a stranger's file to an image of the data set's form, or a sentence on why not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from natscope.app.worker import OutOfMemory, TookTooLong, Worker, WorkerLost
from natscope.core.errors import QueryError
from natscope.precompute.data.decode import USUAL, Reading, border_colour, decode, fit

if TYPE_CHECKING:
    from natscope.core.bundle.attributor import Attributor
    from natscope.core.bundle.request import QueryImage

LARGEST_BYTES = 10_000_000
_COMPARED = 1000  # images whose border shows a data set's usual background
_MIDDLE = 127  # grey values above it are light
_NEARLY_ALL = 0.8  # of them must agree
THUMBNAIL = 512  # pixels along the longer side
SECONDS, MEMORY = 2.0, 512 * 2**20  # limits for reading a file
TOO_MUCH = "The image takes too long, or too much memory, to read; save it smaller, as a PNG, and upload that."


@dataclass(frozen=True)
class Upload:
    """An image that was read.

    Args:
        original: RGB, upright, at most `THUMBNAIL` pixels along a side, to show to the visitor.
        image: (H, W) or (H, W, 3) uint8, read-only: what the network will see.
        inverted: whether light and dark were exchanged in `image`.
    """

    original: Image.Image
    image: np.ndarray
    inverted: bool


def usual_background(images: np.ndarray) -> str:
    """Return the background of a data set's objects: "dark", "light", or "mixed" for colour and for photographs.

    Args:
        images: (N, H, W) or (N, H, W, 3) uint8, the training images; about a thousand of them are looked at.
    """
    if images.ndim != 3 or not len(images):
        return "mixed"
    some = np.asarray(images[:: -(-len(images) // _COMPARED)])
    borders = np.concatenate([some[:, 0], some[:, -1], some[:, :, 0], some[:, :, -1]], axis=1)
    light = float((np.median(borders, axis=1) > _MIDDLE).mean())
    return "light" if light >= _NEARLY_ALL else "dark" if light <= 1 - _NEARLY_ALL else "mixed"


def form_of(images: np.ndarray, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the form of a data set's images, (N, H, W) or (N, H, W, 3) uint8, as `read_image` takes it.

    With a bundle's settings, an upload is turned, laid on a background and cropped as the training images were.
    """
    height, width = map(int, images.shape[1:3])
    return {
        "size": (height, width),
        "channels": 3 if images.ndim == 4 else 1,
        "background": usual_background(images),
        "reading": Reading.of_settings(settings or {}),
    }


def read_task(progress: object, data: bytes, filename: str, form: dict[str, Any]) -> Upload:
    """Run `read_image` as a task of a worker process."""
    return read_image(data, filename, **form)


def read_apart(data: bytes, filename: str, form: dict[str, Any]) -> Upload:
    """Run `read_image` in a process that is killed when it takes more than `SECONDS` or `MEMORY`.

    Raises:
        QueryError: if the file cannot be used; the sentence tells what to do.
    """
    worker = Worker(memory=MEMORY)
    try:
        return worker.run(read_task, data, filename, form, seconds=SECONDS)[0]
    except (TookTooLong, OutOfMemory, WorkerLost) as error:
        raise QueryError(TOO_MUCH) from error
    finally:
        worker.kill()


def query_of(attributor: "Attributor", data: bytes, filename: str, invert: bool | None = None) -> "QueryImage":
    """Return a file as a query: an image of the data set's form, or an input that the bundle's own code makes of it.

    Args:
        attributor: of the bundle.
        data: the file's bytes.
        filename: its name.
        invert: exchange light and dark in an image, see `read_image`.

    Raises:
        QueryError: if the file cannot be used.
        UntrustedError: if the bundle's own code is not trusted.
    """
    if attributor.bundle.stores_inputs:
        from natscope.precompute.bundles.asking import ask_about_file  # with torch, which reading an image does without

        return ask_about_file(attributor, data, filename)
    bundle = attributor.bundle
    form = form_of(bundle.array("train_images"), bundle.manifest.results["settings"]) | {"invert": invert}
    return attributor.upload(read_apart(data, filename, form).image)


def read_image(
    data: bytes,
    filename: str,
    *,
    size: tuple[int, int],
    channels: int,
    invert: bool | None = None,
    background: str = "dark",
    reading: Reading = USUAL,
) -> Upload:
    """Read an uploaded file and bring it to the data set's form.

    The aspect ratio is kept: unless `reading` says otherwise, the rest of (H, W) is filled with the border's median
    colour, and transparent images are laid on white if their content is dark, else on black.

    Args:
        data: the file's bytes.
        filename: its name; the extension must fit the content.
        size: (H, W) of the data set's images.
        channels: 1 for grey, 3 for colour.
        invert: exchange light and dark; None decides for grey by the border, and never for colour: it is inverted where
            it is not the data set's background.
        background: the data set's, from `usual_background`; where it is mixed, nothing is inverted unasked.
        reading: how the file becomes pixels.

    Raises:
        QueryError: if the file cannot be used; the sentence tells what to do.
        ValueError: if `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"Images have 1 or 3 channels, not {channels}.")
    if len(data) > LARGEST_BYTES:
        raise QueryError(
            f"The file is larger than {LARGEST_BYTES // 10**6} MB; save the image smaller and upload that."
        )
    picture = decode(data, filename, reading)
    image = fit(picture, size, channels, reading.fit)
    if invert is None:
        ground = "light" if channels == 1 and border_colour(image) > _MIDDLE else "dark"
        inverted = channels == 1 and background != "mixed" and ground != background
    else:
        inverted = invert
    if inverted:
        image = 255 - image
    image.flags.writeable = False
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return Upload(picture, image, inverted)
