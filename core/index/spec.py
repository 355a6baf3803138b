"""Which index over feature vectors a bundle holds, and its settings."""

from dataclasses import asdict, dataclass
from typing import Any

KINDS = {"flat": "flat", "sq8": "SQ8", "ivf": "IVF", "ivfsq8": "IVF-SQ8", "ivfpq": "IVF-PQ", "hnsw": "HNSW"}
AUTO = "auto"
CHOICES = (AUTO, *KINDS)
EXACT = ("flat", "sq8")  # kinds that find what a scan finds
_LARGEST_SCAN = 10_000  # rows up to which "auto" scans their codes: about where a search by lists becomes faster
_BITS = 8  # of a piece of a product-quantised code
_FEWEST = 2**_BITS  # rows below which a flat index is built: there is nothing to gain, and too little to train on


@dataclass(frozen=True)
class IndexSpec:
    """An index and its settings; those that a kind does not use are ignored.

    Args:
        kind: one of `KINDS`, or "auto": "sq8" for up to 10,000 rows, "ivfsq8" for more.
        lists: clusters of an IVF index; 2 sqrt(n) when None.
        probes: clusters searched, of those lists.
        pieces: bytes of a product-quantised code; the largest divisor of K up to this is used.
        links: neighbours a row of HNSW keeps.
        breadth: candidate rows that HNSW tracks while it builds.
        reach: candidate rows that HNSW tracks while it searches, at least.
        seed: seed of the training sample and of k-means.

    Raises:
        ValueError: for an unknown kind.
    """

    kind: str = AUTO
    lists: int | None = None
    probes: int = 64
    pieces: int = 128
    links: int = 32
    breadth: int = 64
    reach: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in CHOICES:
            raise ValueError(f"There is no index '{self.kind}'; choose one of {', '.join(CHOICES)}.")

    def kind_of(self, count: int) -> str:
        """Return the kind of the index that is built over so many rows, one of `KINDS`."""
        if count < _FEWEST:
            return "flat"
        return self.kind if self.kind != AUTO else "sq8" if count <= _LARGEST_SCAN else "ivfsq8"

    def lists_of(self, count: int) -> int:
        """Return how many clusters an IVF index over so many rows has."""
        return min(self.lists or int(2 * count**0.5), count)

    def pieces_of(self, width: int) -> int:
        """Return how many bytes a product-quantised code of K = `width` numbers has."""
        return max(d for d in range(1, min(self.pieces, width) + 1) if width % d == 0)

    def bytes(self, count: int, width: int) -> int:
        """Estimate the size of an index over (n, K) rows."""
        kind = self.kind_of(count)
        lists = 4 * self.lists_of(count) * width + 8 * count if kind.startswith("ivf") else 0
        codes = {"flat": 4 * width, "ivf": 4 * width, "ivfpq": self.pieces, "hnsw": width + 8 * self.links}
        return count * codes.get(kind, width) + lists + 2**10 * width

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        return asdict(self)
