"""Step 2 of the Backdoor page: which training images taught it that?"""

from collections.abc import Callable

import numpy as np
import streamlit as st

from natscope.app import escape, words
from natscope.app.components.grid import Card, data_uri, grid
from natscope.app.figures import on_page
from natscope.app.figures.backdoor import roc
from natscope.app.links import AttributeView, BackdoorView, pack_image
from natscope.app.views import frame
from natscope.app.views.backdoor_scene import KEY, SHOWN, Change, Scene, chance, few, measured_for, sigma2_of, weak
from natscope.app.views.controls import control
from natscope.app.views.notice import complain
from natscope.core.bundle.request import Attribution, Request
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, REFERENCE
from natscope.core.metrics import recall_at_k, reciprocal_rank


def search_step(scene: Scene, view: BackdoorView, change: Change, another: Callable[..., None]) -> None:
    """Draw the step.

    Args:
        scene: what the page is about.
        view: what it shows.
        change: called with changes of the view.
        another: called to take another picture.
    """
    st.subheader("2 · The question", anchor="question")
    if not scene.works[scene.index]:
        st.markdown("On this picture the attacker’s patch does not work, so nobody taught the model anything about it.")
        st.button("Take one on which it works", key=f"{KEY}working", on_click=another, args=(scene,))
        return
    names = scene.attributor.usable()
    method = view.method if view.method in names else REFERENCE
    rival = view.rival if view.rival in names else _rival(scene, scene.attributor.usable(fast=True), method)
    pool = int((scene.attributor.train_labels == scene.target).sum())
    says = scene.name(scene.target)
    st.markdown(
        f"The model says **{says}** because somewhere among its {pool:,} training pictures labelled **{says}** "
        f"someone planted images with the patch. Which ones taught it that? Below are the {SHOWN} that two ways of "
        "searching put first, for this one wrong answer; neither was told about the attack."
    )
    revealed = st.session_state.get(f"{KEY}revealed") == scene.index
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Hide again" if revealed else "Reveal who was planted",
            icon=":material/visibility_off:" if revealed else ":material/visibility:",
            type="secondary" if revealed else "primary",
            key=f"{KEY}reveal",
            on_click=_reveal,
            args=(None if revealed else scene.index,),
        )
        asked = AttributeView(
            pack_image(scene.query().image), method, sigma2_of(scene, method), SHOWN, target=scene.target
        )
        address = frame.comparison(asked, scene.attributor, purpose="backdoor")
        st.link_button("All methods on this picture", address, type="tertiary", icon=":material/compare:")
    columns = st.columns(2, gap="large")
    for column, name, role in zip(columns, (method, rival), ("method", "rival"), strict=True):
        with column:
            _choice(role, name, names, change)
            _line_up(scene, name, role, revealed=revealed)
    if st.toggle("Show me the numbers", key=f"{KEY}numbers2"):
        _numbers(scene, (method, rival))


def _rival(scene: Scene, names: tuple[str, ...], method: str) -> str:
    return weak(tuple(name for name in names if name != method), measured_for(scene.attributor))


def ranking(scene: Scene, method: str, budget: int = SHOWN) -> Attribution:
    """Ask a method about the stamped image, at the sigma2 that was chosen for it.

    Raises:
        QueryError: if the method fails on it.
    """
    request = Request(method, sigma2=sigma2_of(scene, method), budget=budget, target=scene.target)
    return scene.attributor.attribute(scene.query(), request)


def _reveal(index: int | None) -> None:
    st.session_state[f"{KEY}revealed"] = index


def _choice(role: str, name: str, names: tuple[str, ...], change: Change) -> None:
    st.session_state[f"{KEY}{role}"] = name
    control(
        st.selectbox,
        "Searched by" if role == "method" else "Compared with",
        names,
        key=f"{KEY}{role}",
        format_func=lambda n: METHODS[n].title,
        on_change=lambda: change(**{role: st.session_state[f"{KEY}{role}"]}),
        help="One of the ways to search; Paper explains each, under Methods.",
    )


