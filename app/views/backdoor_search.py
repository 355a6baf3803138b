"""Step 2 of the Backdoor page: which training images taught it that?"""

from collections.abc import Callable

import numpy as np
import streamlit as st

from natscope.app import escape, words
from natscope.app.figures import on_page
from natscope.app.figures.backdoor import roc
from natscope.app.links import AttributeView, BackdoorView
from natscope.app.modalities import packed
from natscope.app.views import frame
from natscope.app.views.backdoor_scene import (
    KEY,
    Change,
    Scene,
    Searched,
    chance,
    experts,
    few,
    line_up,
    measured_for,
    reveal_button,
    show_once_there,
    sigma2_of,
    weak,
)
from natscope.app.views.controls import control
from natscope.app.views.notice import complain
from natscope.core.bundle.request import Attribution
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, REFERENCE
from natscope.core.metrics import recall_at_k, reciprocal_rank
from natscope.precompute.experiments.proof import NAMED
from natscope.precompute.experiments.proof import question as asked_of


def search_step(
    scene: Scene, view: BackdoorView, note: str, change: Change, another: Callable[..., None]
) -> Searched | None:
    """Draw the step.

    Args:
        scene: what the page is about.
        view: what it shows.
        note: whose patch this is about, if that needs saying (Markdown).
        change: called with changes of the view.
        another: called to take another picture.

    Returns:
        What was found, which the next step removes; None if the model is not fooled, so that there is nothing to ask.
    """
    st.subheader("2 · The question", anchor="question")
    if not scene.fooled:
        st.markdown("On this picture the attacker’s patch does not work, so nobody taught the model anything about it.")
        st.button("Take one on which it works", key=f"{KEY}working", on_click=another, args=(scene,))
        return None
    names = scene.attributor.usable()
    method = view.method if view.method in names else REFERENCE
    rival = view.rival if view.rival in names else _rival(scene, scene.attributor.usable(fast=True), method)
    pool = int((scene.attributor.train_labels == scene.target).sum())
    says = scene.name(scene.target)
    st.markdown(
        f"The model says **{says}** because somewhere among its {pool:,} training pictures labelled **{says}** "
        f"someone planted images with the patch. Which ones? Below are the {NAMED} that natscope puts first for this "
        f"one wrong answer, and those of a usual search; neither was told about the attack.{note}"
    )
    question = (scene.attributor.place, scene.index)
    revealed, place = reveal_button("search", view, change), f"{KEY}search_result"
    with st.container(key=place):
        own, other = st.columns(2, gap="large")
        with own:
            named = _line_up(scene, method, "method", found_by(method, "natscope’s search"), revealed=revealed)
        with other:
            title = METHODS[rival].title if view.rival else "A usual search"
            _line_up(scene, rival, "rival", title, revealed=revealed)
        show_once_there(place, question, there=revealed)
    if box := experts("question"):
        with box:
            _experts(scene, (method, rival), names, change)
    planted = np.isin(named, scene.attack.culprits(scene.base)).sum()
    return Searched(method, found_by(method), len(named), int(planted), revealed and bool(named))


def found_by(method: str, plain: str = "natscope") -> str:
    """Return what to call the search in plain words: by its method's name only if an expert chose another one."""
    return plain if method == REFERENCE else METHODS[method].title


def ranking(scene: Scene, method: str, budget: int = NAMED) -> Attribution:
    """Ask a method about the stamped image, at the sigma2 that was chosen for it.

    Raises:
        QueryError: if the method fails on it.
    """
    request = asked_of(scene.attributor.bundle, method, scene.target, budget)
    return scene.attributor.attribute(scene.query(), request)


def _rival(scene: Scene, names: tuple[str, ...], method: str) -> str:
    return weak(tuple(name for name in names if name != method), measured_for(scene.attributor))


def _line_up(scene: Scene, name: str, role: str, title: str, *, revealed: bool) -> list[int]:
    """Draw the images that a method names, and return them; none if it fails."""
    try:
        indices = [item.train_index for item in ranking(scene, name).items]
    except QueryError as error:
        complain(error)
        return []
    planted = set(scene.attack.culprits(scene.base).tolist())
    if revealed:
        st.markdown(
            f"##### {title}: {words.planted_among(len(planted & set(indices)), len(indices))}\n"
            f"Random picking would find about {few(chance(scene, len(indices)))}."
        )
    else:
        st.markdown(f"##### {title}: the first {len(indices)}\nClick one to look at it closely.")
    line_up(
        scene,
        indices,
        name=role,
        label=f"Images that {title} puts first for test image {scene.index}",
        planted=planted if revealed else None,
    )
    return indices


def _experts(scene: Scene, chosen: tuple[str, str], names: tuple[str, ...], change: Change) -> None:
    for column, name, role in zip(st.columns(2, gap="large"), chosen, ("method", "rival"), strict=True):
        with column:
            _choice(role, name, names, change)
    sigma2 = sigma2_of(scene, chosen[0])
    asked = AttributeView(packed(scene.query().example), chosen[0], sigma2, NAMED, target=scene.target)
    address = frame.comparison(asked, scene.attributor, purpose="backdoor")
    st.link_button("All methods on this picture", address, type="tertiary", icon=":material/compare:")
    _numbers(scene, chosen)


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


def _numbers(scene: Scene, names: tuple[str, ...]) -> None:
    pool = np.flatnonzero(scene.attributor.train_labels == scene.target)
    culprits = scene.attack.culprits(scene.base)
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
                f"recall@{NAMED}": recall_at_k(order, truth, NAMED),
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
            for key in (f"recall@{NAMED}", "reciprocal rank@100", "area under ROC")
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
