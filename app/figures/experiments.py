"""What stands beside an experiment's JSON: its figure, and its table where it has one."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from natscope.app.figures.brittleness import flips_file, flips_table
from natscope.app.figures.coreset import coreset_file, coreset_table
from natscope.app.figures.curves import curves_file, experiment_panels
from natscope.app.figures.style import Figure
from natscope.app.figures.tuning import scores_file
from natscope.core.methods import METHODS

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def experiment_files(result: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Draw an experiment: of each file the suffix and the content."""
    if "panels" in result:
        return [(kind, curves_file(experiment_panels(result), kind=kind)) for kind in ("png", "svg")]
    if result["experiment"] == "coreset":
        drawn = [(kind, coreset_file(result, kind=kind)) for kind in ("png", "svg")]
        return [*drawn, ("md", coreset_table(result).encode())]
    if result["experiment"] == "retraining":
        return [("md", retraining_table(result).encode())]
    if result["experiment"] == "tune":
        return [(kind, scores_file(result, kind=kind)) for kind in ("png", "svg")]
    if result["experiment"] == "brittleness":
        figures = [(kind, flips_file(result, kind=kind)) for kind in ("png", "svg")]
        return [*figures, ("md", flips_table(result).encode())]
    figures = [(kind, recall_file(result, kind=kind)) for kind in ("png", "svg")]
    return [*figures, ("md", recall_table(result).encode())]


def recall_table(result: dict[str, Any], paper: Mapping[str, Sequence[float]] | None = None) -> str:
    """Write the backdoor's result as a table (Markdown), the best method first.

    Args:
        result: of the experiment.
        paper: of each method the paper's recall, its error, MRR, and its error; two more columns show them.
    """
    setting, attack = result["setting"], result["attack"]
    measures = [f"recall@{setting['recall_at']}", f"MRR@{setting['budget']}"]
    rows = [["method", "σ²", *measures, *(f"{name}, paper" for name in measures if paper)]]
    for row in ordered(result):
        reported = (paper or {}).get(row["method"], ())
        rows.append(
            [
                METHODS[row["method"]].title,
                _sigma2(row["sigma2"]),
                *(_with_error(row[name]) for name in ("recall", "mrr")),
                *(f"{mean:.3f} ± {error:.3f}" for mean, error in zip(reported[::2], reported[1::2], strict=True)),
            ]
        )
    rows.append(["*chance*", "", f"{attack['base_rate']['mean']:.3f}", ""])
    width = len(rows[0])
    lines = ["| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * width + "|", *lines[1:]]) + "\n"


def retraining_table(result: dict[str, Any]) -> str:
    """Write what became of the backdoor as a table (Markdown)."""
    lines = ["| trained without | of them poisoned | attack success | test accuracy |", "|---|---|---|---|"]
    for row in result["rows"]:
        what = f"{row['removed']} by {METHODS[row['method']].title}" if row["method"] else "nothing"
        lines.append(
            f"| {what} | {row['poisoned_removed']} | {row['attack_success']:.1%} | {row['test_accuracy']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def ordered(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of methods, the highest recall first."""
    return sorted(result["rows"], key=lambda row: -row["recall"]["mean"])


def recall_file(result: dict[str, Any], *, kind: str) -> bytes:
    """Draw recall of every method with its standard error in print quality."""
    rows = ordered(result)[::-1]
    figure = Figure(figsize=(5.6, 0.34 * len(rows) + 1.0), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        [METHODS[row["method"]].title for row in rows],
        [row["recall"]["mean"] for row in rows],
        xerr=[row["recall"]["error"] or 0.0 for row in rows],
        color="#0072B2",
        error_kw={"capsize": 2.5, "linewidth": 1},
        height=0.66,
    )
    chance = result["attack"]["base_rate"]["mean"]
    axes.axvline(chance, color="#D55E00", linestyle="--", linewidth=1.2, label=f"chance, {chance:.3f}")
    axes.set(xlabel=f"recall@{result['setting']['recall_at']}", xlim=(0, 1))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=300)
    return buffer.getvalue()


def _with_error(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f}" + ("" if value["error"] is None else f" ± {value['error']:.3f}")


def _sigma2(value: float | None) -> str:
    if value is None:
        return ""
    exponent = round(math.log10(value))
    return f"10{str(exponent).translate(_RAISED)}" if value == 10.0**exponent and abs(exponent) > 2 else f"{value:g}"
