"""Influence functions with EK-FAC curvature (Grosse et al. 2023), through the library kronfluence.

The measurement is TRAK's margin, the damping is the library's heuristic (a tenth of the mean eigenvalue), and the
curvature is the true Fisher.
"""

import copy
import json
import secrets
import shutil
import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import Dataset, TensorDataset

from natscope.core.device import device_of, full_precision
from natscope.core.errors import out_of_memory
from natscope.core.jacobians import batched_layers, exclusive, supported_layers
from natscope.core.measurements import margin
from natscope.core.methods.artifacts import FACTOR_FILES, EkfacSpec, Source, at_once
from natscope.core.progress import Progress
from natscope.core.scratch import temporary_folder

_NAME = "margin"
_ARGUMENTS = "factor_arguments.json"  # rewritten: a stranger's could choose what code runs
_QUERIES = 50  # queries whose gradients are in memory together
_DAMPING = 0.1  # of the mean eigenvalue, as kronfluence has it
_ROUNDING = 1e-3  # of the largest number
_LARGEST_INVERSE = 1e30  # of a curvature: what a gradient times it may reach in float32


@full_precision()
def fit_factors(model: nn.Module, inputs: Tensor, folder: Path, spec: EkfacSpec, progress: Progress) -> None:
    """Fit EK-FAC factors and write them into a folder; parts that exist already are not fitted again.

    Args:
        model: the trained network; it is not changed. Only those of its `seen_layers` count that it calls.
        inputs: (N, ...) all training examples, as the network takes them.
        folder: where kronfluence keeps its files, the factors in its `factors_folder`.
        spec: the settings.
        progress: called with a stage's name, steps done and in all.
    """
    shares = _probabilities(model, inputs, spec.batch_size)
    axes, variances = _even_directions(inputs, shares, spec), _large_directions(inputs, shares, spec)
    parts = max(1, len(variances) // spec.batch_size)
    arguments = FactorArguments(
        strategy="ekfac",
        covariance_max_examples=None,
        lambda_max_examples=None,
        lambda_data_partitions=parts,
        has_shared_parameters=_repeats(layers := _called_layers(model, inputs[:1])),
    )
    stage, common = "Kronfluence: curvature of the loss", {"factors_name": _NAME, "factor_args": arguments}
    with _quiet():
        analyzer = _analyzer(model, folder, _MarginTask(layers))
        progress(stage, 0, parts + 2)
        analyzer.fit_covariance_matrices(dataset=axes, per_device_batch_size=spec.batch_size, **common)
        progress(stage, 1, parts + 2)
        analyzer.perform_eigendecomposition(**common)
        for part in range(parts):
            progress(stage, part + 2, parts + 2)
            which = [part] if parts > 1 else None
            analyzer.fit_lambda_matrices(
                dataset=variances, per_device_batch_size=spec.batch_size, target_data_partitions=which, **common
            )
        progress(stage, parts + 2, parts + 2)


def factor_contents(source: Source) -> dict[str, bytes]:
    """Fit the factors, or resume an interrupted fit; return the contents of their files.

    Raises:
        ValueError: if kronfluence sees no layer of the network, fails on it, or finds no curvature of its loss.
    """
    if not _called_layers(source.model, source.inputs(slice(1))):
        raise ValueError("Kronfluence sees plain Linear and Conv2d layers only, and this network calls none.")
    home = source.folder / "fitting"
    fit = partial(fit_factors, source.model, source.inputs(slice(None)), home, source.ekfac, source.progress)
    begun = home.exists()
    try:
        try:
            fit()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            if not begun or out_of_memory(error):
                raise
            shutil.rmtree(home)  # it was interrupted in the middle of a file
            fit()
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"Kronfluence cannot follow this network: {reason.rstrip('.')}.") from error
    try:
        _check_factors(source.model, factors_folder(home))
    except ValueError as error:
        raise ValueError(
            "Kronfluence finds no curvature of the loss that float32 can invert: this network is too sure of its "
            "training examples, or a layer has no part in its outputs."
        ) from error
    return {name: _content(factors_folder(home) / Path(name).name) for name in FACTOR_FILES}


