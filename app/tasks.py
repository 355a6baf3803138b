"""What worker processes do for the pages: module functions whose first argument is a progress function.

A worker keeps the bundles that it opened, with their caches, until others replace them or its memory is used
up; the bundle's path and identity say which is meant, and a different one at the same path is refused.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from natscope.app.figures.thumbnails import Sheet
from natscope.app.modalities import page_of
from natscope.core.analysis.audit import suspicion
from natscope.core.analysis.comparison import Row, compare_one
from natscope.core.analysis.coreset import Coresets
from natscope.core.analysis.curves import Curve, Line, relative_curves, sample_queries
from natscope.core.analysis.embedding import Embedding, kept
from natscope.core.analysis.reliance import Reliance
from natscope.core.analysis.reliance import reliance as reliance_of
from natscope.core.analysis.stability import Stability, across_networks, across_sketches
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.file_checks import stamp
from natscope.core.bundle.format import Bundle, read_manifest
from natscope.core.bundle.request import Attribution, QueryExample, Request
from natscope.core.errors import BundleError
from natscope.core.examples import Examples
from natscope.core.methods import RANDOM
from natscope.core.progress import Progress
from natscope.core.sketch_error import SketchError
from natscope.core.words import Link, Words, link_of, word_features, words_of
from natscope.precompute.bundles.asking import ask_about_file
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.experiments.backdoor import backdoor_of
from natscope.precompute.experiments.backdoor import fooled as fooled_by
from natscope.precompute.experiments.proof import measure
from natscope.precompute.training.removal import answer, identity_of, name_of, without
from natscope.precompute.training.result_cache import ResultCache
from natscope.precompute.training.retrain import Outcome, outcome, retrain
from natscope.precompute.training.subset import Subset, train_on


@dataclass(frozen=True)
class Place:
    """Where a bundle is, and which one is meant: it may since have been replaced, or a file changed.

    Results are cached by place: a bundle of the same identity elsewhere may be damaged.
    """

    path: Path
    identity: str
    stamp: str

    @classmethod
    def of(cls, path: Path) -> "Place":
        """Return the place of the bundle that is at a path now, with its files' current state.

        Raises:
            BundleError: if there is no bundle, or its manifest cannot be used.
        """
        manifest = read_manifest(path)
        return cls(path, manifest.identity, stamp(path, manifest.files.values()))

    def check(self, bundle: Bundle) -> None:
        """Raise BundleError if the bundle opened here is a different one, or its files have changed."""
        if (bundle.identity, bundle.stamp()) != (self.identity, self.stamp):
            raise BundleError(
                f"The bundle {self.path} was replaced or changed while this page was open; reload the page."
            )


@dataclass(frozen=True, eq=False)
class Chosen:
    """A coreset, and the information of its first images and of as many random ones.

    Args:
        indices: (M,) training indices, the best first.
        nats: (M,) information of the first 1, 2, … of them alone, mean over the queries.
        at_random: (M,) random training indices.
        random_nats: (M,) the same for these.
        joint: information of all M about all queries together, in which what queries share counts once.
        random_joint: the same for the random ones.
    """

    indices: np.ndarray
    nats: np.ndarray
    at_random: np.ndarray
    random_nats: np.ndarray
    joint: float
    random_joint: float


@dataclass(frozen=True, eq=False)
class TrainingMap:
    """Training examples in the plane, and small pictures of those that were arranged, where they have any."""

    embedding: Embedding
    pictures: Sheet | None


def _opened(place: Place) -> Attributor:
    attributor = _kept(place)
    place.check(attributor.bundle)
    return attributor


@lru_cache(maxsize=4)
def _kept(place: Place) -> Attributor:
    attributor = open_attributor(place.path)
    place.check(attributor.bundle)
    return attributor


@lru_cache(maxsize=1)  # up to some GB: all training images' covariances
def _coresets(place: Place) -> Coresets:
    return Coresets(_opened(place))


def linear(progress: Progress, place: Place) -> bool:
    """Open a bundle and tell whether all parameters of its network belong to `Linear` layers."""
    return _opened(place).linear


def query(progress: Progress, place: Place, origin: str, index: int) -> QueryExample:
    """Return a "test" or "train" image with the network's answer."""
    return _opened(place).query(origin, index)


def given(progress: Progress, place: Place, found: Any) -> QueryExample:
    """Return what a user gives with the network's answer."""
    return _opened(place).given(found)


def asked(progress: Progress, place: Place, example: Examples) -> QueryExample:
    """Return an example, alone, with the network's answer."""
    return _opened(place).asked(example)


