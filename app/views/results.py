"""Results: the paper's experiments beside ours, each with what made it and where we differ."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from natscope.app import escape, words
from natscope.app.figures.backdoor import recalls
from natscope.app.figures.brittleness import flips, flips_table
from natscope.app.figures.coreset import KINDS, accuracies, coreset_table
from natscope.app.figures.curves import experiment_panels, relative
from natscope.app.figures.experiments import ordered, recall_table, retraining_table
from natscope.app.figures.tuning import scores
from natscope.app.paper import SECTIONS, TABLE_1
from natscope.app.results import commands, load_results
from natscope.core.methods import METHODS

_KEY = "results_"


def page() -> None:
    """Draw the page."""
    st.title("The paper’s experiments, measured")
    st.markdown(
        "Each experiment of *A Bayesian Information-Theoretic Approach to Data Attribution* (Tailor, Felicioni and "
        "Ciosek, AISTATS 2026) beside ours, with the command that measures it again and where the two differ."
    )
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
            if not results:
                st.caption("Not measured yet.")
            for place, result in enumerate(results):
                _one(result, f"{_KEY}{section.anchor}{place}")


def pointer(anchor: str) -> None:
    """Say on another page what was measured in an experiment, and lead to its section.

    Args:
        anchor: of the section.
    """
    section = next(found for found in SECTIONS if found.anchor == anchor)
    st.subheader("Measured over many", anchor="measured")
    for result in load_results(section.names[0]):
        st.markdown(f"**{words.setting_of(result['setting'])}.** {escape.sentence(result['finding'])}")
    st.markdown(f"[{section.title}, the paper’s and ours](results#{anchor})")


def _one(result: dict[str, Any], key: str) -> None:
    setting = result["setting"]
    st.markdown(f"**{words.setting_of(setting)}**")
    st.markdown(f"**Ours.** {escape.sentence(result['finding'])}")
    _FIGURES[result["experiment"]](result, key)
    st.caption(_size(result))
    with st.expander("What made it"):
        bundles = result.get("bundles") or []
        st.code(commands(result), language=None)
        st.markdown(
            f"Bundles: {', '.join(b['identity'] for b in bundles) or result['bundle']}. "
            + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            + "."
        )


def _size(result: dict[str, Any]) -> str:
    setting = result["setting"]
    count = len(result.get("bundles") or [1])
    sigma2 = {row["method"]: row["sigma2"] for row in result.get("rows", []) if row.get("sigma2")}
    told = ", ".join(f"{METHODS[name].title} {_values(value)}" for name, value in sigma2.items() if name)
    queries = f"{setting['queries']} queries" + (" a network" if count > 1 else "")
    if result["experiment"] == "retraining":
        queries = "1 query a class" if setting["queries"] == 1 else f"{setting['queries']} queries a class"
    elif result.get("for") == "coreset":
        queries = f"three sets of {setting['queries']} queries"
    return f"{queries}, {count} network{'s' if count > 1 else ''}, seed {setting['seed']}, {result['date']}" + (
        f"; σ²: {told}." if told else "."
    )


def _values(value: Any) -> str:
    return " / ".join(f"{v:g}" for v in dict.fromkeys(value)) if isinstance(value, list) else f"{value:g}"


def _chart(figure: Any, key: str) -> None:
    st.plotly_chart(figure, key=key, config={"displayModeBar": False})


def _curves(result: dict[str, Any], key: str) -> None:
    for place, (title, curves, by_method) in enumerate(experiment_panels(result)):
        st.markdown(f"*{title}*")
        _chart(relative(curves, by_method=by_method), f"{key}_{place}")


def _flips(result: dict[str, Any], key: str) -> None:
    _chart(flips(result), key)
    with st.expander("The numbers"):
        st.markdown(flips_table(result))


def _recalls(result: dict[str, Any], key: str) -> None:
    rows = ordered(result)
    figure = recalls(
        [METHODS[row["method"]].title for row in rows],
        [row["recall"]["mean"] for row in rows],
        [row["recall"]["error"] or 0.0 for row in rows],
        result["attack"]["base_rate"]["mean"],
        colour="#5cc3d6" if st.context.theme.type == "dark" else "#0f6e84",
    )
    _chart(figure, key)
    with st.expander("The numbers"):
        st.markdown(recall_table(result, TABLE_1 if result["setting"]["network"].startswith("resnet9") else None))


def _coresets(result: dict[str, Any], key: str) -> None:
    for balanced, title in KINDS:
        st.markdown(f"*{title}*")
        _chart(accuracies(result, balanced=balanced), f"{key}_{balanced}")
    with st.expander("The numbers"):
        st.markdown(coreset_table(result))


def _retrained(result: dict[str, Any], key: str) -> None:
    st.markdown(retraining_table(result))


def _scores(result: dict[str, Any], key: str) -> None:
    _chart(scores(result), key)


_FIGURES: dict[str, Callable[[dict[str, Any], str], None]] = {
    "relative-information": _curves,
    "brittleness": _flips,
    "backdoor": _recalls,
    "coreset": _coresets,
    "retraining": _retrained,
    "tune": _scores,
}
