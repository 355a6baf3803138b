"""A confusion matrix whose cells can be chosen, by mouse and by keyboard."""

from collections.abc import Callable, Sequence

import numpy as np

from natscope.app.components import clicked, component


def matrix(
    counts: np.ndarray,
    names: Sequence[str],
    *,
    key: str,
    label: str,
    selected: tuple[int, int] | None,
    on_pick: Callable[[int, int], None],
) -> None:
    """Draw it.

    Args:
        counts: (C, C) images by true class (rows) and predicted class (columns).
        names: (C,) of the classes.
        key: unique on the page.
        label: what it shows.
        selected: the chosen cell, true class and predicted class.
        on_pick: called with a cell that is clicked.
    """

    def handle() -> None:
        place = clicked(key, "picked")
        if place is not None and 0 <= place < len(names) ** 2:
            on_pick(*divmod(place, len(names)))

    component("matrix", '<div class="matrix"></div>')(
        key=key,
        data={
            "counts": counts.tolist(),
            "names": list(names),
            "label": label,
            "selected": None if selected is None else selected[0] * len(names) + selected[1],
        },
        on_picked_change=handle,
    )
