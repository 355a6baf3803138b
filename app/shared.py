"""What all visitors share: open bundles, and a few threads for work that takes long."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import streamlit as st

from app import escape
from app.serve import BUNDLES
from core.attribution import Attributor, Progress
from core.bundle import MANIFEST, Bundle, find_bundles
from core.errors import BundleError
from precompute.attributor import open_attributor

Result = TypeVar("Result")
_PATIENCE = 0.4  # seconds without an answer after which progress is shown


def bundle_paths() -> dict[str, Path]:
    """Give the bundles that are served, by folder name.

    Raises:
        BundleError: if there is none.
    """
    folder = Path(os.environ.get(BUNDLES, "."))
    found = find_bundles(folder) if folder.is_dir() else []
    if not found:
        raise BundleError(f"There is no bundle in {folder}; `natscope demo` or `natscope precompute` makes one.")
    return {path.name: path for path in found}


def bundle_title(path: Path) -> str:
    """Give a bundle's title, or its folder's name when it cannot be read."""
    try:
        return Bundle(path).manifest.name
    except BundleError:
        return f"{path.name} (damaged)"


def attributor(path: Path) -> Attributor:
    """Give the opened bundle; it is opened anew when its manifest changes.

    Raises:
        BundleError: if it cannot be opened.
    """
    manifest = path / MANIFEST
    stamp = manifest.stat().st_mtime_ns if manifest.is_file() else 0
    return _opened(str(path), stamp)


@st.cache_resource(max_entries=4, show_spinner="Opening the bundle …")
def _opened(path: str, stamp: int) -> Attributor:
    return open_attributor(Path(path))


@st.cache_resource
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=2, thread_name_prefix="natscope")


def with_progress(work: Callable[[Progress], Result]) -> Result:
    """Run work in a thread of the app's own, with a progress bar once it takes long; the page can be left meanwhile.

    Args:
        work: called with a progress function (stage, done, total).
    """
    latest = [("Weighing the training images", 0, 1)]
    future = _workers().submit(work, lambda stage, done, total: latest.append((stage, done, total)))
    started = time.monotonic()
    bar = st.empty()  # always, so that what follows keeps its place on the page while it is replaced
    while not future.done():
        time.sleep(0.01)
        if time.monotonic() - started > _PATIENCE:
            stage, done, total = latest[-1]
            text = f"{escape.markdown(stage)} … {time.monotonic() - started:.0f} s"
            share = min(done / max(total, 1), 1.0)
            bar.progress(share, text)
            time.sleep(0.15)
    bar.empty()
    return future.result()
