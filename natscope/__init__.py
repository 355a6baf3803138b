"""Which training examples does a prediction owe its certainty to, and how much, in nats?

    >>> from pathlib import Path
    >>> import natscope
    >>> attributor = natscope.open_attributor(Path("bundles/fashion-mnist"))
    >>> query = attributor.query("test", 12)
    >>> answer = attributor.attribute(query, natscope.Request("info_loss", sigma2=100.0, budget=5))
    >>> len(answer.items)
    5

Names are loaded when they are first used, for torch takes a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from natscope.app.launch import launch
    from natscope.core.bundle.attributor import Attributor
    from natscope.core.bundle.format import Bundle
    from natscope.core.bundle.request import Attribution, Request
    from natscope.core.errors import NatscopeError
    from natscope.core.features import FeatureMap
    from natscope.core.greedy import info_gain, info_gain_approx, info_loss
    from natscope.core.metrics import information_gain, information_loss
    from natscope.core.pool import Pool
    from natscope.core.sketches import SketchSpec
    from natscope.precompute.answer import Answer, open
    from natscope.precompute.api import build
    from natscope.precompute.bundles.opening import open_attributor
    from natscope.precompute.bundles.spec import BuildSpec
    from natscope.precompute.memory import attribute

_HOMES = {
    "Answer": "precompute.answer",
    "Attribution": "core.bundle.request",
    "Attributor": "core.bundle.attributor",
    "BuildSpec": "precompute.bundles.spec",
    "Bundle": "core.bundle.format",
    "FeatureMap": "core.features",
    "NatscopeError": "core.errors",
    "Pool": "core.pool",
    "Request": "core.bundle.request",
    "SketchSpec": "core.sketches",
    "attribute": "precompute.memory",
    "build": "precompute.api",
    "info_gain": "core.greedy",
    "info_gain_approx": "core.greedy",
    "info_loss": "core.greedy",
    "information_gain": "core.metrics",
    "information_loss": "core.metrics",
    "launch": "app.launch",
    "open": "precompute.answer",
    "open_attributor": "precompute.bundles.opening",
}
__all__ = [
    "Answer",
    "Attribution",
    "Attributor",
    "BuildSpec",
    "Bundle",
    "FeatureMap",
    "NatscopeError",
    "Pool",
    "Request",
    "SketchSpec",
    "attribute",
    "build",
    "info_gain",
    "info_gain_approx",
    "info_loss",
    "information_gain",
    "information_loss",
    "launch",
    "open",
    "open_attributor",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'natscope' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"natscope.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
