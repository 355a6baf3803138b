"""Cards of a bundle's examples, as every page shows them: with their label and with the visitor's tag."""

from collections.abc import Callable
from typing import Any

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.components.grid import Card
from natscope.app.modalities import page_of
from natscope.app.views.tags import tagged

KINDS = {"train": "training", "test": "test"}


def cards_of(attributor: Served, split: str) -> Callable[..., Card]:
    """Return what makes the cards of a "train" or "test" split's examples.

    It is called with an example's number; with the tooltip as `title`, which a screen reader says too, in place of its
    label and number; and with further fields of the card, of which `caption` takes the place of its label.
    """
    examples, sources = attributor.bundle.examples(split), attributor.bundle.sources(split)
    look, one = page_of(examples.modality).look, examples.modality.one
    labels = attributor.train_labels if split == "train" else attributor.test_labels
    classes, tags = attributor.bundle.classes, tagged(attributor)

    def card(index: int, *, title: str = "", **fields: Any) -> Card:
        label, tag, source = classes[labels[index]], tags.get(f"{split}:{index}", ""), sources[index]
        said = [title or f"{label}, {KINDS[split]} {one} {index}"]
        if source != f"{split} row {index}":
            said.append(escape.visible(source))
        if tag:
            said.append(f"tagged {tag}")
        text = "; ".join(said)
        return Card(alt=text, title=text, tag=tag, **(look(examples, index) | {"caption": label} | fields))

    return card
