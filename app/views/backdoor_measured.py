"""Under the story: the experiment over several seeds, like Table 1 of the paper."""

import streamlit as st

from app.figures_backdoor import recalls
from app.figures_experiments import ordered, recall_table
from app.results import load_result
from app.views.backdoor_scene import KEY
from core.methods import METHODS

PAPER = (
    "**The paper’s Table 1** is about CIFAR-10 and ResNet-9, ours about a quarter of Fashion-MNIST and a network "
    "of three "
    "layers, where pictures with the same patch and the same label look alike to every layer; so similarity of "
    "representations does well here. Its numbers are in the paper; they are not repeated here."
)


def measured() -> None:
    """Draw the section."""
    st.subheader("Measured over several attacks", anchor="measured")
    result = load_result("backdoor")
    if result is None:
        st.caption("The result is not in this installation; `natscope evaluate backdoor` measures it.")
        return
    rows, setting, attack = ordered(result), result["setting"], result["attack"]
    st.markdown(
        f"{result['finding']} {len(result['bundles'])} models, each with an attack of its own, "
        f"{setting['queries']} fooled "
        "pictures each."
    )
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
        st.plotly_chart(figure, key=f"{KEY}recalls", config={"displayModeBar": False})
    with right:
        st.markdown(recall_table(result))
    st.caption(PAPER)
    with st.expander("How it was measured"):
        st.markdown(
            f"Mean ± standard error over {len(result['bundles'])} models. Queries: test images that the network "
            "gets right and "
            f"that its patch turns into what the attack aims at. Pool: the class that the attack aims at. σ² chosen on "
            f"{setting['tuned_on']} other queries a model from {setting['sigma2s'][0]:g} to "
            f"{setting['sigma2s'][-1]:g}. Attack "
            f"success {attack['attack_success']['mean']:.1%}, test accuracy {attack['test_accuracy']['mean']:.1%}, "
            f"{result['date']}.\n\n```\n"
            + "\n".join(b["command"] for b in result["bundles"])
            + f"\n{result['command']}\n```"
        )
