"""What every page about a bundle has around it: a heading, the choice of the bundle, and a view kept in its address.

The tabs of Explain have a view each. What they share, such as the image, is kept beside them, as in an address.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlencode

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from natscope.app import bundles, escape, links
from natscope.app.bundles import Served
from natscope.app.links import AttributeView, ComparisonView, Limits
from natscope.app.views import telling
from natscope.app.views.controls import control
from natscope.app.views.notice import warn
from natscope.core.bundle.request import QueryExample
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, REFERENCE
from natscope.core.text import few, listed

AnyView = TypeVar("AnyView")
_TITLES, _CHOSEN = "titles of bundles", "chosen"  # keys in the session's state, the latter followed by a box's
_SHARED, _SHARED_OF = "shared", "shared_of"  # keys of what tabs share, parameters of addresses, and of its bundle
_PLACE, _ARRIVED = "place", "arrived"  # keys of the last page, and of whether another one was just chosen
_QUERY, _TARGET, _BUNDLE = "q", "target", "bundle"
_FIRST = "test:0"
TAB = "tab"  # parameter of an address, and key of the choice
# The tabs of Explain.
ATTRIBUTION, COMPARE, REMOVE, CURVES, MAP = "attribution", "compare", "remove", "curves", "map"
_TRACKING = ("utm_", "fbclid", "gclid", "msclkid", "srsltid", "gbraid", "wbraid", "mc_", "igsh")  # sites add them
_NAMED = 4  # parameters in a sentence
_FITS = 44  # letters of a title that the box of bundles has room for
_SHOWN = 60  # letters of a name from the address


def heading(title: str, about: str, *, forget: Callable[[], None]) -> Served:
    """Draw a page's title, what it is about, and the choice of the bundle.

    Args:
        title: a question or a short phrase.
        about: a sentence or two (Markdown), or "".
        forget: called when another bundle is chosen, to forget what belongs to the previous one.

    Returns:
        The opened bundle.

    Raises:
        BundleError: if the bundle cannot be opened.
    """
    words, choice = st.columns([3.6, 1], vertical_alignment="bottom")
    words.title(title)
    if about:
        words.markdown(about)
    with choice:
        path = choose_bundle(bundles.bundle_paths(), forget=forget)
    return bundles.served(path)


def chosen_bundle(paths: Mapping[str, Path]) -> str:
    """Return the name of the bundle that the address names or the session chose, else the first."""
    wanted = (st.query_params.get("bundle"), st.session_state.get(f"{_CHOSEN} bundle"))
    return next((name for name in wanted if name is not None and name in paths), next(iter(paths)))


def choose_bundle(
    paths: Mapping[str, Path], *, forget: Callable[[], None], key: str = "bundle", label: str = ""
) -> Path:
    """Choose one of some bundles; the choice is hidden when there is one.

    Args:
        paths: the bundles' folders, by name.
        forget: called when another bundle is chosen.
        key: the control's key.
        label: the control's label; hidden beside a page's title, where its position and its entries say what it is.
    """
    names, remembered = list(paths), f"{_CHOSEN} {key}"  # other pages draw another box, and forget what is in it
    if went_back():
        st.session_state.pop(key, None)
    before, elsewhere = (st.session_state.get(name) for name in (remembered, f"{_CHOSEN} bundle"))
    wanted = st.session_state.get(key, st.query_params.get("bundle", before))
    if wanted not in names:
        if wanted is not None:
            shown = f"“{wanted[:_SHOWN]}”"
            served = wanted in bundles.bundle_paths()
            why = f"{shown} cannot be shown on this page" if served else f"There is no bundle {shown} here"
            warn(f"{why}; this is another one.", icon=":material/link_off:")
        wanted = next((name for name in (before, elsewhere) if name in names), names[0])
    if len(names) > 1:
        st.session_state[key] = wanted  # so that the box shows it, whatever a browser sends back
        wanted = control(
            st.selectbox,
            label or "Bundle",
            names,
            key=key,
            format_func=titles(paths).__getitem__,
            on_change=forget,
            label_visibility="visible" if label else "collapsed",
        )
        if len(title := titles(paths)[wanted]) > _FITS:  # a box shows one line
            st.caption(escape.markdown(title))
    st.session_state[remembered] = wanted
    return paths[wanted]


def titles(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the title of each bundle by its folder's name, which is added where another has the same title.

    Titles in a select box must be unique. A browser sends back the title alone, so a session keeps those that it was
    shown, as long as the bundles have them: another one that comes to have the same title would be taken for the
    chosen one.
    """
    found: dict[str, tuple[str, str]] = st.session_state.setdefault(_TITLES, {})  # own title, and the one shown
    own = {name: bundles.listed(path).title for name, path in paths.items()}
    for name in [name for name in found if name in own and found[name][0] != own[name]]:
        del found[name]
    for name in [name for name in paths if name not in found]:
        title = own[name]
        while title in (shown for _, shown in found.values()):
            title = f"{title} ({name})"
        found[name] = own[name], title
    return {name: shown for name, (_, shown) in found.items()}


