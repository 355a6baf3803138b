"""Controls whose value the session has before they are drawn, and the slider of σ², which every method's page has."""

import math
from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from natscope.app import links, words
from natscope.app.bundles import Served
from natscope.core.bundle.manifest import OF_MARGINS


def control(draw: Callable[..., Any], label: str, *arguments: Any, key: str, **options: Any) -> Any:
    """Draw a control with the value that the session has under its key, and return its value.

    A browser may get to see a control later than the value it was given: its script can still be on the way. It then
    takes the control's default for the value, and sends that with the next click.

    Args:
        draw: a function of Streamlit or of a container, such as `st.slider`.
        label: of the control.
        arguments: the ones of `draw` after the label, except the value.
        key: of the value in the session.
        options: other options of `draw`.
    """
    value, kind = st.session_state[key], draw.__name__
    if kind == "selectbox":
        choices = list(arguments[0])
        options["index"] = choices.index(value) if value in choices else 0
    else:
        options["default" if kind in ("multiselect", "segmented_control", "pills") else "value"] = value
    return draw(label, *arguments, key=key, **options)


def sigma2_slider(
    place: DeltaGenerator, label: str, attributor: Served, key: str, *, purpose: str = "prediction", **options: Any
) -> float:
    """Draw the slider, and below it how many times mean k(x, x) its value is.

    Args:
        place: where.
        label: of the slider.
        attributor: the bundle.
        key: of log10 σ² in the session, which may lie between two steps, as a link has it.
        purpose: what σ² is for, one of `natscope.core.bundle.manifest.PURPOSES`.
        options: of `st.select_slider`, such as `help`.

    Returns:
        σ².
    """
    middle, own = math.log10(attributor.bundle.scale(purpose)), st.session_state[key]
    steps = (middle + step for step in links.SIGMA2_EXPONENTS)
    apart = {step for step in steps if _text(step) != _text(own)}  # the slider takes options of equal text for one
    exponent = control(place.select_slider, label, sorted(apart | {own}), key=key, format_func=_text, **options)
    kernel, margins = attributor.bundle.mean_kernel(purpose), purpose in OF_MARGINS
    ratio = words.ratio_text(10**exponent, kernel, margins=margins)
    if ratio:
        place.caption(ratio)
    return float(10**exponent)


def _text(exponent: float) -> str:
    return words.sigma2_text(10**exponent)
