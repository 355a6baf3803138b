"""The candidate pool: prior covariances of its members and of queries, computed once, in float64, and shared."""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import numpy as np

from natscope.core.kernels import Kernel, LinearKernel, packed_columns, self_product, unpacked
from natscope.core.posterior import (
    LARGEST_WHOLE,
    FeatureConditioning,
    FeatureSpectrum,
    Posterior,
    SamplePrecision,
    SampleSpectrum,
    blocks,
)
from natscope.core.rows import RowView

LIVE = 2500  # members up to which the Gram is decomposed, so that any other sigma2 is instant
CLASSES_KEPT = 12  # classes of at most `LIVE` members whose pools are kept open
LEAST_NOISE = 1e-11  # of the Gram's trace: at a smaller sigma2 its inverse has too few right digits
_LEAST_VARIANCE = 1e-6  # of the prior: a smaller variance is the difference of numbers that agree in too many digits
_ROUNDING = 1e-6  # of the largest number
_SINGLE = 0.25  # of the columns of K: computing more of them one by one costs more than all at once
_LOOKED_AT = 16  # rows of the Gram of an exact kernel
LARGEST_GRAM = 6000  # members; above this, columns are computed when they are requested


def pools_kept(labels: np.ndarray) -> int:
    """Return how many pools of single classes are kept open at a time, for the labels (N,) of all training examples."""
    return CLASSES_KEPT if int(np.bincount(labels).max()) <= LIVE else 3