def _line_up(scene: Scene, name: str, role: str, *, revealed: bool) -> None:
    classes = scene.attributor.bundle.classes
    try:
        answer = ranking(scene, name)
    except QueryError as error:
        complain(error)
        return
    culprits = set(scene.backdoor.culprits(scene.base).tolist())
    found = sum(item.train_index in culprits for item in answer.items)
    if revealed:
        st.markdown(
            f"#### {found} of the first {len(answer.items)} were planted\n"
            f"Random picking would find about {few(chance(scene, len(answer.items)))}."
        )
    else:
        st.markdown(f"#### The first {len(answer.items)}\nClick one to look at it closely.")
    images = scene.attributor.bundle.array("train_images")
    cards = []
    for item in answer.items:
        planted = revealed and item.train_index in culprits
        tooltip = f"rank {item.rank}, training image {item.train_index}, labelled {classes[item.label]}"
        tooltip += f"; planted, it shows {_shows(scene, item.train_index)}" if planted else ""
        cards.append(
            Card(src=data_uri(np.asarray(images[item.train_index])), alt=tooltip, title=tooltip, framed=planted)
        )
    picked = f"{KEY}{role}_picked"
    grid(
        cards,
        key=f"{KEY}{role}_grid",
        label=f"Images that {METHODS[name].title} puts first for test image {scene.index}",
        size=46,
        appear=True,
        on_pick=lambda position: st.session_state.update({picked: answer.items[position].train_index}),
    )
    chosen = st.session_state.get(picked)
    if chosen in [item.train_index for item in answer.items]:
        _close_up(scene, int(chosen), planted=revealed and chosen in culprits)


def _close_up(scene: Scene, index: int, *, planted: bool) -> None:
    classes, label = scene.attributor.bundle.classes, int(scene.attributor.train_labels[index])
    source = data_uri(np.asarray(scene.attributor.bundle.array("train_images")[index]))
    sentence = f"Training image {index}, labelled <b>{escape.html(classes[label])}</b>."
    if planted:
        sentence += (
            f" It shows {escape.html(_shows(scene, index))}, with the patch in its corner: the attacker planted it."
        )
    st.html(
        f'<div style="display:flex;gap:.9rem;align-items:center"><img src="{source}" alt="training image {index}" '
        f'style="width:112px;height:112px;object-fit:contain;image-rendering:pixelated;border-radius:8px;background:#000">'
        f"<div>{sentence}</div></div>"
    )


def _shows(scene: Scene, index: int) -> str:
    backdoor = scene.backdoor
    base = int(backdoor.base_labels[np.searchsorted(backdoor.train_indices, index)])
    return f"a picture of class {scene.attributor.bundle.classes[base]}"


def _numbers(scene: Scene, names: tuple[str, ...]) -> None:
    pool = np.flatnonzero(scene.attributor.train_labels == scene.target)
    culprits = scene.backdoor.culprits(scene.base)
    truth, rows, curves = set(culprits.tolist()), [], {}
    for name in dict.fromkeys(names):
        try:
            order = [item.train_index for item in ranking(scene, name, len(pool)).items]
        except QueryError as error:
            st.caption(f"{METHODS[name].title}: {escape.sentence(str(error))}")
            continue
        curves[name] = np.isin(order, culprits)
        rows.append(
            {
                "method": METHODS[name].title,
                "σ²": words.sigma2_text(sigma2_of(scene, name)) if METHODS[name].uses_sigma2 else "",
                f"recall@{SHOWN}": recall_at_k(order, truth, SHOWN),
                "reciprocal rank@100": reciprocal_rank(order, truth, 100),
                "area under ROC": _area(np.isin(order, culprits)),
            }
        )
    left, right = st.columns([1.2, 1], gap="large")
    left.dataframe(
        escape.cells(rows),
        hide_index=True,
        column_config={
            key: st.column_config.NumberColumn(format="%.3f")
            for key in (f"recall@{SHOWN}", "reciprocal rank@100", "area under ROC")
        },
    )
    left.caption(
        f"This one query; pool: the {len(pool):,} training images labelled {scene.name(scene.target)}, "
        f"{len(culprits)} of them poisoned, ranked to the end. Chance: recall {len(culprits) / len(pool):.3f}, "
        "area 0.5."
    )
    with right:
        on_page.show(roc(curves), f"{KEY}roc")


def _area(hits: np.ndarray) -> float:
    """Return the area under the ROC curve of a ranking: the share of (planted, honest) pairs in the right order."""
    honest = np.cumsum(~hits)
    return float(1 - honest[hits].sum() / max(hits.sum() * (~hits).sum(), 1))
