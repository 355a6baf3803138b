"""The lanes of work that all visitors share, and a page's waiting for what one of them does."""

import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from natscope.app import escape, uploads
from natscope.app.jobs import Job, Lane
from natscope.app.serve import jobs_allowed, memory_allowed
from natscope.app.worker import Worker

_PATIENCE = 0.4  # seconds without an answer after which progress is shown
_LOOK, _LATER, _SOON = 0.15, 0.6, 3.0  # seconds between two looks at a job: at first, and after `_SOON`
_QUICK_SECONDS, _DRAWING_SECONDS = 30.0, 120.0
IDLE = 120.0  # after which processes that do what takes long, or draw figures, give back some GB
_READERS = 2  # processes that read uploaded files, so that one slow file holds up fewer
_KEPT = 64 * 2**20  # bytes of results that a lane remembers


@dataclass(frozen=True)
class Lanes:
    """The lanes of work: what a click waits for, what takes long, figures to download, and strangers' files."""

    quick: Lane
    heavy: Lane
    figures: Lane
    uploads: Lane


def shared() -> Lanes:
    """Return the lanes of this server; their processes start when they are needed."""
    with _guard:
        return _shared()


_guard = threading.Lock()


@functools.cache
def _shared() -> Lanes:
    jobs, memory = jobs_allowed(), memory_allowed()
    threads = max(1, (os.cpu_count() or 1) // (2 * jobs))

    def workers(*, low_priority: bool) -> list[Worker]:
        return [Worker(memory=memory, threads=threads, low_priority=low_priority) for _ in range(jobs)]

    return Lanes(
        Lane(workers(low_priority=False), longest=200, kept=_KEPT, seconds=_QUICK_SECONDS, alive=_alive),
        Lane(workers(low_priority=True), longest=20, kept=_KEPT, one_each=True, idle=IDLE, alive=_alive),
        Lane(
            [Worker(memory=memory, low_priority=True)],
            longest=20,
            kept=_KEPT // 4,
            seconds=_DRAWING_SECONDS,
            idle=IDLE,
            alive=_alive,
        ),
        Lane(
            [Worker(memory=uploads.MEMORY) for _ in range(_READERS)],
            longest=50,
            kept=0,
            tries=1,
            seconds=uploads.SECONDS,
            too_much=uploads.TOO_MUCH,
            alive=_alive,
        ),
    )


def session_id() -> str:
    """Return the id of the visitor's session."""
    context = get_script_run_ctx(suppress_warning=True)  # work for all visitors has none
    return context.session_id if context else ""


def _alive(session: str) -> bool:
    return not session or not runtime.exists() or runtime.get_instance().is_active_session(session)


@dataclass(frozen=True, eq=False)
class _Wait:
    """A run of a page that waits for a job; two runs that wait for the same job are told apart by identity."""

    job: Job


_waiting: dict[tuple[str, Lane], _Wait] = {}  # by the latest run of each session's page


def ask(lane: Lane, key: Hashable, task: Callable[..., Any], *arguments: Any, bar: bool = False) -> Any:
    """Return a task's result, waiting for it; the same key is computed once, whoever asks.

    A click that takes the visitor elsewhere ends the waiting, and with it the work unless others wait for it.

    Args:
        lane: the lane that does the work.
        key: everything that the result depends on.
        task: a function of `natscope.app.tasks`.
        arguments: the task's arguments.
        bar: whether to show progress if it takes long.

    Raises:
        NatscopeError: what the task raised, or the reason why it could not run.
    """
    slot = st.empty() if bar else None  # always, so that what follows stays in the same position on the page
    session = session_id()
    # Streamlit starts the next run of a page before the last one has noticed: the job of that one is left now.
    before = _waiting.get((session, lane))
    if before is not None and before.job.key != key:
        lane.leave(before.job, session)
    job = lane.start(key, task, *arguments, session=session)
    mine = _waiting[session, lane] = _Wait(job)
    began = time.monotonic()
    try:
        job.finished.wait(_PATIENCE if bar else None)
        while not job.finished.wait(_LOOK if time.monotonic() - began < _SOON else _LATER):
            if slot is not None:  # drawing also lets Streamlit end a run that is no longer wanted
                slot.progress(job.share, f"{_doing(lane, job)} … {time.monotonic() - began:.0f} s")
    finally:
        latest = _waiting.get((session, lane), mine)
        if latest is mine:
            _waiting.pop((session, lane), None)
        joined = latest is not mine and latest.job is job  # by the next run of the same page
        # The job of a session that is gone is kept for a while: reloading the page starts another session.
        if not job.finished.is_set() and not joined and _alive(session):
            lane.leave(job, session)
    if slot is not None:
        slot.empty()
    return job.value()


def _doing(lane: Lane, job: Job) -> str:
    return queued(lane.ahead(job)) if job.state == "queued" else escape.markdown(job.stage)


def queued(ahead: int) -> str:
    """Return a text saying that a job waits, and for how many others."""
    return "Queued" if not ahead else f"Queued, {ahead} ahead"


def read_upload(data: bytes, filename: str, form: dict[str, Any]) -> uploads.Upload:
    """Read an uploaded file in a process of its own, see `natscope.app.uploads.read_image`."""
    key = (hashlib.sha256(data).hexdigest(), filename, tuple(form.items()))
    return ask(shared().uploads, key, uploads.read_task, data, filename, form)
