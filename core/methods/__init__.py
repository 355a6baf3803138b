"""All attribution methods, in the order in which pages show them.

To add one, write a function (candidates, query, settings) -> Selection in `natscope.core.methods.criteria` or
`natscope.core.methods.baselines` and decorate it with `method(...)`. Pages and commands draw themselves from the
registry.
"""

# isort: off
from natscope.core.methods import criteria  # importing them registers their methods, in this order
from natscope.core.methods import baselines

# isort: on
from natscope.core.methods.base import METHODS, Candidates, Method, Query, Select, Settings, method, rank

__all__ = ["METHODS", "Candidates", "Method", "Query", "Select", "Settings", "baselines", "criteria", "method", "rank"]