def seen_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers that kronfluence can follow, by name: a subclass may compute something else of its weight."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and type(layer) in (nn.Linear, nn.Conv2d)
        and "weight" in dict(layer.named_parameters(recurse=False))
    }


def _content(file: Path) -> bytes:
    """Return a file's bytes; kronfluence's tensors without their metadata, whose order changes from run to run."""
    if file.suffix == ".safetensors":
        return safetensors.torch.save(safetensors.torch.load_file(file))
    return file.read_bytes()


def factors_folder(home: Path) -> Path:
    """Return the folder in which kronfluence keeps the factors of an analysis at `home`."""
    return home / "natscope" / f"factors_{_NAME}"


def _called_layers(model: nn.Module, inputs: Tensor) -> Counter[str]:
    """Return the names of the `seen_layers` that a network calls where gradients are followed, and how often.

    Left out are layers that are frozen, that are called by keyword, which kronfluence cannot read, and whose input's
    first axis is not that of the examples, which it would misread.
    """
    called: Counter[nn.Module] = Counter()
    layers = {name: layer for name, layer in seen_layers(model).items() if layer.weight.requires_grad}
    apart: set[nn.Module] = set()

    def note(layer: nn.Module, args: tuple[Tensor, ...], *_: object) -> None:
        if not args:
            apart.add(layer)
        elif torch.is_grad_enabled():
            called[layer] += 1

    given = inputs.to(device_of(model))
    with exclusive(model), torch.enable_grad():
        whole = batched_layers(model, given)
        hooks = [layer.register_forward_hook(note) for layer in layers.values()]
        try:
            model(given)
        finally:
            for hook in hooks:
                hook.remove()
    misread = supported_layers(model).keys() - whole.keys()
    return Counter(
        {n: called[layer] for n, layer in layers.items() if layer in called and layer not in apart and n not in misread}
    )


def _repeats(called: Counter[str]) -> bool:
    return any(times > 1 for times in called.values())


