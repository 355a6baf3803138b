"""Measured results of experiments, as they ship with natscope."""

import json
from typing import Any

from natscope import assets

_OPTION = "--conditioning"


def backdoor_results() -> list[dict[str, Any]]:
    """Return the results of the backdoor experiment that are installed, the embedded data's first."""
    return load_results("backdoor", "backdoor-cifar10")


def retraining_results() -> list[dict[str, Any]]:
    """Return the results of retraining without what was found, for networks that are slow to retrain."""
    return load_results("retraining-cifar10")


def load_results(*names: str) -> list[dict[str, Any]]:
    """Return those of the named results that are installed and have their provenance."""
    return [result for name in names if (result := load_result(name)) is not None]


def load_result(name: str) -> dict[str, Any] | None:
    """Return an experiment's result by its name, such as "backdoor"; None if it is not installed or incomplete.

    A result without its provenance (command, bundles, versions, seed) counts as missing.
    """
    result = load_benchmark(name)
    return result if provenance_missing(result) is None else None


def load_benchmark(name: str) -> Any:
    """Return what a benchmark wrote, such as "search"; None if it is not installed."""
    try:
        return json.loads(assets.path("results", f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def commands(result: dict[str, Any]) -> str:
    """Return the commands that made a result, one per line, its bundles first."""
    return "\n".join([*(bundle["command"] for bundle in result.get("bundles") or []), result["command"]])


def conditioning(result: dict[str, Any]) -> str:
    """Return what a result's methods conditioned on, "train" or "pool".

    Older results say it in their command alone, and those of coresets nowhere: these have no other than "train".
    """
    said = result["setting"].get("conditioning")
    options = result["command"].split()
    return said or (options[options.index(_OPTION) + 1] if _OPTION in options[:-1] else "train")


def provenance_missing(result: Any) -> str | None:
    """Return the first item of provenance that a result lacks; None if nothing is missing."""
    if not isinstance(result, dict):
        return "everything"
    for name in ("experiment", "date", "command", "setting", "versions", "finding"):
        if not result.get(name):
            return name
    identities = [bundle.get("identity") for bundle in result.get("bundles", [])]
    if not identities or not all(identities):
        return "bundles"
    return None if "seed" in result["setting"] else "seed"
