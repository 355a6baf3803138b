"""Step 3 of the Backdoor page: retrain without what was found, and without as many images at random."""

import numpy as np
import streamlit as st

from natscope.app import escape, tasks, words
from natscope.app.components.bars import Bar, bars
from natscope.app.results import commands, retraining_results
from natscope.app.views.backdoor_scene import KEY, Change, Proven, Scene, experts, show_once_there
from natscope.app.views.backdoor_search import found_by, ranking
from natscope.app.views.job import run_job
from natscope.app.views.notice import complain
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, RANDOM, REFERENCE
from natscope.precompute.experiments.proof import NAMED, kept, parted
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.retrain import Outcome, patience, too_slow


def proof_step(scene: Scene, name: str | None, change: Change) -> Proven | None:
    """Draw the step.

    Args:
        scene: what the page is about.
        name: the method that was asked; None if the model is not fooled.
        change: called with changes of the view.

    Returns:
        What it showed; None while there is no result.
    """
    st.subheader("3 · The proof", anchor="proof")
    if name is None:
        st.markdown("Once a picture is chosen on which the patch works, its culprits can be removed here.")
        return None
    try:
        ranked = [item.train_index for item in ranking(scene, name).items]
    except QueryError as error:
        complain(error)
        return None
    pool = np.flatnonzero(scene.attributor.train_labels == scene.target)
    if len(pool) < 2:
        st.info("The class that the attack aims at has one training image: too few to compare with.")
        return None
    found, others = parted(scene.attributor.train_labels, scene.target, ranked)
    which = "those" if len(found) == len(ranked) else "the first"
    why = too_slow(scene.attributor.bundle, linear=scene.attributor.linear)
    ahead = None if why else kept(scene.attributor.bundle)
    ready = ahead if ahead and not scene.own and ahead.shows(scene.index, found, others) else None
    retrained = "it was trained again" if ready else "train it again"
    live = (
        f" So {retrained} without them, and once more without {len(found)} others labelled {scene.name(scene.target)}, "
        "picked at random."
    )
    st.markdown(
        f"If {which} {len(found)} pictures taught the trick, a model that never saw them should not fall for it."
        + ("" if why else live)
    )
    if why:
        return _measured_once(scene, why)
    place = f"{KEY}proof_result"
    shown = st.container(key=place)
    takes = patience(scene.attributor.bundle, linear=scene.attributor.linear)
    pattern = scene.backdoor.patterns[scene.base]
    sets = (np.sort(found).tobytes(), np.sort(others).tobytes(), pattern.tobytes())
    question = (scene.attributor.place, scene.index, *sets)
    result = run_job(
        ("proof", *question),
        tasks.proof,
        *(scene.attributor.place, scene.index, found, others, pattern),
        name=f"{KEY}proof",
        label=f"Run it live ({takes})" if ready else f"Remove them and retrain ({takes})",
    )
    if ahead and ahead.index != scene.index:
        st.button(
            "See it at once for another picture",
            icon=":material/fast_forward:",
            key=f"{KEY}ahead",
            type="tertiary",
            on_click=change,
            kwargs={"image": ahead.index, "patch": None, "drawn": "", "method": ""},
        )
    outcomes = result or (ready and ready.outcomes)
    with shown:
        show_once_there(place, question, there=bool(result))
    if not outcomes:
        return None
    with shown:
        _shown(scene, outcomes, len(found), found_by(name))
        if ready:
            st.caption("This run was live." if result else "This was run when the model was prepared.")
    if box := experts("proof"):
        with box:
            _numbers(scene, outcomes, found, name)
    before, without, _ = outcomes
    return Proven(len(found), found_by(name), before.class_success, without.class_success, live=bool(result))


def _shown(scene: Scene, outcomes: tuple[Outcome, ...], count: int, by: str) -> None:
    before, without, at_random = outcomes
    bars(
        [
            _fooled("The model as it is", before.class_success, _says(before, scene)),
            _fooled(f"Without the {count} that {by} named", without.class_success, _says(without, scene), "good"),
            _fooled(f"Without {count} random ones", at_random.class_success, _says(at_random, scene)),
        ]
    )
    st.markdown(_said(before, without, at_random, scene, count))


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
        f"Without them the patch works on **{words.portion(without.class_success)}** of the pictures of class "
        f"{scene.name(scene.base)} instead of **{words.portion(before.class_success)}**; without {count} random ones, "
        f"on **{words.portion(at_random.class_success)}**. **{verdict}** About the picture above the model is {says}: "
        f"it says {scene.name(without.answer)}."
    )


def _measured_once(scene: Scene, why: str) -> Proven | None:
    """Draw the measured result of retraining, for networks that are too slow to retrain here, and return it."""
    bundle = scene.attributor.bundle
    network = ModelSpec.from_dict(bundle.manifest.model).title
    results = [result for result in retraining_results() if result["setting"]["network"] == network]
    if not results:
        st.info(why + " On the model that comes with natscope this step is live.", icon=":material/hourglass_disabled:")
        return None
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
    drawn: list[Bar] = []
    for row in rows:
        title = found_by(row["method"]) if row["method"] else ""
        if row["method"] is None:
            name, tone = "The model as it is", ""
        elif row["method"] == RANDOM:
            name, tone = f"Without {row['removed']} random ones", ""
        else:
            name, tone = f"Without the {row['removed']} that {title} named", "good"
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
    if box := experts("proof"):
        with box:
            values = ", ".join(f"σ² of {METHODS[name].title}: {value:g}" for name, value in setting["sigma2"].items())
            st.markdown(
                f"{values}; pool: the class that the attack aims at; same initial weights, same order "
                "of the images that are left, same recipe."
            )
            st.code(commands(result), language=None)
    by_method = {row["method"]: row for row in rows}
    if not own or not {None, REFERENCE} <= by_method.keys():
        return None
    before, after = (by_method[name]["class_success"][scene.base] for name in (None, REFERENCE))
    return Proven(by_method[REFERENCE]["removed"], found_by(REFERENCE), before, after, date=result["date"])


def _pictures(count: int) -> str:
    return "one fooled picture" if count == 1 else f"{count} fooled pictures"


def _fooled(title: str, success: float, also: str, tone: str = "") -> Bar:
    said = {0.0: "never fooled", 1.0: "always fooled"}.get(success, f"fooled {words.portion(success)}")
    return Bar(title, success, said, also, tone)


def _says(result: Outcome, scene: Scene) -> str:
    mark = "✓" if result.answer == scene.base else "✗"
    answer = scene.attributor.bundle.classes[result.answer]
    return f"{mark} “{answer}” here · right on {result.accuracy:.1%} of untouched pictures"


def _numbers(scene: Scene, results: tuple[Outcome, ...], found: np.ndarray, name: str) -> None:
    culprits = scene.attack.culprits(scene.base)
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
        f"poisoned ones (M = {NAMED}). Same initial weights, same order of the images that are left, same recipe."
    )
