"""Where natscope keeps bundles and downloads."""

import contextlib
import os
from pathlib import Path

import platformdirs

from natscope.core.errors import DataError


def home() -> Path:
    """Return the folder of bundles and downloads: $NATSCOPE_HOME, else natscope's folder in the user's cache.

    It is made for its owner alone where it is missing; where that fails, whoever writes into it says why.

    Raises:
        DataError: if $NATSCOPE_HOME is in the home of nobody, or is not set and the user has no home.
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
    """Return the folder of the user's settings, in $XDG_CONFIG_HOME where that is set: what she trusts is in it.

    Raises:
        DataError: if there is none: the user has no home, for which some versions of platformdirs name a folder of
            the working directory, which may be a stranger's.
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
