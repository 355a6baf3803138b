"""From an example to ranked training examples: a bundle and its network, queried by pages and commands alike."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from natscope.core.bundle.artifacts import LoadedArtifacts
from natscope.core.bundle.candidates import CandidateSets
from natscope.core.bundle.capabilities import Capabilities
from natscope.core.bundle.format import Bundle
from natscope.core.bundle.queries import NOT_FINITE, Queries
from natscope.core.bundle.request import Attribution, Item, QueryExample, Request, noise_of, quotation, target_of
from natscope.core.cache import BoundedCache
from natscope.core.errors import BundleError, QueryError
from natscope.core.examples import Examples
from natscope.core.features import FeatureMap
from natscope.core.greedy import Selection
from natscope.core.jacobians import linear_alone
from natscope.core.methods import METHODS, Candidates, Method, Query, Settings
from natscope.core.methods.criteria import total_of_all
from natscope.core.metrics import redundancy
from natscope.core.noise_regime import regime
from natscope.core.pool import Pool
from natscope.core.progress import Progress, silent
from natscope.core.sketch_error import SketchError, measure
from natscope.core.sketches import SketchSpec

_QUERIES = 128  # whose features are kept: asked by one method or at one sigma2, they are asked by others
_NO_NUMBERS = (
    "{} gives numbers that are not finite for this query; choose another σ², or check the bundle with "
    "`natscope verify`."
)


class Attributor(Capabilities):
    """A bundle and its network, ready to attribute; thread-safe, with bounded caches that visitors share.

    Examples:
        >>> attributor = natscope.open_attributor(Path("bundles/fashion-mnist"))
        >>> query = attributor.query("test", 12)
        >>> answer = attributor.attribute(query, natscope.Request("repsim", budget=2))
        >>> len(answer.items)
        2
    """

    def __init__(
        self,
        bundle: Bundle,
        model: nn.Module,
        *,
        sketch: SketchSpec | None = None,
        recompute: bool = False,
        patient: bool = False,
    ) -> None:
        """Load the bundle's weights into a freshly built network.

        Args:
            bundle: an open bundle.
            model: a network of the bundle's architecture.
            sketch: another sketch than the bundle's; all that depends on it is then computed when it is needed.
            recompute: whether to compute it for the bundle's own sketch too, in float32.
            patient: whether to compute what takes minutes, as an experiment does, instead of refusing.

        Raises:
            BundleError: if the weights do not fit the network, or a required file is damaged.
        """
        super().__init__(bundle)
        bundle.load_into(model)
        spec = sketch or bundle.sketch_spec
        manifest = bundle.manifest
        try:
            self.features = FeatureMap(model, spec, ntk=manifest.ntk, layers=manifest.layers)
        except ValueError as error:
            raise BundleError(f"The bundle {bundle.path} does not fit its network: {error}") from error
        self._margins = FeatureMap(model, spec, ntk=False, layers=manifest.layers)
        fresh = recompute or spec != bundle.sketch_spec
        # Copies, as everything kept from a file must be: a map would show what somebody writes into it later.
        self.train_labels = np.array(bundle.array("train_labels"))
        self.test_labels = np.array(bundle.array("test_labels"))
        self.linear = linear_alone(model)
        inputs = bundle.inputs("train").__getitem__
        self._artifacts = LoadedArtifacts(bundle, self._margins, inputs, fresh=fresh)
        self._patient = patient
        self._sets = CandidateSets(bundle, self.features, self._artifacts, inputs, fresh=fresh, patient=patient)
        self.kernel = self._sets.kernel
        self._asks = Queries(bundle, self.features, self._sets.penultimate)
        self._queries: BoundedCache[np.ndarray] = BoundedCache(_QUERIES)

    def resketched(self, seed: int) -> "Attributor":
        """Return the same network and data under another sketch seed: what changes is due to the sketch alone."""
        sketch = replace(self.bundle.sketch_spec, seed=seed)
        return Attributor(self.bundle, self.features.model, sketch=sketch, patient=self._patient)

    def check(self) -> None:
        """Raise BundleError if the bundle holds what does not follow from its features, or is not of its network."""
        self.bundle.check_unchanged()
        self._artifacts.check()
        self._sets.check()

    def sketch_error(self, count: int) -> SketchError | None:
        """Measure the sketch on the first training examples, each under its own label; None for the exact kernel."""
        self.bundle.check_unchanged()
        spec, manifest = self.features.sketch.spec, self.bundle.manifest
        if spec.kind == "exact":
            return None
        part = slice(0, count)
        inputs, labels = self.bundle.inputs("train")[part], self.train_labels[part]
        model, layers = self.features.model, manifest.layers
        return measure(model, spec, inputs, labels, ntk=manifest.ntk, layout=manifest.layout, layers=layers)

    def query(self, origin: str, index: int) -> QueryExample:
        """Take a query from the "test" or the "train" examples.

        Raises:
            QueryError: if there is no such example.
            BundleError: if a file of the bundle has changed since it was opened.
        """
        self.bundle.check_unchanged()
        return self._asks.stored(origin, index)

    def given(self, found: Any, label: int | None = None) -> QueryExample:
        """Take what a user gives, of the form of the data's examples, as the query.

        Of examples that is pixels (H, W) or (H, W, 3) uint8, or an input as the network takes it, float32.

        Args:
            found: one example.
            label: its true class, if it is known.

        Raises:
            QueryError: if it cannot be one.
            BundleError: as for `query`.
        """
        self.bundle.check_unchanged()
        return self._asks.given(found, label)

    def asked(self, example: Examples, label: int | None = None) -> QueryExample:
        """Take an example of another bundle of the same data as the query; errors are those of `given`."""
        self.bundle.check_unchanged()
        own = self.bundle.examples("train")
        if example.form != own.form or example.files() != own.files():
            raise QueryError(f"This bundle's {self.bundle.modality.many} have another form.")
        return self._asks.seen(example, "upload", label=label)

    def predict(self, examples: Examples) -> np.ndarray:
        """Return the predicted classes of examples, (B,) int64."""
        return self.features.outputs(examples.inputs).logits.argmax(axis=1)

    def attribute(
        self, query: QueryExample, request: Request, progress: Progress = silent, *, whole: bool = True
    ) -> Attribution:
        """Rank training examples for a query.

        Args:
            query: from `query` or `given`.
            request: the method and its settings.
            progress: called with a stage's name, steps done and steps in all, while something long is computed once.
            whole: whether what the answer says of all candidates is wanted too, which can take longer than the ranking:
                their total information and the regime of sigma2, None otherwise.

        Raises:
            QueryError: for a setting that cannot be used here, in one sentence.
            BundleError: if a file of the bundle has changed since it was opened.
        """
        method, target, settings = self._understood(query, request)
        features = self.query_features(query, target)
        started = time.perf_counter()
        candidates, rows, settings = self._among(query, target, request, settings, progress)
        selection = self._selection(method, candidates, self._asked(query, target, features), settings)
        total = total_of_all(method, candidates, features, settings) if whole else None
        _check_finite(method, selection, total)
        items = self._items(selection, candidates.pool, rows)
        self.bundle.check_unchanged()  # for features and Grams are read until here
        return Attribution(
            request=request,
            sigma2=settings.sigma2,
            target=target,
            pool_size=len(rows) - len(settings.exclude),
            items=items,
            total_nats=total,
            redundancy=redundancy(candidates.pool, selection.indices),
            regime=self._regime(method, candidates.pool, features, selection, settings) if whole else None,
            seconds=time.perf_counter() - started,
            index=candidates.index().kind if method.searches and candidates.index else None,
        )

    def score_each(
        self, query: QueryExample, request: Request, progress: Progress = silent
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score every candidate by itself, whatever the budget of the request.

        Args:
            query: from `query` or `given`.
            request: the method and its settings.
            progress: as for `attribute`.

        Returns:
            Training indices (n,) int64, rising, of the examples that have a score, and scores (n,) float64: for
            information methods the nats that an example alone tells, or that are lost without it alone, with the sign
            of its covariance: see `Method.each`.

        Raises:
            QueryError, BundleError: as for `attribute`.
        """
        method, target, settings = self._understood(query, request)
        features = self.query_features(query, target)
        candidates, rows, settings = self._among(query, target, request, settings, progress)
        asked = self._asked(query, target, features)
        if method.each is not None:
            kept = np.setdiff1d(np.arange(len(rows)), settings.exclude)
            scores = method.each(candidates, asked, settings)[kept]
        else:
            found = self._selection(method, candidates, asked, replace(settings, budget=len(rows)))
            order = np.argsort(found.indices)
            kept, scores = found.indices[order], found.scores[order]
        if not np.isfinite(scores).all():
            raise QueryError(_NO_NUMBERS.format(method.title))
        self.bundle.check_unchanged()
        return rows[kept], scores

    def _understood(self, query: QueryExample, request: Request) -> tuple[Method, int, Settings]:
        target = target_of(request, query, len(self.bundle.classes))
        method = METHODS[request.method]
        sigma2 = noise_of(request, self.bundle.sigma2)
        if missing := self.missing(method):
            raise QueryError(missing)
        return method, target, Settings(sigma2, request.budget, request.seed)

    def _among(
        self, query: QueryExample, target: int, request: Request, settings: Settings, progress: Progress
    ) -> tuple[Candidates, np.ndarray, Settings]:
        """Return the candidates, their training indices (n,), and the settings that leave out the query itself."""
        # A training example asks which *others* it leans on: it is taken out of the pool and of what is conditioned on.
        conditioning = request.conditioning if METHODS[request.method].conditions else "none"
        candidates, rows = self.candidates(target, request.pool, conditioning, progress)
        exclude = tuple(int(r) for r in np.flatnonzero(rows == query.index)) if query.origin == "train" else ()
        if len(rows) == len(exclude):
            raise QueryError(f"There is no other training example labelled {self.bundle.classes[target]} to rank.")
        return candidates, rows, replace(settings, exclude=exclude)

    def _asked(self, query: QueryExample, target: int, features: np.ndarray) -> Query:
        return Query(
            features,
            query.penultimate,
            margin=lambda: self._margin(query, target),
            input=query.example.inputs[:],
            target=target,
        )

    def _selection(self, method: Method, candidates: Candidates, asked: Query, settings: Settings) -> Selection:
        try:
            return method.select(candidates, asked, settings)
        except ValueError as error:
            raise QueryError(str(error)) from error

    def _items(self, selection: Selection, pool: Pool, rows: np.ndarray) -> tuple[Item, ...]:
        """Return the picks as training examples; `rows` (n,) are the training indices of the pool."""
        indices, nats, sources = selection.indices, selection.nats, self.bundle.sources("train")
        # Files of examples are checked when they are read: only those of texts are needed here.
        examples = None if self.bundle.modality.text is None else self.bundle.examples("train")
        return tuple(
            Item(
                rank=position + 1,
                train_index=int(rows[row]),
                label=int(self.train_labels[rows[row]]),
                score=float(selection.scores[position]),
                nats=None if nats is None else float(nats[position]),
                sign=int(selection.signs[position]),
                variance=float(variance),
                source=sources[rows[row]],
                text="" if examples is None else quotation(examples, int(rows[row])),
            )
            for position, (row, variance) in enumerate(zip(indices, pool.variances(indices), strict=True))
        )

    def _regime(
        self, method: Method, pool: Pool, features: np.ndarray, selection: Selection, settings: Settings
    ) -> str | None:
        if not method.uses_sigma2 or not pool.fits_gram or len(selection.indices) < 2:
            return None
        cosine = method.information is None
        return regime(pool, features, selection, settings.sigma2, cosine=cosine, exclude=settings.exclude)

    def ahead(
        self,
        method: Method,
        queries: Sequence[QueryExample],
        target: int,
        progress: Progress = silent,
    ) -> None:
        """Compute together what a method can for queries about one class; each is then answered faster.

        Args:
            method: any; nothing is done for those that would not be faster.
            queries: those that will be asked about, in the pool of the target's class.
            target: the class.
            progress: called while something long is computed.
        """
        self.bundle.check_unchanged()
        if method.ekfac:
            rows = np.flatnonzero(self.train_labels == target)
            inputs = [query.example.inputs[:] for query in queries]
            self._artifacts.influence_ahead(inputs, np.full(len(queries), target), rows, progress)

    def margins_ahead(self, method: Method, tests: np.ndarray, progress: Progress = silent) -> None:
        """Do the same for test examples (Q,) about their own labels' margins, among all training examples.

        Args:
            method: any.
            tests: their numbers; no more than are remembered.
            progress: called while something long is computed.
        """
        self.bundle.check_unchanged()
        if method.ekfac:
            every, examples = np.arange(len(self.train_labels)), self.bundle.examples("test")
            inputs = [examples[row : row + 1].inputs[:] for row in map(int, tests)]
            self._artifacts.influence_ahead(inputs, self.test_labels[tests], every, progress)

    def margin_query(self, rows: np.ndarray) -> Query:
        """Return test examples as queries about their own labels' margins, without NTK scaling.

        Args:
            rows: (Q,) their numbers.

        Raises:
            QueryError: if the network's response to one is not finite.
        """
        self.bundle.check_unchanged()
        inputs, labels = self.bundle.inputs("test")[rows], self.test_labels[rows]
        features = self._margins.features(inputs, labels, measurement="margin")
        if not np.isfinite(features).all():
            raise QueryError(NOT_FINITE.format(f"one of these {self.bundle.modality.many}"))
        penultimate = self.features.outputs(inputs).penultimate
        return Query(features, penultimate, margin=lambda: features, input=inputs, target=labels)

    def margin_candidates(self, rows: np.ndarray, progress: Progress) -> Candidates:
        """Return training examples (n,), rising, as candidates under their own labels' margins, without NTK scaling."""
        self.bundle.check_unchanged()
        return self._sets.margins(rows, progress)

    def candidates(
        self, target: int, pool: str, conditioning: str, progress: Progress
    ) -> tuple[Candidates, np.ndarray]:
        """Return the candidates of a target class and their training indices: see `CandidateSets.of`."""
        self.bundle.check_unchanged()
        return self._sets.of(target, pool, conditioning, progress)

    def query_features(self, query: QueryExample, target: int) -> np.ndarray:
        """Return the query's features (W,) under the target's logit, read-only; those of the last queries are kept.

        Raises:
            QueryError: if the network does not respond to the example at all.
        """
        inputs = query.example.inputs[:]
        key = (inputs.shape, hashlib.sha256(np.ascontiguousarray(inputs.numpy()).data).digest(), target)
        return self._queries.get(key, lambda: self._query_features(inputs, target))

    def _query_features(self, inputs: torch.Tensor, target: int) -> np.ndarray:
        features = self.features.features(inputs, np.array([target]))[0]
        features.flags.writeable = False
        if not np.isfinite(features).all():
            raise QueryError(NOT_FINITE.format(f"this {self.bundle.modality.one}"))
        if not features.any():
            raise QueryError(
                f"The network does not respond to this {self.bundle.modality.one} at all, so there is no certainty to "
                "attribute."
            )
        return features

    def _margin(self, query: QueryExample, target: int) -> np.ndarray:
        return self._margins.features(query.example.inputs[:], np.array([target]), measurement="margin")[0]


def _check_finite(method: Method, selection: Selection, total: float | None) -> None:
    numbers = [selection.scores, selection.nats, None if total is None else np.array([total])]
    if not all(np.isfinite(values).all() for values in numbers if values is not None):
        raise QueryError(_NO_NUMBERS.format(method.title))
