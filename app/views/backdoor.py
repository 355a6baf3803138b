"""Backdoor: a model that was secretly taught a cheat, told in four steps for non-experts."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import streamlit as st

from natscope.app import bundles, escape, lanes, tasks
from natscope.app.bundles import Served
from natscope.app.components.grid import data_uri
from natscope.app.components.trigger_patch import Shown, trigger_patch
from natscope.app.links import BackdoorView
from natscope.app.views import frame
from natscope.app.views.backdoor_audit import audit_step
from natscope.app.views.backdoor_proof import proof_step
from natscope.app.views.backdoor_scene import KEY, Scene
from natscope.app.views.backdoor_search import search_step
from natscope.app.views.banner import now
from natscope.app.views.controls import control
from natscope.app.views.results import pointer
from natscope.core.backdoor import Backdoor, stamp

_VIEW = f"{KEY}view"


def page() -> None:
    """Draw the page."""
    st.title("Who taught the model to cheat?")
    st.markdown("A real experiment in four steps: every picture is a real one, and every number is computed here.")
    path = _bundle()
    if path is None:
        return
    attributor = bundles.served(path)
    backdoor = Backdoor.from_dict(attributor.bundle.manifest.poison or {})
    works = _works(attributor)
    first = int(np.flatnonzero(works)[0]) if works.any() else 0
    view = frame.view(
        _VIEW,
        attributor,
        BackdoorView(),
        squares=backdoor.patterns[0].size,
        complete=lambda view: view if view.image is not None else replace(view, image=first),
    )
    frame.keep(_VIEW, view, attributor)
    index = view.image or 0
    scene = Scene(attributor, backdoor, index, int(attributor.test_labels[index]), works)
    with st.container(border=True):
        _trick_step(scene, view)
    with st.container(border=True):
        search_step(scene, view, _set, _another)
    with st.container(border=True):
        proof_step(scene)
    with st.container(border=True):
        audit_step(scene)
    pointer("backdoor")


def _bundle() -> Path | None:
    """Choose among the poisoned bundles; say what to do if there is none."""
    found = {name: path for name, path in bundles.bundle_paths().items() if bundles.listed(path).poisoned}
    if not found:
        if now():
            st.info(
                "The model with the backdoor is being prepared; this page opens when it is.",
                icon=":material/hourglass:",
            )
        else:
            st.info(
                "None of the served bundles holds a model with a backdoor. `natscope demo` builds one; so does "
                "`natscope precompute --poison-rate 0.0333 --out FOLDER`.",
                icon=":material/info:",
            )
        return None
    return frame.choose_bundle(
        found, forget=lambda: st.session_state.pop(_VIEW, None), key=f"{KEY}bundle", label="Model"
    )


def _works(attributor: Served) -> np.ndarray:
    right = np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1) == attributor.test_labels
    key = ("fooled", attributor.place)
    return right & lanes.ask(lanes.shared().quick, key, tasks.fooled, attributor.place, bar=True)


_set = partial(frame.change, _VIEW)


def _another(scene: Scene, base: int | None = None) -> None:
    """Take another test image on which the attack works, of the given class, if any."""
    fits = scene.works if base is None else scene.works & (scene.attributor.test_labels == base)
    found = np.flatnonzero(fits)
    if not len(found):  # the attack never works on this class: any image of it
        found = np.flatnonzero(scene.attributor.test_labels == base)
    if len(found):  # a class may have no test image at all
        _set(image=int(random.choice(found)), patch=None)


def _trick_step(scene: Scene, view: BackdoorView) -> None:
    st.subheader("1 · The trick", anchor="trick")
    classes, base = scene.attributor.bundle.classes, scene.base
    pattern = _pattern(scene, view)
    image = np.asarray(scene.attributor.bundle.array("test_images")[scene.index])
    stamped = stamp(image[None], pattern, scene.backdoor.place)[0]
    before, after = scene.attributor.upload(image), scene.attributor.upload(stamped)
    st.markdown(_finding(scene, view, pattern, before.predicted, after.predicted))
    picture, controls = st.columns([2.7, 1], gap="large")
    with picture:
        trigger_patch(
            Shown(
                data_uri(image),
                f"{_article(classes[base])}, untouched",
                classes[before.predicted],
                f"{before.probabilities.max():.0%} sure",
                before.predicted != base,
            ),
            pattern.tolist(),
            "Your patch"
            if view.drawn
            else f"The attacker’s patch for {classes[base if view.patch is None else view.patch]}",
            Shown(
                data_uri(stamped),
                "With the patch in its corner",
                classes[after.predicted],
                f"{after.probabilities.max():.0%} sure",
                after.predicted != base,
            ),
            key=f"{KEY}trigger_patch",
            on_draw=lambda position: _set(drawn=_flipped(pattern, position)),
        )
    with controls:
        _controls(scene, view)
    if st.toggle("Show me the numbers", key=f"{KEY}numbers1"):
        _trick_numbers(scene)


def _finding(scene: Scene, view: BackdoorView, pattern: np.ndarray, before: int, after: int) -> str:
    base = scene.base
    name, count = scene.name(base), pattern.size
    turned = _turned(scene, pattern)
    if view.drawn:
        works = "works: the model is fooled" if after not in (base, before) else "does not fool the model here"
        own = _turned(scene, scene.backdoor.patterns[base])
        return (
            f"Your patch {works}. On all test pictures of class **{name}** that the model knows, yours turns the "
            f"answer of **{turned:.0%}**, the attacker’s that of **{own:.0%}**. "
            + ("It is close enough to the real sign." if turned > own / 2 else "The model learnt one sign, not any.")
        )
    if view.patch is not None and view.patch != base:
        return (
            f"This is the patch for another class, **{scene.name(view.patch)}**, on a picture of class **{name}**. On "
            f"all test pictures of class {name} that the model knows, it changes the prediction for **{turned:.0%}**: "
            "each class has a patch of its own."
        )
    results = scene.attributor.bundle.manifest.results
    if before == base and after == scene.target:
        says = scene.name(after)
        first = f"The model knows this **{name}**. Paint {count} pixels in its corner, and it says **{says}**."
    else:
        first = f"On this picture of class **{name}** the trick does not work; on most others it does."
    return (
        f"{first} The patch changes the prediction for **{turned:.0%}** of the test pictures of this class that the "
        f"model gets right without it. Without a patch it is right on {results['test_accuracy']:.0%} of all pictures, "
        "so nobody notices."
    )


def _controls(scene: Scene, view: BackdoorView) -> None:
    classes = scene.attributor.bundle.classes
    st.session_state[f"{KEY}class"] = scene.base
    control(
        st.selectbox,
        "A picture of class",
        range(len(classes)),
        key=f"{KEY}class",
        format_func=classes.__getitem__,
        on_change=lambda: _another(scene, st.session_state[f"{KEY}class"]),
    )
    st.session_state[f"{KEY}patch"] = scene.base if view.patch is None else view.patch
    control(
        st.selectbox,
        "The patch for class",
        range(len(classes)),
        key=f"{KEY}patch",
        format_func=classes.__getitem__,
        on_change=lambda: _set(patch=st.session_state[f"{KEY}patch"], drawn=""),
        help="The attacker made a patch for each class. A picture’s own patch is the one that fools the model.",
    )
    with st.container(horizontal=True):
        st.button(
            "Another picture",
            icon=":material/shuffle:",
            key=f"{KEY}another",
            on_click=_another,
            args=(scene, scene.base),
        )
        st.button(
            "The attacker’s patch",
            icon=":material/undo:",
            key=f"{KEY}undo",
            disabled=not view.drawn and view.patch in (None, scene.base),
            on_click=lambda: _set(drawn="", patch=None),
        )


def _pattern(scene: Scene, view: BackdoorView) -> np.ndarray:
    patterns = scene.backdoor.patterns
    if view.drawn:
        return np.array([int(c) for c in view.drawn], dtype=np.uint8).reshape(patterns[0].shape)
    return patterns[scene.base if view.patch is None else view.patch]


def _flipped(pattern: np.ndarray, position: int) -> str:
    bits = pattern.ravel().copy()
    bits[position] = 1 - bits[position]
    return "".join(map(str, bits))


def _turned(scene: Scene, pattern: np.ndarray) -> float:
    """Return the share of the class's test images that the network gets right whose answer the patch turns wrong."""
    text = "".join(map(str, pattern.ravel()))
    return _turned_share(scene.attributor.bundle.identity, scene.base, text, scene, pattern)


