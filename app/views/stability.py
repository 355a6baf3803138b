"""How stable is the ranking? The section of the tab Compare that repeats it with other sketches and other networks."""

from collections.abc import Sequence

import numpy as np
import streamlit as st

from natscope.app import bundles, escape, tasks
from natscope.app.bundles import Served
from natscope.app.components.grid import grid
from natscope.app.views.cards import cards_of
from natscope.app.views.job import run_job
from natscope.app.words import with_minus
from natscope.core.analysis.stability import Stability, differ_by_seed, kin
from natscope.core.bundle.request import QueryExample, Request
from natscope.core.methods import METHODS

_REPEATS = 5
_KEY = "compare_stability_"


def stability(attributor: Served, name: str, query: QueryExample, requests: Sequence[Request]) -> None:
    """Draw the section.

    Args:
        attributor: the opened bundle.
        name: the query's name, as links write it.
        query: the image.
        requests: one per method.
    """
    st.subheader("How stable is the ranking?")
    st.markdown(
        f"The sketch that stands in for the Jacobian is random, and so is training. {attributor.many.capitalize()} "
        "that stay under other random seeds are reliable."
    )
    sketches, networks = st.tabs(["Other sketches", "Other training runs"])
    asked = (attributor.place, name, tuple(requests))
    with sketches:
        own = attributor.bundle.sketch_spec
        if own.kind == "exact":
            st.caption("This bundle uses the exact kernel: there is no sketch to repeat.")
        else:
            seeds = tuple(range(own.seed + 1, own.seed + 1 + _REPEATS))

            found = run_job(
                ("sketches", *asked, seeds),
                tasks.sketches,
                *(attributor.place, query, requests, seeds),
                name=f"{_KEY}sketch",
                label=f"Repeat with {_REPEATS} other sketches",
            )
            _results(attributor, found, "sketches")
    with networks:
        siblings = _siblings(attributor)
        if not siblings:
            st.caption(
                "No bundle of another training seed is served. Run `natscope precompute` with this bundle’s settings, "
                "which its manifest.json holds, and another `--seed`, into a folder beside it."
            )
            return

        label = "Ask the other network" if len(siblings) == 1 else f"Ask the {len(siblings)} other networks"
        found = run_job(
            ("networks", *asked, *siblings),
            tasks.networks,
            *(attributor.place, query, requests, siblings),
            name=f"{_KEY}net",
            label=label,
        )
        _results(attributor, found, "networks")


def _siblings(attributor: Served) -> list[tasks.Place]:
    """Return the served bundles that differ from this one by their training seed alone."""
    own = kin(attributor.bundle.manifest)
    found = {path: bundles.listed(path) for path in bundles.bundle_paths().values()}
    return [tasks.Place.of(path) for path, each in found.items() if differ_by_seed(own, each.kin)]


def _results(attributor: Served, found: list[Stability] | None, kind: str) -> None:
    if found is None:
        return
    st.caption(
        f"Under each {attributor.one}: its rank and in how many repeats it stayed. Overlap: {attributor.many} in both "
        f"lists over {attributor.many} in either (Jaccard). Order: Spearman’s rank correlation over the "
        f"{attributor.many} in either list, those that a list lacks tied below its last. Means, with the range."
    )
    for result in found:
        method = METHODS[result.request.method]
        st.markdown(f"**{method.title}.** {finding(result, kind)}")
        if result.original is None or not result.repeats:
            continue
        cards, card, classes = [], cards_of(attributor, "train"), attributor.bundle.classes
        for item, rank, stayed in zip(result.original.items, result.original.rank_labels, result.stayed, strict=True):
            name = f"{classes[item.label]}, training {attributor.one} {item.train_index}"
            tooltip = f"rank {rank}, {name}: stayed in {stayed} of {result.repeats}"
            cards.append(
                card(
                    item.train_index,
                    title=tooltip,
                    rank=rank,
                    value=f"{stayed}/{result.repeats}",
                    strength=stayed / result.repeats,
                )
            )
        grid(
            cards,
            key=f"{_KEY}{kind}_{method.name}",
            label=f"How often {method.title}'s {attributor.many} stayed",
            size=62,
            on_pick=lambda position: None,
        )


def finding(result: Stability, kind: str) -> str:
    """Return a sentence on how stable a ranking is (Markdown).

    Args:
        result: how one method's ranking fared in repeats.
        kind: "sketches" or "networks", what was changed.
    """
    if result.original is None:
        return escape.sentence(result.failure)
    if not result.repeats:
        return escape.sentence(result.failure) or "It does not use the sketch, so it is the same every time."
    size, share = len(result.stayed), result.stayed.mean() / result.repeats
    who = {0: "None", size: "All"}.get(result.always, str(result.always))
    where = (
        f"all {result.repeats} {'repeats' if kind == 'sketches' else 'other networks'}"
        if result.repeats > 1
        else f"the {'repeat' if kind == 'sketches' else 'other network'}"
    )
    average = f", {100 * share:.0f}% on average" if result.repeats > 1 else ""
    verdict = "stable" if share >= 0.8 else "partly stable" if share >= 0.4 else "unstable"
    known = result.correlations[~np.isnan(result.correlations)]
    order = f"; the order correlates at {_spread(known)}" if len(known) else ""
    return (
        f"{who} of its first {size} stayed in {where}{average}: **{verdict}**. "
        f"Overlap {_spread(result.overlaps)}{order}."
        + (f" {escape.sentence(result.failure)}" if result.failure else "")
    )


def _spread(values: np.ndarray) -> str:
    between = f" ({values.min():.2f} to {values.max():.2f})" if len(values) > 1 else ""
    return with_minus(f"{values.mean():.2f}{between}")
