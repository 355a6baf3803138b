"""A dry run of `natscope precompute`: in seconds, whether network and data suit, and what building will cost."""

import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from natscope.core.backdoor import Backdoor
from natscope.core.device import device
from natscope.core.features import SHARD, FeatureMap
from natscope.core.files import machine_memory
from natscope.core.files import size as formatted
from natscope.core.images import ImageInputs
from natscope.core.methods import METHODS, Size
from natscope.core.methods.artifacts import MARGINS
from natscope.core.parameters import composition, imbalance
from natscope.core.pool import LARGEST_GRAM
from natscope.core.progress import Progress, silent
from natscope.precompute.bundles.build import check_recordable, check_room, existing, layout_of, prepared
from natscope.precompute.bundles.measure import bytes_each, seconds_each
from natscope.precompute.bundles.spec import BuildSpec, estimated_bytes, left_out, size_of, wanted
from natscope.precompute.data.datasets import FOLDER, Dataset
from natscope.precompute.data.folders import load_named
from natscope.precompute.data.remarks import remarks
from natscope.precompute.training.models import ModelSpec, build_model, fitted
from natscope.precompute.training.train import accuracy, train
from natscope.precompute.training.trusted import trust
from natscope.precompute.training.validate import Suitable, check_suitable, check_trains

_SAMPLED = 2000  # files of a folder that are read
_LISTED = 10
_MEASURED = 64  # images whose Jacobians show what the kernel is made of
_IDLE = 400e6  # bytes of Python and its libraries
_WITHIN = 1.2  # memory within operations, relative to the tensors that they make


def check(spec: BuildSpec, out: Path | None, progress: Progress = silent) -> Iterator[tuple[str, str]]:
    """Try every step of a build on a few images and estimate the cost of the whole.

    Args:
        spec: the settings.
        out: the folder that is to be published; None if it is not known yet.
        progress: called with the stage's name, steps done and steps in all.

    Yields:
        A heading and a sentence of the report, as soon as it is known.

    Raises:
        NatscopeError: what `build` would raise, at the point where it is found.
    """
    trust(spec.model.architecture)
    if out is not None and out.exists():
        existing(out, spec.settings())
        yield "Bundle", f"{out} is there already, with these settings"
    data, backdoor, rows, skipped = _sampled(spec, progress)
    yield "Data", _about(data)
    if spec.dataset.startswith(FOLDER):
        yield "", _files_read(data, skipped)
        folder = Path(spec.dataset.removeprefix(FOLDER))
        for remark in remarks(folder, spec.folder, train=data.train_sources, test=data.test_sources):
            yield "Folder", remark
    images = ImageInputs(data.train_images[rows], data.mean, data.std)
    labels = data.train_labels[rows]

    model_spec = fitted(spec.model, data.train_images.shape[1:], len(data.classes))
    model = build_model(model_spec, seed=spec.training.seed)
    spec.load_into(model, model_spec)
    network = check_suitable(model, images[:3], len(data.classes), model_spec)
    model.to(device())
    yield "Network", f"{model_spec.title}: {network.parameters:,} parameters, each layer's Jacobian exact"
    if network.by_torch_func:
        yield "", f"by torch.func, exact as well and slower: {', '.join(network.by_torch_func)}"
    features = spec.feature_map(model)
    layout = layout_of(spec, features, images[:1])
    check_recordable(spec, data, backdoor, model_spec, features, skipped)
    size = size_of(len(data.train_images), spec.sketch, network.parameters)
    methods = wanted(spec.methods, size)
    for name, why in left_out(spec.methods, size).items():
        yield "Left out", f"{METHODS[name].title}: {why}"

    if spec.weights is None:
        yield "Training", _training(spec, model_spec, images, labels, len(data.train_images))
    else:
        yield "Weights", _weights(model, data)
    shares = features.shares(images[:_MEASURED], labels[:_MEASURED])
    trained = "" if spec.weights else " before training"
    yield "Kernel", f"{_kernel(features)}: {composition(shares)} of the mean ‖J‖²{trained}"
    if (warning := imbalance(shares)) is not None:
        yield "", warning
    yield "Jacobians", _jacobians(spec, features, images, labels, data, methods)
    yield "Products", _products(spec, data, network, methods, size)
    yield "Disk", _disk(estimated_bytes(spec, data, layout, network), out)
    yield "Memory", _memory(spec, model_spec, features, images, labels, data, methods, size)


