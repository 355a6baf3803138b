"""Files to download: made when they are requested, on behalf of the session that was offered them."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing.reduction import ForkingPickler
from typing import Any

import streamlit as st

from natscope.app import lanes, tasks
from natscope.app.serve import THREADS
from natscope.core.errors import QueryError

# The most requests for figures that wait at a time, over all sessions and in one. The other threads are left for
# tables, which take no time.
_MOST, _MOST_EACH = THREADS // 2, 3
_PATIENCE = 60.0  # seconds that a request waits

_owner: ContextVar[str] = ContextVar("owner", default="")
_waiting: Counter[str] = Counter()  # by session
_guard = threading.Lock()


def offer(label: str, make: Callable[[], Any], file: str, mime: str, *, key: str, **settings: Any) -> None:
    """Draw a download button.

    Args:
        label: the button's label.
        make: returns the file's content, as text or bytes; called in another thread whenever it is requested.
        file: name of the file.
        mime: its type.
        key: unique on the page.
        settings: further arguments of `st.download_button`.
    """
    owner = lanes.session_id()

    def made() -> Any:
        _owner.set(owner)  # in the context of this request alone
        return make()

    st.download_button(label, made, file, mime, on_click="ignore", key=key, **settings)


def draw(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Return what a figure's function returns, drawn in a process of its own; equal figures are drawn once.

    Args:
        function: a function of a module `natscope.app.figures…`.
        arguments: its arguments; no memory map, because its file would be sent whole.
        settings: its keyword arguments.

    Raises:
        QueryError: if too many wait for figures, or this one is not drawn in time.
    """
    owner = _owner.get()
    with _queued(owner):
        key = hashlib.sha256(ForkingPickler.dumps((function, arguments, settings))).digest()
        lane = lanes.shared().figures
        job = lane.start(key, tasks.draw, function, arguments, settings, session=owner)
        if not job.finished.wait(_PATIENCE):
            lane.leave(job, owner)
            raise QueryError("The figure was not drawn in time; try again in a minute.")
        return job.value()


@contextmanager
def _queued(owner: str) -> Iterator[None]:
    with _guard:
        if _waiting[owner] >= _MOST_EACH or _waiting.total() >= _MOST:
            raise QueryError("Too many figures are being drawn; try again in a minute.")
        _waiting[owner] += 1
    try:
        yield
    finally:
        with _guard:
            _waiting.subtract([owner])
            if not _waiting[owner]:
                del _waiting[owner]