def is_product(stored: np.ndarray, product: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Return whether a matrix (n, n) that a bundle holds is the one by which vectors are multiplied, up to rounding.

    It is tried on one random vector (Freivalds 1977): whoever made the matrix must not know where it is tested.

    Args:
        stored: the matrix; its values may be anything.
        product: multiplies a vector (n,) by the matrix computed from the features.
    """
    probe = np.random.default_rng().standard_normal(len(stored))
    with np.errstate(all="ignore"):
        return _agree(stored @ probe, product(probe))


def _agree(stored: np.ndarray, computed: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        return bool((np.abs(stored - computed) <= _ROUNDING * np.abs(computed).max(initial=0)).all())


class Pool:
    """Candidates with their Gram matrix K = Phi Phi^T.

    A pool belongs to one class and one measurement and knows no sigma2 and no query, so that one pool serves every
    visitor: the Gram and its eigendecomposition are computed when first needed, under a lock, and kept.

    Examples:
        >>> pool = natscope.Pool(np.random.default_rng(0).normal(size=(100, 16)))
        >>> len(pool), pool.gram.shape
        (100, (100, 100))
    """

    def __init__(
        self, features: np.ndarray | RowView, *, kernel: Kernel | None = None, gram: np.ndarray | None = None
    ) -> None:
        """Wrap stored features.

        Args:
            features: (n, W), any float type; a memory map, or a view of one, is read when it is needed, in blocks.
            kernel: how rows are multiplied; inner products of feature vectors by default.
            gram: (n, n) float64, when it is known already, or its lower triangle, as a bundle holds it: read from the
                file when it is needed, a column takes no memory.

        Raises:
            ValueError: if features are not a matrix, or hold NaN or infinity (of a memory map: once all are read).
        """
        features = np.asarray(features) if isinstance(features, Sequence) else features
        if features.ndim != 2 or not len(features):
            raise ValueError(f"A pool needs features of shape (n, K) with n at least 1, not {features.shape}.")
        self.features = cast(np.ndarray, features)
        self.kernel: Kernel = kernel or LinearKernel()
        if isinstance(features, np.ndarray) and not isinstance(features, np.memmap):
            _ = self.diagonal
        self._given_gram = gram
        self._lock, self._columns = threading.RLock(), 0  # columns that were computed one by one
        self._inverse: tuple[float, SamplePrecision] | None = None

    def __len__(self) -> int:
        """Return n, the number of candidates."""
        return len(self.features)

    def checked(self, queries: np.ndarray, sigma2: float) -> np.ndarray:
        """Return queries (K,) or (Q, K) as a matrix (Q, K).

        Raises:
            ValueError: unless they are like the members, finite and at least one, and sigma2 is a positive number.
        """
        queries = np.atleast_2d(queries)
        if queries.ndim != 2 or not len(queries) or queries.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"Queries need {self.features.shape[1]} features like the pool's, not shape {queries.shape}."
            )
        if not np.isfinite(queries).all():
            raise ValueError("The query's features hold values that are not finite.")
        if not isinstance(sigma2, (int, float, np.number)) or not (np.isfinite(sigma2) and sigma2 > 0):
            raise ValueError(f"sigma2 is a variance and must be a positive number, not {sigma2!r}.")
        return queries

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return rows of the pool without repetition, in their order, (n',) int64; of a mask (n,) those that are True.

        Raises:
            ValueError: if there is no such row.
        """
        found = np.asarray(indices)
        if found.dtype == bool and found.shape == (len(self),):
            found = np.flatnonzero(found)
        whole = found.ndim == 1 and (not len(found) or np.issubdtype(found.dtype, np.integer))
        if not whole or not ((found >= 0) & (found < len(self))).all():
            raise ValueError(f"Rows of this pool are whole numbers from 0 to {len(self) - 1:,}, not {indices!r}.")
        return np.array(list(dict.fromkeys(found.tolist())), dtype=np.int64)

    @property
    def fits_gram(self) -> bool:
        """Whether the n x n Gram is the way to condition on this pool."""
        return len(self) <= LARGEST_GRAM or (self.kernel.explicit and len(self) <= self.features.shape[1])

    @cached_property
    def diagonal(self) -> np.ndarray:
        """Return the prior variance of every member, (n,) float64."""
        diagonal = self.kernel.diagonal(self.features)
        if not np.isfinite(diagonal).all():
            raise ValueError("The pool's features hold values that are not finite.")
        return diagonal

    def variances(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the prior variance of some members, (len(indices),) float64, without reading the others."""
        known = "diagonal" in self.__dict__
        return self.diagonal[indices] if known else self.kernel.diagonal(self.features[indices])

    def cross(self, queries: np.ndarray) -> np.ndarray:
        """Return the prior covariance of members and queries, (n, Q) float64, for query rows (Q, W)."""
        return self.kernel(self.features, queries)

    def prior(self, queries: np.ndarray) -> np.ndarray:
        """Return the prior variance of each query, (Q,) float64."""
        return self.kernel.diagonal(queries)

    def columns(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the columns of K at `indices`, (n, len(indices)) float64.

        They are computed one by one until that would soon cost more than the whole Gram, which is then kept.
        """
        if self._given_gram is not None and self._given_gram.ndim == 1:
            return packed_columns(self._given_gram, indices)
        if not self.has_gram:
            self._columns += len(indices)
            if not self.fits_gram or self._columns <= _SINGLE * len(self):
                return self.kernel(self.features, self.features[indices])
        return self.gram[indices].T  # symmetric: rows lie together in memory

    def whole(self) -> np.ndarray | None:
        """Return all columns of K, (n, n) float64: 1.8 GB for 15,000 members; None if there are too many.

        They are kept unless a packed Gram was given, which is unpacked at each call.
        """
        if self.has_gram or self.fits_gram:
            return self.gram
        if len(self) > LARGEST_WHOLE:
            return None
        with self._lock:
            return self._whole

    def twins(self, index: int) -> np.ndarray:
        """Return the rows that are the same as a row, itself among them, in rising order."""
        rows = np.flatnonzero(np.isclose(self.diagonal, self.diagonal[index], rtol=1e-12, atol=0))
        return rows[[np.array_equal(self.features[row], self.features[index]) for row in rows]]

    def gram_follows(self) -> bool:
        """Return whether a given Gram is that of the features; for an exact kernel some random rows are compared."""
        if self._given_gram is None:
            return True
        if self.kernel.explicit:
            features = np.asarray(self.features, dtype=np.float64)
            return is_product(self.gram, lambda vector: features @ (features.T @ vector))
        rows = np.random.default_rng().choice(len(self), min(len(self), _LOOKED_AT), replace=False)
        return _agree(self.columns(rows), self.kernel(self.features, self.features[rows]))

    @property
    def has_gram(self) -> bool:
        """Whether the Gram is known, so that a column costs nothing."""
        return self._given_gram is not None or "_gram" in self.__dict__

    @property
    def gram(self) -> np.ndarray:
        """K, (n, n) float64, kept unless its triangle was given."""
        with self._lock:
            return self._whole_gram()

    def posterior(self, queries: np.ndarray, sigma2: float) -> Posterior:
        """Condition queries (Q, W) and the members on the pool itself, with noise variance sigma2.

        The first call decomposes the Gram, or Phi^T Phi when the pool is too large for one; later ones are cheap. For a
        pool of more than a few thousand Phi^T Phi is decomposed where it is at most half as wide. Otherwise the Gram is
        inverted for this sigma2 alone, which takes a tenth of the time, where that is accurate: where sigma2 is not so
        small that the query's variance is lost in rounding.

        Raises:
            ValueError: for a pool too large for its Gram whose rows are not feature vectors.
        """
        narrow = len(self) > LIVE and self.kernel.explicit and 2 * self.features.shape[1] <= len(self)
        if self.fits_gram and not narrow:
            cross, prior = self.cross(queries), self.prior(queries)
            if len(self) > LIVE and sigma2 >= LEAST_NOISE * float(self.diagonal.sum()):
                found = self._precision(sigma2).posterior(cross, prior, sigma2)
                if (found.variance > _LEAST_VARIANCE * prior).all():
                    return found
            with self._lock:
                spectrum = self._spectrum
            return spectrum.posterior(cross, prior, sigma2)
        if not self.kernel.explicit:
            raise ValueError(f"A pool of {len(self)} is too large to condition on with the exact kernel; use a sketch.")
        with self._lock:
            conditioning = self._feature_conditioning
        return conditioning.posterior(queries, sigma2)

    def _precision(self, sigma2: float) -> SamplePrecision:
        """Return the inverse for this sigma2; the last one is kept, since visitors ask about one sigma2 at a time."""
        with self._lock:
            if self._inverse is None or self._inverse[0] != sigma2:
                self._inverse = None  # two of them need not be in memory
                self._inverse = (sigma2, SamplePrecision.of(self._whole_gram(), sigma2))
            return self._inverse[1]

    def _whole_gram(self) -> np.ndarray:
        if self._given_gram is None:
            return self._gram
        return self._given_gram if self._given_gram.ndim == 2 else unpacked(self._given_gram)

    @cached_property
    def _gram(self) -> np.ndarray:
        return self.kernel(self.features, self.features)

    @cached_property
    def _whole(self) -> np.ndarray:
        if not self.kernel.explicit:
            return self.kernel(self.features, self.features)
        return self_product(np.asarray(self.features, dtype=np.float64))

    @cached_property
    def _spectrum(self) -> SampleSpectrum:
        return SampleSpectrum.of(self._whole_gram())

    @cached_property
    def _feature_conditioning(self) -> FeatureConditioning:
        return FeatureConditioning.of(FeatureSpectrum.of(blocks(self.features)), self.features)
