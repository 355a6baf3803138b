"""How alike texts are by the tokens that they have: weighted counts, and the angles between them."""

import numpy as np
from scipy.sparse import csr_array

_AT_ONCE = 256  # texts that are compared at a time
_LARGEST_BLOCK = 2**24  # numbers in the table of those


def cosine_distances(bags: csr_array, train: csr_array, *, unknown: int | None = None) -> np.ndarray:
    """Return 1 - cosine of each text to the nearest training text, (n,).

    Args:
        bags: (n, vocabulary), how often each token is in each text.
        train: (N, vocabulary), of the training texts; a token weighs the more the fewer of them have it.
        unknown: the token that stands for words outside the vocabulary. Two of these are two different words, so each
            counts in a text's length, as a word that no training text has, and none in the product of two texts.
    """
    count, vocabulary = train.shape
    rarity = 1 + np.log((1 + count) / (1 + np.bincount(train.indices, minlength=vocabulary)))
    if unknown is not None:
        rarity[unknown] = 1 + np.log(1 + count)
    own, others = (_unit(each * rarity, each, unknown) for each in (bags, train))
    nearest, step = np.zeros(bags.shape[0]), max(1, min(_AT_ONCE, _LARGEST_BLOCK // vocabulary))
    for start in range(0, len(nearest), step):
        part = slice(start, start + step)
        nearest[part] = (others @ own[part].T.toarray()).max(axis=0)
    return np.clip(1 - nearest, 0, 1)


def _unit(weighted: csr_array, bags: csr_array, unknown: int | None) -> csr_array:
    """Scale rows to length 1, but for those that are 0; what is unknown is dropped afterwards."""
    found = csr_array(weighted)
    strange = found.indices == (-1 if unknown is None else unknown)
    squares = csr_array((found.data**2, found.indices, found.indptr), found.shape)
    squares.data[strange] /= bags.data[strange]  # c different words, and not one that is there c times
    lengths = np.sqrt(squares.sum(axis=1))
    found.data /= np.repeat(np.where(lengths > 0, lengths, 1), np.diff(found.indptr))
    found.data[strange] = 0
    return found
