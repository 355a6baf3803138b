"""A ranking to take along: the figure, the table, and everything with every setting."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from natscope.app import escape, rankings, words
from natscope.app.bundles import Served
from natscope.app.downloads import draw, offer
from natscope.app.figures.sheets import ranking_file
from natscope.app.figures.style import FORMATS
from natscope.core.bundle.request import Attribution, QueryExample


def ranking_files(attributor: Served, query: QueryExample, result: Attribution) -> None:
    """Draw the buttons.

    Args:
        attributor: the opened bundle.
        query: the image that was asked about.
        result: the answer.
    """
    classes, picks = attributor.bundle.classes, np.array([item.train_index for item in result.items], dtype=np.int64)
    ranked = attributor.bundle.examples("train")[picks]
    name = words.file_name(query, result, classes)
    figure = partial(draw, ranking_file, query, ranked, result, classes)
    offers: list[tuple[str, str, str, Callable[[], Any]]] = [
        (kind, mime, "The figure, in print quality.", partial(figure, kind=kind)) for kind, mime in FORMATS.items()
    ]
    offers += [
        ("CSV", "text/csv", "The ranking as a table.", partial(_table, attributor, query, result)),
        ("JSON", "application/json", "The ranking with every setting.", partial(_everything, query, result, classes)),
    ]
    with st.container(horizontal=True, vertical_alignment="center"):
        for kind, mime, about, make in offers:
            offer(kind, make, f"{name}.{kind.lower()}", mime, help=about, key=f"download_{kind}")
        st.caption("Copy this page’s URL to share this view.", width="content")


def _table(attributor: Served, query: QueryExample, result: Attribution) -> str:
    return escape.table(rankings.columns(attributor.bundle), rankings.rows(attributor.bundle, query, result))


def _everything(query: QueryExample, result: Attribution, classes: tuple[str, ...]) -> str:
    return json.dumps(result.to_dict(query, classes), indent=2)
