"""The measured results that ship with natscope as Markdown, every number read from its file in assets/results."""

import math
from collections.abc import Callable
from typing import Any

from scipy.stats import spearmanr

from natscope import assets
from natscope.app import words
from natscope.app.figures.backdoor import sigma2_chosen
from natscope.app.figures.tables import TABLES, Table
from natscope.app.paper import SECTIONS
from natscope.app.results import commands, load_benchmark, load_result
from natscope.core.files import size
from natscope.core.index.spec import EXACT, KINDS, IndexSpec
from natscope.core.methods import METHODS

_SHOWN = (1, 10, 100)  # sizes M of the table of relative information
_ABOUT = "../assets/results"
_PARTS = {  # of a section, beside its main one
    "retraining-cifar10": ", retrained",
    "coreset-tuning": ", for coresets",
    "tuning-influence": ", without retraining",
}


def section(anchor: str) -> str:
    """Write an experiment of the paper beside ours: what each says, our figures and tables, and what made them."""
    found = next(section for section in SECTIONS if section.anchor == anchor)
    parts = [f"**The paper.** {found.paper}", f"**Where we differ.** {found.differs}"]
    return "\n\n".join([*parts, *(_experiment(name) for name in found.names)])


def read(name: str) -> dict[str, Any]:
    """Return a result by its name; one that is missing, or does not say what made it, is an error here."""
    result = load_result(name)
    if result is None:
        raise LookupError(f"assets/results/{name}.json is missing or does not say what made it.")
    return result


def influence_agrees() -> list[dict[str, float]]:
    """Compare for each method what influence chooses with what retraining does, on the values of σ² of both.

    Returns:
        The rank correlation of the two scores, the margin lost at the σ² that influence chooses as a share of the most
        that is lost, and how many powers of ten the two choices are apart.
    """
    without, retrained = read("tuning-influence"), read("tuning")
    found = []
    for name, curve in without["curves"].items():
        predicted = {round(math.log10(point["sigma2"])): point["mean"] for point in curve}
        lost = {round(math.log10(point["sigma2"])): point["mean"] for point in retrained["curves"][name]}
        both = sorted(predicted.keys() & lost.keys())
        correlation = spearmanr([predicted[s] for s in both], [lost[s] for s in both]).statistic
        chosen, best = max(both, key=predicted.__getitem__), max(both, key=lost.__getitem__)
        found.append({"correlation": correlation, "share": lost[chosen] / lost[best], "apart": abs(chosen - best)})
    return found


def searched(kind: str, sigma2: float = 1.0, *, result: str = "search") -> dict[str, Any]:
    """Return the measured search of the largest pool by one kind of index."""
    rows = [row for row in load_benchmark(result)["rows"] if (row["search"], row["sigma2"]) == (kind, sigma2)]
    return max(rows, key=lambda row: row["n"])


def scale_table(images_a_second: float, *, cores: int, dim: int = 4096) -> str:
    """Write what N examples cost as a table: bytes and core-hours, as measured or reckoned from the largest size.

    Args:
        images_a_second: Jacobians that are computed.
        cores: how many compute them together.
        dim: K.
    """
    measured = load_benchmark("scale")
    built = {row["n"]: row["build_seconds"] for row in measured["rows"]}
    largest, scale = max(built), dim / measured["setting"]["dim"] / 3600
    lines = [
        "| N | features | SQ8, IVF-SQ8 | IVF-RaBitQ | one pass, core-hours | index, core-hours | rows a search reads |",
        "|---" * 7 + "|",
    ]
    for power in range(4, 10):
        count = 10**power
        sizes = (size(2 * count * dim), *(size(IndexSpec(kind).bytes(count, dim)) for kind in ("ivfsq8", "ivfrabitq")))
        passes = count * cores / images_a_second / 3600
        build = scale * built.get(count, built[largest] * (count / largest) ** 1.5)
        hours = " | ".join(f"{h:,.0f}" if h > 10 else words.number(h, 2) for h in (passes, build))
        read = IndexSpec().probes * count / IndexSpec().lists_of(count)
        lines.append(f"| 10{'⁴⁵⁶⁷⁸⁹'[power - 4]} | {' | '.join(sizes)} | {hours} | {read:,.0f} |")
    return "\n".join(lines)


def grown(name: str) -> float:
    """Return by what the cost of an index grew from a million rows to ten million."""
    rows = {row["n"]: row for row in load_benchmark("scale")["rows"]}
    return rows[10**7][name] / rows[10**6][name]


def searches() -> str:
    """Return how often an index was searched for one selection, over all sizes."""
    found = [row["searches"] for row in load_benchmark("scale")["rows"]]
    return f"{min(found):.0f} to {max(found):.0f}"


def search_table() -> str:
    """Write the measured search as a table: seconds, and the share of the exact greedy set's nats in brackets."""
    measured = load_benchmark("search")
    sigma2 = min(row["sigma2"] for row in measured["rows"])
    rows = {(row["search"], row["n"]): row for row in measured["rows"] if row["sigma2"] == sigma2}
    sizes = sorted({n for _, n in rows})
    lines = ["| seconds | " + " | ".join(f"{n:,}" for n in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for kind, name in ({"gram": "Gram path"} | {kind: f"{title} index" for kind, title in KINDS.items()}).items():
        if not any(search == kind for search, _ in rows):
            continue
        cells = " | ".join(_cell(rows.get((kind, n)), approximate=kind not in {"gram", *EXACT}) for n in sizes)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None, *, approximate: bool) -> str:
    if row is None:
        return ""
    seconds = row["seconds"]
    return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f}" + (
        f" ({row['information']:.3f})" if approximate else ""
    )


def _experiment(name: str) -> str:
    result = read(name)
    title = words.data_of(result["setting"]).partition(",")[0] + _PARTS.get(name, "")
    parts = [f"### {title}", f"{words.setting_of(result['setting'])}.", result["finding"]]
    if result["experiment"] == "backdoor":
        parts.append(sigma2_chosen(result))
    if result["experiment"] in _TABLES:
        parts.append(_TABLES[result["experiment"]](result).unbroken())
    if assets.path("results", f"{name}.svg").exists():
        parts.append(f"![{result['experiment']}: {title}]({_ABOUT}/{name}.svg)")
    versions = ", ".join(f"{library} {version}" for library, version in result["versions"].items())
    made = "\n".join(f"    $ {line}" for line in commands(result).splitlines())
    parts.append(
        f'??? note "How to reproduce"\n    ```console\n{made}\n    ```\n    '
        f"{result['setting']['queries']} queries, seed {result['setting']['seed']}, {result['date']}; {versions}."
    )
    return "\n\n".join(parts)


def _curves_table(result: dict[str, Any]) -> Table:
    rows = []
    for curve in {(c["method"], c["sigma2"]): c for panel in result["panels"] for c in panel["curves"]}.values():
        values = [f"{100 * curve['mean'][size - 1]:.0f}%" for size in _SHOWN]
        rows.append([f"{METHODS[curve['method']].title}, σ² = {words.sigma2_text(curve['sigma2'])}", *values])
    return Table(["mean relative information", *(f"M = {size}" for size in _SHOWN)], rows, [])


_TABLES: dict[str, Callable[[dict[str, Any]], Table]] = TABLES | {"relative-information": _curves_table}
