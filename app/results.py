"""Measured results of experiments, as they ship with natscope."""

import json
from typing import Any

import assets


def backdoor_results() -> list[dict[str, Any]]:
    """Give the results of the backdoor experiment that are installed, the embedded data's first."""
    return [result for name in ("backdoor", "backdoor-cifar10") if (result := load_result(name)) is not None]


def retraining_results() -> list[dict[str, Any]]:
    """Give the results of training again without what was found, for networks that take long."""
    return [result for name in ("retraining-cifar10",) if (result := load_result(name)) is not None]


def load_result(name: str) -> dict[str, Any] | None:
    """Give an experiment's result by its name, such as "backdoor"; None where it is not installed."""
    try:
        return json.loads(assets.path("results", f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
