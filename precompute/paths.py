"""Where natscope keeps bundles and downloads."""

import contextlib
import os
from pathlib import Path

import platformdirs

from natscope.core.errors import DataError

DEMO = ("fashion-mnist", "fashion-mnist-poisoned", "austen")  # folders of the demo's bundles, as they are made


def home() -> Path:
    """Return the folder of bundles and downloads: $NATSCOPE_HOME, else natscope's folder in the user's cache.

    It is created for its owner alone if it is missing; if that fails, writing into it reports why.

    Raises:
        DataError: if $NATSCOPE_HOME names the home of an unknown user, or is not set and the user has no home.
    """
    named = os.environ.get("NATSCOPE_HOME")
    try:
        folder = (Path(named) if named else platformdirs.user_cache_path("natscope")).expanduser().absolute()
    except RuntimeError as error:
        fault = f"NATSCOPE_HOME is {named}, and there is no such user" if named else "This user has no home folder"
        raise DataError(f"{fault}; set NATSCOPE_HOME to the folder that is to hold bundles and downloads.") from error
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def configuration() -> Path:
    """Return the folder of the user's settings, in $XDG_CONFIG_HOME if that is set; it records what code is trusted.

    Raises:
        DataError: if the user has no home, for which some versions of platformdirs name a folder of the working
            directory, which may be a stranger's.
    """
    try:
        folder = platformdirs.user_config_path("natscope")
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():
        raise DataError(
            "This user has no home folder; set XDG_CONFIG_HOME to the whole path of the folder of its settings."
        )
    return folder