def file(progress: Progress, place: Place, data: bytes, filename: str) -> QueryExample:
    """Return a file with the network's answer, read by the bundle's own code."""
    return ask_about_file(_opened(place), data, filename)


def predict(progress: Progress, place: Place, examples: Examples) -> np.ndarray:
    """Return the predicted classes of examples, (B,) int64."""
    return _opened(place).predict(examples)


def attribute(progress: Progress, place: Place, asked: QueryExample, request: Request) -> Attribution:
    """Rank training images for a query."""
    return _opened(place).attribute(asked, request, progress)


def score_each(
    progress: Progress, place: Place, asked: QueryExample, request: Request
) -> tuple[np.ndarray, np.ndarray]:
    """Return every candidate's training index (n,) and its score by itself (n,)."""
    return _opened(place).score_each(asked, request, progress)


def saying(progress: Progress, place: Place, split: str, text: str) -> list[int]:
    """Return the numbers of the examples of a split in which a text stands, casefolded."""
    bundle = _opened(place).bundle
    said, examples = bundle.modality.text, bundle.examples(split)
    return [] if said is None else [row for row in range(len(examples)) if text in said(examples, row).casefold()]


def word_links(
    progress: Progress, place: Place, asked: QueryExample, target: int, rows: Sequence[int]
) -> list[Link] | None:
    """Split k(x, q) of a query and some training texts over their words; None for the exact kernel."""
    attributor = _opened(place)
    if attributor.bundle.sketch_spec.kind == "exact":
        return None
    train, found = attributor.bundle.examples("train"), []

    def featured(texts: Any) -> tuple[np.ndarray, Words]:
        words = words_of(texts.text(0), texts.token_spans(0))
        return word_features(attributor.features, texts.inputs[np.array([0])], words, target), words

    query, query_words = featured(asked.example)
    for done, row in enumerate(rows):
        progress("Splitting the links over words", done, len(rows))
        own, words = featured(train[np.array([row])])
        found.append(link_of(own, words, query, query_words))
    return found


def reliance(progress: Progress, place: Place, label: int, request: Request, count: int) -> Reliance:
    """Ask a method about some test images that are predicted as a label."""
    return reliance_of(_opened(place), label, request, count, progress)


def compare(
    progress: Progress, place: Place, asked: QueryExample, requests: Sequence[Request], evaluation_sigma2: float
) -> list[Row]:
    """Ask several methods about one query; `evaluation_sigma2` is the sigma2 at which their subsets are evaluated."""
    attributor = _opened(place)
    return [
        compare_one(attributor, asked, request, evaluation_sigma2=evaluation_sigma2, progress=progress)
        for request in requests
    ]


def fooled(progress: Progress, place: Place) -> np.ndarray:
    """Return for each test image whether the attack works on it, (T,) bool."""
    progress("Trying the patch on every test image", 0, 1)
    return fooled_by(_opened(place))


def sketch_error(progress: Progress, place: Place, count: int) -> SketchError | None:
    """Measure the sketch on the first `count` training images; None for the exact kernel."""
    return _opened(place).sketch_error(count)


def curves(
    progress: Progress, place: Place, index: int | None, count: int, lines: Sequence[Line], largest: int
) -> dict[Line, Curve]:
    """Return information curves of a test image, or, where it is None, of `count` of them."""
    attributor = _opened(place)
    queries = sample_queries(attributor, count) if index is None else [attributor.query("test", index)]
    found = relative_curves(attributor, queries, lines, largest=largest, progress=progress)
    return {curve.line: curve for curve in found}


def training_map(progress: Progress, place: Place, features: str, file: Path) -> TrainingMap:
    """Arrange the training images in the plane by an array of the bundle, (N, K), and shrink their pictures.

    The map is kept in a file.
    """
    attributor = _opened(place)
    attributor.bundle.check_unchanged()
    found = kept(file, attributor.bundle.array(features), progress)
    examples, shrink = attributor.bundle.examples("train"), page_of(attributor.bundle.modality).sheet
    if shrink is None:
        return TrainingMap(found, None)
    progress("Shrinking the pictures", 0, 1)
    return TrainingMap(found, shrink(examples, found.arranged))


def sketches(
    progress: Progress, place: Place, asked: QueryExample, requests: Sequence[Request], seeds: Sequence[int]
) -> list[Stability]:
    """Repeat rankings with other seeds of the sketch."""
    return across_sketches(_opened(place), asked, requests, seeds, progress)


def networks(
    progress: Progress, place: Place, asked: QueryExample, requests: Sequence[Request], others: Sequence[Place]
) -> list[Stability]:
    """Repeat rankings with the networks of other bundles."""
    return across_networks(_opened(place), asked, requests, [_opened(other) for other in others], progress)


