"""What the four steps of the Backdoor page share."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.components.grid import grid
from natscope.app.components.into_view import into_view
from natscope.app.links import BackdoorView
from natscope.app.results import backdoor_results
from natscope.app.views.cards import cards_of
from natscope.app.views.inspector import inspect, inspector, usual_request
from natscope.core.backdoor import Backdoor
from natscope.core.bundle.request import QueryExample
from natscope.precompute.training.models import ModelSpec

KEY = "backdoor_"  # prefix of all widgets and of all that the session keeps for this page
_DRAWN = 16  # images of a line-up that are drawn at first
_SIZE = 68  # least width of one, in pixels
_REVEALED = f"{KEY}picked_revealed"  # whether it was known what the clicked image is
Change = Callable[..., None]


@dataclass(frozen=True, eq=False)
class Scene:
    """What all steps are about.

    Args:
        attributor: the opened poisoned bundle.
        attack: the attack as it was.
        backdoor: the same, or with the visitor's own patch for the image's class if that fools the network too.
        index: number of the test image.
        base: its class.
        works: (T,) bool, on which test images the network is right without and fooled with the attacker's patch.
    """

    attributor: Served
    attack: Backdoor
    backdoor: Backdoor
    index: int
    base: int
    works: np.ndarray

    @property
    def target(self) -> int:
        """The class that the attack turns the image into."""
        return int(self.backdoor.targets[self.base])

    @property
    def own(self) -> bool:
        """Whether the patch is not the attacker's for this class."""
        return not np.array_equal(self.backdoor.patterns[self.base], self.attack.patterns[self.base])

    @property
    def fooled(self) -> bool:
        """Whether the network is fooled with the patch."""
        return self.own or bool(self.works[self.index])

    def name(self, label: int) -> str:
        """Return the name of a class for Markdown."""
        return escape.markdown(self.attributor.bundle.classes[label])

    def query(self) -> QueryExample:
        """Return the test image with the patch."""
        clean = self.attributor.bundle.examples("test")[np.array([self.index])]
        return self.attributor.asked(self.backdoor.stamped(clean, np.array([self.base])))

    def described(self, index: int, *, planted: bool) -> str:
        """Return what a training image is: its label and, of one that is known to be planted, what it shows."""
        classes, attack = self.attributor.bundle.classes, self.attack
        label = classes[self.attributor.train_labels[index]]
        if not planted:
            return f"labelled {label}"
        shows = classes[attack.base_labels[np.searchsorted(attack.train_indices, index)]]
        return f"{shows}, labelled {label}"


@dataclass(frozen=True)
class Searched:
    """What the search found.

    Args:
        method: the one that was asked.
        by: what to call it.
        named: how many images it named.
        planted: how many of them were planted.
        revealed: whether the visitor knows that.
    """

    method: str
    by: str
    named: int
    planted: int
    revealed: bool


@dataclass(frozen=True)
class Proven:
    """What the proof showed.

    Args:
        removed: how many images were removed.
        by: what to call the method that named them.
        before: share of images that are fooled.
        after: the same without those images.
        live: whether the visitor ran it.
        date: when it was measured, if that was for another network than the one on the page.
    """

    removed: int
    by: str
    before: float
    after: float
    live: bool = False
    date: str = ""


@dataclass(frozen=True)
class Audited:
    """What the audit found: how many suspects are listed, and how many of them were planted."""

    suspects: int
    planted: int


def show_once_there(place: str, question: Hashable, *, there: bool) -> None:
    """Bring a result into view that the visitor has waited for on this page.

    Args:
        place: key of the container in which the result is drawn.
        question: what it answers: the answer to another question was not waited for.
        there: whether the result is there.
    """
    waiting = f"{place}_awaited"
    if there and st.session_state.get(waiting) == question:
        into_view(place)
    st.session_state[waiting] = None if there else question


def reveal_button(step: str, view: BackdoorView, change: Change) -> bool:
    """Draw the button that reveals who was planted; return True, and draw none, once it was pressed.

    Args:
        step: "search" or "audit".
        view: what the page shows.
        change: called with changes of the view.
    """
    if step in view.seen:
        return True
    st.button(
        "Reveal who was planted",
        icon=":material/visibility:",
        type="primary",
        key=f"{KEY}{step}_reveal",
        on_click=partial(change, seen=(*view.seen, step)),
    )
    return False


