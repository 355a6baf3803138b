"""A long piece of work on a page: a button that starts it, its progress, and a way to stop it."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import streamlit as st

from natscope.app import escape, lanes
from natscope.app.jobs import Job
from natscope.app.views.notice import complain, fragment, warn
from natscope.core.errors import QueryError

_EVERY = 0.7  # seconds between two looks at a running job


def run_job(
    key: Hashable,
    task: Callable[..., Any],
    *arguments: Any,
    name: str,
    label: str,
    icon: str = ":material/play_arrow:",
    at_once: bool = False,
) -> Any:
    """Draw the work's state, and return its result once it is done, else None.

    Args:
        key: everything that the result depends on; all visitors share a job by its key.
        task: a function of `natscope.app.tasks`.
        arguments: the task's arguments.
        name: unique on the page, for the widgets' keys.
        label: label of the button that starts it.
        icon: icon of the button.
        at_once: whether it starts by itself, until it fails or the visitor stops it.
    """
    lane, refused, stopped = lanes.shared().heavy, f"{name}_refused", f"{name}_stopped"

    def start() -> None:
        st.session_state.pop(stopped, None)
        try:
            lane.start(key, task, *arguments, session=lanes.session_id())
        except QueryError as error:
            st.session_state[refused] = str(error)

    job = lane.get(key)
    if at_once and (job is None or job.live) and st.session_state.get(stopped) != key:
        start()
        job = lane.get(key)
    if job is not None:
        lane.adopt(job, lanes.session_id())
    if job is not None and job.state == "done":
        return job.result
    if job is not None and job.live and lanes.session_id() in job.sessions:
        _watch(job, name)
        return None
    if said := st.session_state.pop(refused, None):
        warn(said, icon=":material/hourglass_top:")
        if other := lane.of(lanes.session_id()):
            stop = partial(lane.leave, other, lanes.session_id())
            st.button("Stop the other one", icon=":material/stop:", key=f"{name}_stop_other", on_click=stop)
    elif job is not None and job.error:
        complain(job.error)
    elif st.session_state.get(stopped) == key:
        st.caption("Stopped.")

    if job is not None and job.live:
        st.caption("Another visitor has already started this; press the button to follow its progress.")

    st.button(label, icon=icon, key=f"{name}_start", on_click=start)
    return None


def leave_job(key: Hashable) -> None:
    """Wait no longer for the work of a key: it ends unless another visitor waits for it."""
    lane = lanes.shared().heavy
    if (job := lane.get(key)) is not None and lanes.session_id() in job.sessions:
        lane.leave(job, lanes.session_id())


@fragment(run_every=_EVERY)
def _watch(job: Job, name: str) -> None:
    lane = lanes.shared().heavy
    if not job.live or lanes.session_id() not in job.sessions:
        st.rerun()
    waiting = job.state == "queued"
    stage = f"{escape.markdown(job.stage)} … {job.steps} of {job.total}"
    st.progress(job.share, lanes.queued(lane.ahead(job)) if waiting else stage)
    st.button("Stop", icon=":material/stop:", key=f"{name}_stop", on_click=_stop, args=(job, name))


def _stop(job: Job, name: str) -> None:
    st.session_state[f"{name}_stopped"] = job.key
    lanes.shared().heavy.leave(job, lanes.session_id())
