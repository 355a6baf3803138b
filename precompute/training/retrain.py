"""Training a bundle's network once more without some of its images: the counterfactual that attribution predicts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from natscope.core.backdoor import Backdoor, attack_success
from natscope.core.bundle.format import Bundle
from natscope.core.errors import BuildError
from natscope.core.examples import Inputs
from natscope.precompute.training.models import ModelSpec, build_model, network_of
from natscope.precompute.training.train import RECIPES, TrainingSpec, accuracy, agree, first_losses, logits_of, train
from natscope.precompute.training.trusted import find

_AT_HAND = 2**28  # bytes of inputs up to which all are in memory
_WAITED_FOR = 120  # seconds of a training on one core
_POSITIONS_A_SECOND = 256_000  # pixels of a ResNet-9, or tokens of a small network, on one core
_WEIGHTS_A_SECOND = 1.3e10  # that are applied to an example or a token and learn from it, on one core
# Seconds, and how long that is in words.
_PATIENCE = (
    (10, "a few seconds"),
    (30, "less than half a minute"),
    (60, "less than a minute"),
    (150, "a minute or two"),
)


def recipe_of(bundle: Bundle) -> TrainingSpec:
    """Return the recipe that a bundle's network was trained with.

    Raises:
        BuildError: if the bundle's weights were loaded, so that nobody knows how they were trained.
    """
    try:
        return TrainingSpec.from_dict(bundle.manifest.training)
    except TypeError as error:
        raise BuildError("This bundle's weights were loaded, not trained here, so they cannot be retrained.") from error


def usual_recipe(bundle: Bundle) -> TrainingSpec:
    """Return the recipe that a bundle's network was trained with; if its weights were loaded, that of its kind.

    Raises:
        BuildError: if the weights of another network than natscope's own were loaded.
    """
    usual = RECIPES.get(bundle.manifest.model["architecture"])
    return usual if usual and "weights" in bundle.manifest.training else recipe_of(bundle)


def retrain(
    bundle: Bundle,
    leave_out: np.ndarray,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    recipe: TrainingSpec | None = None,
    refill: bool = False,
    checkpoint: Path | None = None,
) -> nn.Module:
    """Train from the same initial weights in the same order of images, without some of them.

    Args:
        bundle: the bundle with the network and data.
        leave_out: training indices, int64; an empty array gives the bundle's own weights again.
        progress: called with epochs done and in all.
        recipe: the recipe of the training; the bundle's own when None.
        refill: as of `train`, for a training on a part of the data instead of one without a part.
        checkpoint: file from which a stopped training resumes.

    Returns:
        The network, in eval mode.

    Raises:
        BuildError: if no recipe is known, the network's code or what it uses was changed, or the checkpoint is damaged
            or of another training.
    """
    manifest = bundle.manifest
    recipe = recipe or recipe_of(bundle)
    _check_code(bundle)
    inputs, labels = data_of(bundle)
    if "first_losses" in manifest.results:  # each time: a factory may read files whenever it makes a network
        _check_beginning(bundle, inputs, labels)
    model = network_of(bundle, seed=recipe.seed)
    train(model, inputs, labels, recipe, leave_out=leave_out, refill=refill, checkpoint=checkpoint, progress=progress)
    return model


def data_of(bundle: Bundle) -> tuple[torch.Tensor | Inputs, torch.Tensor]:
    """Return a bundle's training examples, as a network takes them, and labels."""
    inputs, labels = bundle.inputs("train"), torch.from_numpy(np.array(bundle.array("train_labels")))
    once = inputs.lengths is None and 4 * math.prod(inputs.shape) <= _AT_HAND
    return inputs[:] if once else inputs, labels  # made once, the same numbers


def _check_code(bundle: Bundle) -> None:
    """Raise BuildError where a network's code is not that of its bundle: two things would have changed."""
    spec, built = ModelSpec.from_dict(bundle.manifest.model), bundle.manifest.results["settings"].get("model")
    source = built.get("source") if isinstance(built, dict) else None
    if ":" in spec.architecture and source is not None and find(spec.architecture, bundle).digest != source:
        raise BuildError(
            f"The code of {spec.architecture} was edited since the bundle {bundle.path} was built, so retraining would "
            "change more than the images; undo the edit, or build the bundle again."
        )


