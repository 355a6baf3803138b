"""Under a coreset: a network trained on it alone, its overlap with other methods' choices, and what was measured."""

from typing import Any

import numpy as np
import streamlit as st

from natscope.app import tasks
from natscope.app.bundles import Served
from natscope.app.figures import on_page
from natscope.app.figures.coreset import overlap, shares_right
from natscope.app.links import CoresetView
from natscope.app.views.controls import control
from natscope.app.views.coreset_queries import KEY
from natscope.app.views.job import run_job
from natscope.core.analysis.coreset import usable
from natscope.core.methods import METHODS
from natscope.core.metrics import jaccard
from natscope.precompute.paths import home
from natscope.precompute.training.removal import identity_of
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import too_slow
from natscope.precompute.training.subset import Subset
from natscope.precompute.training.subset import accuracies as accuracies_of


def worth(attributor: Served, method: str, asked: np.ndarray, chosen: np.ndarray, at_random: np.ndarray) -> None:
    """Draw the accuracy of a network trained on the chosen images alone, beside as many random ones and all.

    Args:
        attributor: the opened bundle.
        method: the one that chose.
        asked: the test images that they were chosen for.
        chosen: training indices.
        at_random: as many random ones.
    """
    st.subheader("What they are worth")
    bundle = attributor.bundle
    if why := too_slow(bundle, linear=attributor.linear, count=len(chosen)):
        st.info(f"{why} `natscope evaluate coreset` does it in a terminal.", icon=":material/hourglass_disabled:")
        return
    subsets = {"these": Subset(chosen, asked), "at_random": Subset(at_random, asked)}
    identity = identity_of(bundle)
    keys = {name: subset.key(bundle, identity) for name, subset in subsets.items()}
    file = home() / "coresets" / f"{identity}.json"
    kept = ResultCache(file)
    if all(key in kept for key in keys.values()):
        found = {name: kept[key] for name, key in keys.items()}
    else:
        st.markdown(
            f"Retrain the network from scratch on these {len(chosen):,} {attributor.many} alone, by the same recipe, "
            f"and once more on as many random {attributor.many}."
        )
        stages = {
            "these": f"Training on these {attributor.many}",
            "at_random": f"Training on as many random {attributor.many}",
        }
        found = run_job(
            ("train on subsets", attributor.place, *keys.values()),
            tasks.train_on_subsets,
            *(attributor.place, subsets, stages, file),
            name=f"{KEY}train",
            label="Train on these",
        )
        if found is None:
            return
    whole = accuracies_of(bundle, np.asarray(bundle.array("test_logits")), asked)
    _show(found["these"], found["at_random"], whole, len(chosen), attributor, method, len(asked))


def _show(
    these: dict[str, Any],
    at_random: dict[str, Any],
    whole: dict[str, Any],
    count: int,
    attributor: Served,
    method: str,
    asked: int,
) -> None:
    everyone, left = len(attributor.train_labels), len(attributor.test_labels) - asked
    where = "others" if left else "asked"
    about = f"the {left:,} other test {attributor.many}" if left else f"the {asked:,} test {attributor.many}"
    st.markdown(
        f"Trained on these {count:,} {attributor.many} alone, the network is right on **{these[where]:.1%}** of "
        f"{about}; trained on {count:,} random ones, on **{at_random[where]:.1%}**; on all {everyone:,}, on "
        f"{whole[where]:.1%}."
    )
    titles = [f"all {everyone:,}", f"these {count:,}", f"{count:,} random"]
    on_page.show(shares_right(titles, [whole[where], these[where], at_random[where]], method), f"{KEY}worth")
    if left:
        st.caption(
            f"On the {asked:,} that were asked about: {these['asked']:.1%}, {at_random['asked']:.1%} and "
            f"{whole['asked']:.1%}. Same initial weights, same recipe, same order of the {attributor.many}."
        )


def others(attributor: Served, view: CoresetView, asked: np.ndarray, chosen: np.ndarray) -> None:
    """Draw the overlap with what other methods would choose, once it is requested."""
    st.subheader("Would another method choose the same?")
    names = [name for name in usable(attributor) if name != view.method]
    key = f"{KEY}others"
    st.session_state.setdefault(key, [name for name in names if not METHODS[name].ekfac])
    st.session_state[key] = [name for name in st.session_state[key] if name in names]
    wanted = control(st.multiselect, "Methods", names, key=key, format_func=lambda name: METHODS[name].title)
    if not wanted:
        return

    sigma2s = {name: view.sigma2 or attributor.bundle.sigma2(name, purpose="coreset") for name in wanted}
    found = run_job(
        ("coresets", attributor.place, asked.tobytes(), view.budget, view.variant, tuple(sigma2s.items())),
        tasks.coresets_of,
        *(attributor.place, asked, sigma2s, view.variant, view.budget),
        name=f"{KEY}overlap",
        label="Ask them",
    )
    if found is None:
        return
    shares = [jaccard(chosen, found[name]) for name in wanted]
    nearest, farthest = int(np.argmax(shares)), int(np.argmin(shares))
    titles = [METHODS[name].title for name in wanted]
    far = f", **{titles[farthest]}** least ({shares[farthest]:.2f})" if len(wanted) > 1 else ""
    st.markdown(
        f"**{titles[nearest]}** shares most with these {len(chosen):,} {attributor.many} (overlap "
        f"{shares[nearest]:.2f}){far}.",
        help=f"Jaccard: {attributor.many} that both chose over {attributor.many} that either chose.",
    )
    on_page.show(overlap(wanted, shares), f"{KEY}overlap_chart")
