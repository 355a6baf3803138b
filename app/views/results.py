"""Results: the paper's experiments beside ours, each with its provenance and where we differ."""

import json
from functools import partial
from typing import Any

import streamlit as st

from natscope.app import bundles, escape, words
from natscope.app.components.jumps import jumps
from natscope.app.downloads import draw as draw_file
from natscope.app.downloads import offer
from natscope.app.examples import examples
from natscope.app.figures import on_page
from natscope.app.figures.backdoor import sigma2_chosen
from natscope.app.figures.data import numbers
from natscope.app.figures.experiments import charts, columns, is_table, panels, table
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.style import FORMATS
from natscope.app.links import ComparisonView
from natscope.app.modalities import STYLE
from natscope.app.paper import SECTIONS, Section
from natscope.app.results import commands, conditioning, load_result, load_results
from natscope.app.views import frame
from natscope.app.views.notice import complain
from natscope.core.errors import NatscopeError
from natscope.core.methods import METHODS
from natscope.precompute.data.shown import shown

_KEY = "results_"
_SMALL = 56  # pixels of an example's width
_CONDITIONED = {"train": "all training data", "pool": "the candidates"}
_GIVEN = words.titles(method for method in METHODS.values() if method.conditions)


def draw() -> None:
    """Draw the tab."""
    st.title("The paper’s experiments, measured")
    st.markdown(
        "Each experiment of *A Bayesian Information-Theoretic Approach to Data Attribution* (Tailor, Felicioni and "
        "Ciosek, AISTATS 2026) beside ours, with the command that measures it again and where the two differ."
    )
    st.markdown(" · ".join(f"[{section.title}](#{section.anchor})" for section in SECTIONS))
    jumps(key=f"{_KEY}jumps")
    for section in SECTIONS:
        results = {file: result for name, file in section.names.items() if (result := load_result(name))}
        st.divider()
        st.subheader(section.title, anchor=section.anchor)
        left, right = st.columns([1, 1.6], gap="large")
        with left.container(key=f"{_KEY}about_{section.anchor}"):
            st.markdown(f"**The paper.** {section.paper}")
            if section.numbers:
                st.markdown(section.numbers)
            st.markdown(f"**Where we differ.** {section.differs}")
        with right:
            if section.examples:
                _examples(section)
            elif not results:
                st.caption("Not measured yet.")
            for file, result in results.items():
                _one(result, file)


def pointer(anchor: str, attributor: bundles.Served) -> None:
    """Summarise on another page what an experiment measured, and link to its section.

    Args:
        anchor: the section's anchor.
        attributor: the open bundle: what was measured on its data is said, else on a network of its kind, else the most
            important.
    """
    section, data = next(found for found in SECTIONS if found.anchor == anchor), attributor.bundle.manifest.dataset
    found = load_results(*section.names)
    own = [result for result in found if result["setting"]["data"].partition(",")[0] == data["name"]]
    kind = attributor.bundle.manifest.model["architecture"]
    own = own or [result for result in found if result["setting"]["network"].split()[0] == kind]
    st.subheader("Measured over many", anchor="measured")
    for result in own or load_results(next(iter(section.names))):
        st.markdown(f"**{words.setting_of(result['setting'])}.** {escape.sentence(result['finding'])}")
    st.markdown(f"[{section.title}, the paper’s and ours](paper#{anchor})")


