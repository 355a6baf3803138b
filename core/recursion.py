"""The greedy recursion behind InfoLoss and InfoGain, for a few queries and for many.

Let A be a positive definite matrix over the candidates with diagonal a, and C (n, Q) their covariances with the
queries. Picking i changes the variance of query q by C_iq^2 / a_i, and then A and C are updated by one column u of a
Cholesky factor: A - u u^T and C - u x^T with x = C_i / sqrt(a_i). With U the columns so far and X the rows x, the
matrix A is never updated: a column of it is a column of the first A less U U_i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from natscope.core.pool import Pool
from natscope.core.posterior import Columns

PREFETCH = 32  # columns computed together when a column is not free
TIE = 1e-10  # scores this close (relatively) are a tie: duplicates differ in their last bits only
_ROUNDING = 64 * np.finfo(float).eps  # of one inner product, relative to the lengths of its vectors, with a margin
_SURE = 1e-12  # a score whose relative error is smaller is not recomputed


@dataclass(frozen=True, eq=False)
class Quotas:
    """How many rows of each group, such as a class, may be picked: a group is closed once it has its quota.

    Args:
        groups: (n,) the group of each row, a whole number from 0 to C - 1.
        most: (C,) the quotas, whole numbers; a group that has no more rows than its quota is never closed.

    Raises:
        ValueError: for shapes or values that cannot be used.

    Examples:
        >>> from natscope.core.recursion import Quotas
        >>> quotas = Quotas(groups=[0, 0, 0, 1], most=[1, 1])
        >>> features, query = np.array([[3.0], [2.0], [2.0], [1.0]]), np.ones(1)
        >>> natscope.info_gain(features, query, sigma2=1.0, budget=2, quotas=quotas).indices
        array([0, 3])
    """

    groups: np.ndarray
    most: np.ndarray

    def __post_init__(self) -> None:
        """Check and keep both as int64, read-only."""
        for name in ("groups", "most"):
            given = np.asarray(getattr(self, name))
            if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
                raise ValueError(f"The {name} of quotas are a list of whole numbers.")
            array = given.astype(np.int64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if (self.most < 0).any():
            raise ValueError("A quota is not negative.")
        if ((self.groups < 0) | (self.groups >= len(self.most))).any():
            raise ValueError(
                f"Groups have numbers from 0 to {len(self.most) - 1}, for there are {len(self.most)} quotas."
            )

    def check(self, count: int) -> None:
        """Raise ValueError unless there is a group for each of `count` rows."""
        if len(self.groups) != count:
            raise ValueError(f"Quotas need the group of each of the {count:,} rows, not of {len(self.groups):,}.")

    def within(self, order: np.ndarray) -> np.ndarray:
        """Return those of the rows `order` (m,) that are picked when they are picked in turn."""
        groups = self.groups[order]
        firsts = [np.flatnonzero(groups == group)[:most] for group, most in enumerate(self.most)]
        return order[np.sort(np.concatenate([*firsts, np.zeros(0, dtype=np.int64)]))]


class Recursion:
    """The state of the recursion: diagonal a, covariances C, and the factor's columns so far."""

    def __init__(
        self,
        pool: Pool,
        diagonal: np.ndarray,
        cross: np.ndarray,
        floor: np.ndarray,
        columns: Columns,
        *,
        budget: int,
        exclude: Sequence[int],
        quotas: Quotas | None = None,
        prefetch: int = PREFETCH,
    ) -> None:
        """Start without a pick.

        Args:
            pool: the candidates.
            diagonal: (n,) of A.
            cross: (n, Q), C.
            floor: (n,) or a number, the least that rounding may leave of a.
            columns: returns columns of A.
            budget: how many picks are to be made, besides those of `exclude`.
            exclude: rows that may not be picked, and count for no quota.
            quotas: how many of each group may be picked.
            prefetch: how many columns are computed together.
        """
        self.a, self.floor, self.columns = diagonal.copy(), floor, columns
        self.pool, self.prefetch = pool, prefetch
        self.change = np.zeros(cross.shape[1])  # by how much the picks moved each query's variance
        self.closed = np.zeros(len(pool), dtype=bool)
        self.closed[list(exclude)] = True
        self.quotas = quotas
        if quotas is not None:
            quotas.check(len(pool))
            self.left = quotas.most.copy()
            self.closed |= self.left[quotas.groups] == 0
        self.factor = np.empty((min(budget + len(exclude), len(pool)), len(pool)))
        self.picks: list[int] = []
        self.scores: list[float] = []
        self.signs: list[int] = []
        self.fetched: dict[int, np.ndarray] = {}
        self.start(cross)

    def start(self, cross: np.ndarray) -> None:
        """Keep the covariances (n, Q)."""
        self.c = cross.copy()

    def open(self, limit: int) -> bool:
        """Return whether there is another pick to make."""
        return len(self.picks) < limit and not self.closed.all()

    def best(self, *, divide: bool) -> int:
        """Return the open row of the largest ||C_i||^2, divided by a_i if `divide`, and remember its score."""
        scores = self.squares(divide=divide)
        if divide:
            scores /= self.a
        scores[self.closed] = -1.0
        self.ranking = scores
        index = first_open_twin(self.pool, first_of_best(scores), self.closed)
        self.scores.append(float(scores[index]))
        return index

    def squares(self, *, divide: bool) -> np.ndarray:
        """Return ||C_i||^2 of every row, (n,), in an array that the caller may change."""
        return np.einsum("nq,nq->n", self.c, self.c)

    def pick(self, index: int) -> None:
        """Update everything by the pick of a row."""
        root = np.sqrt(self.a[index])
        cross = self.covariances(index) / root
        column = self.next_column(index, cross, root)
        column[index] = 0.0  # its own entry never matters again, and here the diagonal of A may lack sigma2
        self.signs.append(int(np.sign(cross.sum())))
        self.change += cross**2
        self.move(column, cross)
        np.maximum(self.a - column**2, self.floor, out=self.a)
        self.factor[len(self.picks)] = column
        self.picks.append(index)
        self.close(index)

    def close(self, index: int) -> None:
        """Close a row for good and, if its group now has its quota, the whole group."""
        if self.quotas is not None and not self.closed[index]:
            group = self.quotas.groups[index]
            self.left[group] -= 1
            if self.left[group] == 0:
                self.closed |= self.quotas.groups == group
        self.closed[index] = True

    def covariances(self, index: int) -> np.ndarray:
        """Return a row of C, (Q,)."""
        return self.c[index]

    def next_column(self, index: int, cross: np.ndarray, root: float) -> np.ndarray:
        """Return the factor's next column u, (n,), for a pick whose row x of C / `root` is `cross`."""
        done = self.factor[: len(self.picks)]
        return (self.column(index) - done[:, index] @ done) / root

    def move(self, column: np.ndarray, cross: np.ndarray) -> None:
        """Subtract u x^T from C."""
        self.c -= np.outer(column, cross)

    def column(self, index: int) -> np.ndarray:
        """Return a column of the first A, (n,), along with those likely to be requested next."""
        if index not in self.fetched:
            wanted = [index]
            if self.prefetch > 1 and hasattr(self, "ranking"):
                likely = np.argsort(-self.ranking, kind="stable")[: self.prefetch]
                wanted += [int(i) for i in likely if i != index and not self.closed[i]]
            self.fetched = dict(zip(wanted, self.columns(wanted).T, strict=True))
        return self.fetched[index]


