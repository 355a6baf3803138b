"""Step 4 of the Backdoor page: find the planted images without knowing the class, the patch, or a fooled picture."""

import numpy as np
import streamlit as st

from natscope.app import escape, tasks, words
from natscope.app.downloads import offer
from natscope.app.links import PLANTED, BackdoorView, MapView
from natscope.app.views import frame
from natscope.app.views.backdoor_scene import (
    KEY,
    Audited,
    Change,
    Scene,
    experts,
    few,
    line_up,
    measured_for,
    reveal_button,
    show_once_there,
)
from natscope.app.views.job import run_job
from natscope.core.analysis.audit import FIRST, sigma2_of
from natscope.core.metrics import average_precision
from natscope.precompute.training.retrain import too_slow

_PICTURED = 60
_FEWEST = 50  # suspects
_QUICK = 20_000  # training images


def audit_step(scene: Scene, view: BackdoorView, change: Change) -> Audited | None:
    """Draw the step, and return what it found once that is revealed.

    Args:
        scene: what the page is about.
        view: what it shows.
        change: called with changes of the view.
    """
    st.subheader("4 · The audit", anchor="audit")
    count = len(scene.attributor.train_labels)
    attacked = len(np.unique(scene.attack.base_labels))
    st.markdown(
        ("" if attacked < 2 else f"What you saw is one of {attacked} attacks: pictures of each class had a patch. ")
        + "Nobody tells you which class was attacked, or with what. But a planted patch is supported by a few mutually "
        "similar pictures, where an honest prediction relies on many. An audit looks at each training picture with "
        "that in mind and puts the most suspicious first."
    )
    scores = run_job(
        ("audit", scene.attributor.place),
        tasks.audit,
        scene.attributor.place,
        name=f"{KEY}audit",
        label=f"Audit all {count:,} training images ({'a few seconds' if count <= _QUICK else 'minutes'})",
        icon=":material/policy:",
        at_once="audit" in view.seen,
    )
    place = f"{KEY}audit_result"
    if scores is None:
        show_once_there(place, scene.attributor.place, there=False)
        return None
    if (unscored := int(np.isnan(scores).sum())) == count:
        st.info("No class has enough pictures for the audit: none of them could be scored.", icon=":material/info:")
        return None
    if unscored:
        st.caption(f"{unscored:,} pictures could not be scored, in classes with too few; they are at the end.")
    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")
    with st.container(key=place):
        suspects = order[: _length(count)]
        found = _suspects(scene, suspects, reveal_button("audit", view, change))
        show_once_there(place, scene.attributor.place, there=True)
    with st.container(horizontal=True):
        if found is not None:
            address = frame.tab_address(frame.MAP, MapView(colour=PLANTED), scene.attributor)
            st.link_button("See the planted pictures on a map", address, icon=":material/scatter_plot:")
        offer(
            "Download CSV",
            lambda: _table(scene, scores, suspects),
            "natscope-suspects.csv",
            "text/csv",
            icon=":material/download:",
            key=f"{KEY}audit_csv",
        )
    _healed(scene, suspects)
    if box := experts("audit"):
        with box:
            _numbers(scene, scores)
    return found


