"""Queries that come from outside a bundle: files and pictures, the way that its training images went."""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import QueryExample
from natscope.core.errors import DataError, QueryError
from natscope.core.images import Images
from natscope.core.scratch import temporary_folder
from natscope.precompute.data.decode import Decoding, decode, in_colour_or_grey, rgb_of
from natscope.precompute.data.form import form_of, formed
from natscope.precompute.data.items import as_array, as_picture, is_raw
from natscope.precompute.data.own import pictures
from natscope.precompute.training.models import function_of, one_sentence

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}")  # of a stranger's file name, which the user's own code gets to see


def takes_files(bundle: Bundle) -> bool:
    """Return whether a file can become a query: natscope reads it, or the bundle names the code that does."""
    if bundle.modality.from_file is not None:
        return True
    return _images(bundle).takes_files


def read_pixels(data: bytes, filename: str, form: dict[str, Any]) -> np.ndarray:
    """Return a file as an image of the form that `form_of` describes, (H, W) or (H, W, 3) uint8."""
    return formed(decode(data, filename, form["reading"]), **form)[0]


def ask_about_file(
    attributor: Attributor,
    data: bytes,
    filename: str,
    label: int | None = None,
    *,
    invert: bool | None = None,
    read: Callable[[bytes, str, dict[str, Any]], np.ndarray] = read_pixels,
) -> QueryExample:
    """Take a file as the query: read as the images of the bundle were, or by the bundle's own `load` and `transform`.

    Args:
        attributor: of the bundle.
        data: the file's bytes.
        filename: its name, whose extension tells what it is.
        label: its true class, if it is known.
        invert: exchange light and dark of an image, see `formed`.
        read: does what `read_pixels` does, in a process of its own, say.

    Raises:
        QueryError: if the file cannot be used, or the bundle's network takes inputs that no code makes of a file.
        UntrustedError: if the bundle's own code is not trusted, in which case none of it is run.
    """
    bundle, of_file = attributor.bundle, attributor.bundle.modality.from_file
    if of_file is not None:
        return attributor.given(of_file(data, filename), label)
    if not bundle.stores_inputs:
        return attributor.given(read(data, filename, _form(bundle, invert)), label)
    if not takes_files(bundle):
        raise QueryError(_images(bundle).no_pictures())
    load = bundle.manifest.dataset.get("load")
    if load is None:
        return _of_picture(attributor, decode(data, filename, _decoding(bundle)), label)
    own = function_of(load, bundle)
    with temporary_folder() as folder:
        suffix = PurePath(filename).suffix
        file = Path(folder) / f"file{suffix if _SUFFIX.fullmatch(suffix) else ''}"
        file.write_bytes(data)
        return ask_about(attributor, _run(load, lambda: own(file)), label)


def ask_about(
    attributor: Attributor, found: Any, label: int | None = None, *, invert: bool | None = None
) -> QueryExample:
    """Take as the query what somebody has in memory: a picture, or an input as the network takes it.

    Args:
        attributor: of the bundle.
        found: a picture of Pillow, pixels of uint8, an input of floating-point numbers, or what the bundle's
            `transform` takes.
        label: its true class, if it is known.
        invert: exchange light and dark of a picture, see `formed`.

    Raises:
        QueryError: if it is no input, and there is no way to make one of it.
        UntrustedError: if the bundle's own code is not trusted, in which case none of it is run.
    """
    bundle, shape = attributor.bundle, attributor.bundle.inputs("train").shape[1:]
    if bundle.modality.from_file is not None:
        return attributor.given(found, label)
    if hasattr(found, "getbands") and not bundle.stores_inputs:
        form = _form(bundle, invert)
        found = formed(rgb_of(found, form["reading"]), **form)[0]
    elif hasattr(found, "getbands") and "load" not in bundle.manifest.dataset:
        return _of_picture(attributor, rgb_of(found, _decoding(bundle)), label)
    values = _input(bundle, found)
    if values.dtype.kind == "f":
        return attributor.given(values[0] if values.shape == (1, *shape) else values, label)
    return attributor.given(_pixels(values, bundle.manifest.form), label)


def _of_picture(attributor: Attributor, picture: Any, label: int | None) -> QueryExample:
    shape = attributor.bundle.inputs("train").shape[1:]
    return attributor.given(in_colour_or_grey(picture, shape, partial(_input, attributor.bundle)), label)


def _decoding(bundle: Bundle) -> Decoding:
    return Decoding.of_settings(bundle.manifest.results.get("settings"))


def _input(bundle: Bundle, found: Any) -> np.ndarray:
    """Return what the network takes for a picture or an input, or pixels where it takes those, scaled."""
    name = bundle.manifest.dataset.get("transform")
    if name is not None and is_raw(found):
        transform, given = function_of(name, bundle), found if "load" in bundle.manifest.dataset else as_picture(found)
        found = _run(name, lambda: transform(given))
    try:
        values = as_array(found, "The query")
    except DataError as error:
        raise QueryError(str(error)) from error
    if values.dtype.kind != "f" and bundle.stores_inputs:
        raise QueryError(_images(bundle).no_pictures())
    return values


def _pixels(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return pixels of uint8 as a bundle keeps them; colours may stand first, and a batch of one will do."""
    if values.shape == shape:
        return values
    for batch in (values[None], values):
        with suppress(DataError):
            found = pictures(batch)
            if found.shape == (1, *shape):
                return found[0]
    raise QueryError(f"This bundle's pictures have shape {shape}, not {values.shape}.")


def _images(bundle: Bundle) -> Images:
    """Return the training images of a bundle whose modality leaves the reading of files to this module."""
    return cast(Images, bundle.examples("train"))


def _form(bundle: Bundle, invert: bool | None) -> dict[str, Any]:
    settings = bundle.manifest.results.get("settings")
    return form_of(_images(bundle).images, settings) | {"invert": invert}


def _run(name: str, call: Callable[[], Any]) -> Any:
    with one_sentence(f"{name} cannot use this file", kind=QueryError):
        return call()
