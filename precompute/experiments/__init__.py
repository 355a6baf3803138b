"""The paper's experiments by name; each takes an attributor and settings and gives a JSON-able result."""

from collections.abc import Callable
from typing import Any

from precompute.experiments import relative_information

EXPERIMENTS: dict[str, Callable[..., dict[str, Any]]] = {"relative-information": relative_information.run}