def _examples(section: Section) -> None:
    """Link to figures that the tab Compare draws, of the bundle that is open."""
    try:
        paths = bundles.bundle_paths()
        attributor = bundles.served(paths[frame.chosen_bundle(paths)])
        indices = examples(attributor, len(section.examples))
        queries = [attributor.query("test", index) for index in indices]
    except NatscopeError as error:
        complain(error)
        return
    classes = attributor.bundle.classes
    st.markdown(f"**{escape.markdown(attributor.bundle.manifest.name)}**")
    for title, query in zip(section.examples, queries, strict=False):
        true, said = classes[attributor.test_labels[query.index]], classes[query.predicted]
        what = f"labelled {escape.markdown(true)}, predicted {escape.markdown(said)}"
        view = ComparisonView(f"test:{query.index}")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.html(
                f'<div style="width:{_SMALL}px">{shown(query.example)}</div><style>{STYLE}</style>',
                width="content",
            )
            st.markdown(
                f"[{title}: test {attributor.one} "
                f"{query.index}]({frame.tab_address(frame.COMPARE, view, attributor)}), {what}"
            )


def _one(result: dict[str, Any], file: str) -> None:
    setting, key = result["setting"], f"{_KEY}{file}"
    st.markdown(f"**{words.setting_of(setting)}**")
    st.markdown(f"**Ours.** {escape.sentence(result['finding'])}")
    own = table(result)
    if own and is_table(result):
        st.markdown(own.unbroken())
    for position, chart in enumerate(charts(result)):
        if chart.title:
            st.markdown(f"*{chart.title}*")
        on_page.show(chart, f"{key}_{position}")
    if own and not is_table(result):
        st.expander("The numbers").markdown(own.unbroken())
    st.caption(_size(result))
    if result["experiment"] == "backdoor":
        st.caption(escape.sentence(sigma2_chosen(result)))
    _downloads(result, file, key)
    with st.expander("How to reproduce"):
        identities = [bundle["identity"] for bundle in result["bundles"]]
        st.code(commands(result), language=None)
        st.markdown(
            f"{'Bundles' if len(identities) > 1 else 'Bundle'}: {', '.join(identities)}. "
            + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            + ". `BUNDLES` and `folder:…` stand for folders of your own."
        )


def _downloads(result: dict[str, Any], file: str, key: str) -> None:
    """Draw the buttons: what is shown as a figure, its numbers, and everything."""
    figure = partial(draw_file, chart_file, *panels(result), columns=columns(result))
    offers = [
        (kind, mime, "What is shown, in print quality.", partial(figure, kind=kind)) for kind, mime in FORMATS.items()
    ]
    offers += [
        ("CSV", "text/csv", "The numbers, unrounded, with their standard errors.", partial(numbers, result)),
        ("JSON", "application/json", "The numbers with every setting.", partial(json.dumps, result, indent=1)),
    ]
    with st.container(horizontal=True):
        for kind, mime, about, make in offers:
            offer(kind, make, f"natscope-{file}.{kind.lower()}", mime, key=f"{key}_{kind}", help=about)


def _size(result: dict[str, Any]) -> str:
    setting = result["setting"]
    count = len(result["bundles"])
    queries = f"{setting['queries']:,} queries" + (" a network" if count > 1 else "")
    if result["experiment"] == "retraining":
        queries = "1 query a class" if setting["queries"] == 1 else f"{setting['queries']:,} queries a class"
    elif result.get("for") == "coreset":
        queries = f"three sets of {setting['queries']:,} queries"
    parts = [queries, f"{count} network{'s' if count > 1 else ''}", f"seed {setting['seed']}"]
    parts.append(f"{_GIVEN} given {_CONDITIONED[conditioning(result)]}")
    sigma2 = {row["method"]: row["sigma2"] for row in result.get("rows", []) if row.get("sigma2")}
    settings = ", ".join(f"{METHODS[name].title} {_values(value)}" for name, value in sigma2.items() if name)
    parts += [f"σ²: {settings}"] if settings else []
    if settings and "kernel" in setting and "measurement" not in setting:
        parts.append(f"mean k(x, x) {words.sigma2_text(setting['kernel']['mean'])}")
    return f"{'; '.join(parts)}. Measured on {result['date']}."


def _values(value: Any) -> str:
    return " / ".join(map(words.sigma2_text, dict.fromkeys(value if isinstance(value, list) else [value])))
