"""What the four steps of the Backdoor page share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.results import backdoor_results
from natscope.core.backdoor import Backdoor
from natscope.core.bundle.request import QueryImage
from natscope.precompute.training.models import ModelSpec

KEY = "backdoor_"  # prefix of all widgets and of all that the session keeps for this page
SHOWN = 50  # images in a line-up
Change = Callable[..., None]


@dataclass(frozen=True, eq=False)
class Scene:
    """What all steps are about.

    Args:
        attributor: the opened poisoned bundle.
        backdoor: the attack.
        index: number of the test image.
        base: its class.
        works: (T,) bool, on which test images the network is right without and fooled with the attacker's patch.
    """

    attributor: Served
    backdoor: Backdoor
    index: int
    base: int
    works: np.ndarray

    @property
    def target(self) -> int:
        """The class that the attack turns the image into."""
        return int(self.backdoor.targets[self.base])

    def name(self, label: int) -> str:
        """Return the name of a class for Markdown."""
        return escape.markdown(self.attributor.bundle.classes[label])

    def query(self) -> QueryImage:
        """Return the test image with the attacker's patch."""
        image = np.asarray(self.attributor.bundle.array("test_images")[[self.index]])
        return self.attributor.upload(self.backdoor.stamped(image, np.array([self.base]))[0])


def measured_for(attributor: Served) -> dict[str, Any] | None:
    """Return the shipped experiment on this bundle's kind of network; the first one if there is none."""
    results, network = backdoor_results(), ModelSpec.from_dict(attributor.bundle.manifest.model).title
    alike = [result for result in results if result["setting"]["network"] == network]
    return next(iter(alike or results), None)


def sigma2_of(scene: Scene, method: str) -> float:
    """Return the sigma2 at which a method is asked for the culprits."""
    return scene.attributor.bundle.sigma2(method, purpose="backdoor")


def weak(names: tuple[str, ...], result: dict[str, Any] | None) -> str:
    """Return the method that found least in an experiment, though more than twice as much as chance."""
    if result is None:
        return names[-1]
    chance = result["attack"]["base_rate"]["mean"]
    rows = [row for row in result["rows"] if row["method"] in names and row["recall"]["mean"] > 2 * chance]
    return min(rows, key=lambda row: row["recall"]["mean"])["method"] if rows else names[-1]


def chance(scene: Scene, count: int) -> float:
    """Return how many culprits chance would find among `count` images of the pool."""
    pool = int((scene.attributor.train_labels == scene.target).sum())
    return count * len(scene.backdoor.culprits(scene.base)) / pool


def few(number: float) -> str:
    """Return a number of images as text: whole from 1 on, else "less than 1"."""
    return f"{number:.0f}" if number >= 0.95 else "less than 1"
