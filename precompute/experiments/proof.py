"""The proof that a backdoor was found: retraining without the images that a method names, and without as many others.

The proof of one fooled image of a bundle of the demo is measured ahead of time, for the page Backdoor, and kept in
natscope's home. What is read from there is checked like any file.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from scipy.special import softmax

from natscope.core.backdoor import Backdoor
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.format import Bundle, write_atomically
from natscope.core.bundle.request import Request
from natscope.core.errors import NatscopeError
from natscope.core.files import read_regular
from natscope.core.methods import REFERENCE
from natscope.core.progress import Progress
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments.backdoor import backdoor_of, fooled_queries, stamped_query
from natscope.precompute.paths import home
from natscope.precompute.training.removal import as_many_others, identity_of
from natscope.precompute.training.retrain import Outcome, outcome, retrain

NAMED = 50  # images that a method names
_TRIES = 3  # images that are tried for one on which the network heals
_LARGEST = 100_000  # bytes of a proof's file


@dataclass(frozen=True)
class Proof:
    """What retraining shows of one fooled test image.

    Args:
        index: number of the test image.
        found: training indices that the method named, the first of its ranking first.
        others: as many others of the same label.
        outcomes: of the network as it is, of one trained without those found, and of one without the others.
    """

    index: int
    found: tuple[int, ...]
    others: tuple[int, ...]
    outcomes: tuple[Outcome, Outcome, Outcome]

    def shows(self, index: int, found: Sequence[int] | np.ndarray, others: Sequence[int] | np.ndarray) -> bool:
        """Return whether it is about a test image and the removal of these sets of training images."""
        own = self.index, sorted(self.found), sorted(self.others)
        return own == (index, sorted(map(int, found)), sorted(map(int, others)))


def question(bundle: Bundle, method: str, target: int, budget: int = NAMED) -> Request:
    """Return what a method is asked about a stamped image that the network takes for class `target`."""
    return Request(method, sigma2=bundle.sigma2(method, purpose="backdoor"), budget=budget, target=target)


def parted(labels: np.ndarray, target: int, ranking: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return which training images are removed, and as many others.

    Args:
        labels: (N,) of the training images.
        target: the label of all of these; at least two images have it.
        ranking: training indices with this label, the first to be removed first.

    Returns:
        The first of the ranking, at most half of the images with the label so that as many are left; and the others.
    """
    pool = np.flatnonzero(labels == target)
    found = np.array(ranking, dtype=np.int64)[: max(1, len(pool) // 2)]
    return found, as_many_others(pool, found)


def measure(
    attributor: Attributor, backdoor: Backdoor, index: int, found: np.ndarray, others: np.ndarray, progress: Progress
) -> tuple[Outcome, Outcome, Outcome]:
    """Measure the attack on the network as it is, and on one retrained without each of two sets of training images.

    Args:
        attributor: the opened bundle.
        backdoor: the attack.
        index: number of the test image that is asked about.
        found: training indices.
        others: training indices.
        progress: called after every epoch.
    """
    bundle = attributor.bundle

    def without(rows: np.ndarray, stage: str) -> Outcome:
        return outcome(bundle, retrain(bundle, rows, partial(progress, stage)), backdoor, index)

    return (
        outcome(bundle, attributor.features.model, backdoor, index),
        without(found, "Retraining without them"),
        without(others, "Retraining without as many random ones"),
    )


def prove(attributor: Attributor, progress: Progress) -> Proof | None:
    """Measure the proof of a fooled test image that the network gets right once it is retrained.

    A few are tried, those first that the network is surest of without the patch; if none heals, it is the first. None
    if the attack works on no image.
    """
    backdoor, tried, fooled = backdoor_of(attributor.bundle), list[Proof](), fooled_queries(attributor)
    sure = softmax(np.asarray(attributor.bundle.array("test_logits")[fooled], dtype=np.float64), axis=1).max(axis=1)
    for index in map(int, fooled[np.argsort(-sure, kind="stable")][:_TRIES]):
        base = int(attributor.test_labels[index])
        target = int(backdoor.targets[base])
        asked = question(attributor.bundle, REFERENCE, target)
        items = attributor.attribute(stamped_query(attributor, backdoor, index), asked).items
        found, others = parted(attributor.train_labels, target, [item.train_index for item in items])
        outcomes = measure(attributor, backdoor, index, found, others, progress)
        tried.append(Proof(index, tuple(found.tolist()), tuple(others.tolist()), outcomes))
        if outcomes[1].answer == base:
            return tried[-1]
    return tried[0] if tried else None


def prepare(path: Path, progress: Progress) -> None:
    """Measure the proof of the bundle at a path and keep it.

    Raises:
        BuildError: if the network cannot be retrained.
        BundleError: if the bundle cannot be opened.
        OSError: if the file cannot be written.
        QueryError: if the bundle is not poisoned.
    """
    attributor = open_attributor(path, patient=True)
    proof, file = prove(attributor, progress), _file(attributor.bundle)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(proof and asdict(proof)).encode())


def kept(bundle: Bundle) -> Proof | None:
    """Return the proof that was measured ahead of time; None if there is none, or its file cannot be used."""
    try:
        return _read(bundle)
    except (NatscopeError, ValueError, RecursionError):
        return None


def missing(bundle: Bundle) -> bool:
    """Return whether the proof of a poisoned bundle is still to be measured."""
    try:
        _read(bundle)
    except (NatscopeError, ValueError, RecursionError):
        return bundle.manifest.poison is not None
    return False


def _read(bundle: Bundle) -> Proof | None:
    """Read the file; raise NatscopeError, ValueError or RecursionError if it is missing or does not fit the bundle."""
    proof = msgspec.json.decode(read_regular(_file(bundle), _LARGEST), type=Proof | None)
    if proof is not None and not _fits(proof, bundle):
        raise ValueError("This is not a proof about this bundle.")
    return proof


def _fits(proof: Proof, bundle: Bundle) -> bool:
    labels = np.asarray(bundle.array("train_labels"))
    removed = (set(proof.found), set(proof.others))
    shares = [s for o in proof.outcomes for s in (o.probability, o.class_success, o.success, o.accuracy)]
    return (
        0 <= proof.index < len(bundle.array("test_labels"))
        and all(rows and 0 <= min(rows) <= max(rows) < len(labels) for rows in removed)
        and len(proof.found) == len(removed[0]) == len(removed[1]) == len(proof.others)
        and all(0 <= share <= 1 for share in shares)
        and all(0 <= o.answer < len(bundle.classes) for o in proof.outcomes)
    )


def _file(bundle: Bundle) -> Path:
    """Return where the proof is kept, by a name of all that it depends on."""
    poison, sigma2 = bundle.manifest.poison, bundle.sigma2(REFERENCE, purpose="backdoor")
    about = [identity_of(bundle), poison, REFERENCE, sigma2, NAMED, version("natscope")]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return home() / "proofs" / f"{digest[:16]}.json"