def restore_tab(key: str, tabs: Collection[str], usual: str) -> str:
    """Return the tab of a place to draw: the one that was clicked, or the address's, or the usual one.

    After the browser's Back or Forward the address alone says it, a bare one too.

    Args:
        key: of its control.
        tabs: the names.
        usual: the one for an address that names none of them.
    """
    wanted = None if _navigates_history() else st.session_state.get(key)
    said = st.query_params.get(TAB)
    if said is not None and said not in tabs:  # so that the rest of the address is still read
        warn(not_valid([f"{TAB} “{said[:_SHOWN]}”"]), icon=":material/link_off:")
        del st.query_params[TAB]
        said = None
    wanted = wanted or said or usual
    tab: str = wanted if wanted in tabs else usual
    st.session_state[key] = tab
    return tab


def tab_control(label: str, titles: Mapping[str, str], key: str) -> None:
    """Draw the control of a place's tabs.

    Args:
        label: for screen readers.
        titles: of the tabs, by name.
        key: of the control, whose value `restore_tab` has set.
    """
    control(
        st.segmented_control,
        label,
        list(titles),
        format_func=titles.__getitem__,
        key=key,
        required=True,
        label_visibility="collapsed",
    )


def forget(*prefixes: str) -> None:
    """Forget what the session keeps under keys with one of these prefixes, and the address."""
    _forget_keys(*prefixes)
    st.query_params.clear()


def _forget_keys(*prefixes: str) -> None:
    for key in [key for key in st.session_state if str(key).startswith(prefixes)]:
        del st.session_state[key]


def went_back() -> bool:
    """Return whether this run follows from the browser's Back or Forward, so that the address says what to show.

    A bare address says nothing.
    """
    return _navigates_history() and bool(st.query_params.to_dict())


def _navigates_history() -> bool:
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def arrive(place: str) -> None:
    """Note which page is drawn: parameters that the navigation brought along from another one are not its own."""
    if went_back():  # the address is this page's, also where a page that was left was never drawn to its end
        st.session_state.pop(_ARRIVED, None)
    elif st.session_state.get(_PLACE, place) != place:
        st.session_state[_ARRIVED] = True
    st.session_state[_PLACE] = place


def place() -> str:
    """Return the name of the page that is drawn, as in its address."""
    return str(st.session_state.get(_PLACE, ""))


def lead(page: Callable[[], None], url_path: str) -> NoReturn:
    """Go to another page, to which the address belongs."""
    st.session_state.pop(_PLACE, None)
    st.switch_page(st.Page(page, url_path=url_path), query_params=st.query_params.to_dict())


def own_address() -> dict[str, str]:
    """Return the parameters of the address, except those that the navigation brought along from another page."""
    return {} if _ARRIVED in st.session_state else st.query_params.to_dict()


