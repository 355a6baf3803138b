"""Bars that compare networks: how often each is fooled, how sure each is."""

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from natscope.app import escape


@dataclass(frozen=True)
class Bar:
    """One network: its title, a share from 0 to 1 with its text, a further note, and "good" or ""."""

    title: str
    share: float
    value: str
    also: str
    tone: str = ""


def bars(drawn: Sequence[Bar]) -> None:
    """Draw bars one below the other."""
    st.html(f"<div class='ns-proof'>{''.join(map(_line, drawn))}</div><style>{_STYLE}</style>")


def _line(bar: Bar) -> str:
    return (
        f'<div class="line {bar.tone}"><span class="name">{escape.html(bar.title)}</span>'
        f'<span class="track"><span style="width:{max(bar.share, 0.004):.1%}"></span></span>'
        f'<span class="value">{escape.html(bar.value)}</span>'
        f'<span class="also">{escape.html(bar.also)}</span></div>'
    )


_STYLE = """
.ns-proof { display: flex; flex-direction: column; gap: .7rem; margin: .3rem 0 .6rem; max-width: 900px; }
.ns-proof .line { display: grid;
  grid-template-columns: minmax(0, 1.25fr) minmax(0, 1.6fr) 6.2rem;
  gap: .15rem .9rem; align-items: center; overflow-wrap: anywhere; }
.ns-proof .name { font-weight: 600; line-height: 1.3; }
.ns-proof .track { height: 14px; border-radius: 7px; background: color-mix(in srgb, currentColor 12%, transparent);
  overflow: hidden; }
.ns-proof .track span { display: block; height: 100%; background: #d55e00; border-radius: 7px; }
.ns-proof .good .track span { background: #0f8a5f; }
.ns-proof .value { font-weight: 650; font-variant-numeric: tabular-nums; }
.ns-proof .also { grid-column: 2 / -1; font-size: .8rem; opacity: .8; }
@media (max-width: 640px) {
  .ns-proof .line { grid-template-columns: minmax(0, 1fr) 6rem; }
  .ns-proof .name, .ns-proof .also { grid-column: 1 / -1; }
}
"""