def _kernel(features: FeatureMap) -> str:
    scaled = "NTK parameterisation" if features.ntk else "no NTK scaling"
    return f"{scaled}, {', '.join(features.layers)}" if features.layers else scaled


def _sampled(spec: BuildSpec, progress: Progress) -> tuple[Dataset, Backdoor | None, np.ndarray, list[str]]:
    """Return the data set (a sample of a folder), its backdoor, the rows that were read, and unreadable files."""
    data, skipped = load_named(spec.dataset, spec.folder, progress, sample=_SAMPLED)
    data, backdoor = prepared(spec, data)
    rows = _read(data.train_images)
    return data, backdoor, rows if len(rows) > 1 else np.arange(len(data.train_images)), skipped


def _read(images: np.ndarray) -> np.ndarray:
    """Return the rows that hold an image; files of a folder that were not read are black images."""
    return np.flatnonzero(images.reshape(len(images), -1).any(axis=1))[:_SAMPLED]


def _about(data: Dataset) -> str:
    count, sizes = data.train_images.shape, np.bincount(data.train_labels, minlength=len(data.classes))
    few = ", ".join(data.classes) if len(data.classes) <= 4 else f"{data.classes[0]}, …, {data.classes[-1]}"
    each = f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
    return (
        f"{data.name}: {count[0]:,} training and {len(data.test_images):,} test images, {count[1]} × {count[2]} "
        f"pixels, {'grey' if len(count) == 3 else 'colour'}; {len(data.classes)} classes ({few}), {each} training "
        "images each"
    )


def _files_read(data: Dataset, skipped: list[str]) -> str:
    whole = len(data.train_images) + len(data.test_images) + len(skipped)
    read = f"{_SAMPLED:,} of {whole:,} files were read" if whole > _SAMPLED else "every file was read"
    if not skipped:
        return f"{read}, and all can be used"
    more = f" and {len(skipped) - _LISTED:,} more" if len(skipped) > _LISTED else ""
    return f"{read}; {len(skipped):,} cannot be used and will be skipped: {'; '.join(skipped[:_LISTED])}{more}"


def _weights(model: nn.Module, data: Dataset) -> str:
    rows = _read(data.test_images)[:200]
    with torch.no_grad():
        model.eval()
        logits = model(ImageInputs(data.test_images[rows], data.mean, data.std)[:].to(device()))
    share = accuracy(logits.cpu().numpy(), data.test_labels[rows])
    return (
        f"loaded, nothing is trained; accuracy on {len(rows)} test images {share:.0%} with pixels scaled by mean "
        f"{_numbers(data.mean)} and deviation {_numbers(data.std)}"
    )


def _training(spec: BuildSpec, model: ModelSpec, images: ImageInputs, labels: np.ndarray, count: int) -> str:
    recipe = spec.training
    check_trains(build_model(model, seed=recipe.seed), images[:3], count % recipe.batch_size, model)

    def run(number: int) -> None:
        some = replace(images, images=images.images[:number])
        train(
            build_model(model, seed=recipe.seed).to(device()),
            some,
            torch.from_numpy(labels[:number]),
            replace(recipe, epochs=1),
        )

    each = seconds_each(run, len(images))
    return (
        f"{recipe.epochs} epochs of {-(-count // recipe.batch_size):,} steps, batches of {recipe.batch_size}, "
        f"{recipe.precision}{', augmented' if recipe.augment else ''}: {_rate(each)}, "
        f"{_duration(each * recipe.epochs * count)}"
    )


