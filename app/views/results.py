"""Results: the paper's experiments beside ours, each with its provenance and where we differ."""

import json
from collections.abc import Sequence
from typing import Any

import streamlit as st

from natscope.app import escape, words
from natscope.app.downloads import draw as draw_file
from natscope.app.downloads import offer
from natscope.app.figures import on_page
from natscope.app.figures.backdoor import sigma2_chosen
from natscope.app.figures.chart import Chart
from natscope.app.figures.experiments import charts, columns
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.style import FORMATS
from natscope.app.figures.tables import TABLES
from natscope.app.paper import SECTIONS
from natscope.app.results import commands, load_results
from natscope.core.methods import METHODS

_KEY = "results_"


def draw() -> None:
    """Draw the tab."""
    st.title("The paper’s experiments, measured")
    st.markdown(
        "Each experiment of *A Bayesian Information-Theoretic Approach to Data Attribution* (Tailor, Felicioni and "
        "Ciosek, AISTATS 2026) beside ours, with the command that measures it again and where the two differ."
    )
    st.markdown(" · ".join(f"[{section.title}](#{section.anchor})" for section in SECTIONS))
    for section in SECTIONS:
        results = load_results(*section.names)
        st.divider()
        st.subheader(section.title, anchor=section.anchor)
        left, right = st.columns([1, 1.6], gap="large")
        with left:
            st.markdown(f"**The paper.** {section.paper}")
            if section.numbers:
                st.markdown(section.numbers)
            st.markdown(f"**Where we differ.** {section.differs}")
        with right:
            if section.links:
                st.markdown("  \n".join(f"[{title}]({address})" for title, address in section.links))
            if not results and not section.links:
                st.caption("Not measured yet.")
            for position, result in enumerate(results):
                _one(result, f"{_KEY}{section.anchor}{position}")


def pointer(anchor: str) -> None:
    """Summarise on another page what an experiment measured, and link to its section.

    Args:
        anchor: the section's anchor.
    """
    section = next(found for found in SECTIONS if found.anchor == anchor)
    st.subheader("Measured over many", anchor="measured")
    for result in load_results(section.names[0]):
        st.markdown(f"**{words.setting_of(result['setting'])}.** {escape.sentence(result['finding'])}")
    st.markdown(f"[{section.title}, the paper’s and ours](paper#{anchor})")


def _one(result: dict[str, Any], key: str) -> None:
    setting = result["setting"]
    st.markdown(f"**{words.setting_of(setting)}**")
    st.markdown(f"**Ours.** {escape.sentence(result['finding'])}")
    drawn, table = charts(result), _table(result)
    for position, chart in enumerate(drawn):
        if chart.title:
            st.markdown(f"*{chart.title}*")
        on_page.show(chart, f"{key}_{position}")
    if table and drawn:
        st.expander("The numbers").markdown(table)
    elif table:
        st.markdown(table)
    st.caption(_size(result))
    if result["experiment"] == "backdoor":
        st.caption(escape.sentence(sigma2_chosen(result)))
    _downloads(result, drawn, key)
    with st.expander("How to reproduce"):
        bundles = result.get("bundles") or []
        st.code(commands(result), language=None)
        st.markdown(
            f"Bundles: {', '.join(b['identity'] for b in bundles) or result['bundle']}. "
            + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            + "."
        )


def _downloads(result: dict[str, Any], drawn: Sequence[Chart], key: str) -> None:
    name = f"natscope-{key.removeprefix(_KEY)}"
    with st.container(horizontal=True):
        for kind, mime in FORMATS.items() if drawn else ():
            offer(
                kind,
                lambda kind=kind: draw_file(chart_file, *drawn, kind=kind, columns=columns(result)),  # type: ignore[misc]
                f"{name}.{kind.lower()}",
                mime,
                key=f"{key}_{kind}",
            )
        offer("JSON", lambda: json.dumps(result, indent=1), f"{name}.json", "application/json", key=f"{key}_JSON")


def _size(result: dict[str, Any]) -> str:
    setting = result["setting"]
    count = len(result.get("bundles") or [1])
    sigma2 = {row["method"]: row["sigma2"] for row in result.get("rows", []) if row.get("sigma2")}
    settings = ", ".join(f"{METHODS[name].title} {_values(value)}" for name, value in sigma2.items() if name)
    queries = f"{setting['queries']} queries" + (" a network" if count > 1 else "")
    if result["experiment"] == "retraining":
        queries = "1 query a class" if setting["queries"] == 1 else f"{setting['queries']} queries a class"
    elif result.get("for") == "coreset":
        queries = f"three sets of {setting['queries']} queries"
    return f"{queries}, {count} network{'s' if count > 1 else ''}, seed {setting['seed']}, {result['date']}" + (
        f"; σ²: {settings}." if settings else "."
    )


def _values(value: Any) -> str:
    return " / ".join(f"{v:g}" for v in dict.fromkeys(value)) if isinstance(value, list) else f"{value:g}"


def _table(result: dict[str, Any]) -> str:
    """Return the experiment's table; nothing where a chart says it all."""
    return TABLES[result["experiment"]](result) if result["experiment"] in TABLES else ""