class EkfacInfluence:
    """Factors that were fitted, ready to score training examples for queries; one thread at a time."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        """Prepare a copy of the network.

        Args:
            model: the network that the factors were fitted for.
            folder: with the `FACTOR_FILES`.

        Raises:
            ValueError: if the factors do not fit the network.
        """
        self._lock, self._model = threading.Lock(), model
        self._home = temporary_folder()
        factors = factors_folder(Path(self._home.name))
        factors.mkdir(parents=True)
        self._layers = _check_factors(model, folder)
        for name in (Path(file).name for file in FACTOR_FILES):
            if name.endswith(".safetensors"):
                shutil.copyfile(folder / name, factors / name)
        # kronfluence writes out the gradients of so many examples at a time.
        self._batch = at_once(model, 1500)
        self._analyzer: Analyzer | None = None

    def _prepared(self, example: Tensor) -> Analyzer:
        """Return an analyzer for a network that calls layers as it does on one input."""
        home, repeats = Path(self._home.name), _repeats(_called_layers(self._model, example))
        arguments = FactorArguments(strategy="ekfac", has_shared_parameters=repeats)
        (factors_folder(home) / _ARGUMENTS).write_text(json.dumps(arguments.to_dict()))
        return _analyzer(self._model, home, _MarginTask(self._layers, repeats=repeats))

    @full_precision()
    def scores(
        self, queries: Tensor, target: int | np.ndarray, inputs: Tensor, labels: np.ndarray, *, mean: bool = False
    ) -> np.ndarray:
        """Return the influence of training examples on the margin of queries.

        Args:
            queries: (Q, ...), as the network takes them; without `mean` only a few, since their gradients are in memory
                together.
            target: the class whose margin is measured, or (Q,) int64, one a query.
            inputs: (n, ...) training examples, as the network takes them.
            labels: (n,) int64, of the training examples.
            mean: whether the mean over the queries is wanted, which costs what one query costs.

        Returns:
            (Q, n), or (1, n), float64: the first-order change of the margin per unit of weight on an example's loss,
            positive for proponents.
        """
        name = uuid.uuid4().hex  # kronfluence returns stale scores when a name is reused
        targets = torch.from_numpy(np.broadcast_to(np.asarray(target, dtype=np.int64), (len(queries),)).copy())
        with self._lock, _quiet():
            if self._analyzer is None:
                self._analyzer = self._prepared(queries[:1])
            self._analyzer.compute_pairwise_scores(
                scores_name=name,
                factors_name=_NAME,
                query_dataset=TensorDataset(queries, targets),
                train_dataset=TensorDataset(inputs, torch.from_numpy(np.array(labels, dtype=np.int64))),
                per_device_query_batch_size=min(len(queries), _QUERIES),
                per_device_train_batch_size=min(len(inputs), self._batch),
                score_args=ScoreArguments(damping_factor=None, aggregate_query_gradients=mean),
            )
            found = self._analyzer.load_pairwise_scores(name)
            shutil.rmtree(self._analyzer.scores_output_dir(name))
        scores = found["all_modules"].double().numpy()
        return scores / len(queries) if mean else scores  # kronfluence returns the sum


class _MarginTask(Task):
    """Cross-entropy for training examples, TRAK's margin for queries, as kronfluence wants them.

    For the Fisher, kronfluence asks for the loss at a label drawn from the network. Its gradient by the logits,
    e_y - p, is rare and large where the network is sure, so that two fits to all training examples disagree. But the
    covariance of that gradient is a sum over classes, sum_k p_k (e_k - p)(e_k - p)^T, and the loss here has the
    gradient weight * sqrt(p_k) (e_k - p) for a given k: the same Fisher, with the classes summed and not drawn
    (`python -m benchmarks ekfac` compares the two).
    """

    def __init__(self, layers: Iterable[str] | None = None, *, repeats: bool = False) -> None:
        self._layers = None if layers is None else list(layers)
        # Of a layer that is called twice, kronfluence scores the last call alone unless it forms its gradients.
        self.enable_post_process_per_sample_gradient = repeats

    def post_process_per_sample_gradient(self, module_name: str, gradient: Tensor) -> Tensor:
        return gradient

    def get_influence_tracked_modules(self) -> list[str] | None:
        return self._layers

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        logits = model(batch[0])
        if not sample:
            return cross_entropy(logits, batch[1], reduction="sum")
        _, classes, weights = batch
        shares = torch.softmax(logits.detach(), dim=1)
        direction = one_hot(classes, shares.shape[1]) - shares
        scale = weights * shares.gather(1, classes[:, None])[:, 0].sqrt()
        return (logits * direction * scale[:, None]).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        # Negated, so that scores are positive for examples whose training raised the margin.
        return -margin(model(batch[0]), batch[1]).sum()


class _Directions(Dataset):
    """Directions of the Fisher: (input, class, weight), so that their second moments add up to the mean Fisher."""

    def __init__(self, inputs: Tensor, rows: Tensor, classes: Tensor, weights: Tensor) -> None:
        self._inputs, self._rows, self._classes, self._weights = inputs, rows, classes, weights

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._inputs[self._rows[position]], self._classes[position], self._weights[position]


def _probabilities(model: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        device = device_of(model)
        return torch.cat([torch.softmax(model(part.to(device)), dim=1).cpu() for part in inputs.split(batch_size)])


def _even_directions(inputs: Tensor, shares: Tensor, spec: EkfacSpec) -> _Directions:
    """Draw directions evenly, without repetition: the inputs' covariance needs every example as often."""
    count, classes = shares.shape
    order = torch.from_numpy(np.random.default_rng(spec.seed).permutation(count * classes))
    pairs = order[: spec.covariance_directions]
    return _Directions(inputs, pairs // classes, pairs % classes, torch.full((len(pairs),), classes**0.5))


def _large_directions(inputs: Tensor, shares: Tensor, spec: EkfacSpec) -> _Directions:
    """Draw directions by their share of the Fisher's trace and weigh them down by it; all of them when they are few."""
    count, classes = shares.shape
    if count * classes <= spec.lambda_directions:
        return _even_directions(inputs, shares, spec)
    double = shares.double()
    lengths = (double**2).sum(1, keepdim=True) + 1 - 2 * double  # |e_k - p|^2
    chances = (double * lengths).flatten().numpy()
    chances /= chances.sum()
    drawn = np.random.default_rng(spec.seed).choice(len(chances), spec.lambda_directions, p=chances)
    pairs = torch.from_numpy(drawn)
    weights = torch.from_numpy(1 / np.sqrt(count * chances[drawn])).float()
    return _Directions(inputs, pairs // classes, pairs % classes, weights)


def _check_factors(model: nn.Module, folder: Path) -> list[str]:
    """Return the layers that factors are of; raise ValueError if they are not valid, or not of the network's layers."""
    with safetensors.safe_open(folder / "lambda_matrix.safetensors", "pt") as file:
        names = set(file.keys())
    layers = {name: layer for name, layer in seen_layers(model).items() if name in names}
    if not layers:
        raise ValueError("The factors are of none of this network's layers.")
    sizes = {
        name: (len(layer.weight), layer.weight[0].numel() + (layer.bias is not None)) for name, layer in layers.items()
    }
    expected: dict[str, dict[str, tuple[int, ...]]] = {
        "activation_eigenvalues": {name: (fan_in,) for name, (_, fan_in) in sizes.items()},
        "activation_eigenvectors": {name: (fan_in, fan_in) for name, (_, fan_in) in sizes.items()},
        "gradient_eigenvalues": {name: (fan_out,) for name, (fan_out, _) in sizes.items()},
        "gradient_eigenvectors": {name: (fan_out, fan_out) for name, (fan_out, _) in sizes.items()},
        "lambda_matrix": {**sizes},
        "num_lambda_processed": dict.fromkeys(sizes, (1,)),
    }
    found = {}
    for kind, shapes in expected.items():
        tensors = safetensors.torch.load_file(folder / f"{kind}.safetensors")
        dtype = torch.int64 if kind == "num_lambda_processed" else torch.float32
        if {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} != {
            n: (s, dtype) for n, s in shapes.items()
        }:
            raise ValueError(f"'{kind}' is not of this network.")
        if kind.endswith("eigenvectors") and not all(map(_is_orthogonal, tensors.values())):
            raise ValueError(f"'{kind}' are not eigenvectors.")
        found[kind] = tensors
    for name, sums in found["lambda_matrix"].items():
        if not _is_curvature(sums, int(found["num_lambda_processed"][name])):
            raise ValueError(f"'lambda_matrix' holds no curvature of '{name}'.")
    return list(layers)


def _is_orthogonal(vectors: Tensor) -> bool:
    """Return whether the columns of a matrix (n, n) are orthonormal, tried on one unpredictable random vector."""
    secret = torch.Generator().manual_seed(secrets.randbits(63))
    probe = torch.randn(len(vectors), dtype=torch.float32, generator=secret)
    return bool(((vectors.T @ (vectors @ probe) - probe).abs() <= _ROUNDING * probe.abs().max()).all())


def _is_curvature(sums: Tensor, count: int) -> bool:
    """Return whether sums of squares over so many examples have a damped inverse by which float32 can multiply."""
    if count < 1 or sums.min() < 0:
        return False
    mean = sums.double() / count
    return bool(((mean + _DAMPING * mean.mean()).reciprocal() <= _LARGEST_INVERSE).all())


def _analyzer(model: nn.Module, home: Path, task: Task) -> Analyzer:
    prepared = prepare_model(_copied(model), task)  # it changes its argument
    return Analyzer(
        "natscope", prepared, task, cpu=device_of(model).type == "cpu", output_dir=str(home), disable_tqdm=True
    )


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, also of a network that keeps tensors that it computed, as `nn.utils.weight_norm` does."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence kronfluence's warnings; a system failure, such as a full disk, becomes an OSError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # kronfluence calls torch's deprecated name of GradScaler
        try:
            yield
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error
