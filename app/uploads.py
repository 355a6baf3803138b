"""Uploaded images: from the bytes of a stranger's file to an image of the data set's form, or a sentence on why not."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from natscope.app.worker import OutOfMemory, TookTooLong, Worker, WorkerLost
from natscope.core.errors import QueryError
from natscope.precompute.data.decode import USUAL, Decoding, decode
from natscope.precompute.data.form import formed

LARGEST_BYTES = 10_000_000
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


def read_image(data: bytes, filename: str, *, channels: int, reading: Decoding = USUAL, **form: Any) -> Upload:
    """Read an uploaded file and bring it to the data set's form.

    The aspect ratio is kept: unless `reading` says otherwise, the rest of (H, W) is filled with the border's median
    colour, and transparent images are laid on white if their content is dark, else on black.

    Args:
        data: the file's bytes.
        filename: its name; the extension must fit the content.
        channels: 1 for grey, 3 for colour.
        reading: how the file becomes pixels.
        form: what else `formed` takes.

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
    image, inverted = formed(picture, channels=channels, reading=reading, **form)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return Upload(picture, image, inverted)
