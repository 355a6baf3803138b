"""What differs between the settings of two builds, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from natscope.core.text import short

_SUMS = {  # settings that are checksums
    "folder.files": "the images of the folder have changed",
    "content": "the data have changed",
    "model.source": "the code of the network has changed",
    "model.start.digest": "the weights that training begins with have changed",
    "weights": "the weights are others",
}


def that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the titles that people give, which change nothing else."""
    titles = {"name", "dataset"} if "content" in settings else {"name"}
    return {name: value for name, value in settings.items() if name not in titles}


def from_python(settings: Mapping[str, Any]) -> bool:
    """Return whether a build got its data as objects in Python, which no option of a command names."""
    return "content" in settings and not settings.get("data")


def differences(stored: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is told of each setting of a build that is not as stored."""
    before, now = dict(_flat(stored)), dict(_flat(own))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            both = isinstance(before.get(name), str) and isinstance(now.get(name), str)
            if name in _SUMS and both:
                yield _SUMS[name]
            else:
                yield f"{name} is {_shown(now, name)}, and was {_shown(before, name)}"


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return short(str(values[name])) if values.get(name) is not None else "not set"
