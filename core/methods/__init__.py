"""All attribution methods, in the order in which pages show them.

A method is one decorated function (candidates, query, settings) -> Selection, here or in a module that an installed
package names among its entry points `natscope.methods`. It says what it needs, what that costs, and how it is shown;
pages, commands and builds know no method by name.
"""

from importlib.metadata import entry_points

# isort: off
from natscope.core.methods import criteria  # importing them registers their methods, in this order
from natscope.core.methods import baselines

# isort: on
from natscope.core.methods.artifacts import Artifacts, Size
from natscope.core.methods.base import METHODS, Candidates, Method, Query, Select, Settings, method, rank

for _entry in entry_points(group="natscope.methods"):
    _entry.load()

REFERENCE = next(name for name, found in METHODS.items() if found.information == "loss")
RANDOM = next(name for name, found in METHODS.items() if found.at_random)
GAINS = tuple(name for name, found in METHODS.items() if found.information == "gain" and found.approximates is None)

__all__ = [
    "GAINS",
    "METHODS",
    "RANDOM",
    "REFERENCE",
    "Artifacts",
    "Candidates",
    "Method",
    "Query",
    "Select",
    "Settings",
    "Size",
    "baselines",
    "criteria",
    "method",
    "rank",
]
