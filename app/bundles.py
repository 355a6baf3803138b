"""The bundles that are served, which all visitors share: what lists show of them, open ones, and their answers."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from natscope.app import lanes, tasks
from natscope.app.guard import MAX_UPLOADS
from natscope.app.jobs import Lane
from natscope.app.links import AttributeView
from natscope.app.modalities import page_of
from natscope.app.serve import BUNDLES
from natscope.core.analysis.comparison import Row
from natscope.core.analysis.stability import kin
from natscope.core.bundle.capabilities import Capabilities
from natscope.core.bundle.file_checks import once
from natscope.core.bundle.format import MANIFEST, Bundle, find_bundles, read_manifest
from natscope.core.bundle.request import Attribution, QueryExample, Request
from natscope.core.bundle.unmapped import UnmappedBundle
from natscope.core.cache import BoundedCache
from natscope.core.errors import BundleError, NatscopeError, QueryError
from natscope.core.examples import Examples, digest_of
from natscope.core.methods import METHODS
from natscope.core.pool import CLASSES_KEPT, LARGEST_GRAM
from natscope.core.words import Link
from natscope.precompute.paths import DEMO

_MOST_ROWS = 1024  # rows of comparisons that are remembered for a bundle
FILES = "uploaded_files"  # key of the session's uploads, (bytes, name) by checksum
_LISTED: BoundedCache["Listed"] = BoundedCache(20_000)  # some hundred bytes each


def bundle_paths() -> dict[str, Path]:
    """Return the bundles that are served, by folder name: those of the demo first, so that its first one stays first.

    Raises:
        BundleError: if there is no bundle.
    """
    folder = Path(os.environ.get(BUNDLES, "."))
    found = find_bundles(folder) if folder.is_dir() else []
    if not found:
        raise BundleError(f"There is no bundle in {folder}; `natscope demo` or `natscope precompute` makes one.")
    order = {name: place for place, name in enumerate(DEMO)}
    return {path.name: path for path in sorted(found, key=lambda path: order.get(path.name, len(order)))}


@dataclass(frozen=True)
class Listed:
    """What pages show of a bundle without opening it.

    Args:
        title: the bundle's title, or its folder's name if it is damaged.
        identity: the bundle's identity; "" where it is damaged.
        poisoned: whether it has a backdoor of which the story of page Backdoor tells.
        attacked: whether it has one, of any kind.
        kin: see `natscope.core.analysis.stability.kin`.
    """

    title: str
    identity: str = ""
    poisoned: bool = False
    attacked: bool = False
    kin: tuple[str, int | None] = ("", None)


def listed(path: Path) -> Listed:
    """Return what lists show of a bundle; it is read again when its manifest or its folder's content changes."""
    try:
        found = [(path / MANIFEST).lstat(), path.stat()]
    except OSError:
        return _read(path)
    newest = max(found, key=lambda each: each.st_ctime_ns)
    return once(_LISTED, newest, (path, *((s.st_ino, s.st_size, s.st_mtime_ns) for s in found)), lambda: _read(path))


def _read(path: Path) -> Listed:
    poisoned = attacked = False
    try:
        raw = read_manifest(path)
        attacked = raw.poison is not None
        poisoned = attacked and page_of(raw.modality).poisoned
        manifest = Bundle(path).manifest
    except BundleError:
        return Listed(f"{path.name} (damaged)", poisoned=poisoned, attacked=attacked)
    return Listed(manifest.name, manifest.identity, poisoned, attacked, kin(manifest))


