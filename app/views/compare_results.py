"""Under the comparison: how the methods agree, the information of their subsets, and the files to download."""

import json
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import streamlit as st

from natscope.app import escape, rankings, words
from natscope.app.bundles import Served
from natscope.app.downloads import draw, offer
from natscope.app.figures import on_page
from natscope.app.figures.attribution import agreement
from natscope.app.figures.sheets import comparison_file
from natscope.app.figures.style import FORMATS
from natscope.app.links import ComparisonView
from natscope.core.analysis.comparison import OVERLAPS, QUANTITIES, Row, overlaps
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.request import QueryExample
from natscope.core.methods import METHODS
from natscope.core.text import listed

_NAMED = 2  # pairs of methods that a sentence names
_MEASURES = {"jaccard": "Jaccard", "rbo": "Rank-biased overlap"}


def agreement_section(attributor: Served, rows: Sequence[Sequence[Row]], view: ComparisonView) -> None:
    """Draw how much the methods share, and the information, redundancy and labels of each one's subset."""
    st.subheader("Agreement between methods")
    titles = [METHODS[row.request.method].title for row in rows[0]]
    st.markdown(_finding(rows, titles, attributor.many))
    left, right = st.columns([1, 1.25], gap="large")
    with left:
        measure = st.segmented_control(
            "Overlap",
            list(_MEASURES),
            format_func=_MEASURES.__getitem__,
            key="compare_measure",
            default="jaccard",
            required=True,
            help=f"Jaccard: {attributor.many} that both chose over {attributor.many} that either chose. Rank-biased "
            "overlap: the same, but agreement at the top counts more (Webber et al. 2010, p = 0.9). Mean over the "
            f"{attributor.many} in view.",
        )
        matrix = overlaps(rows, OVERLAPS[measure or "jaccard"])
        on_page.show(agreement(matrix, titles), "compare_agreement")
    with right:
        st.dataframe(
            escape.cells(_summary(column, attributor.bundle.classes) for column in zip(*rows, strict=True)),
            hide_index=True,
            column_config={
                "loss": st.column_config.ProgressColumn(
                    f"{QUANTITIES['loss']}, nats", format="%.3g", min_value=0, max_value=_largest(rows, "loss"),
                    help=f"What the model would lose without these {attributor.many}.",
                ),
                "gain": st.column_config.ProgressColumn(
                    f"{QUANTITIES['gain']}, nats", format="%.3g", min_value=0, max_value=_largest(rows, "gain"),
                    help=f"What these {attributor.many} alone teach the model.",
                ),
                "redundancy": st.column_config.NumberColumn(
                    "Redundancy", format="%.2f",
                    help=f"Mean cosine between the {attributor.many}’ features; 1: all "
                                                      "say the same."
                ),
                "seconds": st.column_config.NumberColumn("Seconds", format="%.2g", help="Given the "
                                                                                        f"{attributor.one}’s "
                                                                                        "Jacobian."),
                "method": "Method",
                "labels": "Labels",
            },
        )  # fmt: skip
        st.caption(
            f"Every subset is scored on one scale, whatever its method optimised: nats about the target’s logit, given "
            f"the pool, at σ² = {words.sigma2_text(view.sigma2)}"
            + (f"; means over {len(rows)} {attributor.many}." if len(rows) > 1 else ".")
        )


def downloads(
    attributor: Served, queries: Sequence[QueryExample], rows: Sequence[Sequence[Row]], view: ComparisonView
) -> None:
    """Draw the buttons for the figure and the data."""
    bundle = attributor.bundle
    name = "-".join(["natscope-comparison", *map(words.image_name, queries)])

    def picture(kind: str) -> bytes:
        picks = np.array(sorted({index for block in rows for row in block for index in row.picks}), dtype=np.int64)
        train = bundle.examples("train")[picks]
        return draw(comparison_file, queries, rows, picks, train, bundle.classes, kind=kind)

    with st.container(horizontal=True, vertical_alignment="center"):
        for kind, mime in FORMATS.items():
            offer(
                kind,
                partial(picture, kind),
                f"{name}.{kind.lower()}",
                mime,
                key=f"compare_download_{kind}",
                help="The figure, in print quality.",
            )
        offer(
            "CSV",
            lambda: _table(bundle, queries, rows),
            f"{name}.csv",
            "text/csv",
            key="compare_download_CSV",
            help=f"One line per {attributor.one}.",
        )
        offer(
            "JSON",
            lambda: json.dumps(_everything(attributor, queries, rows, view), indent=2, allow_nan=False),
            f"{name}.json",
            "application/json",
            key="compare_download_JSON",
            help="The rankings, their agreement and every setting.",
        )
        st.caption("Copy this page’s URL to share this view.", width="content")


