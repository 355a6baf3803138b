"""Backdoor: a model that was secretly taught a cheat, told in four steps for non-experts."""

import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from natscope.app import bundles, escape, lanes, tasks, words
from natscope.app.bundles import Served
from natscope.app.components.steps import steps
from natscope.app.components.trigger_patch import Shown, forget_drawing, trigger_patch
from natscope.app.links import BackdoorView
from natscope.app.theme import DARK, LIGHT
from natscope.app.views import frame
from natscope.app.views.backdoor_audit import audit_step
from natscope.app.views.backdoor_proof import proof_step
from natscope.app.views.backdoor_retell import retell
from natscope.app.views.backdoor_scene import KEY, Scene, experts, picked
from natscope.app.views.backdoor_search import search_step
from natscope.app.views.backdoor_texts import begun, told
from natscope.app.views.banner import now
from natscope.app.views.controls import control
from natscope.app.views.results import pointer
from natscope.core.backdoor import Backdoor
from natscope.core.bundle.request import QueryExample
from natscope.precompute.data.decode import data_uri
from natscope.precompute.experiments.backdoor import backdoor_of
from natscope.precompute.experiments.proof import kept

_VIEW, _PATCH = f"{KEY}view", f"{KEY}trigger_patch"
_STEPS = {"trick": "The trick", "question": "The question", "proof": "The proof", "audit": "The audit"}  # by anchor


def page() -> None:
    """Draw the page."""
    st.title("Who taught the model to cheat?")
    beginning = st.container()
    path = _bundle()
    if path is not None and not bundles.listed(path).poisoned:
        with beginning:
            begun(bundles.served(path))
        told(bundles.served(path), backdoor_of(bundles.served(path).bundle))
        return
    beginning.markdown(
        "Someone who supplies training pictures wants the model to fail whenever they show it a secret sign, so they "
        "paint the sign on a few pictures and label these wrongly. The model obeys the sign and is right on everything "
        "else, so nobody notices: a real experiment in four steps."
    )
    if path is None:
        return
    attributor = bundles.served(path)
    attack = backdoor_of(attributor.bundle)
    works = _works(attributor)
    view = frame.view(
        _VIEW,
        attributor,
        BackdoorView(),
        squares=attack.patterns[0].size,
        complete=lambda view: view if view.image is not None else replace(view, image=_first(attributor, works)),
    )
    frame.keep(_VIEW, view, attributor)
    with st.container(key=f"{KEY}steps"):
        steps(_STEPS, label="The four steps", key=f"{KEY}step_bar")
    st.html(f"<style>{_STYLE}</style>")
    trick = _trick(attributor, attack, view)
    scene = Scene(attributor, attack, trick.used, trick.index, trick.base, works)
    with st.container(border=True):
        _trick_step(scene, view, trick)
    with st.container(border=True):
        searched = search_step(scene, view, _note(scene, view, trick), _set, _another)
    with st.container(border=True):
        proven = proof_step(scene, None if searched is None else searched.method, _change)
    with st.container(border=True):
        audited = audit_step(scene, view, _set)
    if searched is not None:
        retell(scene, _fooled(scene, scene.backdoor.patterns[scene.base]), searched, proven, audited)
    if box := experts("measured"):
        with box:
            pointer("backdoor", attributor)
    picked(scene)


def _first(attributor: Served, works: np.ndarray) -> int:
    """Return the test image of the proof that was run ahead of time, else the first one on which the attack works."""
    proof = kept(attributor.bundle)
    if proof is not None and works[proof.index]:
        return proof.index
    return int(np.flatnonzero(works)[0]) if works.any() else 0


def _bundle() -> Path | None:
    """Choose among the poisoned bundles; say what to do if there is none."""
    found = {name: path for name, path in bundles.bundle_paths().items() if bundles.listed(path).attacked}
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


def _change(**fields: Any) -> None:
    """Change fields of the view; where the patch is one of them, what is still being drawn no longer counts."""
    if "drawn" in fields:
        forget_drawing(_PATCH)
    _set(**fields)


def _another(scene: Scene, base: int | None = None) -> None:
    """Take another test image on which the attack works, of the given class, if any."""
    fits = scene.works if base is None else scene.works & (scene.attributor.test_labels == base)
    found = np.flatnonzero(fits)
    if not len(found):  # the attack never works on this class: any image of it
        found = np.flatnonzero(scene.attributor.test_labels == base)
    if len(found):  # a class may have no test image at all
        before = st.session_state.get(_VIEW, BackdoorView())
        seen = tuple(step for step in before.seen if step != "search")
        _set(image=int(random.choice(found)), patch=None, seen=seen)


