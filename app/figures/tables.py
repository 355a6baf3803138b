"""Tables of the measured results, in Markdown."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from natscope.app.paper import table_1
from natscope.core.analysis.coreset import title_of
from natscope.core.methods import METHODS
from natscope.precompute.experiments.backdoor import blind, oracle_of
from natscope.precompute.experiments.coreset import whole_title

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def recall_table(result: dict[str, Any]) -> str:
    """Return the backdoor's result, the best method first, beside the paper's where the setting is the paper's.

    The last column is about the σ² that poisoned queries choose: what it would reach, as a multiple of the features'
    scale, or in older results, which were measured there alone, which one it is.
    """
    setting, chance = result["setting"], result["attack"]["base_rate"]["mean"]
    paper, unseen = table_1(setting), blind(result)
    measures = [f"recall@{setting['recall_at']}", f"MRR@{setting['budget']}"]
    rows = []
    for row in sorted(result["rows"], key=lambda row: -row["recall"]["mean"]):
        published, oracle = paper.get(row["method"], ()), oracle_of(row)
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(published[::2], published[1::2], strict=True)]
        if oracle and unseen:
            last = f"{_value(oracle['recall'], '.3f')} ({_sigma2(oracle['ratio'])})"
        else:
            last = _sigma2(oracle["sigma2"][0]) if oracle else ""
        rows.append(
            [
                METHODS[row["method"]].title,
                *(_value(row[name], ".3f") for name in ("recall", "mrr")),
                *(cells or ["", ""] if paper else []),
                last,
            ]
        )
    chosen = f"{measures[0]} of the oracle (σ² / scale)" if unseen else "σ², chosen by recall on poisoned queries"
    columns = ["method", *measures, *(f"{name}, paper" for name in measures if paper), chosen]
    return _table(columns, [*rows, ["*chance*", f"{chance:.3f}"]])


def retraining_table(result: dict[str, Any]) -> str:
    """Return what became of the backdoor."""
    rows = []
    for row in result["rows"]:
        what = f"{row['removed']} by {METHODS[row['method']].title}" if row["method"] else "nothing"
        rows.append([what, row["poisoned_removed"], f"{row['attack_success']:.1%}", f"{row['test_accuracy']:.1%}"])
    return _table(["trained without", "of them poisoned", "attack success", "test accuracy"], rows)


def flips_table(result: dict[str, Any]) -> str:
    """Return the flipped predictions, the method that flips most first."""
    grid = result["setting"]["grid"]
    rows = [
        [
            METHODS[row["method"]].title,
            _sigma2s(row["sigma2"]),
            _value(row["margin_drop"], ".2f"),
            *(f"{_value(value, '.0f', 100)}%" for value in row["flips"]),
        ]
        for row in sorted(result["rows"], key=lambda row: -sum(value["mean"] for value in row["flips"]))
    ]
    return _table(["method", "σ²", f"margin lost at M = {grid[0]}", *(f"M = {count}" for count in grid)], rows)


def coreset_table(result: dict[str, Any]) -> str:
    """Return the accuracies, in per cent."""
    rows = [
        [
            title_of(row),
            _sigma2s(row["sigma2"]),
            *(_value(value, ".1f", 100) for value in row["accuracy"]),
        ]
        for row in result["rows"]
    ]
    whole = [f"*{whole_title(result['setting'])}*", "", _value(result["all_data"], ".1f", 100)]
    return _table(["chosen by", "σ²", *(f"{size:,}" for size in result["setting"]["grid"])], [*rows, whole])


def lds_table(result: dict[str, Any]) -> str:
    """Return the mean LDS for each target, the best for the margin first, and the most that can be reached."""
    targets = list(result["ceilings"])
    rows = [
        [
            METHODS[row["method"]].title,
            row["sum"],
            _sigma2(row["sigma2"]),
            *(_value(row[name], ".3f") for name in targets),
        ]
        for row in sorted(result["rows"], key=lambda row: -row["margin"]["mean"])
    ]
    most = ["*most that seeds allow*", "", "", *(f"{result['ceilings'][name]['most']:.3f}" for name in targets)]
    return _table(["method", "sum", "σ²", *targets], [*rows, most])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "brittleness": flips_table,
    "backdoor": recall_table,
    "coreset": coreset_table,
    "lds": lds_table,
    "retraining": retraining_table,
}


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    padded = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in (columns, *padded)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]]) + "\n"


def _value(value: dict[str, Any], form: str, scale: float = 1) -> str:
    error = "" if value["error"] is None else f" ± {format(scale * value['error'], form)}"
    return format(scale * value["mean"], form) + error


def _sigma2s(values: Iterable[float] | None) -> str:
    return " / ".join(f"{value:g}" for value in dict.fromkeys(values or ()))


def _sigma2(value: float | None) -> str:
    if value is None:
        return ""
    exponent = round(math.log10(value))
    return f"10{str(exponent).translate(_RAISED)}" if value == 10.0**exponent and abs(exponent) > 2 else f"{value:g}"
