"""Methods: what each one means, when to use it, a glossary, and the limits."""

import streamlit as st

from natscope.app import words
from natscope.core.methods import METHODS


def draw() -> None:
    """Draw the tab from the registry of methods."""
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
                f"{f' · a bundle gets its parts by `--methods {method.name}`' if method.files else ''}"
            )
            for line in method.formula.split(r",\qquad "):  # one below the other, so that each fits a phone
                formula.latex(line)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Glossary")
        for term, meaning in words.GLOSSARY.items():
            st.markdown(f"**{term}.** {meaning}")
    with right:
        st.subheader("How far to trust it")
        for limit in words.LIMITS:
            st.markdown(f"- {limit}")
        st.markdown("The mathematics is that of Tailor, Felicioni and Ciosek; the documentation has it on one page.")