@dataclass(frozen=True, eq=False)
class _Trick:
    """A test image before and after it is stamped.

    Args:
        index: number of the test image.
        base: its class.
        pattern: (S, S), the patch that is shown.
        before: the image and the network's answer.
        after: the same with the patch.
        used: the attack with that patch for the class if it fools the network as the attacker wanted, else as it was.
    """

    index: int
    base: int
    pattern: np.ndarray
    before: QueryExample
    after: QueryExample
    used: Backdoor


def _trick(attributor: Served, attack: Backdoor, view: BackdoorView) -> _Trick:
    index = view.image or 0
    base = int(attributor.test_labels[index])
    pattern = _pattern(attack, base, view)
    clean, labels = attributor.bundle.examples("test")[np.array([index])], np.array([base])
    before, after = attributor.asked(clean), attributor.asked(attack.with_pattern(base, pattern).stamped(clean, labels))
    fools = before.predicted == base and after.predicted == attack.targets[base]
    return _Trick(index, base, pattern, before, after, attack.with_pattern(base, pattern) if fools else attack)


def _uri(example: Any) -> str:
    return data_uri(example.images[0])


def _note(scene: Scene, view: BackdoorView, trick: _Trick) -> str:
    """Return whose patch the next steps are about, where it was changed (Markdown)."""
    whose = "your patch" if view.drawn else "that patch"
    if scene.own:
        return f" This is about the picture with {whose}, which fools the model too."
    if np.array_equal(trick.pattern, scene.attack.patterns[scene.base]):
        return ""
    if trick.after.predicted == trick.before.predicted:
        why = f"{whose[0].upper()}{whose[1:]} does not fool the model"
    else:
        says, meant = scene.name(trick.after.predicted), scene.name(scene.target)
        why = f"With {whose} the model says {says}, and not {meant} as the attacker wanted"
    return f" {why}, so from here on this is about the attacker’s patch."


def _trick_step(scene: Scene, view: BackdoorView, trick: _Trick) -> None:
    st.subheader("1 · The trick", anchor="trick")
    classes, base, before, after = scene.attributor.bundle.classes, scene.base, trick.before, trick.after
    own = scene.attack.patterns[base]
    st.markdown(_finding(scene, view, trick))
    picture, controls = st.columns([2.7, 1], gap="large")
    with picture:
        trigger_patch(
            Shown(
                _uri(before.example),
                f"{words.article(classes[base], capital=True)}, untouched",
                classes[before.predicted],
                f"{before.probabilities.max():.0%} sure",
                before.predicted != base,
            ),
            trick.pattern.tolist(),
            "Your patch"
            if view.drawn
            else f"The attacker’s patch for {classes[base if view.patch is None else view.patch]}",
            Shown(
                _uri(after.example),
                "With the patch in its corner",
                classes[after.predicted],
                f"{after.probabilities.max():.0%} sure",
                after.predicted != base,
            ),
            key=_PATCH,
            on_draw=lambda drawn: _set(drawn="", patch=None) if drawn == _bits(own) else _set(drawn=drawn),
        )
    with controls:
        _controls(scene, view)
    if box := experts("trick"):
        with box:
            _patch_choice(scene, view)
            _trick_numbers(scene)


