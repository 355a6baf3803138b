"""The form of a data set's images, and how a picture from elsewhere is brought to it, as they were."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from natscope.precompute.data.decode import USUAL, Decoding, border_colour, fit

_COMPARED = 1000  # images whose border shows a data set's usual background
_MIDDLE = 127  # grey values above it are light
_NEARLY_ALL = 0.8  # of them must agree


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
    """Return the form of a data set's images, (N, H, W) or (N, H, W, 3) uint8, as `formed` takes it.

    With a bundle's settings, a picture is turned, laid on a background and cropped as the training images were.
    """
    height, width = map(int, images.shape[1:3])
    return {
        "size": (height, width),
        "channels": 3 if images.ndim == 4 else 1,
        "background": usual_background(images),
        "reading": Decoding.of_settings(settings or {}),
    }


def formed(
    picture: Any,
    *,
    size: tuple[int, int],
    channels: int,
    invert: bool | None = None,
    background: str = "dark",
    reading: Decoding = USUAL,
) -> tuple[np.ndarray, bool]:
    """Bring a picture to the form of a data set's images; the aspect ratio is kept.

    Args:
        picture: of Pillow, RGB, as `decode` gives it.
        size: (H, W).
        channels: 1 for grey, 3 for colour.
        invert: exchange light and dark; None decides for grey by the border, and never for colour: it is inverted where
            it is not the data set's background.
        background: the data set's, from `usual_background`; where it is mixed, nothing is inverted unasked.
        reading: how files become pixels.

    Returns:
        The image, (H, W) or (H, W, 3) uint8, read-only, and whether it was inverted.
    """
    image = fit(picture, size, channels, reading.fit)
    if invert is None:
        ground = "light" if channels == 1 and border_colour(image) > _MIDDLE else "dark"
        invert = channels == 1 and background != "mixed" and ground != background
    if invert:
        image = 255 - image
    image.flags.writeable = False
    return image, invert