def view(
    key: str,
    attributor: Served,
    default: AnyView,
    *,
    squares: int = 0,
    tab: str = "",
    controls: Sequence[str] = (),
    complete: Callable[[AnyView], AnyView] = lambda view: view,
) -> AnyView:
    """Return the session's view of a bundle; a new session takes it from the address, as the browser's Back does.

    Args:
        key: under which the session keeps it.
        attributor: the bundle.
        default: the view for what the address does not say.
        squares: side × side of a backdoor's patch.
        tab: the tab of Explain whose view it is: it has what all tabs share, and the address of another says no more.
        controls: prefixes of the keys of its controls, which take the view's values when it comes from the address.
        complete: fills in what the address left open.
    """
    of, limits = f"{key}_of", links.Limits.of(attributor, squares=squares)
    if tab and st.session_state.get(_SHARED_OF) != attributor.place:
        st.session_state[_SHARED], st.session_state[_SHARED_OF] = {}, attributor.place
    # A run may still have the address of the place before: those of Explain, and they alone, name an image.
    back = went_back() and (_QUERY in st.query_params) == bool(tab)
    if back or st.session_state.get(of) != attributor.place:
        st.session_state.pop(key, None)
        _forget_keys(*controls)
    if key not in st.session_state:
        ignore_unknown(TAB if tab else "")
        said = own_address()
        own = not tab or said.get(TAB, tab) == tab
        found, wrong = links.read(default, said if own else {}, limits)
        st.session_state[key], st.session_state[of] = complete(found), attributor.place
        if wrong:
            warn(not_valid(wrong), icon=":material/link_off:")
        if tab and own:
            _share(st.session_state[key], type(st.session_state[key]).shared)
    if tab and (others := _said_elsewhere(st.session_state[key])):
        st.session_state[key] = _with(st.session_state[key], others, limits)
        _forget_keys(*controls)
    return st.session_state[key]


def ignore_unknown(*known: str) -> None:
    """Say which parameters of the address mean nothing here, and remove them.

    Args:
        known: what this page knows besides the parameters of views and the bundle.
    """
    strange = own_address().keys() - links.NAMES - {_BUNDLE, *known}
    if unknown := sorted(name for name in strange if not name.startswith(_TRACKING)):
        named = [f"“{name[:_SHOWN]}”" for name in unknown]
        means = "means nothing on this page and is" if len(unknown) == 1 else "mean nothing on this page and are"
        said = listed(named) if len(named) <= _NAMED else few(named, _NAMED)
        warn(f"The link's {said} {means} ignored.", icon=":material/link_off:")
        st.query_params.from_dict({name: value for name, value in st.query_params.items() if name not in unknown})


def not_valid(wrong: Sequence[str]) -> str:
    """Return the sentence about parameters of a link that cannot be used."""
    are = "is not valid; the default is" if len(wrong) == 1 else "are not valid; the defaults are"
    return f"The link's {listed(wrong)} {are} shown."


def keep(key: str, view: Any, attributor: Served, *, tab: str = "") -> None:
    """Keep a view in the session and in the address, and what it shares with other tabs beside it."""
    st.session_state[key] = view
    link = links.parameters(view) | _bundle(attributor)
    if tab:
        _share(view, [name for name in type(view).shared if name != _QUERY])  # which `take` alone changes
        link |= {_QUERY: shared_query(), TAB: tab}
    if dict(st.query_params) != link:
        st.query_params.from_dict(link)
        telling.tell_address()
    st.session_state.pop(_ARRIVED, None)


def shared_query() -> str:
    """Return the image that all tabs of Explain are about, as in an address."""
    return str(st.session_state.get(_SHARED, {}).get(_QUERY, _FIRST))


def shared_sigma2(attributor: Served) -> tuple[str, float] | None:
    """Return the method that the tabs ask and its sigma2, the usual one where none was chosen; None if it uses none.

    None also in a session in which no method was asked for by itself.
    """
    shared = st.session_state.get(_SHARED, {})
    name = shared.get("method", REFERENCE)
    if not shared.keys() & {"method", "sigma2"} or not METHODS[name].uses_sigma2:
        return None
    return name, float(shared["sigma2"]) if "sigma2" in shared else attributor.bundle.sigma2(name)


def take(query: str) -> None:
    """Make an image the one that all tabs of Explain are about; settings are kept, except the target class."""
    shared = st.session_state.setdefault(_SHARED, {})
    shared[_QUERY] = query
    shared.pop(_TARGET, None)


def explain(query: str, tab: str) -> None:
    """Make an image the one that all tabs are about, and go to one of them."""
    take(query)
    st.session_state[TAB] = tab


