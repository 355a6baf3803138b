"""A long piece of work on a page: a button that starts it, its progress, and a way to stop it."""

from collections.abc import Callable, Hashable
from typing import Any

import streamlit as st

from app import escape
from app.jobs import Job, Progress, jobs
from app.views.notice import complain

_EVERY = 0.7  # seconds between two looks at a running job


def run_job(
    key: Hashable, work: Callable[[Progress], Any], *, name: str, label: str, icon: str = ":material/play_arrow:"
) -> Any:
    """Draw the work's state, and give its result once it is there, else None.

    Args:
        key: everything that the result depends on; the same key is the same job for every visitor.
        work: called with a progress function in a thread of its own.
        name: unique on the page, for the widgets' keys.
        label: of the button that starts it.
        icon: of the button.
    """
    job = jobs().get(key)
    if job is not None and job.state == "done":
        return job.result
    if job is not None and job.state == "running":
        _watch(job, name)
        return None
    if job is not None and job.error:
        complain(job.error)
    if job is not None and job.state == "stopped":
        st.caption("Stopped. Start it again when you like.")

    def start() -> None:
        jobs().start(key, work)

    st.button(label, icon=icon, key=f"{name}_start", on_click=start)
    return None


@st.fragment(run_every=_EVERY)
def _watch(job: Job, name: str) -> None:
    if job.state != "running":
        st.rerun()
    st.progress(job.share, f"{escape.markdown(job.stage)} … {job.steps} of {job.total}")
    st.button("Stop", icon=":material/stop:", key=f"{name}_stop", on_click=job.stop)
