"""Step 3 of the Backdoor page: retrain without what was found, and without as many images at random."""

import numpy as np
import streamlit as st

from natscope.app import escape, tasks, words
from natscope.app.components.bars import Bar, bars
from natscope.app.results import commands, retraining_results
from natscope.app.views.backdoor_scene import KEY, SHOWN, Scene
from natscope.app.views.backdoor_search import ranking
from natscope.app.views.job import run_job
from natscope.app.views.notice import complain
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, RANDOM, REFERENCE
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.removal import as_many_others
from natscope.precompute.training.retrain import Outcome, patience, too_slow


def proof_step(scene: Scene) -> None:
    """Draw the step."""
    st.subheader("3 · The proof", anchor="proof")
    name = st.session_state.get(f"{KEY}method", REFERENCE)
    if not scene.works[scene.index]:
        st.markdown("Once a picture is chosen on which the patch works, its culprits can be removed here.")
        return
    try:
        found = np.array([item.train_index for item in ranking(scene, name).items])
    except QueryError as error:
        complain(error)
        return
    pool = np.flatnonzero(scene.attributor.train_labels == scene.target)
    which = "those" if len(found) <= len(pool) // 2 else "the first"  # so that as many others are left
    found = found[: max(1, len(pool) // 2)]
    if len(pool) < 2:
        st.info("The class that the attack aims at has one training image: too few to compare with.")
        return
    others = as_many_others(pool, found)
    why = too_slow(scene.attributor.bundle, linear=scene.attributor.linear)
    live = (
        f" So train it again without them, and once more without {len(found)} others labelled "
        f"{scene.name(scene.target)}, picked at random."
    )
    st.markdown(
        f"If {which} {len(found)} pictures taught the trick, a model that never saw them should not fall for it."
        + ("" if why else live)
    )
    if why:
        _measured_once(scene, why)
        return
    stages = (("Training without those found", found), ("Training without as many random images", others))
    result = run_job(
        ("proof", scene.attributor.place, scene.index, np.sort(found).tobytes(), np.sort(others).tobytes()),
        tasks.proof,
        *(scene.attributor.place, stages, scene.index),
        name=f"{KEY}proof",
        label=f"Remove them and retrain ({patience(linear=scene.attributor.linear)})",
    )
    if result is None:
        return
    before, without, at_random = result
    title = f"Without the {len(found)} that {METHODS[name].title} found"
    bars(
        [
            _fooled("The model as it is", before.class_success, _says(before, scene)),
            _fooled(title, without.class_success, _says(without, scene), "good"),
            _fooled(f"Without {len(found)} random ones", at_random.class_success, _says(at_random, scene)),
        ]
    )
    st.markdown(_said(before, without, at_random, scene, len(found)))
    if st.toggle("Show me the numbers", key=f"{KEY}numbers3"):
        _numbers(scene, (before, without, at_random), found, name)


def _said(before: Outcome, without: Outcome, at_random: Outcome, scene: Scene, count: int) -> str:
    fell, by_chance = (before.class_success - each.class_success for each in (without, at_random))
    more = fell > by_chance + 0.05
    if more and fell > 0.5 * before.class_success:
        verdict = "Those pictures taught it the trick."
    elif more:
        verdict = "They are part of what taught it the trick, not all of it."
    else:
        verdict = "Removing them did no more than removing others, so this does not show what taught it the trick."
    if without.answer == scene.base:
        says = "no longer fooled"
    else:
        says = "still fooled" if without.answer == scene.target else "no longer fooled that way, but wrong"
    return (
        f"Without them the patch works on **{without.class_success:.0%}** of pictures of class "
        f"{scene.name(scene.base)} instead of **{before.class_success:.0%}**; without {count} random ones, on "
        f"**{at_random.class_success:.0%}**. **{verdict}** About the picture above the model is {says}: it says "
        f"{scene.name(without.answer)}."
    )


def _measured_once(scene: Scene, why: str) -> None:
    """Draw the measured result of retraining, for networks that are too slow to retrain here."""
    bundle = scene.attributor.bundle
    network = ModelSpec.from_dict(bundle.manifest.model).title
    results = [result for result in retraining_results() if result["setting"]["network"] == network]
    if not results:
        st.info(why + " On the model that comes with natscope this step is live.", icon=":material/hourglass_disabled:")
        return
    result = results[0]
    setting, rows = result["setting"], result["rows"]
    own = setting["classes"] == list(bundle.classes)
    st.info(
        f"{why} So this is not live: it was measured once, on {result['date']}, with {words.data_of(setting)}. For "
        f"{_pictures(setting['queries'])} of every class the first {setting['budget']} images were named, and the "
        "network was trained from scratch without all of these. On the model that comes with natscope this step is "
        "live.",
        icon=":material/hourglass_disabled:",
    )
    drawn = []
    for row in rows:
        title = METHODS[row["method"]].title if row["method"] else ""
        if row["method"] is None:
            name, tone = "The model as it is", ""
        elif row["method"] == RANDOM:
            name, tone = f"Without {row['removed']} random ones", ""
        else:
            name, tone = f"Without the {row['removed']} that {title} found", "good"
        success = row["class_success"][scene.base] if own else row["attack_success"]
        planted = f"{row['poisoned_removed']} of them planted · " if row["method"] else ""
        drawn.append(
            _fooled(name, success, f"{planted}right on {row['test_accuracy']:.1%} of untouched pictures", tone)
        )
    bars(drawn)
    st.caption(
        (f"How often the patch works on pictures of class {scene.name(scene.base)}. " if own else "")
        + f"Over all classes: {escape.sentence(result['finding'])}"
    )
    with st.expander("How it was measured"):
        values = ", ".join(f"σ² of {METHODS[name].title}: {value:g}" for name, value in setting["sigma2"].items())
        st.markdown(
            f"{values}; pool: the class that the attack aims at; same initial weights, same order "
            "of the images that are left, same recipe."
        )
        st.code(commands(result), language=None)


def _pictures(count: int) -> str:
    return "one fooled picture" if count == 1 else f"{count} fooled pictures"


def _fooled(title: str, success: float, also: str, tone: str = "") -> Bar:
    return Bar(title, success, f"fooled {success:.0%}", also, tone)


def _says(result: Outcome, scene: Scene) -> str:
    mark = "✓" if result.answer == scene.base else "✗"
    answer = scene.attributor.bundle.classes[result.answer]
    return f"{mark} “{answer}” here · right on {result.accuracy:.1%} of untouched pictures"


def _numbers(scene: Scene, results: tuple[Outcome, ...], found: np.ndarray, name: str) -> None:
    culprits = scene.backdoor.culprits(scene.base)
    titles = ("as it is", f"without those of {METHODS[name].title}", "without random ones")
    st.dataframe(
        escape.cells(
            {
                "model": title,
                "attack success, this class": 100 * r.class_success,
                "attack success, all classes": 100 * r.success,
                "test accuracy": 100 * r.accuracy,
                "answer here": f"{scene.attributor.bundle.classes[r.answer]}, {r.probability:.1%}",
            }
            for title, r in zip(titles, results, strict=True)
        ),
        hide_index=True,
        column_config={
            key: st.column_config.NumberColumn(format="%.1f%%")
            for key in ("attack success, this class", "attack success, all classes", "test accuracy")
        },
    )
    st.caption(
        f"{np.isin(found, culprits).sum()} of the {len(found)} removed images are among this class’s {len(culprits)} "
        f"poisoned ones (M = {SHOWN}). Same initial weights, same order of the images that are left, same recipe."
    )