def _finding(rows: Sequence[Sequence[Row]], titles: Sequence[str], many: str) -> str:
    """Return sentences on which methods choose the same, which agree most and least, and whose choice matters most."""
    matrix = overlaps(rows, OVERLAPS["jaccard"])
    answered = [position for position in range(len(titles)) if not np.isnan(matrix[position, position])]
    if len(answered) < 2:
        return "Fewer than two methods gave an answer, so there is nothing to compare."
    alike: list[list[int]] = []  # methods whose choices are the same
    for position in answered:
        own = next((group for group in alike if (matrix[group, position] == 1).all()), None)
        if own is None:
            alike.append([position])
        else:
            own.append(position)
    named = ["**" + titles[group[0]] + "**" for group in alike]
    sentences = [
        f"{listed([f'**{titles[position]}**' for position in group])} choose the same {many}."
        for group in alike
        if len(group) > 1
    ]
    shared = {(a, b): float(matrix[alike[a][0], alike[b][0]]) for a, b in combinations(range(len(alike)), 2)}
    known = {pair: overlap for pair, overlap in shared.items() if not np.isnan(overlap)}
    if known:
        sentences.append(_agreement(known, named, many, beyond=bool(sentences), whole=len(known) == len(shared)))
    elif shared:
        sentences.append("No two methods answered the same query.")
    losses = [_mean(column, "loss") for column in zip(*rows, strict=True)]
    most = max(loss for loss in losses if loss is not None)
    best = [f"**{titles[i]}**" for i, loss in enumerate(losses) if loss is not None and np.isclose(loss, most, atol=0)]
    if most > 0 and len(best) < len(answered):
        sentences.append(f"The {many} of {listed(best)} matter most: removing them loses {words.nats(most)}.")
    return " ".join(sentences)


def _agreement(
    known: dict[tuple[int, int], float], named: Sequence[str], many: str, *, beyond: bool, whole: bool
) -> str:
    """Return a sentence on the pairs of methods that share most and least, of those that do not choose the same.

    Args:
        known: the overlap of every pair.
        named: the methods.
        many: what they choose.
        beyond: whether a sentence before this one is about methods that choose the same.
        whole: whether all pairs are known.
    """
    most, least = max(known.values()), min(known.values())
    close, far = (
        [f"{named[a]} and {named[b]}" for (a, b), overlap in known.items() if np.isclose(overlap, end)]
        for end in (most, least)
    )
    if len(known) == 1:
        return f"{close[0]} share no {many}." if not most else f"{close[0]} overlap by {most:.2f}."
    which = "beyond that, " if beyond else ""
    if np.isclose(most, least):
        if whole:
            alike = f"no two methods share any {many}" if not most else f"every two methods overlap by {most:.2f}"
        else:
            alike = "the pairs that answered the same query " + (
                f"share no {many}" if not most else f"overlap by {most:.2f}"
            )
        return _capital(f"{which}{alike}.")
    first = f"{which}{_pairs(close, len(known))} agree most (overlap {most:.2f})"
    last = (
        f"{_pairs(far, len(known))} share no {many}" if not least else f"{_pairs(far, len(known))} least ({least:.2f})"
    )
    return _capital(f"{first}; {last}.")


def _pairs(pairs: Sequence[str], of: int) -> str:
    if len(pairs) > _NAMED:
        return f"{len(pairs)} of {of} pairs"
    return pairs[0] if len(pairs) == 1 else f"{', and '.join(pairs)},"


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _mean(column: Sequence[Row], name: str) -> float | None:
    values = [value for row in column if (value := getattr(row, name)) is not None]
    return float(np.mean(values)) if values else None


def _largest(rows: Sequence[Sequence[Row]], name: str) -> float:
    means = [_mean(column, name) for column in zip(*rows, strict=True)]
    return max([value for value in means if value is not None], default=0.0) or 1.0


def _summary(column: Sequence[Row], classes: tuple[str, ...]) -> dict[str, Any]:
    answers = [row.answer for row in column if row.answer is not None]
    labels: dict[int, int] = {}
    for row in column:
        for label, count in row.label_mix.items():
            labels[label] = labels.get(label, 0) + count
    mix = sorted(labels.items(), key=lambda item: -item[1])
    shares = [answer.redundancy for answer in answers if not np.isnan(answer.redundancy)]
    return {
        "method": METHODS[column[0].request.method].title,
        "loss": _mean(column, "loss"),
        "gain": _mean(column, "gain"),
        "redundancy": float(np.mean(shares)) if shares else None,
        "seconds": float(np.mean([answer.seconds for answer in answers])) if answers else None,
        "labels": ", ".join(f"{count} {classes[label]}" for label, count in mix) or column[0].failure,
    }


def _table(bundle: Bundle, queries: Sequence[QueryExample], rows: Sequence[Sequence[Row]]) -> str:
    asked = zip(queries, _names(queries), rows, strict=True)
    answered = [(query, row.answer, name) for query, name, block in asked for row in block if row.answer]
    return escape.table(rankings.columns(bundle), (line for each in answered for line in rankings.rows(bundle, *each)))


def _names(queries: Sequence[QueryExample]) -> list[str]:
    """Return what each query is called; several uploads have numbers."""
    names = [rankings.title(query) for query in queries]
    uploads = [place for place, query in enumerate(queries) if query.index is None]
    if len(uploads) > 1:
        for number, place in enumerate(uploads, 1):
            names[place] = f"{names[place]}:{number}"
    return names


def _everything(
    attributor: Served, queries: Sequence[QueryExample], rows: Sequence[Sequence[Row]], view: ComparisonView
) -> dict[str, Any]:
    classes = attributor.bundle.classes
    return {
        "bundle": {"name": attributor.bundle.manifest.name, "identity": attributor.bundle.identity},
        "judge_sigma2": view.sigma2,
        "methods": [row.request.method for row in rows[0]],
        "agreement": {name: _numbers(overlaps(rows, measure)) for name, measure in OVERLAPS.items()},
        "queries": [
            {
                "query": name,
                "predicted": classes[query.predicted],
                "rows": [
                    {"method": row.request.method, "failure": row.failure or None}
                    | {"loss_nats": row.loss, "gain_nats": row.gain}
                    | ({"answer": row.answer.to_dict(query, classes)} if row.answer else {})
                    for row in block
                ],
            }
            for query, name, block in zip(queries, _names(queries), rows, strict=True)
        ],
    }


def _numbers(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in line] for line in matrix]
