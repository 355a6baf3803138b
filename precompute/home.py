"""Where natscope keeps bundles and downloads."""

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """Give the folder of bundles and downloads: $NATSCOPE_HOME, else natscope's folder in the user's cache."""
    named = os.environ.get("NATSCOPE_HOME")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("natscope")


def configuration() -> Path:
    """Return the folder of the user's settings, in $XDG_CONFIG_HOME where that is set: what she trusts is in it."""
    return platformdirs.user_config_path("natscope")
