"""The result of an experiment, with its provenance: without that it is not shown."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from natscope import assets
from natscope.core.bundle.attributor import Attributor
from natscope.core.bundle.manifest import PURPOSES, Manifest
from natscope.precompute.bundles.compare import from_python
from natscope.precompute.bundles.spec import versions
from natscope.precompute.training.models import ModelSpec

# The results from which the demo's bundles take their sigma2, by purpose.
TUNED = {"prediction": "tuning.json", "coreset": "coreset-tuning.json", "backdoor": "backdoor.json"}
TUNED_TEXTS = {"prediction": "tuning-austen.json"}


@dataclass(frozen=True)
class Result:
    """What an experiment found, and all that is needed to reproduce it.

    Args:
        experiment: its name.
        date: day of the measurement, ISO.
        command: the command that measures it again.
        bundles: for each bundle, the command that builds it and its identity.
        setting: the data, the network and every setting.
        versions: versions of libraries, and what else changes numbers.
        values: what was found, by names that the experiment chooses; JSON-able.
        finding: what was found, in a sentence or two.
    """

    experiment: str
    date: str
    command: str
    bundles: tuple[Mapping[str, str], ...]
    setting: Mapping[str, Any]
    versions: Mapping[str, str]
    values: Mapping[str, Any]
    finding: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, the values beside the rest."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "values"}
        return own | {"bundles": list(self.bundles)} | dict(self.values)


def result_of(
    experiment: str,
    opened: Sequence[Attributor],
    settings: Mapping[str, int],
    *,
    values: Mapping[str, Any],
    finding: str,
    methods: Sequence[str] = (),
    conditioning: str = "train",
    setting: Mapping[str, Any] | None = None,
    options: str = "",
) -> Result:
    """Return the result of an experiment that was measured now.

    Args:
        experiment: its name.
        opened: the opened bundles, in order.
        settings: queries, budget and seed.
        values: what was found.
        finding: the same in a sentence or two.
        methods: names, in order, if there was a choice.
        conditioning: what InfoLoss and RelatIF conditioned on, "train" or "pool".
        setting: more settings, of this experiment alone.
        options: more options of the command.

    Raises:
        BundleError: if a bundle was replaced or changed meanwhile.
    """
    for attributor in opened:
        attributor.bundle.check_unchanged()
    manifest = opened[0].bundle.manifest
    words = " ".join(f"--{key} {value}" for key, value in settings.items())
    verb, where = (experiment, "BUNDLES/0") if experiment == "tune" else (f"evaluate {experiment}", "BUNDLES")
    chosen = f" --methods {','.join(methods)}" if methods else ""
    chosen += "" if conditioning == "train" else f" --conditioning {conditioning}"
    return Result(
        experiment=experiment,
        date=datetime.date.today().isoformat(),
        command=f"natscope {verb} --bundle {where} --out {experiment}.json {words}{chosen}{options}",
        bundles=tuple(
            {
                "command": build_command(experiment, attributor.bundle.manifest, position),
                "identity": attributor.bundle.identity,
                "settings": attributor.bundle.manifest.results["settings"],
            }
            for position, attributor in enumerate(opened)
        ),
        setting={
            "data": f"{manifest.dataset['name']}, {len(opened[0].train_labels):,} training examples",
            "network": ModelSpec.from_dict(manifest.model).title,
            "kernel": {
                "ntk": manifest.ntk,
                "layers": list(manifest.layers),
                "sketch": manifest.sketch,
                "mean": opened[0].bundle.mean_kernel(),
                "scales": {purpose: opened[0].bundle.scale(purpose) for purpose in PURPOSES},
            },
            "conditioning": conditioning,
            **settings,
            **(setting or {}),
        },
        versions=versions(),
        values=values,
        finding=finding,
    )


def mean_and_error(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Return the mean of values and its standard error, None for one value."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "error": error}


def over_bundles(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of values, one per bundle, its standard error, and the values."""
    return mean_and_error(values) | {"values": list(values)}


def choices(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return what `natscope tune` wrote into a manifest, by purpose."""
    tuned = manifest.tuned or {}
    return {p: tuned if p == "prediction" else tuned[p] for p in PURPOSES if manifest.chosen[p]}


def tuned_by(manifest: Manifest, method: str) -> str | None:
    """Return the file of the result that chose a method's sigma2 for predictions; None if none did."""
    if method not in manifest.chosen["prediction"]:
        return None
    return str((manifest.tuned or {}).get("files", {}).get(method, TUNED["prediction"]))


def build_command(experiment: str, manifest: Manifest, position: int) -> str:
    """Return the commands that build a bundle and give it its sigma2, except what the experiment itself chooses."""
    parts = f" --methods {','.join(manifest.methods)}" if manifest.methods else ""
    if from_python(manifest.results["settings"]):
        built = f"natscope.build(model, train_set, test_set, out='BUNDLES/{position}')  # in Python"
    else:
        built = f"{manifest.command}{parts} --out BUNDLES/{position}"
    own = {"tune": PURPOSES, "backdoor": ("backdoor",)}.get(
        experiment, ()
    )  # an experiment is not given what it chooses
    found = {purpose: values for purpose, values in choices(manifest).items() if purpose not in own}
    files = [file for purpose, values in found.items() for file in _files(purpose, values)]
    return "\n".join([built, *(f"natscope tune --bundle BUNDLES/{position} --take {shlex.quote(f)}" for f in files)])


def _files(purpose: str, values: dict[str, Any]) -> list[str]:
    """Return the files of the results behind all methods' values, in an order in which they can be taken again."""
    own = values.get("files", {})
    usual = [f"assets/results/{TUNED[purpose]}"] if set(values["sigma2"]) - set(own) else []
    return usual + [
        f"assets/results/{file}" if file not in TUNED.values() and assets.path("results", file).exists() else file
        for file in dict.fromkeys(own.values())
    ]
