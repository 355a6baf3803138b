"""What a visitor of an app beside a notebook looks at: written by its pages, read by the notebook."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from natscope.core.files import write_atomically

SELECTED = "NATSCOPE_SELECTED"  # environment variable of the file; an app that is not served from Python has none
_QUERY, _BUNDLE = "q", "bundle"  # parameters of an address
_STORED = re.compile(r"(test|train):[0-9]{1,9}")


@dataclass(frozen=True)
class Selected:
    """What the latest visitor looked at last.

    Args:
        page: its name in the address, such as "explain"; "" for the first one.
        bundle: the bundle's folder, by name; "" if the page is about none.
        query: "test:12" or "train:3", as `explain` takes it; None for an upload, and on pages about no single image.
        settings: what else the address says, such as {"tab": "compare", "m": "20"}.
        tags: this visitor's tags of the bundle's images, such as {"train:5": "mislabelled"}.
    """

    page: str
    bundle: str
    query: str | None
    settings: Mapping[str, str]
    tags: Mapping[str, str]

    @classmethod
    def of(cls, page: str, address: Mapping[str, str], tags: Mapping[str, str]) -> "Selected":
        """Return what an address and tags say."""
        settings = dict(address)
        query, bundle = settings.pop(_QUERY, ""), settings.pop(_BUNDLE, "")
        return cls(page, bundle, query if _STORED.fullmatch(query) else None, settings, dict(tags))

    def write(self, file: Path) -> None:
        """Write it to a file, in place of what is there."""
        write_atomically(file, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, file: Path) -> "Selected | None":
        """Return what a file says; None if there is none."""
        try:
            return cls(**json.loads(file.read_bytes()))
        except FileNotFoundError:
            return None
