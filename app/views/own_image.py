"""An image of the visitor's own: the upload of a file, and what the model sees of it."""

import hashlib
from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from natscope.app import lanes
from natscope.app.bundles import Served
from natscope.app.modalities import packed
from natscope.app.uploads import Upload
from natscope.app.views.notice import complain
from natscope.core.errors import NatscopeError, QueryError
from natscope.precompute.bundles.asking import takes_files
from natscope.precompute.data.decode import data_uri
from natscope.precompute.data.form import form_of, usual_background

_LARGEST = 10  # MB of an upload
_LONGEST = 40  # characters of a file's name in a sentence
_ALIKE = "A file like those of the data set"
_PREVIEW = 160  # pixels of an upload, and of what the model sees of it
_INVERT = {"Automatic": None, "Keep": False, "Invert": True}
_GROUNDS = {
    "dark": "The training images show light objects on black. Automatic: a light border means that the image is "
    "inverted.",
    "light": "The training images show their objects on a light ground. Automatic: a dark border means that the "
    "image is inverted.",
    "mixed": "The training images have light and dark grounds alike, so automatically nothing is inverted.",
}
Take = Callable[[str], None]


def choose(attributor: Served, take: Take) -> None:
    """Draw the upload; `take` is called with the query."""
    if attributor.bundle.stores_inputs:
        _upload_file(attributor, take)
        return
    examples: Any = attributor.bundle.examples("train")
    images = examples.images

    def read() -> None:
        _read(attributor, take)

    wanted = "One object on a plain background" if images.ndim == 3 else _ALIKE
    st.file_uploader(wanted, key="file", on_change=read, max_upload_size=_LARGEST)
    if images.ndim == 3:
        st.radio(
            "Light and dark",
            list(_INVERT),
            key="invert",
            on_change=read,
            horizontal=True,
            help=_GROUNDS[usual_background(images)],
        )
    if st.session_state.get("upload_error"):
        complain(st.session_state["upload_error"], icon=":material/broken_image:")
    upload: Upload | None = st.session_state.get("upload")
    if upload is not None:
        with st.container(horizontal=True):
            yours, seen = st.container(width=_PREVIEW), st.container(width=_PREVIEW)
        yours.image(upload.original, width="stretch")
        yours.caption("yours")
        seen.html(f'<img class="ns-seen" src="{data_uri(upload.image)}" alt="the image as the model sees it">')
        seen.caption("what the model sees" + (", inverted" if upload.inverted else ""))


def _upload_file(attributor: Served, take: Take) -> None:
    """Draw the upload of a file that the bundle's own code makes an input of, or say why there is none."""
    examples: Any = attributor.bundle.examples("train")
    if not takes_files(attributor.bundle):
        st.info(examples.no_pictures(), icon=":material/upload_file:")
        return

    def read() -> None:
        st.session_state["upload_error"], chosen = None, st.session_state.get("file")
        if not isinstance(chosen, UploadedFile):
            return
        data, digest = chosen.getvalue(), hashlib.sha256(chosen.getvalue()).hexdigest()
        try:
            if "load" not in attributor.bundle.manifest.dataset:  # in a process of its own, before all else reads it
                lanes.read_upload(data, chosen.name, form_of(examples.images))
            attributor.file(digest, data, chosen.name)
        except NatscopeError as error:
            _refuse(chosen, error)
            return
        attributor.keep_file(digest, data, chosen.name)
        take(f"file:{digest}")

    st.file_uploader(_ALIKE, key="file", on_change=read, max_upload_size=_LARGEST)
    if st.session_state.get("upload_error"):
        complain(st.session_state["upload_error"], icon=":material/broken_image:")


def _read(attributor: Served, take: Take) -> None:
    st.session_state["upload_error"], st.session_state["upload"] = None, None
    file = st.session_state.get("file")
    if not isinstance(file, UploadedFile):  # none is chosen, or the server no longer has it
        return
    examples: Any = attributor.bundle.examples("train")
    images, settings = examples.images, attributor.bundle.manifest.results["settings"]
    try:
        invert = _INVERT[st.session_state.get("invert", "Automatic")] if images.ndim == 3 else None
        upload = lanes.read_upload(file.getvalue(), file.name, form_of(images, settings) | {"invert": invert})
    except QueryError as error:
        _refuse(file, error)
        return
    st.session_state["upload"] = upload
    take(packed(examples.given(upload.image)))


def _refuse(file: UploadedFile, error: NatscopeError) -> None:
    """Keep what is wrong with a file, and its name: the browser itself may refuse the next one, and list both."""
    name = file.name if len(file.name) <= _LONGEST else f"{file.name[:_LONGEST]}…"
    st.session_state["upload_error"] = f"{name}: {error}"
