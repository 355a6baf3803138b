"""The slider of σ², which every page with a method has: its steps span the scale of the bundle's features."""

import math
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from natscope.app import links, words
from natscope.app.bundles import Served


def slider(
    place: DeltaGenerator, label: str, attributor: Served, key: str, *, purpose: str = "prediction", **options: Any
) -> float:
    """Draw the slider, and below it how many times mean k(x, x) its value is.

    Args:
        place: where.
        label: of the slider.
        attributor: the bundle.
        key: of log10 σ² in the session, which may lie between two steps, as a link has it.
        purpose: what σ² is for, one of `natscope.core.bundle.manifest.PURPOSES`.
        options: of `st.select_slider`, such as `help` and `disabled`.

    Returns:
        σ².
    """
    middle, own = math.log10(attributor.bundle.scale(purpose)), st.session_state[key]
    steps = (middle + step for step in links.SIGMA2_EXPONENTS)
    apart = {step for step in steps if _text(step) != _text(own)}  # the slider takes options of equal text for one
    exponent = place.select_slider(label, sorted(apart | {own}), key=key, format_func=_text, **options)
    ratio = words.ratio_text(10**exponent, attributor.bundle.mean_kernel(purpose))
    if ratio and not options.get("disabled"):
        place.caption(ratio)
    return float(10**exponent)


def _text(exponent: float) -> str:
    return words.sigma2_text(10**exponent)
