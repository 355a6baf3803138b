"""What every training example tells of some test examples by itself, so that the scores of a set add up."""

import numpy as np

from natscope.core.bundle.attributor import Attributor
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS, Query, Settings
from natscope.core.progress import Progress

_AHEAD = 100  # test examples for which all that a method can be asked together is


def additive_scores(
    attributor: Attributor, name: str, tests: np.ndarray, *, sigma2: float, progress: Progress
) -> np.ndarray:
    """Return the score that each training example has by itself for each test example.

    Both are taken under their own labels' margins, without NTK scaling, as coresets are: a positive score then says
    that training on the example raises the margin.

    Args:
        attributor: the opened bundle.
        name: the method.
        tests: (Q,) numbers of test examples.
        sigma2: noise variance of methods that use it; its scale is that of margins.
        progress: called at every test example.

    Returns:
        (Q, N) float64; for information methods the nats of one example alone, with the sign of the covariance. An
        example that a method does not score adds 0 to a sum.

    Raises:
        QueryError: if the bundle lacks what the method needs.
    """
    method = METHODS[name]
    if missing := attributor.missing(method):
        raise QueryError(missing)
    every = np.arange(len(attributor.train_labels))
    candidates, queries = attributor.margin_candidates(every, progress), attributor.margin_query(tests)
    scores = np.zeros((len(tests), len(every)))
    for row, test in enumerate(tests.tolist()):
        progress(f"Scores of {method.title}", row, len(tests))
        if row % _AHEAD == 0:
            attributor.margins_ahead(method, tests[row : row + _AHEAD], progress)
        query = _one(queries, row)
        settings = Settings(sigma2, len(every), seed=test)
        if method.each is not None:
            scores[row] = method.each(candidates, query, settings)
        else:
            found = method.select(candidates, query, settings)
            scores[row, found.indices] = found.scores
    return scores


def _one(queries: Query, row: int) -> Query:
    features, rows = queries.features[row], slice(row, row + 1)
    return Query(
        features,
        queries.penultimate[row],
        margin=lambda: features,
        input=None if queries.input is None else queries.input[rows],
        target=np.atleast_1d(queries.target)[rows],
    )
