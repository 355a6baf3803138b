"""Pictures of a bundle's images, as every page shows them: with their label and with the visitor's tag."""

from collections.abc import Callable
from typing import Any

import numpy as np

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.components.grid import Card, data_uri
from natscope.app.views.tags import tagged

KINDS = {"train": "training", "test": "test"}


def cards_of(attributor: Served, split: str) -> Callable[..., Card]:
    """Return what makes the cards of a "train" or "test" split's images.

    It is called with an image's number; with the tooltip as `title`, which a screen reader says too, in place of its
    label and number; and with further fields of the card, of which `caption` takes the place of its label.
    """
    images, sources = attributor.bundle.examples(split).images, attributor.bundle.sources(split)
    labels = attributor.train_labels if split == "train" else attributor.test_labels
    classes, tags = attributor.bundle.classes, tagged(attributor)

    def card(index: int, *, title: str = "", **fields: Any) -> Card:
        label, tag, source = classes[labels[index]], tags.get(f"{split}:{index}", ""), sources[index]
        said = [title or f"{label}, {KINDS[split]} image {index}"]
        if source != f"{split} row {index}":
            said.append(escape.visible(source))
        if tag:
            said.append(f"tagged {tag}")
        text = "; ".join(said)
        return Card(
            src=data_uri(np.asarray(images[index])), alt=text, title=text, tag=tag, **({"caption": label} | fields)
        )

    return card
