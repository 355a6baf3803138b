"""How sure is the ranking? The section of the Compare page that repeats it with other sketches and other networks."""

from collections.abc import Callable, Sequence

import numpy as np
import streamlit as st

from app import shared
from app.grid import Card, data_uri, grid
from app.views.job import run_job
from core.answers import QueryImage, Request
from core.attribution import Attributor
from core.bundle import Bundle
from core.errors import BundleError
from core.methods import METHODS
from core.stability import Stability, across_networks, across_sketches, differ_by_seed

_REPEATS = 5
_KEY = "compare_stability_"


def stability(attributor: Attributor, name: str, query: QueryImage, requests: Sequence[Request]) -> None:
    """Draw the section.

    Args:
        attributor: of the bundle.
        name: of the query, as links write it.
        query: the image.
        requests: one a method.
    """
    st.subheader("How sure is the ranking?")
    st.markdown(
        "The sketch that stands in for the Jacobian is random, and so is training. Asked again with other random "
        "numbers, an image that stays matters; one that goes was luck."
    )
    sketches, networks = st.tabs(["Other sketches", "Other training runs"])
    asked = (attributor.bundle.identity, name, tuple(requests))
    with sketches:
        own = attributor.bundle.sketch_spec
        if own.kind == "exact":
            st.caption("This bundle uses the exact kernel: there is no sketch to repeat.")
        else:
            seeds = tuple(range(own.seed + 1, own.seed + 1 + _REPEATS))

            def again(progress: Callable[[str, int, int], None]) -> list[Stability]:
                return across_sketches(attributor, query, requests, seeds, progress)

            found = run_job(
                ("sketches", *asked, seeds), again, name=f"{_KEY}sketch", label=f"Repeat with {_REPEATS} other sketches"
            )
            _results(attributor, found, "sketches")
    with networks:
        siblings = _siblings(attributor)
        if not siblings:
            command = attributor.bundle.manifest.command
            st.caption(
                f"No bundle of another training seed is served. `{command} --seed 1 --out FOLDER`, with the folder "
                "beside this bundle, makes one."
            )
            return

        def others(progress: Callable[[str, int, int], None]) -> list[Stability]:
            return across_networks(attributor, query, requests, siblings, progress)

        whose = tuple(sibling.bundle.identity for sibling in siblings)
        label = f"Ask the {len(siblings)} other network{'s' if len(siblings) > 1 else ''}"
        _results(attributor, run_job(("networks", *asked, whose), others, name=f"{_KEY}net", label=label), "networks")


def _siblings(attributor: Attributor) -> list[Attributor]:
    """Open the served bundles that differ from this one by their training seed alone."""
    found = []
    for path in shared.bundle_paths().values():
        try:
            if differ_by_seed(attributor.bundle.manifest, Bundle(path).manifest):
                found.append(shared.attributor(path))
        except BundleError:
            continue  # the choice of bundles names a damaged one
    return found


def _results(attributor: Attributor, found: list[Stability] | None, kind: str) -> None:
    for result in found or ():
        method = METHODS[result.request.method]
        st.markdown(f"**{method.title}.** {finding(result, kind)}")
        if result.original is None or not result.repeats:
            continue
        images, classes = attributor.bundle.array("train_images"), attributor.bundle.classes
        cards = []
        for item, rank, stayed in zip(result.original.items, result.original.places, result.stayed, strict=True):
            told = (
                f"{classes[item.label]}, training image {item.train_index}: stayed {stayed} of {result.repeats} times"
            )
            cards.append(
                Card(
                    src=data_uri(np.asarray(images[item.train_index])),
                    alt=told,
                    title=told,
                    rank=rank,
                    value=f"{stayed}/{result.repeats}",
                    caption=classes[item.label],
                    strength=stayed / result.repeats,
                )
            )
        grid(
            cards,
            key=f"{_KEY}{kind}_{method.name}",
            label=f"How often {method.title}'s images stayed",
            size=62,
            on_pick=lambda place: None,
        )


def finding(result: Stability, kind: str) -> str:
    """Say in words what of a ranking is stable."""
    if result.original is None:
        return result.failure
    if not result.repeats:
        return result.failure or "It does not use the sketch, so it is the same every time."
    size = len(result.stayed)
    known = result.correlations[~np.isnan(result.correlations)]
    order = (
        f"; the order correlates at {known.mean():.2f} ({known.min():.2f} to {known.max():.2f})" if len(known) else ""
    )
    what = "repeats" if kind == "sketches" else "other networks"
    share = result.stayed.mean() / result.repeats
    verdict = "stable" if share >= 0.8 else "partly stable" if share >= 0.4 else "mostly luck"
    return (
        f"{result.always} of its first {size} stayed in all {result.repeats} {what}, {share:.0%} on average: "
        f"**{verdict}**. Overlap {result.overlaps.mean():.2f}{order}."
        + (f" {result.failure}" if result.failure else "")
    )
