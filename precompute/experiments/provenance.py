"""What every result says of what made it: without it a result is not shown."""

import datetime
import shlex
from collections.abc import Sequence
from typing import Any

from natscope import assets
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.manifest import PURPOSES, Manifest
from natscope.precompute.bundles.spec import versions
from natscope.precompute.training.models import ModelSpec

# The results from which the demo's bundles take their sigma2, by purpose.
TUNED = {"prediction": "tuning.json", "coreset": "coreset-tuning.json", "backdoor": "backdoor.json"}


def provenance(
    experiment: str, opened: Sequence[Attributor], settings: dict[str, int], *, methods: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the fields by which a result can be made again.

    Args:
        experiment: its name.
        opened: of the bundles, in order.
        settings: queries, budget and seed.
        methods: names, in order.

    Returns:
        The experiment's name, the date, the command, each bundle's command and identity, versions, and "setting": the
        data, the network and the settings.
    """
    manifest = opened[0].bundle.manifest
    words = " ".join(f"--{key} {value}" for key, value in settings.items())
    verb, where = (experiment, "BUNDLES/0") if experiment == "tune" else (f"evaluate {experiment}", "BUNDLES")
    chosen = f" --methods {','.join(methods)}" if methods else ""
    return {
        "experiment": experiment,
        "date": datetime.date.today().isoformat(),
        "command": f"natscope {verb} --bundle {where} --out {experiment}.json {words}{chosen}",
        "bundles": [
            {"command": _command(experiment, attributor, place), "identity": attributor.bundle.identity}
            for place, attributor in enumerate(opened)
        ],
        "setting": {
            "data": f"{manifest.dataset['name']}, {len(opened[0].train_labels):,} training images",
            "network": ModelSpec.from_dict(manifest.model).title,
            **settings,
        },
        "versions": versions(),
    }


def choices(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return what `natscope tune` wrote into a manifest, by purpose."""
    tuned = manifest.tuned or {}
    return {p: tuned if p == "prediction" else tuned[p] for p in PURPOSES if manifest.chosen[p]}


def _command(experiment: str, attributor: Attributor, place: int) -> str:
    """Write what builds a bundle, and what gave it its sigma2: `tune` measures that itself."""
    manifest = attributor.bundle.manifest
    parts = f" --methods {','.join(manifest.methods)}" if manifest.methods else ""
    built = f"{manifest.command}{parts} --out BUNDLES/{place}"
    own = {"tune": PURPOSES, "backdoor": ("backdoor",)}.get(experiment, ())  # what it chooses, it is not given
    found = {purpose: values for purpose, values in choices(manifest).items() if purpose not in own}
    files = [file for purpose, values in found.items() for file in _files(purpose, values)]
    return "\n".join([built, *(f"natscope tune --bundle BUNDLES/{place} --take {shlex.quote(f)}" for f in files)])


def _files(purpose: str, values: dict[str, Any]) -> list[str]:
    """Name the results that gave the values of all methods, in an order in which they can be taken again."""
    own = values.get("files", {})
    usual = [f"assets/results/{TUNED[purpose]}"] if set(values["sigma2"]) - set(own) else []
    return usual + [
        f"assets/results/{file}" if file not in TUNED.values() and assets.path("results", file).exists() else file
        for file in dict.fromkeys(own.values())
    ]
