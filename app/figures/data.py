"""The numbers of the measured results, unrounded, as tables with one line for each method and setting."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from natscope.app import escape
from natscope.app.paper import table_1
from natscope.precompute.experiments.lds import measurable

_Lines = Iterator[dict[str, Any]]


def numbers(result: dict[str, Any]) -> str:
    """Return an experiment's numbers as CSV; shares lie between 0 and 1, errors are standard errors."""
    lines = list(_LINES[result["experiment"]](result))
    columns = list(dict.fromkeys(name for line in lines for name in line))
    empty: dict[str, Any] = dict.fromkeys(columns, "")
    rows = (empty | {name: value for name, value in line.items() if value is not None} for line in lines)
    return escape.table(columns, (list(row.values()) for row in rows))


def _curves(result: dict[str, Any]) -> _Lines:
    for panel in result["panels"]:
        for curve in panel["curves"]:
            points = zip(curve["mean"], curve["standard_error"], strict=True)
            for size, (mean, error) in enumerate(points, 1):
                about = {"panel": panel["title"], "method": curve["method"], "sigma2": curve["sigma2"], "M": size}
                yield about | {"relative_information": mean, "relative_information_error": error}


def _flips(result: dict[str, Any]) -> _Lines:
    for row in result["rows"]:
        for size, flips in zip(result["setting"]["grid"], row["flips"], strict=True):
            lost = _value("margin_lost", row["margin_drop"]) if size == result["setting"]["grid"][0] else {}
            yield _method(row) | {"M": size} | _value("flipped", flips) | lost


def _recalls(result: dict[str, Any]) -> _Lines:
    setting, paper = result["setting"], table_1(result["setting"])
    names = [f"recall_at_{setting['recall_at']}", f"mrr_at_{setting['budget']}"]
    for row in result["rows"]:
        line = _method(row)
        for name, value in zip(names, ("recall", "mrr"), strict=True):
            line |= _value(name, row[value])
        published = paper.get(row["method"], ())
        for name, mean, error in zip(names, published[::2], published[1::2], strict=bool(published)):
            line |= {f"{name}_paper": mean, f"{name}_paper_error": error}
        if oracle := row["oracle"]:
            line |= {"sigma2_oracle": _listed(oracle["sigma2"]), "sigma2_oracle_by_scale": oracle["ratio"]}
            for name, value in zip(names, ("recall", "mrr"), strict=True):
                line |= _value(f"{name}_oracle", oracle[value])
        yield line


def _accuracies(result: dict[str, Any]) -> _Lines:
    for row in result["rows"]:
        for size, accuracy in zip(result["setting"]["grid"], row["accuracy"], strict=True):
            yield _method(row) | {"variant": row["variant"], "M": size} | _value("accuracy", accuracy)
    yield {"method": "all"} | _value("accuracy", result["all_data"])


def _lds(result: dict[str, Any]) -> _Lines:
    for row in result["rows"]:
        line = _method(row) | {"sum": row["sum"]}
        for target in result["ceilings"]:
            line |= _value(f"lds_{target}", row[target])
        yield line
    yield {"method": "most that seeds allow"} | {
        f"lds_{target}": ceiling["most"] for target, ceiling in result["ceilings"].items() if measurable(ceiling)
    }


def _retrained(result: dict[str, Any]) -> _Lines:
    for row in result["rows"]:
        names = ("removed", "poisoned_removed", "attack_success", "test_accuracy")
        yield {"method": row["method"]} | {name: row[name] for name in names}


def _tuned(result: dict[str, Any]) -> _Lines:
    for method, points in result["curves"].items():
        for point in points:
            chosen = {"chosen": int(point["sigma2"] == result["sigma2"][method])}
            yield {"method": method, "sigma2": _listed(point["sigma2"])} | _value("score", point) | chosen


def _method(row: dict[str, Any]) -> dict[str, Any]:
    return {"method": row["method"], "sigma2": _listed(row["sigma2"])}


def _listed(value: float | Sequence[float] | None) -> float | str:
    """Return values of sigma2, one for each network where they differ, as one cell."""
    if not value:
        return ""
    values = value if isinstance(value, Iterable) else [value]
    distinct = list(dict.fromkeys(f"{each:.12g}" for each in values))  # powers of ten, but for rounding
    return float(distinct[0]) if len(distinct) == 1 else " / ".join(distinct)


def _value(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {name: value["mean"], f"{name}_error": value["error"]}


_LINES: dict[str, Callable[[dict[str, Any]], _Lines]] = {
    "relative-information": _curves,
    "brittleness": _flips,
    "backdoor": _recalls,
    "coreset": _accuracies,
    "lds": _lds,
    "retraining": _retrained,
    "tune": _tuned,
}
