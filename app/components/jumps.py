"""Links to places on the page, after which the browser's Back returns to where one was."""

from natscope.app.components import component


def jumps(*, key: str) -> None:
    """Let the page remember how far it was scrolled where such a link is followed.

    Args:
        key: unique on the page.
    """
    component("jumps", "<span></span>")(key=key)
