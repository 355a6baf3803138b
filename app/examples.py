"""Test images that are worth a look in any bundle: confident mistakes."""

import numpy as np
from scipy.special import softmax

from natscope.app.bundles import Served


def examples(attributor: Served, count: int) -> list[int]:
    """Return the test images that the network gets wrong with most confidence, each predicted as a different class.

    Those that it gets right follow, the least sure first.

    Args:
        attributor: the opened bundle.
        count: how many.
    """
    logits = np.asarray(attributor.bundle.array("test_logits"))
    predicted, sure = logits.argmax(axis=1), softmax(logits, axis=1).max(axis=1)
    right = predicted == attributor.test_labels
    order = np.lexsort((np.where(right, sure, -sure), right))
    firsts = np.sort(np.unique(predicted[order], return_index=True)[1])
    others = np.setdiff1d(np.arange(len(order)), firsts)
    return [int(index) for index in order[np.concatenate([firsts, others])[:count]]]
