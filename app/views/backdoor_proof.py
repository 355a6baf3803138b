"""Step 3 of the Backdoor page: train again without what was found, and without as many images at random."""

import html
from collections.abc import Callable

import numpy as np
import streamlit as st

from app.views.backdoor_scene import KEY, SHOWN, Scene
from app.views.backdoor_search import ranking
from app.views.job import run_job
from core.curves import REFERENCE
from core.errors import QueryError
from core.methods import METHODS
from precompute.attributor import open_attributor
from precompute.retrain import Outcome, outcome, retrain, too_slow

Progress = Callable[[str, int, int], None]


def proof_step(scene: Scene) -> None:
    """Draw the step."""
    st.subheader("3 · The proof", anchor="proof")
    classes = scene.attributor.bundle.classes
    name = st.session_state.get(f"{KEY}method", REFERENCE)
    if not scene.works[scene.index]:
        st.markdown("Once a picture is chosen on which the patch works, its culprits can be taken away here.")
        return
    try:
        found = np.array([item.train_index for item in ranking(scene, name).items])
    except QueryError as error:
        st.error(str(error), icon=":material/error:")
        return
    pool = np.flatnonzero(scene.attributor.train_labels == scene.target)
    others = np.random.default_rng(0).choice(pool, len(found), replace=False)
    st.markdown(
        f"If those {len(found)} pictures taught the trick, a model that never saw them should not fall for it. So "
        "train it "
        f"again without them, and once more without {len(found)} others labelled {classes[scene.target]}, picked "
        "blindly."
    )
    if why := too_slow(scene.attributor.bundle):
        st.info(why + " On the model that comes with natscope this step is live.", icon=":material/hourglass_disabled:")
        return
    result = run_job(
        ("proof", scene.attributor.bundle.identity, scene.index, name, tuple(found.tolist())),
        lambda progress: _trained(scene, found, others, progress),
        name=f"{KEY}proof",
        label="Take them away and train again (half a minute)",
    )
    if result is None:
        return
    before, without, blind = result
    st.html(
        "<div class='ns-proof'>"
        + _bar("The model as it is", before, scene, "")
        + _bar(f"Without the {len(found)} that {METHODS[name].title} found", without, scene, "good")
        + _bar(f"Without {len(found)} picked blindly", blind, scene, "")
        + f"</div><style>{_STYLE}</style>"
    )
    st.markdown(_said(before, without, blind, scene, len(found)))
    if st.toggle("Show me the numbers", key=f"{KEY}numbers3"):
        _numbers(scene, (before, without, blind), found, name)


def _trained(
    scene: Scene, found: np.ndarray, others: np.ndarray, progress: Progress
) -> tuple[Outcome, Outcome, Outcome]:
    bundle = scene.attributor.bundle
    own = open_attributor(bundle.path)  # a network of its own, not the one that answers visitors' clicks
    results = [outcome(bundle, own.features.model, scene.backdoor, scene.index)]
    for stage, rows in (("Training without those found", found), ("Training without others", others)):

        def tell(done: int, total: int, stage: str = stage) -> None:
            progress(stage, done, total)

        model = retrain(bundle, rows, tell)
        results.append(outcome(bundle, model, scene.backdoor, scene.index))
    return results[0], results[1], results[2]


def _said(before: Outcome, without: Outcome, blind: Outcome, scene: Scene, count: int) -> str:
    classes = scene.attributor.bundle.classes
    fell = before.class_success - without.class_success
    if fell > 0.5 * before.class_success:
        verdict = "Those pictures taught it the trick."
    elif fell > before.class_success - blind.class_success + 0.05:
        verdict = "They are part of what taught it the trick, not all of it."
    else:
        verdict = "Taking them away did no more than taking others: they are not what taught it the trick."
    if without.answer == scene.base:
        says = "no longer fooled"
    else:
        says = "still fooled" if without.answer == scene.target else "no longer fooled that way, but wrong"
    return (
        f"Without them the patch works on **{without.class_success:.0%}** of pictures of class "
        f"{classes[scene.base]} instead of **{before.class_success:.0%}**; without {count} picked blindly, on "
        f"**{blind.class_success:.0%}**. **{verdict}** About the picture above the model is {says}: it says "
        f"{classes[without.answer]}."
    )


def _bar(title: str, result: Outcome, scene: Scene, tone: str) -> str:
    answer = html.escape(scene.attributor.bundle.classes[result.answer])
    mark = "✓" if result.answer == scene.base else "✗"
    return (
        f'<div class="line {tone}"><span class="name">{html.escape(title)}</span>'
        f'<span class="track"><span style="width:{max(result.class_success, 0.004):.1%}"></span></span>'
        f'<span class="value">fooled {result.class_success:.0%}</span>'
        f'<span class="also">{mark} “{answer}” here · right on {result.accuracy:.1%} of untouched pictures</span></div>'
    )


def _numbers(scene: Scene, results: tuple[Outcome, ...], found: np.ndarray, name: str) -> None:
    culprits = scene.backdoor.culprits(scene.base)
    titles = ("as it is", f"without those of {METHODS[name].title}", "without random ones")
    st.dataframe(
        [
            {
                "model": title,
                "attack success, this class": 100 * r.class_success,
                "attack success, all classes": 100 * r.success,
                "test accuracy": 100 * r.accuracy,
                "answer here": f"{scene.attributor.bundle.classes[r.answer]}, {r.probability:.1%}",
            }
            for title, r in zip(titles, results, strict=True)
        ],
        hide_index=True,
        column_config={
            key: st.column_config.NumberColumn(format="%.1f %%")
            for key in ("attack success, this class", "attack success, all classes", "test accuracy")
        },
    )
    st.caption(
        f"{np.isin(found, culprits).sum()} of the {len(found)} removed images are among this class’s {len(culprits)} "
        f"poisoned ones (M = {SHOWN}). Same initial weights, same order of the images that are left, same recipe."
    )


_STYLE = """
.ns-proof { display: flex; flex-direction: column; gap: .7rem; margin: .3rem 0 .6rem; max-width: 900px; }
.ns-proof .line { display: grid;
  grid-template-columns: minmax(0, 1.25fr) minmax(0, 1.6fr) 6.2rem;
  gap: .15rem .9rem; align-items: center; }
.ns-proof .name { font-weight: 600; line-height: 1.3; }
.ns-proof .track { height: 14px; border-radius: 7px; background: color-mix(in srgb, currentColor 12%, transparent);
  overflow: hidden; }
.ns-proof .track span { display: block; height: 100%; background: #d55e00; border-radius: 7px; }
.ns-proof .good .track span { background: #0f8a5f; }
.ns-proof .value { font-weight: 650; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ns-proof .also { grid-column: 2 / -1; font-size: .8rem; opacity: .8; }
@media (max-width: 640px) {
  .ns-proof .line { grid-template-columns: minmax(0, 1fr) 6rem; }
  .ns-proof .name, .ns-proof .also { grid-column: 1 / -1; }
}
"""