def _check_beginning(bundle: Bundle, inputs: torch.Tensor | Inputs, labels: torch.Tensor) -> None:
    """Raise BuildError where training does not begin as it did: the checksum does not cover all that code may read."""
    recipe = recipe_of(bundle)
    spec = ModelSpec.from_dict(bundle.manifest.model)  # on the processor, as in the build, whatever trains the rest
    losses = first_losses(lambda: build_model(spec, seed=recipe.seed, bundle=bundle), inputs, labels, recipe)
    if not agree(losses, bundle.manifest.results["first_losses"], recipe):
        raise BuildError(
            f"The network {bundle.manifest.model['architecture']} does not train as it did when the bundle "
            f"{bundle.path} was built, so retraining would change more than the images: something that its code uses "
            "has changed. Undo that, or build the bundle again; if it is rebuilt already, restart natscope."
        )


def too_slow(bundle: Bundle, *, linear: bool, count: int | None = None) -> str | None:
    """Return a sentence on why this bundle's network is too slow to retrain while somebody waits; None if it is not.

    Args:
        bundle: the bundle with the network and recipe; the network is not built.
        linear: whether all parameters of the network are of `Linear` layers: then training takes seconds.
        count: how many training images, to train on these alone; all of the bundle's when None.
    """
    loaded, kind = "weights" in bundle.manifest.training, bundle.manifest.model["architecture"]
    if loaded and (count is None or kind not in RECIPES):
        return "This network’s weights were loaded, not trained here, so it cannot be retrained."
    inputs, epochs = bundle.inputs("train"), usual_recipe(bundle).epochs
    count = len(inputs) if count is None else count
    if not linear and _seconds(bundle, count, linear=linear) > _WAITED_FOR:
        return (
            f"Training this network again, with {count:,} {bundle.modality.many} {epochs} times over, takes too long "
            "to wait for, so that is not done here."
        )
    return None


def patience(bundle: Bundle, *, linear: bool) -> str:
    """Return about how long training a bundle's network twice takes on one core, in words.

    Args:
        bundle: the bundle with the network and recipe; the network is not built.
        linear: whether all parameters of the network are of `Linear` layers.
    """
    seconds = 2 * _seconds(bundle, len(bundle.inputs("train")), linear=linear)
    return next((words for most, words in _PATIENCE if seconds <= most), "a few minutes")


def _seconds(bundle: Bundle, count: int, *, linear: bool) -> float:
    """Return about how long training a bundle's network on so many examples takes on one core."""
    inputs, seen = bundle.inputs("train"), count * usual_recipe(bundle).epochs
    if linear:
        return seen * bundle.manifest.files["weights"].bytes / 4 / _WEIGHTS_A_SECOND
    if inputs.lengths is None:
        return seen * math.prod(inputs.shape[1:][-2:]) / _POSITIONS_A_SECOND
    known, _ = bundle.examples("train").form  # a row for each token is looked up, and not multiplied by
    applied = sum(math.prod(shape) for shape in bundle.shapes_of_weights().values() if shape[:1] != (known,))
    return seen * float(np.mean(inputs.lengths)) * max(1 / _POSITIONS_A_SECOND, applied / _WEIGHTS_A_SECOND)


@dataclass(frozen=True)
class Outcome:
    """How a network fares with a backdoor.

    Args:
        answer: the predicted class of the one stamped image that is asked about.
        probability: probability of that class.
        class_success: share of stamped test images of its base class that are classified as the attack's target.
        success: the same over all test images, each with its own class's patch.
        accuracy: share of clean test images that are predicted right.
    """

    answer: int
    probability: float
    class_success: float
    success: float
    accuracy: float


def attacked(bundle: Bundle, model: nn.Module, backdoor: Backdoor) -> tuple[np.ndarray, float]:
    """Measure a network of a poisoned bundle on all test images.

    Returns:
        Whether each stamped image is classified as the attack's target, (T,) bool; and the accuracy on clean ones.
    """
    tests, labels = bundle.examples("test"), np.asarray(bundle.array("test_labels"))
    fooled = attack_success(lambda some: logits_of(model, some.inputs).argmax(axis=1), backdoor, tests, labels)
    return fooled, accuracy(logits_of(model, tests.inputs), labels)


def outcome(bundle: Bundle, model: nn.Module, backdoor: Backdoor, index: int) -> Outcome:
    """Measure a network of a poisoned bundle on all test images, and on one of them, stamped.

    Args:
        bundle: the bundle with the test images.
        model: the network, in eval mode.
        backdoor: the attack.
        index: number of the test image.
    """
    fooled, right = attacked(bundle, model, backdoor)
    labels = np.asarray(bundle.array("test_labels"))
    stamped = backdoor.stamped(bundle.examples("test")[np.array([index])], labels[[index]])
    chances = softmax(logits_of(model, stamped.inputs)[0])
    return Outcome(
        answer=int(chances.argmax()),
        probability=float(chances.max()),
        class_success=float(fooled[labels == labels[index]].mean()),
        success=float(fooled.mean()),
        accuracy=right,
    )
