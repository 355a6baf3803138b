"""Scrolls to a result that has just appeared, perhaps below the window's edge."""

from natscope.app.components import component


def into_view(place: str) -> None:
    """Bring a container into view, once; where it fits the window already, nothing moves.

    Args:
        place: key of the container; its CSS scroll margins are kept free.
    """
    component("into_view", "<span></span>")(key=f"{place}_into_view", data={"place": place})
