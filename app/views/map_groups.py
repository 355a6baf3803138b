"""What the map of the training images shows: groups of them in colours, and a sentence on how they lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from natscope.app import escape, words
from natscope.app.bundles import Served
from natscope.app.links import PLANTED
from natscope.app.theme import ACCENT, CATEGORIES, MUTED
from natscope.app.views import tags
from natscope.core.analysis.embedding import Embedding
from natscope.core.backdoor import Backdoor
from natscope.core.bundle.request import Attribution
from natscope.core.methods import METHODS

_KINDS = len(CATEGORIES)  # with a colour of their own
_LEAST, _LARGEST = 8.0, 20.0  # pixels of a point with a share


@dataclass(frozen=True, eq=False)
class Group:
    """Training images that look alike on the map.

    Args:
        name: in the legend.
        rows: (n,) their numbers.
        colour: hex, or a role of the palette.
        symbol: see `natscope.app.figures.chart.Points`, as for the next three.
        size: in pixels; (n,) or one for all.
        opacity: 0 to 1.
        named: whether the name stands on the map.
        notes: (n,) a line for each, when the pointer is on it.
        kept: whether all are drawn, also those that a map of some of the images leaves out.
    """

    name: str
    rows: np.ndarray
    colour: str
    symbol: str = "circle"
    size: float | np.ndarray = 4.5
    opacity: float = 0.8
    named: bool = False
    notes: Sequence[str] = ()
    kept: bool = False


def planted(attributor: Served, backdoor: Backdoor) -> list[Group]:
    """Return the planted training images in front of all others, a group for each class whose patch they have."""
    classes = attributor.bundle.classes
    groups = [_rest(attributor, "not planted", backdoor.train_indices)]
    for place, base in enumerate(np.unique(backdoor.base_labels)):
        name = f"{classes[base]} labelled {classes[backdoor.targets[base]]}"
        colour, symbol = CATEGORIES[place % _KINDS], ("circle", "diamond", "square")[place // _KINDS % 3]
        rows = backdoor.culprits(int(base))
        groups.append(Group(name, rows, colour, symbol=symbol, size=7.0, opacity=0.95, kept=True))
    return groups


def groups_of(attributor: Served, colour: str, predicted: np.ndarray, result: Attribution | None) -> list[Group]:
    """Return the groups of a colouring, the last on top.

    Args:
        attributor: the bundle.
        colour: one of `natscope.app.links.COLOURINGS`.
        predicted: (N,) the predicted class of each training image.
        result: the ranking of the colouring "share"; None if there is none.
    """
    labels, backdoor = attributor.train_labels, attributor.bundle.manifest.backdoor
    if colour == PLANTED and backdoor is not None:
        return planted(attributor, backdoor)
    if colour == "share":
        return _shares(attributor, result)
    if colour == "tag":
        return _tagged(attributor)
    if colour == "wrong":
        wrong = np.flatnonzero(labels != predicted)
        return [_rest(attributor, "right", wrong), Group("wrong", wrong, CATEGORIES[2], size=7.0, opacity=0.95)]
    return _classes(attributor, labels if colour == "label" else predicted)


def _classes(attributor: Served, kinds: np.ndarray) -> list[Group]:
    """Return a group for each of the largest classes, and one for the others; kinds (N,)."""
    classes = attributor.bundle.classes
    counts = np.bincount(kinds, minlength=len(classes))
    largest = np.sort(np.argsort(-counts, kind="stable")[:_KINDS])
    own = [
        Group(classes[kind], np.flatnonzero(kinds == kind), CATEGORIES[place], named=True)
        for place, kind in enumerate(largest)
        if counts[kind]
    ]
    named = np.flatnonzero(np.isin(kinds, largest))
    return own if len(named) == len(kinds) else [_rest(attributor, "other classes", named), *own]


def _rest(attributor: Served, name: str, rows: np.ndarray) -> Group:
    """Return all other images than some, in the background."""
    return Group(name, np.setdiff1d(np.arange(len(attributor.train_labels)), rows), MUTED, size=4.0, opacity=0.3)


def _shares(attributor: Served, result: Attribution | None) -> list[Group]:
    """Return the ranked images, larger for a larger share, and those that speak against the class apart."""
    items = () if result is None else result.items
    rows = np.array([item.train_index for item in items], dtype=np.int64)
    amounts = np.array([] if result is None else result.amounts)
    total = result.total_nats if result is not None and result.nats is not None else None
    sizes = _LEAST + (_LARGEST - _LEAST) * np.sqrt(np.abs(amounts) / (np.abs(amounts).max(initial=0.0) or 1.0))
    notes = np.array(
        [
            f"Rank {rank}: {words.percent(amount / total) if total else format(amount, '.3g')}"
            for rank, amount in enumerate(amounts, 1)
        ],
        dtype=object,
    )
    against = np.array([item.sign < 0 for item in items], dtype=bool)
    groups = [_rest(attributor, f"all other training {attributor.many}", rows)]
    kinds = (
        ("supports the class", ~against, ACCENT, "circle"),
        ("speaks against it", against, CATEGORIES[2], "diamond"),
    )
    for name, chosen, colour, symbol in kinds:
        if chosen.any():
            about = {"size": sizes[chosen], "notes": notes[chosen].tolist(), "kept": True, "opacity": 0.9}
            groups.append(Group(name, rows[chosen], colour, symbol, **about))
    return groups


def _tagged(attributor: Served) -> list[Group]:
    by_text: dict[str, list[int]] = {}
    for image, text in tags.tagged(attributor).items():
        split, _, number = image.partition(":")
        if split == "train":
            by_text.setdefault(text, []).append(int(number))
    texts = sorted(by_text, key=lambda text: -len(by_text[text]))
    own = [
        Group(text, np.sort(by_text[text]), CATEGORIES[place], size=8.0, opacity=1.0, kept=True)
        for place, text in enumerate(texts[:_KINDS])
    ]
    if others := [number for text in texts[_KINDS:] for number in by_text[text]]:
        own.insert(0, Group("other tags", np.sort(others), "text", size=7.0, kept=True))
    rows = np.concatenate([group.rows for group in own]) if own else np.empty(0, dtype=np.int64)
    return [_rest(attributor, "not tagged", rows), *own]


# In words


def finding(
    attributor: Served,
    embedding: Embedding,
    colour: str,
    predicted: np.ndarray,
    groups: Sequence[Group],
    result: Attribution | None,
) -> str:
    """Return a sentence (Markdown) on what the map shows; arguments as of `groups_of`, whose groups are shown."""
    labels, backdoor = attributor.train_labels, attributor.bundle.manifest.backdoor
    if colour == "share":
        return "" if result is None else _told(attributor, result, attributor.bundle.classes[result.target])
    if colour == "tag":
        count = sum(len(group.rows) for group in groups[1:])
        return (
            f"{count:,} training {attributor.many} are tagged."
            if count
            else f"No training {attributor.one} is tagged yet."
        )
    if colour == "label":
        return _apart(attributor, embedding, labels, "label")
    if colour == "predicted":
        return _apart(attributor, embedding, predicted, "predicted class")
    if colour == PLANTED and backdoor is not None:
        chosen = np.isin(np.arange(len(labels)), backdoor.train_indices)
        return _together(attributor, embedding, chosen, f"a planted {attributor.one}", "planted")
    return _together(
        attributor, embedding, labels != predicted, f"a wrongly predicted {attributor.one}", "wrongly predicted"
    )


def _apart(attributor: Served, embedding: Embedding, kinds: np.ndarray, what: str) -> str:
    """Return how far the kinds (N,) of images lie apart."""
    alike, own = embedding.alike(kinds), kinds[embedding.arranged]
    means = {int(kind): float(alike[own == kind].mean()) for kind in np.unique(own)}
    least, most = (
        f"{escape.markdown(attributor.bundle.classes[kind])} ({words.percent(means[kind])})"
        for kind in (min(means, key=means.__getitem__), max(means, key=means.__getitem__))
    )
    return (
        f"Of {attributor.a_one}’s {_near(embedding)}, **{words.percent(float(alike.mean()))}** have the same {what}: "
        f"most for {most}, least for {least}."
    )


def _together(attributor: Served, embedding: Embedding, chosen: np.ndarray, one: str, many: str) -> str:
    """Return how close together some images lie; chosen (N,) bool."""
    own = chosen[embedding.arranged]
    if not own.any():
        return f"No {attributor.one} on this map is {many}."
    share, usual = float(embedding.alike(chosen)[own].mean()), float(own.mean())
    return (
        f"{int(chosen.sum()):,} of {len(chosen):,} training {attributor.many} are {many}. Of the {_near(embedding)} "
        f"of {one}, **{words.percent(share)}** are {many} too; at random it would be {words.percent(usual)}."
    )


def _near(embedding: Embedding) -> str:
    return f"{embedding.neighbours.shape[1]} nearest neighbours on this map"


def _told(attributor: Served, result: Attribution, target: str) -> str:
    method = METHODS[result.request.method]
    at = f" at σ² = {words.sigma2_text(result.sigma2)}" if method.uses_sigma2 else ""
    what = "score" if result.nats is None else "share"
    return (
        f"The {len(result.items)} training {attributor.many} that {method.title}{at} ranks first for "
        f"{escape.markdown(target)}: the larger the point, the larger its {what}. The tab Attribution sets the method "
        "and σ²."
    )