def coreset(
    progress: Progress, place: Place, rows: np.ndarray, method: str, variant: str, budget: int, sigma2: float
) -> Chosen:
    """Choose training images for test images `rows` (Q,), and as many random ones."""
    coresets = _coresets(place)
    asked = coresets.ask(rows)
    choose = partial(coresets.select, sigma2=sigma2, budget=budget, variant=variant)
    indices = choose(method, asked, progress=progress)
    progress("Measuring their information", 0, 1)
    at_random = choose(RANDOM, asked)
    nats, random_nats = (coresets.information(ranking, asked, sigma2) for ranking in (indices, at_random))
    joint, random_joint = (coresets.joint(ranking, asked, sigma2) for ranking in (indices, at_random))
    return Chosen(indices, nats, at_random, random_nats, joint, random_joint)


def coresets_of(
    progress: Progress, place: Place, rows: np.ndarray, sigma2s: dict[str, float], variant: str, budget: int
) -> dict[str, list[int]]:
    """Choose training images by several methods, each at its own sigma2."""
    coresets = _coresets(place)
    asked = coresets.ask(rows)
    choose = partial(coresets.select, budget=budget, variant=variant, progress=progress)
    return {name: choose(name, asked, sigma2=sigma2).tolist() for name, sigma2 in sigma2s.items()}


def train_on_subsets(
    progress: Progress, place: Place, subsets: dict[str, Subset], stages: dict[str, str], file: Path
) -> dict[str, Any]:
    """Train once on each subset alone; what is in the cache file is not retrained."""
    bundle, cache, found = _opened(place).bundle, ResultCache(file), {}
    identity = identity_of(bundle)
    for name, subset in subsets.items():
        key = subset.key(bundle, identity)
        value = cache[key] if key in cache else train_on(bundle, subset, partial(progress, stages[name]))
        found[name] = value
        with contextlib.suppress(OSError):  # if it cannot be cached it is shown all the same
            cache.get(key, lambda value=value: value)  # type: ignore[misc]
    return found


def audit(progress: Progress, place: Place) -> np.ndarray:
    """Score every training image by how suspicious it is, (N,) float64."""
    return suspicion(_opened(place), progress=progress)


def healed(progress: Progress, place: Place, suspects: np.ndarray, index: int) -> Outcome:
    """Train without the suspects, and measure the attack."""
    bundle = _opened(place).bundle
    model = retrain(bundle, suspects, partial(progress, "Retraining without the suspects"))
    return outcome(bundle, model, backdoor_of(bundle), index)


def proof(
    progress: Progress, place: Place, index: int, found: np.ndarray, others: np.ndarray, pattern: np.ndarray
) -> tuple[Outcome, Outcome, Outcome]:
    """Measure the attack on the network as it is, and on one trained without each of two sets of training images.

    Args:
        progress: called while a network is trained.
        place: where the bundle is.
        index: number of the test image that is asked about.
        found: training indices.
        others: training indices.
        pattern: (S, S), the patch of the test image's class.
    """
    attributor = _opened(place)
    backdoor = backdoor_of(attributor.bundle).with_pattern(int(attributor.test_labels[index]), pattern)
    return measure(attributor, backdoor, index, found, others, progress)


def removals(
    progress: Progress,
    place: Place,
    asked: QueryExample,
    stages: Sequence[tuple[str, tuple[int, ...], dict[str, Any]]],
    file: Path,
) -> list[dict[str, Any]]:
    """Ask the network about an image after removing the training images of each stage; each training is cached.

    Args:
        progress: called while a network is trained.
        place: where the bundle is.
        asked: the image.
        stages: a title, the images that are removed (none: the network as it is), and what to store with the answer.
        file: where finished trainings are cached.
    """
    attributor, cache, answers = _opened(place), ResultCache(file), []
    for stage, rows, about in stages:
        name = name_of(asked.example, asked.predicted, rows)
        if name not in cache:
            example, target = asked.example, asked.predicted
            found = (
                without(attributor.bundle, example, target, rows, partial(progress, stage))
                if rows
                else answer(attributor.features.model, example, target)
            )
            part = about | {"answer": asdict(found)}
            with contextlib.suppress(OSError):  # if it cannot be cached it is shown all the same
                cache.get(name, lambda part=part: part)  # type: ignore[misc]
        answers.append(cache[name]["answer"] if name in cache else part["answer"])
    return answers


def draw(progress: Progress, function: Callable[..., Any], arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    """Draw a figure."""
    return function(*arguments, **settings)
