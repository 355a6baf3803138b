"""Methods: what each one means, when to use it, a glossary, and the limits."""

import streamlit as st

from natscope.app import words
from natscope.core.methods import METHODS

GLOSSARY = {
    "Nat": words.NAT,
    "Query": "The image whose prediction is explained: a test image, one of yours, or a training image (which is "
    "then left out).",
    "Target": "The class whose logit is attributed. By default the model’s answer; another one asks “why not that?”.",
    "Pool": "The training images that may be selected: those labelled with the target, or all.",
    "M": "How many training images are selected, one after another.",
    "σ² (noise)": "How much the surrogate distrusts a single training image. Small: one image can settle a "
    "question, duplicates are redundant. Large: images add up, and "
    f"{words.informative()} give the same order, that of the squared correlation.",
    "Jacobian": "How the target’s logit would change with each weight of the network. Two images with similar "
    "Jacobians teach the network the same thing.",
    "Sketch": "A random projection of the Jacobian to K numbers (4,096 by default) that keeps inner products nearly "
    "unchanged.",
    "Surrogate": "The network linearised at its trained weights: a Gaussian process whose kernel is the inner "
    "product of Jacobians. Its variance is what all information here is about.",
    "Proponent, opponent": "▲ an image whose label pulls the target’s logit the same way as the query’s; ▼ one that "
    "pulls the other way.",
    "Conditioned on": "What the surrogate has seen before images are taken away: the pool, or all training data.",
    "Coreset": "A few training images that stand for all of them: chosen to tell most about many test images at once.",
    "Redundancy": "The mean cosine between the features of the selected images. Near 1 they repeat each other.",
}

LIMITS = (
    "**A surrogate, not retraining.** The numbers are about the network linearised at its trained weights. Taking "
    "the images out and training again can end elsewhere.",
    "**Certainty, not correctness.** Labels never enter the variance. An image can carry many nats and be wrongly "
    "labelled.",
    "**Sketched.** Features are random projections; at K = 4,096 the relative error of the Gram matrix is 4 % "
    "within a class and 10 % over all classes (`make bench`).",
    "**Greedy.** Images are picked one at a time. What they tell about one query is not submodular in general: an "
    "image that tells nothing by itself can tell much after another, so there is no guarantee that the list is the "
    "best of its length.",
)


def page() -> None:
    """Draw the page from the registry of methods."""
    st.title("Methods")
    st.markdown("Each method answers *which training images does this prediction depend on?* in its own way.")
    st.subheader("Which one?")
    st.markdown("\n".join(f"- **{m.title}.** {m.advice}" for m in METHODS.values()))
    for method in METHODS.values():
        with st.container(border=True):
            st.subheader(method.title, anchor=method.name)
            text, formula = st.columns([1.25, 1], gap="large", vertical_alignment="center")
            text.markdown(method.summary)
            if method.caveat:
                text.markdown(f"**Before you rely on it.** {method.caveat}")
            text.caption(
                f"Score: {method.score} · {'counts nats' if method.information else 'has no unit of information'} · "
                f"σ² {'matters' if method.uses_sigma2 else 'plays no part'} · "
                f"{'depends on' if method.sketched else 'does not use'} the sketch · `--method {method.name}`"
                f"{f' · a bundle gets its parts by `--methods {method.name}`' if method.needs else ''}"
            )
            formula.latex(method.formula)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Glossary")
        for term, meaning in GLOSSARY.items():
            st.markdown(f"**{term}.** {meaning}")
    with right:
        st.subheader("How far to trust it")
        for limit in LIMITS:
            st.markdown(f"- {limit}")
        st.markdown("The mathematics is that of Tailor, Felicioni and Ciosek; the README has it on one page.")
