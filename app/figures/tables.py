"""Tables of the measured results."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from natscope.app.paper import table_1
from natscope.app.words import sigma2_text
from natscope.core.analysis.coreset import title_of
from natscope.core.methods import METHODS
from natscope.precompute.experiments.coreset import whole_title
from natscope.precompute.experiments.lds import measurable


@dataclass(frozen=True)
class Table:
    """A table of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    last: Sequence[str]  # what the rows compare with; what it lacks at the end is empty

    def markdown(self) -> str:
        """Return the table in Markdown, the last row's name in italics."""
        last = [f"*{self.last[0]}*", *self.last[1:]] if self.last else []
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, *self.rows, *([last] if last else []))]
        return "\n".join([lines[0], "|---" * len(self.columns) + "|", *lines[1:]]) + "\n"

    def unbroken(self) -> str:
        """Return the table in Markdown for a page, where a column is narrow: values stay beside errors and units."""
        text = self.markdown()
        for sign in (" ± ", " = ", " %"):
            text = text.replace(sign, sign.replace(" ", "\u00a0"))
        return text


def recall_table(result: dict[str, Any]) -> Table:
    """Return the backdoor's result, the best method first, beside the paper's where the setting is the paper's.

    The last column is about the σ² that poisoned queries choose: what it would reach, as a multiple of the features'
    scale.
    """
    setting, chance = result["setting"], result["attack"]["base_rate"]["mean"]
    paper = table_1(setting)
    measures = [f"recall@{setting['recall_at']}", f"MRR@{setting['budget']}"]
    rows = []
    for row in sorted(result["rows"], key=lambda row: -row["recall"]["mean"]):
        published, oracle = paper.get(row["method"], ()), row["oracle"]
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(published[::2], published[1::2], strict=True)]
        rows.append(
            [
                METHODS[row["method"]].title,
                *(_value(row[name], ".3f") for name in ("recall", "mrr")),
                *(cells or ["", ""] if paper else []),
                f"{_value(oracle['recall'], '.3f')} ({_sigma2(oracle['ratio'])})" if oracle else "",
            ]
        )
    chosen = f"{measures[0]} of the oracle (σ² / scale)"
    columns = ["method", *measures, *(f"{name}, paper" for name in measures if paper), chosen]
    return _table(columns, rows, ["chance", f"{chance:.3f}"])


def retraining_table(result: dict[str, Any]) -> Table:
    """Return what became of the backdoor."""
    rows = []
    for row in result["rows"]:
        what = f"{row['removed']:,} by {METHODS[row['method']].title}" if row["method"] else "nothing"
        rows.append(
            [what, f"{row['poisoned_removed']:,}", f"{row['attack_success']:.1%}", f"{row['test_accuracy']:.1%}"]
        )
    return _table(["trained without", "of them poisoned", "attack success", "test accuracy"], rows)


def flips_table(result: dict[str, Any]) -> Table:
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
    return _table(["method", "σ²", f"margin lost at M = {grid[0]:,}", *(f"M = {count:,}" for count in grid)], rows)


def coreset_table(result: dict[str, Any]) -> Table:
    """Return the accuracies."""
    rows = [
        [
            title_of(row),
            _sigma2s(row["sigma2"]),
            *(f"{_value(value, '.1f', 100)}%" for value in row["accuracy"]),
        ]
        for row in result["rows"]
    ]
    whole = [whole_title(result["setting"]), "", f"{_value(result['all_data'], '.1f', 100)}%"]
    return _table(["chosen by", "σ²", *(f"M = {size:,}" for size in result["setting"]["grid"])], rows, whole)


def lds_table(result: dict[str, Any]) -> Table:
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
    ceilings = [result["ceilings"][name] for name in targets]
    known = [f"{ceiling['most']:.3f}" if measurable(ceiling) else "not measurable" for ceiling in ceilings]
    most = ["most that seeds allow", "", "", *known]
    return _table(["method", "sum", "σ²", *targets], rows, most)


TABLES: dict[str, Callable[[dict[str, Any]], Table]] = {
    "brittleness": flips_table,
    "backdoor": recall_table,
    "coreset": coreset_table,
    "lds": lds_table,
    "retraining": retraining_table,
}


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], last: Sequence[str] = ()) -> Table:
    return Table(columns, list(rows), [*last, *[""] * (len(columns) - len(last))] if last else [])


def _value(value: dict[str, Any], form: str, scale: float = 1) -> str:
    error = "" if value["error"] is None else f" ± {format(scale * value['error'], form)}"
    return format(scale * value["mean"], form).replace("-", "−") + error


def _sigma2s(values: Iterable[float] | None) -> str:
    return " / ".join(map(sigma2_text, dict.fromkeys(values or ())))


def _sigma2(value: float | None) -> str:
    return "" if value is None else sigma2_text(value)
