"""Which index over feature vectors a bundle holds, and its settings."""

from dataclasses import asdict, dataclass
from typing import Any

KINDS = {
    "flat": "flat",
    "sq8": "SQ8",
    "ivf": "IVF",
    "ivfsq8": "IVF-SQ8",
    "ivfpq": "IVF-PQ",
    "ivfrabitq": "IVF-RaBitQ",
    "hnsw": "HNSW",
}  # of FAISS, in files
AUTO, MILVUS = "auto", "milvus"
CHOICES = (AUTO, *KINDS, MILVUS)
MILVUS_TYPES = {
    "ivf_sq8": "IVF-SQ8",
    "ivf_flat": "IVF",
    "hnsw": "HNSW",
    "diskann": "DiskANN",
    "ivf_rabitq": "IVF-RaBitQ",
}
TITLES = KINDS | {f"{MILVUS}-{name}": f"Milvus {title}" for name, title in MILVUS_TYPES.items()}
EXACT = ("flat", "sq8")  # kinds that find what a scan finds
_LARGEST_SCAN = 10_000  # rows up to which "auto" scans their codes: about where a search by lists becomes faster
_BITS = 8  # of a piece of a product-quantised code
_FEWEST = 2**_BITS  # rows below which a flat index is built: there is nothing to gain, and too little to train on


@dataclass(frozen=True)
class IndexSpec:
    """An index and its settings; those that a kind does not use are ignored.

    Args:
        kind: one of `KINDS`; "auto": "sq8" for up to 10,000 rows, "ivfsq8" for more; or "milvus": a Milvus server.
        lists: clusters of an IVF index; 2 sqrt(n) when None.
        probes: clusters searched, of those lists.
        pieces: bytes of a product-quantised code; the largest divisor of K up to this is used.
        links: neighbours a row of HNSW keeps.
        breadth: candidate rows that HNSW tracks while it builds.
        reach: candidate rows that HNSW tracks while it searches, at least.
        seed: seed of the training sample and of k-means.
        milvus: the type of index that a Milvus server builds, one of `MILVUS_TYPES`.

    Raises:
        ValueError: for an unknown kind, or another type than usual where no server is asked.
    """

    kind: str = AUTO
    lists: int | None = None
    probes: int = 64
    pieces: int = 128
    links: int = 32
    breadth: int = 64
    reach: int = 512
    seed: int = 0
    milvus: str = next(iter(MILVUS_TYPES))

    def __post_init__(self) -> None:
        """Check the kind and the type."""
        if self.kind not in CHOICES:
            raise ValueError(f"There is no index '{self.kind}'; choose one of {', '.join(CHOICES)}.")
        if self.milvus not in MILVUS_TYPES:
            raise ValueError(f"Milvus has no index '{self.milvus}'; choose one of {', '.join(MILVUS_TYPES)}.")
        if self.kind != MILVUS and self.milvus != next(iter(MILVUS_TYPES)):
            raise ValueError(f"'{self.milvus}' is an index of Milvus; it needs the kind '{MILVUS}'.")

    def kind_of(self, count: int) -> str:
        """Return the kind of the index that is built over so many rows, one of `KINDS` or "milvus"."""
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
        """Estimate the size of an index's file over (n, K) rows; none is written where a server holds it."""
        kind = self.kind_of(count)
        if kind == MILVUS:
            return 0
        lists = 4 * self.lists_of(count) * width + 8 * count if kind.startswith("ivf") else 0
        codes = {
            "flat": 4 * width,
            "ivf": 4 * width,
            "ivfpq": self.pieces,
            "ivfrabitq": width // 8 + 8,
            "hnsw": width + 8 * self.links,
        }
        return count * codes.get(kind, width) + lists + 2**10 * width

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values; what only a server uses, where one is asked."""
        return {name: value for name, value in asdict(self).items() if name != "milvus" or self.kind == MILVUS}
