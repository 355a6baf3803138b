"""Pictures of a bundle's images, as every page shows them: with their label and with the visitor's tag."""

from typing import Any

import numpy as np

from natscope.app.bundles import Served
from natscope.app.components.grid import Card, data_uri
from natscope.app.views.tags import tagged

KINDS = {"train": "training", "test": "test"}


def card(attributor: Served, split: str, index: int, *, title: str = "", **fields: Any) -> Card:
    """Return the card of an image.

    Args:
        attributor: the opened bundle.
        split: "train" or "test".
        index: number of the image.
        title: the tooltip, which a screen reader says too; its label and number if empty.
        fields: further fields of the card, in place of the label as its caption.
    """
    labels = attributor.train_labels if split == "train" else attributor.test_labels
    label, tag = attributor.bundle.classes[labels[index]], tagged(attributor).get(f"{split}:{index}", "")
    source = attributor.bundle.sources(split)[index]
    said = title or f"{label}, {KINDS[split]} image {index}"
    said += "" if source == f"{split} row {index}" else f"; {source}"
    said += f"; tagged {tag}" if tag else ""
    picture = np.asarray(attributor.bundle.array(f"{split}_images")[index])
    return Card(src=data_uri(picture), alt=said, title=said, tag=tag, **({"caption": label} | fields))
