"""Under the story: the experiment over several seeds, like Table 1 of the paper."""

from typing import Any

import streamlit as st

from natscope.app import escape, words
from natscope.app.figures.backdoor import recalls
from natscope.app.figures.experiments import ordered, recall_table
from natscope.app.results import backdoor_results, commands
from natscope.app.views.backdoor_scene import KEY
from natscope.core.methods import METHODS

PAPER = (
    "**The paper’s Table 1** is about CIFAR-10 and ResNet-9; its numbers are in the paper and not repeated here. On "
    "Fashion-MNIST, with a network of three layers, pictures with the same patch and label look alike to every layer, "
    "so similarity of representations does well."
)


def measured() -> None:
    """Draw the section."""
    st.subheader("Measured over several attacks", anchor="measured")
    results = backdoor_results()
    if not results:
        st.caption("The result is not in this installation; `natscope evaluate backdoor` measures it.")
    for place, result in enumerate(results):
        setting = result["setting"]
        st.markdown(f"**{words.setting_of(setting)}**")
        _one(result, place)
    if results:
        st.caption(PAPER)


def _one(result: dict[str, Any], place: int) -> None:
    rows, setting, attack = ordered(result), result["setting"], result["attack"]
    st.markdown(f"{escape.sentence(result['finding'])} {_size(len(result['bundles']), setting['queries'])}")
    left, right = st.columns([1.1, 1], gap="large")
    with left:
        colour = "#5cc3d6" if st.context.theme.type == "dark" else "#0f6e84"
        figure = recalls(
            [METHODS[row["method"]].title for row in rows],
            [row["recall"]["mean"] for row in rows],
            [row["recall"]["error"] or 0.0 for row in rows],
            attack["base_rate"]["mean"],
            colour=colour,
        )
        st.plotly_chart(figure, key=f"{KEY}recalls{place}", config={"displayModeBar": False})
    with right:
        st.markdown(recall_table(result))
    with st.expander("How it was measured"):
        several = "Mean ± standard error over the models. " if len(result["bundles"]) > 1 else ""
        st.markdown(
            f"{several}Queries: test images that the network gets right and that its patch turns into what the attack "
            "aims at. Pool: the class that the attack aims at. σ² chosen on "
            f"{setting['tuned_on']} other queries a model from {setting['sigma2s'][0]:g} to "
            f"{setting['sigma2s'][-1]:g}. Attack success {attack['attack_success']['mean']:.1%}, test accuracy "
            f"{attack['test_accuracy']['mean']:.1%}, {result['date']}."
        )
        st.code(commands(result), language=None)


def _size(models: int, queries: int) -> str:
    if models == 1:
        return f"One model and attack, {queries} fooled pictures."
    return f"{models} models, each with an attack of its own, {queries} fooled pictures each."