def line_up(scene: Scene, indices: Sequence[int], *, name: str, label: str, planted: set[int] | None) -> None:
    """Draw training images, each with what it is below; a click opens one.

    Args:
        scene: what the page is about.
        indices: of the training images, in order.
        name: unique on the page.
        label: what the pictures are, for screen readers.
        planted: which images are known to be planted; None before that is revealed.
    """
    everything = f"{KEY}{name}_all"
    shown = indices if st.session_state.get(everything) else indices[:_DRAWN]
    cards, card = [], cards_of(scene.attributor, "train")
    for rank, index in enumerate(shown, 1):
        framed = planted is not None and index in planted
        caption = scene.described(index, planted=framed)
        title = f"rank {rank}, training image {index}: {caption}" + (", planted" if framed else "")
        cards.append(card(index, title=title, caption=caption, framed=framed))
    grid(
        cards,
        key=f"{KEY}{name}_grid",
        label=label,
        size=_SIZE,
        appear=True,
        on_pick=partial(_pick, shown, revealed=planted is not None),
    )
    if len(indices) > _DRAWN:
        open_now = len(shown) == len(indices)
        st.button(
            f"Show only the first {_DRAWN}" if open_now else f"Show {len(indices)}",
            key=f"{everything}_button",
            type="tertiary",
            icon=":material/unfold_less:" if open_now else ":material/unfold_more:",
            on_click=partial(st.session_state.update, {everything: not open_now}),
        )


def _pick(shown: Sequence[int], position: int, *, revealed: bool) -> None:
    st.session_state[_REVEALED] = revealed
    inspect(KEY, shown, position)


def picked(scene: Scene) -> None:
    """Open the inspector, if a training image was clicked in a line-up."""

    def about(index: int) -> str:
        if not st.session_state.get(_REVEALED) or index not in scene.attack.train_indices:
            return ""
        what = escape.markdown(scene.described(index, planted=True))
        return f"{what}, with the patch in its corner: the attacker planted it."

    inspector(scene.attributor, KEY, request=usual_request(scene.attributor), about=about)


def experts(step: str) -> DeltaGenerator | None:
    """Draw a closed box for experts; return it where it is open, for only then is what it holds computed.

    Args:
        step: anchor of the step whose box it is.
    """
    box = st.expander("For experts", key=f"{KEY}experts_{step}", on_change="rerun", icon=":material/tune:")
    return box if box.open else None


def measured_for(attributor: Served) -> dict[str, Any] | None:
    """Return the shipped experiment on this bundle's kind of network; the first one if there is none."""
    results, network = backdoor_results(), ModelSpec.from_dict(attributor.bundle.manifest.model).title
    alike = [result for result in results if result["setting"]["network"] == network]
    return next(iter(alike or results), None)


def sigma2_of(scene: Scene, method: str) -> float:
    """Return the sigma2 at which a method is asked for the culprits."""
    return scene.attributor.bundle.sigma2(method, purpose="backdoor")


def weak(names: tuple[str, ...], result: dict[str, Any] | None) -> str:
    """Return the method that found least in an experiment, though more than twice as much as chance."""
    if result is None:
        return names[-1]
    chance = result["attack"]["base_rate"]["mean"]
    rows = [row for row in result["rows"] if row["method"] in names and row["recall"]["mean"] > 2 * chance]
    return min(rows, key=lambda row: row["recall"]["mean"])["method"] if rows else names[-1]


def chance(scene: Scene, count: int) -> float:
    """Return how many culprits chance would find among `count` images of the pool."""
    pool = int((scene.attributor.train_labels == scene.target).sum())
    return count * len(scene.backdoor.culprits(scene.base)) / pool


def few(number: float) -> str:
    """Return a number of images as text: whole from 1 on, else "less than 1"."""
    return f"{number:.0f}" if number >= 0.95 else "less than 1"