class ManyQueries(Recursion):
    """The same for so many queries that moving all of C at every pick would be most of the work.

    C stays as it was; what is needed of C - U X is computed when it is needed. ||C_i||^2 moves by
    -2 u_i (C x)_i + u_i^2 ||x||^2, and U is read once for C x and for the next column together. Rounding adds up in
    such sums, so a bound of it is kept for every row, and rows that could be the best within it are recomputed.
    """

    def start(self, cross: np.ndarray) -> None:
        """Keep the covariances (n, Q) as they are, and their rows' lengths."""
        self.c = cross
        self.square = np.einsum("nq,nq->n", cross, cross)
        self.length = np.sqrt(self.square)
        self.error = np.zeros(len(cross))
        self.crosses = np.empty((len(self.factor), cross.shape[1]))  # X

    def squares(self, *, divide: bool) -> np.ndarray:
        """Return ||C_i||^2 of every row, (n,): to the last bits wherever the row could be the best one."""
        scale = 1 / self.a if divide else np.ones_like(self.a)
        surely = np.where(self.closed, 0.0, (self.square - self.error) * scale).max()
        could = ((self.square + self.error) * scale >= surely * (1 - TIE)) & ~self.closed
        rows = np.flatnonzero(could & (self.error > _SURE * self.square))
        if len(rows):
            exact = self.rows(rows)
            self.square[rows], self.error[rows] = np.einsum("nq,nq->n", exact, exact), 0.0
        return np.maximum(self.square, 0.0)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of C - U X, (len(rows), Q)."""
        count = len(self.picks)
        return self.c[rows] - self.factor[:count, rows].T @ self.crosses[:count]

    def covariances(self, index: int) -> np.ndarray:
        """Return a row of C - U X, (Q,)."""
        return self.rows(np.array([index]))[0]

    def next_column(self, index: int, cross: np.ndarray, root: float) -> np.ndarray:
        """Return the factor's next column, and keep (C - U X) x, which `move` needs, from the same pass over U."""
        count = len(self.picks)
        done = self.factor[:count]
        both = np.stack([done[:, index], self.crosses[:count] @ cross]) @ done
        self.along = self.c @ cross - both[1]
        return (self.column(index) - both[0]) / root

    def move(self, column: np.ndarray, cross: np.ndarray) -> None:
        """Move the squares by the pick, and the bound of their rounding error."""
        size = np.sqrt(cross @ cross)
        self.square += column * (column * size**2 - 2 * self.along)
        self.error += _ROUNDING * np.abs(column) * size * self.length
        self.crosses[len(self.picks)] = cross


def first_of_best(scores: np.ndarray) -> int:
    """Return the lowest index whose score ties with the largest, (n,) non-negative scores."""
    return int(np.argmax(scores >= scores.max() * (1 - TIE)))


def first_open_twin(pool: Pool, index: int, closed: np.ndarray) -> int:
    """Return the lowest open row that is the same as a row: far down a ranking, twins' scores differ by rounding."""
    twins = pool.twins(index)
    return int(twins[~closed[twins]][0])