def _share(view: Any, names: Sequence[str]) -> None:
    """Keep for other tabs some of what a view says."""
    shared, said = st.session_state.setdefault(_SHARED, {}), links.parameters(view)
    for name in names:
        shared.pop(name, None)
        if name in said:
            shared[name] = said[name]


def _said_elsewhere(view: Any) -> dict[str, str]:
    """Return what was chosen on other tabs, or by `take`, in parameters that a view shares; "" for no target class."""
    shared, said = st.session_state.get(_SHARED, {}), links.parameters(view)
    names = [name for name in type(view).shared if name in shared or name == _TARGET]
    return {name: shared.get(name, "") for name in names if shared.get(name, "") != said.get(name, "")}


def _with(view: AnyView, others: Mapping[str, str], limits: Limits) -> AnyView:
    """Return a view with other parameters, as far as it can show them."""
    if _QUERY in others and isinstance(view, AttributeView):
        view = replace(view, word=None)  # it is one of the other query's
    if others.get(_TARGET) == "":
        view = replace(view, target=None)  # type: ignore[type-var]
    return links.read(view, {name: text for name, text in others.items() if text}, limits)[0]


def change(key: str, **fields: Any) -> None:
    """Change fields of the session's view; of one that was just forgotten, with its bundle, there is nothing to change.

    A page's callbacks run in any order before it is drawn, and the choice of the bundle is one of them.
    """
    if key in st.session_state:
        st.session_state[key] = replace(st.session_state[key], **fields)


def forget_usual(key: str, control: str) -> None:
    """Let another method have the σ² that is usual for it, unless the visitor chose one.

    Args:
        key: of the session's view.
        control: of σ².
    """
    if key in st.session_state and st.session_state[key].sigma2 is None:
        st.session_state.pop(control, None)


def address(page: str, view: Any, attributor: Served) -> str:
    """Return the address, relative to the app, of a page that shows a view of this bundle."""
    return f"{page}?" + urlencode(links.parameters(view) | _bundle(attributor))


def tab_address(tab: str, view: Any, attributor: Served) -> str:
    """Return the address, relative to the app, of a tab of Explain."""
    return f"{address('explain', view, attributor)}&{TAB}={tab}"


def comparison(view: AttributeView, attributor: Served, *, purpose: str = "prediction") -> str:
    """Return the address that asks every method the same as one method: see `compared`."""
    return tab_address(COMPARE, compared(view, attributor, purpose=purpose), attributor)


def compared(view: AttributeView, attributor: Served, *, purpose: str = "prediction") -> ComparisonView:
    """Return the view that asks every method the same as one method: each at its usual sigma2, that one at its own.

    Args:
        view: the query, the method and its settings.
        attributor: the opened bundle.
        purpose: see `Bundle.sigma2`.
    """
    own = usual_sigma2s(attributor, purpose=purpose)
    own |= {view.method: view.sigma2} if METHODS[view.method].uses_sigma2 else {}
    budget = min(view.budget, links.LARGEST_COMPARED)
    asked = {"pool": view.pool, "conditioning": view.conditioning, "target": view.target}
    return ComparisonView(view.query, sigma2=view.sigma2, own=own, budget=budget, **asked)  # type: ignore[arg-type]


def usual_sigma2s(attributor: Served, *, purpose: str = "prediction") -> dict[str, float]:
    """Return the usual sigma2 of every method that uses one, for a purpose of `Bundle.sigma2`."""
    return {name: attributor.bundle.sigma2(name, purpose=purpose) for name, m in METHODS.items() if m.uses_sigma2}


def _bundle(attributor: Served) -> dict[str, str]:
    """Return the address's parameter that names the bundle, even of a single one: others may come to lie beside it."""
    return {_BUNDLE: attributor.bundle.path.name}


def query(attributor: Served) -> QueryExample:
    """Open the image that all tabs are about; if it cannot be opened, say why and take the first test image instead."""
    try:
        return links.open_query(shared_query(), attributor)
    except QueryError as error:
        warn(error, icon=":material/link_off:")
        take(_FIRST)
        return attributor.query("test", 0)
