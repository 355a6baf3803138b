"""Which index over feature vectors a bundle holds, and its settings."""

from dataclasses import asdict, dataclass
from typing import Any

KINDS = {"flat": "flat", "ivf": "IVF", "ivfpq": "IVF-PQ", "hnsw": "HNSW"}


@dataclass(frozen=True)
class IndexSpec:
    """An index and its settings; those that a kind has no use for are ignored.

    Args:
        kind: "flat" (exact), "ivf", "ivfpq" or "hnsw".
        lists: clusters of an IVF index; 2 sqrt(n) when None.
        probes: clusters searched, of those lists.
        pieces: bytes of a product-quantised code; the largest divisor of K up to this is used.
        links: neighbours a row of HNSW keeps.
        breadth: rows that HNSW keeps in sight while it builds.
        reach: rows that HNSW keeps in sight while it searches, at least.
        seed: of the training sample and of k-means.

    Raises:
        ValueError: for a kind that there is not.
    """

    kind: str = "flat"
    lists: int | None = None
    probes: int = 64
    pieces: int = 128
    links: int = 32
    breadth: int = 64
    reach: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in KINDS:
            raise ValueError(f"There is no index '{self.kind}'; choose one of {', '.join(KINDS)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        return asdict(self)
