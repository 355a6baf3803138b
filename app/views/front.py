"""The front page: one wrong prediction, the training images behind it, and where to go next."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import streamlit as st

from natscope.app import bundles, escape
from natscope.app.bundles import Served
from natscope.app.examples import examples
from natscope.app.links import AttributeView, BackdoorView
from natscope.app.modalities import STYLE
from natscope.app.views import explain, frame
from natscope.app.views.banner import now
from natscope.app.views.notice import complain
from natscope.core.bundle.request import Request
from natscope.core.errors import NatscopeError
from natscope.core.examples import Examples
from natscope.core.methods import REFERENCE
from natscope.precompute.data.shown import shown
from natscope.precompute.experiments.proof import kept

_BEHIND = 3  # training images that are shown
_DOORS = (
    ("explain", "Debug a prediction", "Which training examples is it based on? Compare methods, remove them, retrain."),
    ("backdoor", "Catch a backdoor", "A real experiment: find the images that taught a network to be fooled."),
    ("paper", "See the paper’s results", "Every figure and table, beside what natscope measures."),
)


def page() -> None:
    """Draw the page; the address of an earlier version's first page, with an image, leads to Explain."""
    if set(frame.own_address()) - {"bundle"} and not frame.went_back():
        frame.lead(explain.page, "explain")
    st.title("Which training examples is a prediction based on?")
    example, addresses = "", {place: place for place, *_ in _DOORS}
    try:
        paths = bundles.bundle_paths()
        if not now() and not any(bundles.listed(path).attacked for path in paths.values()):
            del addresses["backdoor"]  # its page would have nothing to tell
        name = frame.chosen_bundle(paths)
        attributor = bundles.served(paths[name])
        (index,) = examples(attributor, 1)
        addresses["explain"] += "?" + urlencode({"bundle": name, "q": f"test:{index}"})
        example = _example(attributor, index)
        if story := _story(paths):
            addresses["backdoor"] = story
    except NatscopeError as error:
        complain(error)
    doors = "".join(
        f'<a class="ns-door" href="{escape.html(addresses[place])}" target="_self">'
        f"<b>{title}</b><span>{about}</span></a>"
        for place, title, about in _DOORS
        if place in addresses
    )
    nav = f'<nav class="ns-doors" aria-label="Where to go">{doors}</nav>'
    st.html(f"{example}{nav}<style>{STYLE}{_STYLE}</style>")  # as one, so that the doors need not move


def _story(paths: Mapping[str, Path]) -> str:
    """Return the address that the page Backdoor will have, so that Back leads from it to here; "" if that is open."""
    for path in paths.values():
        if bundles.listed(path).poisoned:
            attributor = bundles.served(path)
            proof = kept(attributor.bundle)
            return "" if proof is None else frame.address("backdoor", BackdoorView(proof.index), attributor)
    return ""


def _example(attributor: Served, index: int) -> str:
    """Return the HTML of a test image, and of the training images that its prediction relies on most."""
    query, classes = attributor.query("test", index), attributor.bundle.classes
    sigma2 = attributor.bundle.sigma2(REFERENCE)
    result = attributor.attribute(query, Request(REFERENCE, sigma2, _BEHIND))
    train = attributor.bundle.examples("train")
    behind = "".join(_shot(train, item.train_index, f"labelled {classes[item.label]}") for item in result.items)
    said, true = classes[query.predicted], classes[int(attributor.test_labels[index])]
    asked = frame.tab_address(frame.ATTRIBUTION, AttributeView(f"test:{index}", sigma2=sigma2), attributor)
    first = f"The network predicts <b>{escape.html(said)}</b>"
    first += "." if said == true else f", but this {attributor.one} is labelled <b>{escape.html(true)}</b>."
    return (
        f'<a class="ns-example" href="{escape.html(asked)}" target="_self" title="Explain this prediction">'
        f"{_shot(query.example, 0, f'predicted {said}', large=True)}"
        '<span class="ns-arrow" aria-hidden="true">←</span>'
        f'<span class="ns-behind">{behind}</span><span class="ns-sentence">{first} Of the {result.pool_size:,} '
        f"training {attributor.many} labelled {escape.html(said)}, these {len(result.items)} shaped that most."
        "</span></a>"
    )


def _shot(examples: Examples, row: int, caption: str, *, large: bool = False) -> str:
    size = " large" if large else ""
    return f'<span class="ns-shot{size}">{shown(examples, row)}<span>{escape.html(caption)}</span></span>'


_STYLE = """
.ns-example { display: flex; align-items: center; gap: 1.2rem; flex-wrap: wrap; color: inherit !important;
  text-decoration: none !important; margin: 1rem 0 .4rem; }
.ns-behind { display: flex; gap: .8rem; align-items: flex-start; }
.ns-example:has(.ns-text) { align-items: flex-start; }
.ns-shot:has(.ns-text) { text-align: start; }
.ns-shot { display: block; width: 8.4rem; font-size: .9rem; text-align: center; overflow-wrap: anywhere; }
.ns-shot.large { width: 12.5rem; font-size: 1.05rem; font-weight: 600; }
.ns-shot img { height: auto; }
.ns-shot .ns-text { text-align: start; font-size: .82rem; font-weight: 400; overflow: hidden;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 6; }
.ns-shot > span:last-child { display: block; margin-top: .3rem; line-height: 1.25; }
.ns-sentence { flex: 1 1 18rem; font-size: 1.2rem; line-height: 1.5; }
.ns-arrow { font-size: 2.4rem; opacity: .6; }
.ns-doors { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; margin-top: 1rem; }
.ns-door { display: block; padding: 1.1rem 1.2rem; border-radius: 12px; color: inherit !important;
  text-decoration: none !important; border: 1px solid color-mix(in srgb, currentColor 22%, transparent); }
.ns-door:hover, .ns-door:focus-visible { border-color: #1b8aa3;
  background: color-mix(in srgb, #1b8aa3 9%, transparent); }
.ns-door b { display: block; font-size: 1.1rem; margin-bottom: .25rem; }
.ns-door span { font-size: .9rem; opacity: .85; }
@media (max-width: 640px) { .ns-arrow { font-size: 1.8rem; line-height: 1; rotate: 90deg; margin-left: 3.2rem; }
  .ns-example { gap: .6rem; flex-direction: column; align-items: flex-start; }
  .ns-sentence { flex: none; }
  .ns-shot { width: 5.2rem; } .ns-shot.large { width: 8rem; } }
"""