def _length(count: int) -> int:
    """Choose how many of so many images are listed."""
    least = min(_FEWEST, count)
    most = min(2000, max(least, count // 2))
    if most == least:  # a slider needs two values
        return least
    controls, _ = st.columns([1, 1.6])
    chosen: int = controls.slider(
        "How many suspects",
        least,
        most,
        min(500, most),
        step=_FEWEST,
        key=f"{KEY}suspects",
        help="The length of the list.",
    )
    return chosen


def _suspects(scene: Scene, suspects: np.ndarray, revealed: bool) -> Audited | None:
    """Draw the suspects, and return what was found among them if that is revealed."""
    count = len(scene.attributor.train_labels)
    planted, pictured = scene.attack.train_indices, suspects[:_PICTURED].tolist()
    hits, place = int(np.isin(suspects, planted).sum()), f"{KEY}audit_revealed_result"
    with st.container(key=place):
        if revealed:
            st.markdown(
                f"##### The suspects: {words.planted_among(hits, len(suspects))}\n"
                f"Random picking would find about {few(len(suspects) * len(planted) / count)}; there are "
                f"{len(planted):,} in all."
            )
        line_up(
            scene,
            pictured,
            name="audit",
            label=f"The first {len(pictured)} suspects",
            planted=set(planted.tolist()) if revealed else None,
        )
        show_once_there(place, scene.attributor.place, there=revealed)
    return Audited(len(suspects), hits) if revealed else None


def _healed(scene: Scene, suspects: np.ndarray) -> None:
    """Offer to retrain without the suspects."""
    bundle = scene.attributor.bundle
    if too_slow(bundle, linear=scene.attributor.linear):
        return
    result = run_job(
        ("healed", scene.attributor.place, len(suspects), scene.index),
        tasks.healed,
        *(scene.attributor.place, suspects, scene.index),
        name=f"{KEY}healed",
        label=f"Retrain without these {len(suspects)}",
    )
    if result is not None:
        results = bundle.manifest.results
        st.markdown(
            f"Without these {len(suspects)} pictures the attack works on **{words.portion(result.success)}** of the "
            f"test pictures instead of **{words.portion(results['attack_success'])}**, and the model is right on "
            f"**{result.accuracy:.1%}** of untouched ones (before: {results['test_accuracy']:.1%})."
        )


def _table(scene: Scene, scores: np.ndarray, suspects: np.ndarray) -> str:
    classes, labels = scene.attributor.bundle.classes, scene.attributor.train_labels
    sources = scene.attributor.bundle.sources("train")
    return escape.table(
        ("rank", "train_index", "source", "label", "label_name", "suspicion"),
        (
            [position, int(index), sources[index], int(labels[index]), classes[labels[index]], float(scores[index])]
            for position, index in enumerate(suspects, 1)
        ),
    )


def _numbers(scene: Scene, scores: np.ndarray) -> None:
    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")
    planted = scene.attack.train_indices
    hits = np.isin(order, planted)
    st.dataframe(
        escape.cells(
            {"first": n, "precision": float(hits[:n].mean()), "recall": float(hits[:n].sum() / len(planted))}
            for n in (50, 100, 250, 500, 1000, 2000)
            if n <= len(hits)
        ),
        hide_index=True,
        column_config={key: st.column_config.NumberColumn(format="%.3f") for key in ("precision", "recall")},
    )
    st.caption(
        f"Average precision here {average_precision(order, planted):.3f}. Suspicion of an image: the mean "
        "concentration of the predictions about the other images of its label, weighted by how much each relies on it, "
        f"itself left out; concentration is the share of a prediction’s information that its first {FIRST} images "
        f"contribute, one at a time, at σ² = {words.sigma2_text(sigma2_of(scene.attributor.bundle))}."
    )
    result = measured_for(scene.attributor)
    if result is not None:
        chosen_on = result["audit"]["chosen_on"]
        runs = [run for run in result["audit"]["runs"] if run["seed"] not in chosen_on] or result["audit"]["runs"]
        precisions = ", ".join(f"{run['average_precision']:.3f}" for run in runs)
        least = min(run["precision_at_poisoned"] for run in runs) if runs else float("nan")
        unseen = words.counted(len(runs), "unseen seed")
        st.caption(
            f"The score was chosen among several on attacks with seeds {result['audit']['chosen_on']}; on {unseen} its "
            f"average precision is {precisions}, and at least {least:.0%} of as many suspects as there are planted "
            "images are planted. It fails where the attack itself hardly works, with a few planted images a class, and "
            "where a third of a label or more is planted. A list has first places even where nothing was planted: rare "
            "but honest kinds of images come first there."
        )