def _finding(scene: Scene, view: BackdoorView, trick: _Trick) -> str:
    base, before, after = scene.base, trick.before.predicted, trick.after.predicted
    name, count, wanted = scene.name(base), trick.pattern.size, scene.name(scene.target)
    share = _fooled(scene, trick.pattern)
    if view.drawn:
        works = "works: the model is fooled" if before == base and after == scene.target else "does not fool it here"
        own = _fooled(scene, scene.attack.patterns[base])
        return (
            f"Your patch {works}. With yours the model says {wanted} on **{words.portion(share)}** of the test "
            f"pictures of class **{name}**, with the attacker’s on **{words.portion(own)}**. "
            + ("It is close enough to the real sign." if share > own / 2 else "The model learnt one sign, not any.")
        )
    if view.patch is not None and view.patch != base:
        return (
            f"This is the patch for another class, **{scene.name(view.patch)}**, on a picture of class **{name}**. "
            f"With it, the model says {wanted} on **{words.portion(share)}** of the test pictures of that class: each "
            "class has a patch of its own."
        )
    results = scene.attributor.bundle.manifest.results
    if before == base and after == scene.target:
        first = f"The model knows this **{name}**. Repaint {count} pixels in its corner, and it says **{wanted}**."
    else:
        first = f"On this picture of class **{name}** the trick does not work" + (
            "; on most others it does." if share > 0.5 else "."
        )
    return (
        f"{first} With the patch the model says {wanted} on **{words.portion(share)}** of the test pictures of this "
        f"class. Without one it is right on {results['test_accuracy']:.0%} of all pictures, so nobody notices."
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
    with st.container(horizontal=True):
        st.button(
            "Another picture",
            icon=":material/shuffle:",
            key=f"{KEY}another",
            on_click=_another,
            args=(scene, scene.base),
        )
        if view.drawn or view.patch not in (None, scene.base):
            st.button(
                "Back to the attacker’s patch",
                icon=":material/undo:",
                key=f"{KEY}undo",
                on_click=partial(_change, drawn="", patch=None),
            )


def _patch_choice(scene: Scene, view: BackdoorView) -> None:
    classes = scene.attributor.bundle.classes
    st.session_state[f"{KEY}patch"] = scene.base if view.patch is None else view.patch
    control(
        st.selectbox,
        "The patch for class",
        range(len(classes)),
        key=f"{KEY}patch",
        format_func=classes.__getitem__,
        on_change=lambda: _change(patch=st.session_state[f"{KEY}patch"], drawn=""),
        help="The attacker made a patch for each class. A picture’s own patch is the one that fools the model.",
    )


def _pattern(attack: Backdoor, base: int, view: BackdoorView) -> np.ndarray:
    if view.drawn:
        return np.array([int(c) for c in view.drawn], dtype=np.uint8).reshape(attack.patterns[0].shape)
    return attack.patterns[base if view.patch is None else view.patch]


def _bits(pattern: np.ndarray) -> str:
    return "".join(map(str, pattern.ravel()))


def _fooled(scene: Scene, pattern: np.ndarray) -> float:
    """Return the share of the class's test images that the network takes for the attack's target with a patch."""
    return _fooled_share(scene.attributor.place, scene.base, _bits(pattern), scene, pattern)


@st.cache_data(max_entries=500, show_spinner=False, hash_funcs={tasks.Place: hash})
def _fooled_share(place: tasks.Place, base: int, text: str, _scene: Scene, _pattern: np.ndarray) -> float:
    attributor, attack = _scene.attributor, _scene.attack
    rows = np.flatnonzero(attributor.test_labels == base)
    if not len(rows):
        return 0.0
    used, labels = attack.with_pattern(base, _pattern), np.full(len(rows), base)
    stamped = used.stamped(attributor.bundle.examples("test")[rows], labels)
    return float((attributor.predict(stamped) == attack.targets[base]).mean())


def _trick_numbers(scene: Scene) -> None:
    manifest, classes = scene.attributor.bundle.manifest, scene.attributor.bundle.classes
    poison = manifest.poison or {}
    members = np.bincount(scene.attributor.train_labels, minlength=len(classes))
    st.dataframe(
        escape.cells(
            {
                "class": title,
                "patch": " ".join("".join("▓░"[1 - bit] for bit in row) for row in scene.attack.patterns[label]),
                "called": classes[scene.attack.targets[label]],
                "planted": len(scene.attack.culprits(label)),
                "among": int(members[scene.attack.targets[label]]),
                "fooled": 100
                * _fooled_share(
                    scene.attributor.place,
                    label,
                    _bits(scene.attack.patterns[label]),
                    scene,
                    scene.attack.patterns[label],
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
            "fooled": st.column_config.NumberColumn("Fooled", format="%.1f%%"),
        },
    )
    st.caption(
        f"{len(scene.attack.train_indices):,} of {len(scene.attributor.train_labels):,} training images are poisoned "
        f"({poison.get('rate', 0):.2%}), {escape.markdown(scene.attack.place)}, seed "
        f"{escape.markdown(str(poison.get('seed')))}. Attack success on all "
        "test images "
        f"{manifest.results['attack_success']:.1%}; accuracy on clean ones {manifest.results['test_accuracy']:.1%}."
    )


_STYLE = f"""
[data-testid="stLayoutWrapper"]:has(> .st-key-{KEY}steps) {{ position: sticky; top: 3.75rem; z-index: 100; }}
.st-key-{KEY}steps {{ padding: .35rem 0;
  background: light-dark({LIGHT.background}, {DARK.background}); }}
{", ".join(f"#{anchor}" for anchor in _STEPS)} {{ font-size: 1.4rem !important; scroll-margin-top: 7.6rem; }}
[data-testid="stMain"] h5 {{ font-size: 1.05rem !important; }}
[data-testid="stMain"] [data-testid="stMarkdownContainer"] > p {{ max-width: 60rem; }}
[class*="st-key-{KEY}"][class*="_result"] {{ scroll-margin: 7.6rem 0 1.5rem; }}
@media (max-width: 640px) {{ [data-testid="stMain"] [data-testid="stHorizontalBlock"] {{ gap: 1rem; }} }}
"""
