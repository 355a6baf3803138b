"""A bundle of three classes of twenty images with the parts of every method: 45 kB, to be tried a thousand times."""

import json
from dataclasses import replace

import numpy as np
import pytest

from natscope.core.bundle.format import MANIFEST, sha256_of
from natscope.core.images import Images
from natscope.core.methods import METHODS
from natscope.core.methods.artifacts import EkfacSpec
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.datasets import DATASETS, Dataset
from natscope.precompute.data.poison import PoisonSpec
from natscope.precompute.data.text_sources import TextSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec

SIDE, CLASSES, TRAIN, TEST = 4, 3, 20, 4  # pixels, classes, and images of each


def image_data(
    name, classes, train_images, train_labels, test_images, test_labels, mean, std, *, inputs=(None, None), **others
):
    """Return a data set of images, and of inputs of both parts if the network takes such."""
    train, test = (Images(i, mean, std, own) for i, own in zip((train_images, test_images), inputs, strict=True))
    return Dataset(name, classes, train, train_labels, test, test_labels, **others)


def tiny_data():
    """Return images of noise with a bright row for each class."""
    random = np.random.default_rng(0)

    def split(count):
        labels = np.repeat(np.arange(CLASSES), count)
        images = random.integers(0, 120, (len(labels), SIDE, SIDE), dtype=np.uint8)
        images[np.arange(len(labels)), labels] += 130
        return images, labels

    return image_data("tiny", ("ant", "bee", "cat"), *split(TRAIN), *split(TEST), (0.4,), (0.3,))


def build_tiny(path, progress=lambda stage, done, total: None, *, engine=None, **changes):
    """Build the bundle at a path."""
    spec = BuildSpec(
        name="Tiny",
        dataset="tiny",
        model=ModelSpec(widths=(SIDE * SIDE, 6, CLASSES)),
        training=TrainingSpec(epochs=5, batch_size=10),
        sketch=SketchSpec(dim=16),
        poison=PoisonSpec(rate=0.1, size=2),
        methods=tuple(METHODS),
        ekfac=EkfacSpec(covariance_directions=100, lambda_directions=100, batch_size=50),
        command="natscope precompute --dataset tiny",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "tiny", lambda root: tiny_data())
        return build(replace(spec, **changes), path, progress, engine=engine)


def edited(path, change):
    """Let a function change the manifest of a bundle, as JSON gives it, in place."""
    raw = json.loads((path / MANIFEST).read_text())
    change(raw)
    (path / MANIFEST).write_text(json.dumps(raw))


def recorded_anew(path, name):
    """Let the manifest record a file as it is now, as a stranger who hands out a bundle would."""
    file = path / json.loads((path / MANIFEST).read_text())["files"][name]["file"]
    found = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    edited(path, lambda raw: raw["files"][name].update(found))


def saved(path, name, array):
    """Replace an array of a bundle by another, with its record."""
    np.save(path / f"{name}.npy", array)
    recorded_anew(path, name)
    found = {"shape": list(array.shape), "dtype": str(array.dtype)}
    edited(path, lambda raw: raw["files"][name].update(found))


def build_tiny_texts(path, poison=None):
    """Build a bundle of short reviews in two classes, some of which look like HTML, poisoned if asked for."""
    words = ("fine", "lovely", "great", "warm"), ("dull", "awful", "<b>bad</b>", "cold")
    names = ("film", "book", "play", "song", "dance", "tale")
    rows = [
        f"The {name} is {word}, the {other} part number {number}.\t{label}\n"
        for label, own in (("good", words[0]), ("bad", words[1]))
        for number, word in enumerate(own)
        for name in names
        for other in ("first", "last")
    ]
    file = path.parent / "reviews.tsv"
    file.write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")
    spec = BuildSpec(
        name="Reviews",
        dataset=f"text:{file}",
        text=TextSpec(longest=24),
        model=ModelSpec(architecture="attention", widths=None),
        training=TrainingSpec(epochs=12, batch_size=8, learning_rate=0.1),
        sketch=SketchSpec(dim=64),
        methods=("graddot",),
        poison=poison,
        command="natscope precompute --dataset text:reviews.tsv",
    )
    return build(spec, path)
