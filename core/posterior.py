"""The Gaussian posterior given a whole conditioning set D, at any sigma2, from one eigendecomposition.

Notation: K the Gram of D, P = (K + sigma2 I)^-1 its precision, `k_*` the covariance of D with a query, `alpha = P k_*`.
Then for x in D: Var(f_x | D) = sigma2 - sigma2^2 P_xx, `Cov(f_x, f_* | D) = sigma2 alpha_x`, and removing x from D
raises `Var(f_* | D)` by alpha_x^2 / P_xx (leave-one-out, Rasmussen & Williams 2006, section 5.4.2).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import scipy.linalg

from natscope.core.cache import BoundedCache
from natscope.core.errors import QueryError
from natscope.core.kernels import LinearKernel, self_product

LARGEST_WHOLE = 20_000  # candidates of whom all columns may be computed at once: 3.2 GB
_MANY = 6_000  # candidates from which on turning them takes longest
_TURNED = 2**13  # candidates that are turned at a time
_SQUARED = 2**7  # candidates that are squared at a time
_WIDEST = 2**15  # dimensions K of which all products are kept: 8.6 GB
_NOISES = 8  # values of sigma2 whose diagonals are remembered
_MIRRORED = 512  # rows of a triangle that are copied at a time
_FLOAT32_ENOUGH = 1e-6  # sigma2 / trace from which on a Gram from products of float32 gives nearly the same posterior
Columns = Callable[[Sequence[int] | np.ndarray], np.ndarray]
Whole = Callable[[], np.ndarray | None]
FloatType = type[np.float32] | type[np.float64]


@dataclass(frozen=True)
class Posterior:
    """What is known of n candidates and Q queries after conditioning on D, which contains the candidates.

    Args:
        variance: (Q,) `Var(f_* | D)`.
        alpha: (n, Q) the candidates' rows of P k_*; `Cov(f_x, f_* | D) = sigma2 alpha`.
        precision: (n,) the candidates' diagonal of P.
        precision_columns: returns the candidates' block of columns of P, (n, len(indices)).
        pool_variance: (n,) Var(f_x | D).
        whole: returns the candidates' whole block of P, (n, n), for callers who need so many columns that this is
            faster; None if single columns are cheap, or there are too many candidates.
    """

    variance: np.ndarray
    alpha: np.ndarray
    precision: np.ndarray
    precision_columns: Columns
    pool_variance: np.ndarray
    whole: Whole = lambda: None

    def without(self, rows: Sequence[int], sigma2: float) -> "Posterior":
        """Return what is known once some candidates are taken out of D; for these rows themselves it has no meaning."""
        if not (rows := list(dict.fromkeys(rows))):
            return self
        alpha, variance, precision, pool_variance = self.alpha, self.variance, self.precision, self.pool_variance
        taken = np.array(self.precision_columns(rows))
        for position, row in enumerate(rows):  # without a row r, P becomes P - P_r P_r^T / P_rr
            column = taken[:, position] / np.sqrt(taken[row, position])
            taken[:, position + 1 :] -= np.outer(column, column[rows[position + 1 :]])
            taken[:, position] = column
            gone = alpha[row] / np.sqrt(precision[row])
            alpha, variance = alpha - np.outer(column, gone), variance + gone**2
            precision, pool_variance = precision - column**2, pool_variance + sigma2**2 * column**2

        def columns(indices: Sequence[int] | np.ndarray) -> np.ndarray:
            return self.precision_columns(indices) - taken @ taken[indices].T

        return Posterior(variance, alpha, precision, columns, pool_variance)


class Conditioning(Protocol):
    """A conditioning set D, prepared so that any query at any sigma2 is cheap."""

    def posterior(self, queries: np.ndarray, sigma2: float) -> Posterior:
        """Condition queries (Q, K) and the candidates on D with noise variance sigma2."""
        ...


@dataclass(frozen=True)
class SampleSpectrum:
    """K = U diag(eigenvalues) U^T for a conditioning set that is the pool itself, (n,) and (n, n) float64."""

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    _diagonals: BoundedCache[np.ndarray] = field(
        default_factory=lambda: BoundedCache(_NOISES), init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, gram: np.ndarray) -> "SampleSpectrum":
        """Decompose a Gram matrix (n, n); eigenvalues that rounding made negative become 0."""
        eigenvalues, eigenvectors = _eigh(gram)
        return cls(eigenvalues, eigenvectors)

    def posterior(self, cross: np.ndarray, prior: np.ndarray, sigma2: float) -> Posterior:
        """Condition on the pool.

        Args:
            cross: (n, Q) prior covariances of candidates and queries.
            prior: (Q,) prior variances of the queries.
            sigma2: noise variance, positive.
        """
        eigenvalues, vectors = self.eigenvalues, self.eigenvectors
        weights = 1 / (eigenvalues + sigma2)
        rotated = vectors.T @ cross
        # The query's prior variance, split over the eigenvectors; the rest is out of the pool's reach.
        kept = eigenvalues > len(eigenvalues) * np.finfo(float).eps * eigenvalues[-1]
        explained = np.zeros_like(rotated)
        explained[kept] = rotated[kept] ** 2 / eigenvalues[kept, None]
        residual = np.maximum(prior - explained.sum(0), 0)
        precision, pool_variance = self._diagonals.get(sigma2, lambda: self._diagonals_at(sigma2)).copy()

        def columns(indices: Sequence[int] | np.ndarray) -> np.ndarray:
            return vectors @ (weights[:, None] * vectors[indices].T)

        return Posterior(
            variance=residual + sigma2 * weights @ explained,
            alpha=vectors @ (weights[:, None] * np.where(kept[:, None], rotated, 0)),
            precision=precision,
            precision_columns=columns,
            pool_variance=pool_variance,
        )

    def _diagonals_at(self, sigma2: float) -> np.ndarray:
        """Return the diagonal of P and Var(f_x | D), (2, n): the half of the work that depends on no query."""
        weights = 1 / (self.eigenvalues + sigma2)
        return (self.eigenvectors**2 @ np.stack([weights, sigma2 * self.eigenvalues * weights], axis=1)).T


@dataclass(frozen=True)
class SamplePrecision:
    """P = (K + sigma2 I)^-1 of a conditioning set that is the pool itself, (n, n) float64, for one sigma2.

    A tenth of the work of the eigendecomposition, for pools so large that the time is felt.
    """

    precision: np.ndarray

    @classmethod
    def of(cls, gram: np.ndarray, sigma2: float) -> "SamplePrecision":
        """Invert K + sigma2 I for a Gram matrix (n, n) by its Cholesky factor.

        Raises:
            numpy.linalg.LinAlgError: if it is not positive definite to float64's precision: sigma2 is too small for K.
        """
        noisy = np.array(gram, dtype=np.float64, order="F")
        noisy.flat[:: len(noisy) + 1] += sigma2
        factor = scipy.linalg.cholesky(noisy, lower=True, overwrite_a=True, check_finite=False)
        inverse, failed = scipy.linalg.lapack.dpotri(factor, lower=True, overwrite_c=True)
        if failed:
            raise np.linalg.LinAlgError("K + sigma2 I is singular.")
        return cls(_mirrored(inverse))

    def posterior(self, cross: np.ndarray, prior: np.ndarray, sigma2: float) -> Posterior:
        """Condition on the pool, with the sigma2 of `of`.

        Args:
            cross: (n, Q) prior covariances of candidates and queries.
            prior: (Q,) prior variances of the queries.
            sigma2: noise variance, positive.
        """
        alpha, precision = self.precision @ cross, np.diag(self.precision).copy()
        return Posterior(
            variance=prior - np.einsum("nq,nq->q", cross, alpha),
            alpha=alpha,
            precision=precision,
            precision_columns=lambda indices: self.precision[:, indices],
            pool_variance=sigma2 - sigma2**2 * precision,
        )


@dataclass(frozen=True)
class FeatureSpectrum:
    """Phi^T Phi = V diag(eigenvalues) V^T of a conditioning set D with more examples than features, (K,) and (K, K)."""

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @classmethod
    def of(cls, features: Iterable[np.ndarray]) -> "FeatureSpectrum":
        """Accumulate Phi^T Phi over blocks (n_b, K) in float64, in a stream, and decompose it."""
        return cls.of_gram(feature_gram(features))

    @classmethod
    def of_gram(cls, gram: np.ndarray) -> "FeatureSpectrum":
        """Decompose Phi^T Phi, (K, K) float64; eigenvalues that rounding made negative become 0."""
        eigenvalues, eigenvectors = _eigh(gram)
        return cls(eigenvalues, eigenvectors)

    def rotate(self, features: np.ndarray) -> np.ndarray:
        """Return features (n, K) in the eigenbasis, (n, K) float64: candidates are rotated once, then kept."""
        return np.concatenate([block.astype(np.float64) @ self.eigenvectors for block in blocks(features)])


@dataclass(frozen=True)
class FeatureConditioning:
    """A pool whose conditioning set D is larger than K, by the eigendecomposition of Phi^T Phi.

    Args:
        spectrum: the spectrum of D.
        candidates: (n, K) float64, the pool's features in the eigenbasis; each candidate is a member of D.
    """

    spectrum: FeatureSpectrum
    candidates: np.ndarray

    @classmethod
    def of(cls, spectrum: FeatureSpectrum, features: np.ndarray) -> "FeatureConditioning":
        """Rotate the pool's features (n, K), once."""
        return cls(spectrum, spectrum.rotate(features))

    def posterior(self, queries: np.ndarray, sigma2: float) -> Posterior:
        """Condition queries (Q, K) and the candidates on D with noise variance sigma2."""
        shrink = sigma2 / (self.spectrum.eigenvalues + sigma2)
        return _given_all(self.candidates, self.spectrum.rotate(queries), shrink, sigma2)