class Served(Capabilities):
    """A bundle as pages see it: arrays are read, never mapped, and its network runs in worker processes."""

    def __init__(self, place: tasks.Place) -> None:
        """Open the bundle, here and in a worker.

        Raises:
            BundleError: if it cannot be opened.
        """
        super().__init__(UnmappedBundle(place.path))
        place.check(self.bundle)
        self.place = place
        own = self.bundle.modality
        self.one, self.a_one, self.many = own.one, own.a_one, own.many  # what examples are called
        self.train_labels = self.bundle.array("train_labels")
        self.test_labels = self.bundle.array("test_labels")
        self.linear: bool = self._ask("linear", (), tasks.linear)
        self._large = int(np.bincount(self.train_labels).max(initial=0)) > LARGEST_GRAM
        self._rows: BoundedCache[Row] = BoundedCache(_MOST_ROWS)

    def query(self, origin: str, index: int) -> QueryExample:
        """Return a "test" or "train" image as a query; raise QueryError if there is no such image."""
        return self._ask("query", (origin, index), tasks.query, origin, index)

    def given(self, found: Any) -> QueryExample:
        """Return what a user gives, of the form of the data's examples, as a query: see `Examples.given`."""
        return self._ask("given", _digest(found), tasks.given, found)

    def asked(self, example: Examples) -> QueryExample:
        """Return an example, alone, as a query."""
        return self._ask("asked", digest_of(example), tasks.asked, example)

    def kept_file(self, digest: str) -> QueryExample:
        """Return a file that this session uploaded, by its checksum, as a query.

        Raises:
            QueryError: if the session has no such file, or the bundle's own code cannot use it.
        """
        kept = st.session_state.get(FILES, {}).get(digest)
        if kept is None:
            raise QueryError("The file that this link asks about stayed with whoever uploaded it; upload it again.")
        return self.file(digest, *kept)

    def keep_file(self, digest: str, data: bytes, name: str) -> None:
        """Keep a file for this session, by its checksum, so that `kept_file` finds it."""
        kept = [*st.session_state.get(FILES, {}).items(), (digest, (data, name))]
        st.session_state[FILES] = dict(kept[-MAX_UPLOADS:])

    def file(self, digest: str, data: bytes, name: str) -> QueryExample:
        """Return a file as a query, by its checksum, bytes and name.

        Raises:
            QueryError: if the bundle's own code cannot use it.
        """
        return self._ask("file", digest, tasks.file, data, name)

    def predict(self, examples: Examples) -> np.ndarray:
        """Return the predicted classes of examples, (B,) int64."""
        return self._ask("predict", digest_of(examples), tasks.predict, examples)

    def attribute(self, query: QueryExample, request: Request, *, bar: bool = True) -> Attribution:
        """Rank training images for a query, with a progress bar on the page if it takes long.

        Raises:
            QueryError: for a setting that cannot be used here, in one sentence.
        """
        key = ("attribute", self.place, _name(query), request)
        return lanes.ask(self._lane(request), key, tasks.attribute, self.place, query, request, bar=bar)

    def score_each(self, query: QueryExample, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """Return every candidate's training index (n,) and its score by itself (n,), as `Attributor.score_each`."""
        request = replace(request, budget=1)  # which makes no difference
        key = ("score each", self.place, _name(query), request)
        return lanes.ask(self._lane(request), key, tasks.score_each, self.place, query, request, bar=True)

    def word_links(self, query: QueryExample, target: int, rows: tuple[int, ...]) -> list[Link] | None:
        """Return the links of a query with training texts by their words, see `tasks.word_links`."""
        key = ("word links", self.place, _name(query), target, rows)
        return lanes.ask(lanes.shared().quick, key, tasks.word_links, self.place, query, target, rows, bar=True)

    def saying(self, split: str, text: str) -> list[int]:
        """Return the numbers of the "test" or "train" examples that say something, whatever its capitals."""
        text = text.casefold()
        return self._ask("saying", (split, text), tasks.saying, split, text)

    def compare(self, query: QueryExample, requests: Sequence[Request], evaluation_sigma2: float) -> list[Row]:
        """Ask several methods about a query; answers that were found before are cached.

        Args:
            query: the image.
            requests: one per method.
            evaluation_sigma2: sigma2 at which every subset's information is measured.
        """
        keys = [(_name(query), request, evaluation_sigma2) for request in requests]
        found = {key: row for key in keys if (row := self._rows.peek(key)) is not None}
        missing = [(key, request) for key, request in zip(keys, requests, strict=True) if key not in found]
        if missing:
            asked = tuple(request for _, request in missing)
            lane = lanes.shared().heavy if any(map(self.heavy, asked)) else lanes.shared().quick
            key = ("compare", self.place, _name(query), asked, evaluation_sigma2)
            rows = lanes.ask(lane, key, tasks.compare, self.place, query, asked, evaluation_sigma2, bar=True)
            for (known, _), row in zip(missing, rows, strict=True):
                found[known] = row
                self._rows.keep(known, row)
        else:
            st.empty()  # in the slot of the progress bar
        return [found[key] for key in keys]

    def compared(self, query: QueryExample, requests: Sequence[Request], evaluation_sigma2: float) -> bool:
        """Return whether `compare` has all answers already."""
        return all(self._rows.peek((_name(query), each, evaluation_sigma2)) is not None for each in requests)

    def _lane(self, request: Request) -> Lane:
        return lanes.shared().heavy if self.heavy(request) else lanes.shared().quick

    def heavy(self, request: Request) -> bool:
        """Return whether an answer takes longer than a click may."""
        if self._large or request.pool == "all":
            return True
        method = METHODS.get(request.method)
        return method is not None and (self.slow(method) or (request.conditioning == "train" and method.conditions))

    def _ask(self, what: str, key: Hashable, task: Callable[..., Any], *arguments: Any) -> Any:
        return lanes.ask(lanes.shared().quick, (what, self.place, key), task, self.place, *arguments)


def served(path: Path) -> Served:
    """Return the opened bundle; it is opened again when another bundle has replaced it, or a file has changed.

    Raises:
        BundleError: if it cannot be opened.
    """
    return _served(tasks.Place.of(path))


def warm() -> None:
    """Let a worker of the quick lane open the served bundles and compute the first answers for the first one's classes.

    One job after another, so that a visitor waits for at most one of them.
    """
    opened: list[Served] = []
    for path in bundle_paths().values():
        with contextlib.suppress(NatscopeError):  # pages report what is wrong
            opened.append(Served(tasks.Place.of(path)))
    with contextlib.suppress(NatscopeError):
        for first in opened[:1]:
            _look(first)


def _look(found: Served) -> None:
    """Ask the default question of the tab Attribution about one test image per class; later answers are then faster."""
    method = AttributeView().method
    request = Request(method, found.bundle.sigma2(method), AttributeView().budget)
    if found.heavy(request) or len(found.bundle.classes) > CLASSES_KEPT:
        return
    answers = np.asarray(found.bundle.array("test_logits")).argmax(axis=1)
    for index in np.unique(answers, return_index=True)[1]:
        found.attribute(found.query("test", int(index)), request, bar=False)


@st.cache_resource(max_entries=16, show_spinner="Opening the bundle …", hash_funcs={tasks.Place: hash})
def _served(place: tasks.Place) -> Served:
    return Served(place)


def _name(query: QueryExample) -> Hashable:
    if query.index is not None:
        return query.origin, query.index
    return digest_of(query.example)


def _digest(found: Any) -> str:
    content = (
        f"{found.shape} {found.dtype}".encode() + found.tobytes()
        if isinstance(found, np.ndarray)
        else repr(found).encode()
    )
    return hashlib.sha256(content).hexdigest()