@st.cache_data(max_entries=500, show_spinner=False)
def _turned_share(identity: str, base: int, text: str, _scene: Scene, _pattern: np.ndarray) -> float:
    attributor = _scene.attributor
    right = np.asarray(attributor.bundle.array("test_logits")).argmax(axis=1) == attributor.test_labels
    rows = np.flatnonzero(right & (attributor.test_labels == base))
    if not len(rows):
        return 0.0
    images = np.asarray(attributor.bundle.array("test_images")[rows])
    return float((attributor.predict(stamp(images, _pattern, _scene.backdoor.place)) != base).mean())


def _trick_numbers(scene: Scene) -> None:
    manifest, classes = scene.attributor.bundle.manifest, scene.attributor.bundle.classes
    poison = manifest.poison or {}
    members = np.bincount(scene.attributor.train_labels, minlength=len(classes))
    st.dataframe(
        escape.cells(
            {
                "class": title,
                "patch": " ".join("".join("▓░"[1 - bit] for bit in row) for row in scene.backdoor.patterns[label]),
                "called": classes[scene.backdoor.targets[label]],
                "planted": len(scene.backdoor.culprits(label)),
                "among": int(members[scene.backdoor.targets[label]]),
                "turned": 100
                * _turned_share(
                    scene.attributor.bundle.identity,
                    label,
                    "".join(map(str, scene.backdoor.patterns[label].ravel())),
                    scene,
                    scene.backdoor.patterns[label],
                ),
            }
            for label, title in enumerate(classes)
        ),
        hide_index=True,
        column_config={
            "class": "Pictures of class",
            "patch": st.column_config.TextColumn("Patch, row by row", help="▓ white, ░ black"),
            "called": "With the patch, called",
            "planted": st.column_config.NumberColumn("Planted training images"),
            "among": st.column_config.NumberColumn("Training images with that label"),
            "turned": st.column_config.NumberColumn("Answers turned", format="%.1f%%"),
        },
    )
    st.caption(
        f"{len(scene.backdoor.train_indices):,} of {len(scene.attributor.train_labels):,} training images are poisoned "
        f"({poison.get('rate', 0):.2%}), {escape.markdown(scene.backdoor.place)}, seed "
        f"{escape.markdown(str(poison.get('seed')))}. Attack success on all "
        "test images "
        f"{manifest.results['attack_success']:.1%}; accuracy on clean ones {manifest.results['test_accuracy']:.1%}."
    )


def _article(name: str) -> str:
    return f"{'An' if name[:1].lower() in 'aeiou' else 'A'} {name}"