@dataclass(frozen=True)
class FeaturePrecision:
    """The same from the Cholesky factor L of Phi^T Phi / sigma2 + I, one sigma2 at a time.

    A fifth of the work of the eigendecomposition. The candidates are turned for each sigma2, those of a large pool in
    float32, as which they are kept, where that is enough.

    Args:
        gram: returns Phi^T Phi of D, (K, K) float64, from products of the type that is given: of float32 where that is
            enough, of float64 where sigma2 is as small as their rounding.
        features: (n, K), the pool's; each candidate is a member of D.
    """

    gram: Callable[[FloatType], np.ndarray]
    features: np.ndarray
    _grams: BoundedCache[np.ndarray] = field(
        default_factory=lambda: BoundedCache(1), init=False, repr=False, compare=False
    )
    _solved: BoundedCache[tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keep what was solved for the last two values of sigma2, or for one: a large pool takes 250 MB."""
        object.__setattr__(self, "_solved", BoundedCache(1 if self._large else 2))

    @property
    def _large(self) -> bool:
        return len(self.features) > _MANY

    def keep(self, gram: np.ndarray) -> None:
        """Take Phi^T Phi from products of float32, where it has been computed already."""
        self._grams.keep(np.float32, gram)

    def posterior(self, queries: np.ndarray, sigma2: float) -> Posterior:
        """Condition queries (Q, K) and the candidates on D with noise variance sigma2."""
        try:
            factor, candidates = self._solved.get(sigma2, lambda: self._solve(sigma2))
        except np.linalg.LinAlgError:  # sigma2 is below the rounding of a Gram that has no full rank
            spectrum = FeatureSpectrum.of_gram(self._gram(sigma2))
            return FeatureConditioning.of(spectrum, self.features).posterior(queries, sigma2)
        return _given_all(candidates, _turned(factor, queries), np.ones(len(factor)), sigma2)

    def _gram(self, sigma2: float) -> np.ndarray:
        if (exact := self._grams.peek(np.float64)) is not None:
            return exact
        gram = self._grams.get(np.float32, lambda: self.gram(np.float32))
        if not _rounds_little(sigma2, gram):
            gram = self._grams.get(np.float64, lambda: self.gram(np.float64))  # in place of the other
        return gram

    def _solve(self, sigma2: float) -> tuple[np.ndarray, np.ndarray]:
        gram = self._gram(sigma2)
        precision = np.divide(gram, sigma2, order="F")
        precision.flat[:: len(precision) + 1] += 1
        factor = scipy.linalg.cholesky(precision, lower=True, overwrite_a=True, check_finite=False)
        dtype = np.float32 if self._large and _rounds_little(sigma2, gram) else np.float64
        return factor, _turned(factor, self.features, dtype)


def _rounds_little(sigma2: float, gram: np.ndarray) -> bool:
    """Return whether float32 gives nearly the same posterior at sigma2 as float64, for Phi^T Phi (K, K) of D."""
    return bool(sigma2 >= _FLOAT32_ENOUGH * np.trace(gram))


def _turned(factor: np.ndarray, features: np.ndarray, dtype: FloatType = np.float64) -> np.ndarray:
    """Return L^-1 phi for every row phi of features, (n, K) of `dtype`: their products are posterior covariances."""
    lower = np.asarray(factor, dtype=dtype, order="F")
    turned = np.empty((len(features), len(factor)), dtype=dtype)
    for start in range(0, len(features), _TURNED):  # so that copies stay small
        part = slice(start, start + _TURNED)
        columns = np.asarray(features[part], dtype=dtype).T
        turned[part] = scipy.linalg.solve_triangular(lower, columns, lower=True, check_finite=False).T
    return turned


def _given_all(candidates: np.ndarray, queries: np.ndarray, shrink: np.ndarray, sigma2: float) -> Posterior:
    """Return the posterior of candidates (n, K) and queries (Q, K) whose covariances are x diag(shrink) y^T.

    Candidates in float32 are multiplied in float64, a few rows at a time.
    """
    product = LinearKernel()
    pool_variance = np.concatenate([part.astype(np.float64) ** 2 @ shrink for part in blocks(candidates, _SQUARED)])

    def columns(indices: Sequence[int] | np.ndarray) -> np.ndarray:
        block = -product(candidates, shrink * candidates[indices]) / sigma2**2
        block[indices, np.arange(len(indices))] += 1 / sigma2
        return block

    def whole() -> np.ndarray | None:
        if len(candidates) > LARGEST_WHOLE:
            return None
        block = self_product(candidates * (np.sqrt(shrink) / sigma2))
        np.negative(block, out=block)
        block.flat[:: len(block) + 1] += 1 / sigma2
        return block

    return Posterior(
        variance=queries**2 @ shrink,
        alpha=product(candidates, shrink * queries) / sigma2,
        precision=np.maximum(sigma2 - pool_variance, 0) / sigma2**2,
        precision_columns=columns,
        pool_variance=pool_variance,
        whole=whole,
    )


def mean_half_log_ratio(above: np.ndarray, below: np.ndarray) -> float:
    """Return the mean over queries of 1/2 log(above / below), in nats, for variances (Q,); 0 where both are 0."""
    tiny = np.finfo(float).tiny
    return float(np.mean(0.5 * np.log(np.maximum(above, tiny) / np.maximum(below, tiny))))


def feature_gram(features: Iterable[np.ndarray], dtype: FloatType = np.float64) -> np.ndarray:
    """Accumulate Phi^T Phi, (K, K) float64, over blocks (n_b, K) of any float type.

    Args:
        features: the blocks.
        dtype: float64, or float32 for products within a block that take half the time and are rounded.

    Raises:
        QueryError: for a K so large that the Gram fills the memory of a usual computer.
    """
    total: np.ndarray | None = None
    for block in features:
        if block.shape[1] > _WIDEST:
            raise QueryError(
                f"Conditioning on all training examples takes K times K numbers, which are too many for K = "
                f"{block.shape[1]:,}; condition on the pool."
            )
        if total is None:
            total = np.zeros((block.shape[1],) * 2, order="F")
        # The transposed block is Fortran-ordered, so syrk reads it in place; it fills the lower triangle only.
        columns = np.asarray(block, dtype=dtype, order="C").T
        if dtype is np.float64:
            total = scipy.linalg.blas.dsyrk(1.0, columns, beta=1.0, c=total, lower=True, overwrite_c=True)
        else:
            total += scipy.linalg.blas.ssyrk(1.0, columns, lower=True)
    if total is None:
        raise ValueError("A conditioning set needs at least one example.")
    return _mirrored(total)


def _mirrored(lower: np.ndarray) -> np.ndarray:
    """Return a symmetric matrix (n, n) whose lower triangle is filled, with the upper one filled in place."""
    for start in range(0, len(lower), _MIRRORED):
        stop = start + _MIRRORED
        lower[start:stop, stop:] = lower[stop:, start:stop].T
        corner = lower[start:stop, start:stop]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
    return lower


def blocks(features: np.ndarray, rows: int = 2048) -> Iterable[np.ndarray]:
    """Cut features (n, K) into blocks of rows, so that float64 copies stay small."""
    return (features[start : start + rows] for start in range(0, len(features), rows))


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    eigenvalues, eigenvectors = np.linalg.eigh(matrix)  # lets other threads run meanwhile
    return np.maximum(eigenvalues, 0), eigenvectors
