"""A dry run of `natscope precompute`: in seconds, whether network and data suit, and what building will cost."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from natscope.core.backdoor import Backdoor
from natscope.core.device import device, full_precision
from natscope.core.examples import Inputs
from natscope.core.features import SHARD, FeatureMap, composition_of
from natscope.core.files import machine_memory
from natscope.core.files import size as formatted
from natscope.core.index.milvus import URI
from natscope.core.index.spec import MILVUS, MILVUS_TYPES
from natscope.core.methods import METHODS, Size
from natscope.core.methods.artifacts import MARGINS
from natscope.core.parameters import composition, imbalance
from natscope.core.peak import bytes_each, peak_bytes
from natscope.core.pool import LARGEST_GRAM
from natscope.core.progress import Progress, silent
from natscope.core.text import few
from natscope.precompute.bundles.build import check_room, existing, layout_of, prepared
from natscope.precompute.bundles.collection import check_server
from natscope.precompute.bundles.measure import IDLE, resident, seconds, seconds_each
from natscope.precompute.bundles.recorded import check_recordable
from natscope.precompute.bundles.reuse import checked, comparable
from natscope.precompute.bundles.spec import BuildSpec, estimated_bytes, left_out, size_of, wanted
from natscope.precompute.data.datasets import Dataset
from natscope.precompute.data.folders import evenly
from natscope.precompute.data.on_disk import on_disk
from natscope.precompute.data.remarks import remarks
from natscope.precompute.engines.local import Engine, LocalEngine
from natscope.precompute.training.models import ModelSpec, build_model, fitted
from natscope.precompute.training.train import TrainingSpec, accuracy, train
from natscope.precompute.training.trusted import trust
from natscope.precompute.training.validate import Suitable, check_suitable, check_trains

_SAMPLED = 2000  # files of a folder that are read
_LISTED = 10
_AT_HAND = 2**28  # bytes of inputs that are read
_MEASURED = 64  # inputs whose Jacobians show what the kernel is made of
_FEW_STEPS = 100  # of a training, below which it is most often too short
_SHORT = 2.0  # seconds of an epoch of the inputs at hand that is trained to time it
_WITHIN = 1.4  # memory within operations and kept by the allocator, relative to the tensors that they make


def check(
    spec: BuildSpec,
    out: Path | None,
    progress: Progress = silent,
    *,
    reuse: Path | None = None,
    engine: Engine | None = None,
) -> Iterator[tuple[str, str]]:
    """Try every step of a build on a few examples and estimate the cost of the whole.

    Args:
        spec: the settings.
        out: the folder that is to be published; None if it is not known yet.
        progress: called with the stage's name, steps done and steps in all.
        reuse: the bundle whose Jacobians are to be taken, if any.
        engine: where passes over the examples are to run; in this process when None.

    Yields:
        A heading and a sentence of the report, as soon as it is known.

    Raises:
        NatscopeError: what `build` would raise, at the point where it is found.
    """
    for name in (spec.model.architecture, *spec.own_code):
        trust(name)
    spec = spec.here(progress)
    if out is not None and out.exists():
        existing(out, spec)
        yield "Bundle", f"{out} is there already, with these settings"
    if reuse is not None:
        checked(reuse, spec)
    if engine is not None and engine.apart:
        with closing(engine):
            yield "Engine", engine.begin(_there(out or Path()))
    if spec.index.kind == MILVUS:
        check_server(spec.index)
        yield "Index", f"the server at ${URI} builds {MILVUS_TYPES[spec.index.milvus]}"
    begun = time.perf_counter()
    data, backdoor, rows, skipped = _sampled(spec, progress)
    chosen, labels = data.train[rows].inputs, data.train_labels[rows]
    inputs: Tensor | Inputs = chosen[:] if data.foreign else chosen  # read once
    read, files = time.perf_counter() - begun, len(data.train) + len(data.test)
    sampled = _SAMPLED if not data.foreign or spec.folder.skip_broken else 2 * len(rows)  # of both splits
    unread = 0.0 if spec.path is None else read * max(0.0, files / sampled - 1)
    yield "Data", _about(data)
    if reuse is not None:
        comparable(reuse, spec, data)
        yield "Reused", f"{reuse} has Jacobians of this network; those of examples that are the same there are taken"
    if spec.path is not None:
        yield "", _files_read(data, skipped, sampled)
        for remark in remarks(spec.path, spec.folder, train=data.train_sources, test=data.test_sources):
            yield "Folder", remark

    model_spec = fitted(spec.model, data.train, len(data.classes))
    model = build_model(model_spec, seed=spec.training.seed)
    spec.load_into(model, model_spec)
    network = check_suitable(model, inputs, len(data.classes), model_spec)
    model.to(device())
    yield "Network", f"{model_spec.title}: {network.parameters:,} parameters, each layer's Jacobian exact"
    if network.by_torch_func:
        yield "", f"by torch.func, exact as well and slower: {', '.join(network.by_torch_func)}"
    for remark in network.remarks:
        yield "", remark
    features = spec.feature_map(model, data.modality)
    layout = layout_of(spec, features, inputs[:1])
    begins = unread + time.perf_counter() - begun
    check_recordable(spec, data, backdoor, model_spec, features, skipped)
    size = size_of(len(data.train), spec.sketch, network)
    methods = wanted(spec.methods, size)
    for why in left_out(spec.methods, size).values():
        yield "Left out", why
    yield "Methods", _methods(methods, size)

    trains = 0.0
    if spec.weights is None:
        trains, said = _training(spec, model_spec, inputs, labels, len(data.train))
        yield "Training", said
    else:
        yield "Weights", _weights(model, data)
    made_of = composition_of(features, inputs[:_MEASURED], labels[:_MEASURED])
    shares = made_of["shares"]
    trained = "" if spec.weights else " before training"
    yield "Kernel", f"{_kernel(features)}: {composition(shares)} of the mean ‖J‖²{trained}"
    if (warning := imbalance(**made_of)) is not None:
        yield "", warning
    workers = engine.workers if isinstance(engine, LocalEngine) else 1
    differentiates, said = _jacobians(spec, features, inputs, labels, data, methods, min(workers, os.cpu_count() or 1))
    yield "Jacobians", said
    multiplies, said = _products(spec, data, network, methods, size)
    yield "Products", said
    untimed = [METHODS[name].title for name in methods if not METHODS[name].artifacts.timed]
    rest = f", and {', '.join(untimed)}, not timed here" if untimed else ""
    yield "Time", f"{_duration(begins + trains + differentiates + multiplies)} in all{rest}"
    yield "Disk", _disk(estimated_bytes(spec, data, layout, network), out)
    yield "Memory", _memory(spec, model_spec, features, inputs, labels, data, methods, size, engine)


def _there(folder: Path) -> Path:
    """Return the nearest folder above a path, or itself, that exists."""
    place = Path(os.path.realpath(folder))
    return next(found for found in (place, *place.parents) if found.is_dir())


def _kernel(features: FeatureMap) -> str:
    scaled = "NTK parameterisation" if features.ntk else "no NTK scaling"
    return f"{scaled}, {', '.join(features.layers)}" if features.layers else scaled


def _sampled(spec: BuildSpec, progress: Progress) -> tuple[Dataset, Backdoor | None, np.ndarray, list[str]]:
    """Return the data set (a sample of a folder), its backdoor, the rows that were read, and unreadable files."""
    data, skipped = spec.load(progress, sample=_SAMPLED)
    data, backdoor = prepared(spec, data)
    rows = _read(data, "train")
    return data, backdoor, rows if len(rows) > 1 else np.arange(len(data.train)), skipped


def _read(data: Dataset, split: str) -> np.ndarray:
    """Return rows that can be used, as files of a folder that were not read or tried are black; of inputs, a few."""
    examples = getattr(data, split)
    rows = np.flatnonzero(examples.present())
    if not data.foreign:
        return rows[:_SAMPLED]
    some = min(_SAMPLED, max(_MEASURED, _AT_HAND // (4 * math.prod(examples.inputs.shape[1:]))))
    return rows[evenly(len(rows), some)] if len(rows) else evenly(len(examples), some)


def _about(data: Dataset) -> str:
    sizes = np.bincount(data.train_labels, minlength=len(data.classes))
    few = ", ".join(data.classes) if len(data.classes) <= 4 else f"{data.classes[0]}, …, {data.classes[-1]}"
    each = f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
    return (
        f"{data.name}: {len(data.train):,} training and {len(data.test):,} test {data.modality.many}, "
        f"{data.train.described()}; {len(data.classes)} classes ({few}), {each} training {data.modality.many} each"
    )


def _files_read(data: Dataset, skipped: list[str], most: int) -> str:
    whole = len(data.train) + len(data.test) + len(skipped)
    read = f"{most:,} of {whole:,} files were read" if whole > most else "every file was read"
    if not skipped:
        return f"{read}, and all can be used"
    return f"{read}; {len(skipped):,} cannot be used and will be skipped: {few(skipped, _LISTED, '; ')}"


def _weights(model: nn.Module, data: Dataset) -> str:
    rows = _read(data, "test")
    rows = rows[evenly(len(rows), 200)]
    with torch.no_grad(), full_precision():
        model.eval()
        logits = model(data.test.inputs[rows].to(device()))
    share = accuracy(logits.cpu().numpy(), data.test_labels[rows])
    made = data.train.scaling()
    return (
        f"loaded, nothing is trained; accuracy on {len(rows)} test {data.modality.many} {share:.0%}"
        f"{f' with {made}' if made else ''}"
    )


def _methods(methods: tuple[str, ...], size: Size) -> str:
    """Ask every method whether the bundle will serve it."""
    possible = {name: method for name, method in METHODS.items() if method.artifacts.obstacle(size) is None}
    served = [method.title for name, method in possible.items() if name in methods or not method.files]
    more = [name for name, method in possible.items() if method.title not in served]
    return ", ".join(served) + (f"; {', '.join(more)} can be added by --methods" if more else "")


def _train(
    model: nn.Module,
    inputs: Tensor | Inputs,
    labels: np.ndarray,
    recipe: TrainingSpec,
    number: int,
    *,
    checkpoint: Path | None = None,
) -> None:
    """Train on the first inputs, whose batches are made as in the build."""
    others = np.arange(number, len(inputs))
    train(model, inputs, torch.from_numpy(labels), recipe, leave_out=others, refill=True, checkpoint=checkpoint)


def _training(
    spec: BuildSpec, model: ModelSpec, inputs: Tensor | Inputs, labels: np.ndarray, count: int
) -> tuple[float, str]:
    """Time what a training needs once, for each step and for each image."""
    recipe = spec.training
    check_trains(build_model(model, seed=recipe.seed), inputs[:3], count % recipe.batch_size, model)

    def run(number: int, epochs: int = 1) -> None:
        network, own = build_model(model, seed=recipe.seed), replace(recipe, epochs=epochs)
        with tempfile.TemporaryDirectory() as folder:  # a build keeps what is trained after every epoch
            kept = Path(folder) / "training"
            _train(network.to(device()), inputs, labels, own, number, checkpoint=kept)

    steps, all_ = -(-count // recipe.batch_size), len(inputs)
    once, each = seconds_each(run, all_)
    if each * all_ < _SHORT:  # two epochs tell what each takes, however few its inputs are
        first = seconds(lambda: run(all_))
        epoch = max(0.0, seconds(lambda: run(all_, 2)) - first) * count / all_
        whole = max(0.0, first - epoch) + recipe.epochs * epoch
    else:
        whole = once + recipe.epochs * count * each
    few = f"; only {taken} steps in all: try more --epochs" if (taken := recipe.epochs * steps) < _FEW_STEPS else ""
    return whole, (
        f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)} of {steps:,} step{'s' * (steps != 1)}, batches of "
        f"{recipe.batch_size}, {recipe.precision}{', augmented' if recipe.augment else ''}: "
        f"{_rate(whole / (recipe.epochs * count))}, {_duration(whole)}{few}"
    )


def _jacobians(
    spec: BuildSpec,
    features: FeatureMap,
    inputs: Tensor | Inputs,
    labels: np.ndarray,
    data: Dataset,
    methods: tuple[str, ...],
    workers: int,
) -> tuple[float, str]:
    most = min(len(inputs), SHARD)
    once, each = seconds_each(lambda number: features.features(inputs[:number], labels[:number]), most)
    _, forward = seconds_each(lambda number: features.outputs(inputs[:number]), most)
    count, passes = len(data.train), 1 + any(MARGINS in METHODS[name].needs for name in methods)
    passes += len(data.classes) if spec.outputs == "all" else 0
    outputs = forward * (count + len(data.test))
    size = f"K = {spec.sketch.dim:,}" if spec.sketch.kind != "exact" else "no sketch"
    whole = (passes * (once * -(-count // SHARD) + each * count) + outputs) / workers
    over = f"{passes} pass{'es' if passes > 1 else ''} over the training examples"
    return whole, f"{spec.sketch.kind}, {size}: {_rate(each / workers)}, {over}: {_duration(whole)}"


def _products(
    spec: BuildSpec, data: Dataset, network: Suitable, methods: tuple[str, ...], size: Size
) -> tuple[float, str]:
    """Time the matrix products: Grams, distances to the training inputs and what methods invert."""
    dim, count = spec.sketch.dim, len(data.train)
    some = np.ones((256, dim))
    _ = some @ some.T
    begun = time.perf_counter()
    _ = some @ some.T
    each = (time.perf_counter() - begun) / some.size / len(some)
    sizes = np.bincount(data.train_labels)
    number = float(dim * (sizes[sizes <= LARGEST_GRAM].astype(float) ** 2).sum())
    number += min(len(data.test), 2000) * count * (math.prod(data.train.inputs.shape[1:]) + network.penultimate)
    number += count * dim**2 * (len(data.classes) if spec.outputs == "all" else 0)
    own = {METHODS[name].title: METHODS[name].artifacts for name in methods}
    number += sum(artifacts.products(size) for artifacts in own.values())
    timed = ["Grams, indexes, distances", *(title for title, artifacts in own.items() if artifacts.products(size))]
    return each * number, f"{', '.join(timed)}: {_duration(each * number)}"


def _disk(needed: int, out: Path | None) -> str:
    folder = _there(out or Path())
    free = shutil.disk_usage(folder).free
    check_room(needed, free, folder)
    return f"the bundle takes about {formatted(needed)}; {formatted(free)} are free at {folder}"


def _memory(
    spec: BuildSpec,
    model: ModelSpec,
    features: FeatureMap,
    inputs: Tensor | Inputs,
    labels: np.ndarray,
    data: Dataset,
    methods: tuple[str, ...],
    size: Size,
    engine: Engine | None,
) -> str:
    dim, count, members = spec.sketch.dim, len(data.train), np.bincount(data.train_labels)
    trained = build_model(model, seed=0).to(device())
    weights = 4 * sum(p.numel() for p in trained.parameters())

    def step(number: int) -> None:
        _train(trained, inputs, labels, replace(spec.training, epochs=1), number)

    largest = int(members[members <= LARGEST_GRAM].max(initial=0))
    batch = min(features.batch_size, count)
    some = slice(min(batch, len(inputs)))
    phases = [
        peak_bytes(lambda: features.features(inputs[some], labels[some])) * batch / len(labels[some]),
        8 * largest * (2 * largest + dim),
        *(METHODS[name].artifacts.memory(size) for name in methods),
    ]
    if spec.weights is None:
        phases.append(2 * weights + bytes_each(step) * min(spec.training.batch_size, count))
    copies = 1 if spec.classes is spec.per_class is spec.poison is None else 2
    sizes = [examples.nbytes for examples in (data.train, data.test)]
    in_files = sum(n for n in sizes if on_disk(n)) if spec.path is not None and not data.foreign else 0
    stored = sum(sizes) - in_files  # as far as they were read, of what is taken now
    here = min(stored, _SAMPLED * data.train.nbytes // len(data.train)) if spec.path is not None else stored
    now = max(resident() - in_files, IDLE) if in_files else resident()  # without what the system may forget
    peak = now - here + copies * stored + weights + _WITHIN * max(phases)
    process = IDLE + weights + _WITHIN * max(phases[:2])
    on_nodes = engine is not None and not isinstance(engine, LocalEngine)
    if isinstance(engine, LocalEngine) and engine.workers > 1:
        peak = max(peak, now + engine.workers * process)
    found, there = f"about {formatted(peak)} at the peak", machine_memory()
    if not math.isinf(there):
        found += f", of {formatted(there)} in this machine"
    if peak > there:
        found += "; that is MORE than this machine has: the build may be killed"
    return f"{found}; about {formatted(process)} for each task on a node" if on_nodes else found


def _rate(each: float) -> str:
    return f"{1 / max(each, 1e-9):,.0f} examples a second" if each < 1 else f"{each:.1f} s an example"


def _duration(spent: float) -> str:
    if spent < 1:
        return "less than 1 s"
    if spent < 90:
        return f"about {round(spent)} s"
    minutes = round(spent / 60)
    return f"about {minutes} min" if minutes < 120 else f"about {minutes // 60} h {minutes % 60:02d} min"