def _jacobians(
    spec: BuildSpec,
    features: FeatureMap,
    images: ImageInputs,
    labels: np.ndarray,
    data: Dataset,
    methods: tuple[str, ...],
) -> str:
    each = seconds_each(lambda number: features.features(images[:number], labels[:number]), min(len(images), SHARD))
    forward = seconds_each(lambda number: features.outputs(images[:number]), min(len(images), SHARD))
    count, passes = len(data.train_images), 1 + any(MARGINS in METHODS[name].needs for name in methods)
    passes += len(data.classes) if spec.outputs == "all" else 0
    outputs = forward * (count + len(data.test_images))
    size = f"K = {spec.sketch.dim:,}" if spec.sketch.kind != "exact" else "no sketch"
    return (
        f"{spec.sketch.kind}, {size}: {_rate(each)}, {passes} pass{'es' if passes > 1 else ''} over the training "
        f"images: {_duration(passes * each * count + outputs)}"
    )


def _products(spec: BuildSpec, data: Dataset, network: Suitable, methods: tuple[str, ...], size: Size) -> str:
    """Time the matrix products: Grams, distances to the training images and what methods invert."""
    dim, count = spec.sketch.dim, len(data.train_images)
    some = np.ones((256, dim))
    _ = some @ some.T
    begun = time.perf_counter()
    _ = some @ some.T
    each = (time.perf_counter() - begun) / some.size / len(some)
    sizes = np.bincount(data.train_labels)
    number = float(dim * (sizes[sizes <= LARGEST_GRAM].astype(float) ** 2).sum())
    number += min(len(data.test_images), 2000) * count * (data.train_images[0].size + network.penultimate)
    number += count * dim**2 * (len(data.classes) if spec.outputs == "all" else 0)
    own = {METHODS[name].title: METHODS[name].artifacts for name in methods}
    number += sum(artifacts.products(size) for artifacts in own.values())
    timed = ["Grams, indexes, distances", *(title for title, artifacts in own.items() if artifacts.products(size))]
    others = [title for title, artifacts in own.items() if not artifacts.timed]
    found = f"{', '.join(timed)}: {_duration(each * number)}"
    return found + (f", and {', '.join(others)}, not timed here" if others else "")


def _disk(needed: int, out: Path | None) -> str:
    folder = Path(os.path.realpath(out or Path()))
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    check_room(needed, free, folder)
    return f"the bundle takes about {formatted(needed)}; {formatted(free)} are free at {folder}"


def _memory(
    spec: BuildSpec,
    model: ModelSpec,
    features: FeatureMap,
    images: ImageInputs,
    labels: np.ndarray,
    data: Dataset,
    methods: tuple[str, ...],
    size: Size,
) -> str:
    dim, count, sizes = spec.sketch.dim, len(data.train_images), np.bincount(data.train_labels)
    trained = build_model(model, seed=0).to(device())
    weights = 4 * sum(p.numel() for p in trained.parameters())

    def step(number: int) -> None:
        some = replace(images, images=images.images[:number])
        train(trained, some, torch.from_numpy(labels[:number]), replace(spec.training, epochs=1))

    largest = int(sizes[sizes <= LARGEST_GRAM].max(initial=0))
    phases = [
        bytes_each(lambda number: features.features(images[:number], labels[:number]))
        * min(features.batch_size, count),
        8 * largest * (2 * largest + dim),
        *(METHODS[name].artifacts.memory(size) for name in methods),
    ]
    if spec.weights is None:
        phases.append(2 * weights + bytes_each(step) * min(spec.training.batch_size, count))
    copies = 1 if spec.classes is spec.per_class is spec.poison is None else 2
    pixels = copies * (data.train_images.nbytes + data.test_images.nbytes)
    peak = _IDLE + pixels + weights + _WITHIN * max(phases)
    found = f"about {formatted(peak)} at the peak"
    if math.isinf(there := machine_memory()):
        return found
    if peak > there:
        return f"{found}, MORE than the {formatted(there)} of this machine: the build may be killed"
    return f"{found}, of {formatted(there)} in this machine"


def _rate(seconds: float) -> str:
    return f"{1 / seconds:,.0f} images a second" if seconds < 1 else f"{seconds:.1f} s an image"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 120 else f"about {minutes // 60} h {minutes % 60:02d} min"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
