"""Queries that come from outside a bundle: files and pictures, the way that its training images went."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.queries import no_pictures
from natscope.core.bundle.request import QueryImage
from natscope.core.errors import DataError, QueryError
from natscope.core.scratch import temporary_folder
from natscope.precompute.data.decode import Reading, decode, in_colour_or_grey
from natscope.precompute.data.items import as_array, as_picture, is_raw
from natscope.precompute.training.models import function_of, one_sentence

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}")  # of a stranger's file name, which the user's own code gets to see


def takes_files(bundle: Bundle) -> bool:
    """Return whether a file can become a query: natscope reads it, or the bundle names the code that does."""
    return not bundle.stores_inputs or bool({"load", "transform"} & bundle.manifest.dataset.keys())


def ask_about_file(attributor: Attributor, data: bytes, filename: str, label: int | None = None) -> QueryImage:
    """Take a file as the query of a bundle that stores inputs: by its own `load` and `transform`.

    Args:
        attributor: of the bundle.
        data: the file's bytes.
        filename: its name, whose extension tells what it is.
        label: its true class, if it is known.

    Raises:
        QueryError: if the bundle names no such code, or it cannot use the file.
        UntrustedError: if the code is not trusted, in which case none of it is run.
    """
    bundle = attributor.bundle
    if not takes_files(bundle):
        raise QueryError(no_pictures(bundle))
    load = bundle.manifest.dataset.get("load")
    if load is None:
        reading = Reading.of_settings(bundle.manifest.results.get("settings"))
        picture, shape = decode(data, filename, reading), bundle.inputs("train").shape[1:]
        return attributor.given(in_colour_or_grey(picture, shape, partial(_input, bundle)), label)
    read = function_of(load, bundle)
    with temporary_folder() as folder:
        suffix = PurePath(filename).suffix
        file = Path(folder) / f"file{suffix if _SUFFIX.fullmatch(suffix) else ''}"
        file.write_bytes(data)
        return ask_about(attributor, _run(load, lambda: read(file)), label)


def ask_about(attributor: Attributor, found: Any, label: int | None = None) -> QueryImage:
    """Take as the query of a bundle that stores inputs what its `load` or its data set gives: a picture, say.

    Args:
        attributor: of the bundle.
        found: a picture, which `transform` makes an input, or an input.
        label: its true class, if it is known.

    Raises:
        QueryError: if it is no input, and there is no code to make one of it.
        UntrustedError: if the code is not trusted, in which case none of it is run.
    """
    shape, values = attributor.bundle.inputs("train").shape[1:], _input(attributor.bundle, found)
    return attributor.given(values[0] if values.shape == (1, *shape) else values, label)


def _input(bundle: Bundle, found: Any) -> np.ndarray:
    name = bundle.manifest.dataset.get("transform")
    if name is not None and is_raw(found):
        transform, given = function_of(name, bundle), found if "load" in bundle.manifest.dataset else as_picture(found)
        found = _run(name, lambda: transform(given))
    try:
        values = as_array(found, "What was given")
    except DataError as error:
        raise QueryError(str(error)) from error
    if values.dtype.kind != "f":
        raise QueryError(no_pictures(bundle))
    return values


def _run(name: str, call: Callable[[], Any]) -> Any:
    with one_sentence(f"{name} cannot use this file", kind=QueryError):
        return call()
