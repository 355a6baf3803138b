"""The end of the Backdoor page: what was seen so far, in words to retell."""

import streamlit as st

from natscope.app import escape, words
from natscope.app.views.backdoor_scene import Audited, Proven, Scene, Searched


def retell(scene: Scene, fooled: float, searched: Searched, proven: Proven | None, audited: Audited | None) -> None:
    """Draw a sentence for each step that was seen: it grows as the visitor goes on.

    Args:
        scene: what the page is about.
        fooled: share of the class's test images that the patch fools.
        searched: what the search found.
        proven: what retraining showed; None while there is no result.
        audited: what the audit found; None before that is revealed.
    """
    said = [_attack(scene, fooled)]
    if searched.revealed:
        said.append(
            f"Asked about one such answer, {searched.by} named {words.counted(searched.named, 'training picture')}: "
            f"{words.number_were(searched.planted)} planted."
        )
    if proven is not None and (searched.revealed or proven.live):  # before, it would tell what was found
        said.append(_proof(proven))
    if audited is not None:
        said.append(
            f"An audit that knew nothing of the attack looked through all {len(scene.attributor.train_labels):,}: "
            f"of its first {audited.suspects} suspects, {words.number_were(audited.planted)} planted."
        )
    more = "" if searched.revealed and audited is not None else "<small>This summary grows as you go on.</small>"
    st.html(
        f'<figure class="ns-retell"><figcaption>To retell</figcaption><p>{escape.html(" ".join(said))}</p>{more}'
        f"</figure><style>{_STYLE}</style>"
    )


def _attack(scene: Scene, fooled: float) -> str:
    classes, planted = scene.attributor.bundle.classes, len(scene.attack.culprits(scene.base))
    sign = "a sign like it" if scene.own else "that sign"
    return (
        f"Someone hid a secret sign in {planted} of {len(scene.attributor.train_labels):,} training pictures; the "
        f"model then called {words.article(classes[scene.base])} with {sign} “{classes[scene.target]}” "
        f"{words.in_cases(fooled)}."
    )


def _proof(proven: Proven) -> str:
    if proven.after == 0:
        fooled = "never fooled"
    elif proven.after < proven.before / 2:
        fooled = f"fooled {words.in_cases(proven.after, only=True)}"
    else:
        fooled = f"still fooled {words.in_cases(proven.after)}"
    once = f"Measured once, on {proven.date}: a" if proven.date else "A"
    removed = words.counted(proven.removed, "picture")
    return f"{once} model trained without the {removed} that {proven.by} named is {fooled}."


_STYLE = """
.ns-retell { margin: .6rem 0; padding: .9rem 1.2rem; border-left: 5px solid #1b8aa3; border-radius: 0 12px 12px 0;
  background: color-mix(in srgb, #1b8aa3 9%, transparent); max-width: 60rem; }
.ns-retell p { font-size: 1.15rem; line-height: 1.5; margin: .2rem 0 0; overflow-wrap: anywhere; }
.ns-retell figcaption, .ns-retell small { font-size: .85rem; opacity: .8; }
.ns-retell small { display: block; margin-top: .4rem; }
@media (max-width: 640px) { .ns-retell p { font-size: 1.05rem; } }
"""
