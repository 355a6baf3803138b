"""What the manifest of a bundle that is built says of its settings, and whether it could be read again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from natscope.core.backdoor import Backdoor
from natscope.core.bundle.format import MANIFEST, Manifest
from natscope.core.bundle.manifest import plain_command
from natscope.core.bundle.schema import SchemaError
from natscope.core.errors import BuildError
from natscope.core.examples import USUAL
from natscope.core.features import FeatureMap
from natscope.precompute.bundles.spec import BuildSpec, versions
from natscope.precompute.data.datasets import Dataset
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import check_recipe


def check_recordable(
    spec: BuildSpec,
    data: Dataset,
    backdoor: Backdoor | None,
    model: ModelSpec,
    features: FeatureMap,
    skipped: Sequence[str],
) -> None:
    """Raise BuildError if the settings cannot be recorded, before anything takes long."""
    if spec.weights is None:
        check_recipe(spec.training)
    unknown = {"train_accuracy": 0, "test_accuracy": 0, "usual_distances": [0, 0], "kernel": {"mean": 0, "shares": {}}}
    try:
        manifest_of(spec, data, backdoor, model, features, unknown, skipped).check_settings()
    except SchemaError as error:
        raise BuildError(f"These settings cannot be recorded in a bundle: its {MANIFEST} {error}.") from error


def manifest_of(
    spec: BuildSpec,
    data: Dataset,
    backdoor: Backdoor | None,
    model: ModelSpec,
    features: FeatureMap,
    results: dict[str, Any],
    skipped: Sequence[str],
) -> Manifest:
    """Return what is known of a bundle before its files are written."""
    settings = spec.settings()
    modality = {} if data.modality.name == USUAL else {"modality": data.modality.name}
    dataset = {"name": data.name, "classes": data.classes} | modality | data.train.about()
    return Manifest(
        name=spec.name,
        dataset=dataset,
        model=replace(model, start=None).to_dict(),
        training=settings["training"] or {"weights": settings["weights"]},
        sketch=spec.sketch.to_dict(),
        ntk=features.ntk,
        layers=features.layers,
        outputs=spec.outputs,
        poison=None if backdoor is None else settings["poison"] | backdoor.to_dict(),
        results=results | {"settings": settings} | ({"skipped": list(skipped)} if skipped else {}),
        layout=None,
        versions=versions(),
        command=spec.command if plain_command(spec.command) else "natscope precompute",
        index=settings.get("index"),
    )
