"""The texts of the pages: what was found, in a sentence, and the terms explained, for experts and for everyone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from natscope.app import escape
from natscope.core.bundle.request import Attribution, QueryExample
from natscope.core.examples import Modality
from natscope.core.index.spec import EXACT, TITLES
from natscope.core.methods import METHODS, Method

GLOSSARY = {
    "Attribution": "A ranking of training examples by how much one prediction depends on them.",
    "Backdoor": "Training images with a planted patch and a wrong label (poisoned images) that teach the network to "
    "give that label to any image with the patch.",
    "Bundle": "A folder with one trained network, its data and everything that is computed from them ahead of time.",
    "Conditioning set": "What the surrogate is taken to know before examples are removed: the pool, or all training "
    "data under the target’s logit.",
    "Coreset": "A few training examples that stand in for the whole training set: chosen to tell most about many test "
    "examples together.",
    "Influence": "How much a prediction would change if a training example had more or less weight in "
    "training. Information is about certainty instead.",
    "Information": "By how much training examples narrow the surrogate’s uncertainty about a prediction, in nats: "
    "what they tell by themselves (gain), or what is lost without them (loss).",
    "Jacobian": "How the target’s logit would change with each weight of the network. Two examples with similar "
    "Jacobians teach the network the same thing.",
    "M": "How many training examples are selected, one after another.",
    "LDS": "Linear datamodelling score: how well summed scores of random halves of the training data put networks that "
    "are trained on these halves in order, as a rank correlation.",
    "Nat": "A unit of information, like a bit (1 nat = 1.44 bits). n nats make the model’s uncertainty about its "
    "prediction eⁿ times as narrow: 0.7 nats halve it.",
    "NTK scaling": "Each weight’s Jacobian is multiplied by √(2 / fan-in), as in the neural tangent kernel’s "
    "parameterisation; predictions stay the same.",
    "Out-of-distribution": "An example unlike any in the training data. The network still names a class, but neither "
    "the prediction nor its attribution means much.",
    "Pool": "The training examples that may be selected: those labelled with the target, or all of them.",
    "Proponent, opponent": "▲ an example whose label pulls the target’s logit the same way as the query’s; ▼ one that "
    "pulls the other way.",
    "Query": "The example whose prediction is explained: a test example, one of yours, or a training example (which is "
    "then left out).",
    "Random baseline": "As many examples drawn at random. A method is useful if it does better.",
    "Redundancy": "The mean cosine between the features of all pairs of selected examples. Near 1 they repeat each "
    "other.",
    "Relative information": "What would be lost without a method’s examples, divided by what would be lost without "
    "those that greedy selection for this loss finds, at the same M and σ².",
    "Retrain": "Train the network once more from the same initial weights in the same order, without some examples or "
    "with some examples alone.",
    "Scale of the kernel": "The power of ten nearest, on a logarithmic axis, to mean k(x, x), the mean squared length "
    "of the training examples’ Jacobians. σ² means something only relative to it.",
    "Sketch": "A random projection of the Jacobian to K numbers (4,096 by default) that keeps inner products nearly "
    "unchanged. How far they are off is the sketch error.",
    "Surrogate": "The network linearised at its trained weights: a Gaussian process whose kernel is the inner "
    "product of Jacobians. All information is about its variance.",
    "Target": "The class whose logit is attributed. By default the predicted one; another one asks “why not that?”.",
    "σ²": "Observation noise variance of the surrogate: how little a single training example settles. Small: one "
    "example can settle a question, and near-duplicates are redundant. Large: examples add up, and all criteria tend "
    "to the squared correlation.",
}
NAT = GLOSSARY["Nat"]
_TIMES = "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NOISE = 1e-9  # a share that is rounding
_MANY_TESTS = 200  # of which half a percent is at least one

LIMITS = (
    "**A surrogate, not retraining.** The numbers are about the network linearised at its trained weights. Retraining "
    "without the examples can end elsewhere.",
    "**Certainty, not correctness.** Labels never enter the variance. An example can carry many nats and be wrongly "
    "labelled.",
    "**Sketched.** Features are random projections; at K = 4,096 the relative error of the Gram matrix is 4% "
    "within a class and 10% over all classes (`make bench`).",
    "**Greedy.** Examples are picked one at a time. What they tell about one query is not submodular in general: an "
    "example that tells nothing by itself can tell much after another, so there is no guarantee that the list is the "
    "best of its length.",
)


@dataclass(frozen=True)
class Labels:
    """Names and explanations of the controls."""

    sigma2: str
    sigma2_help: str
    budget: str
    budget_help: str
    pool: str
    pool_help: str
    pools: dict[str, str]
    conditioning: str
    conditioning_help: str
    conditionings: dict[str, str]


EXPERT = Labels(
    sigma2="σ²",
    sigma2_help=GLOSSARY["σ²"],
    budget="M",
    budget_help=GLOSSARY["M"],
    pool="Pool",
    pool_help=GLOSSARY["Pool"] + " For all, every example’s Jacobian under the target’s logit is computed once (a few "
    "seconds) and kept.",
    pools={"same-class": "same class", "all": "all classes"},
    conditioning="Conditioned on",
    conditioning_help=GLOSSARY["Conditioning set"] + " The first look at a class under all training data takes about "
    "half a minute.",
    conditionings={"pool": "pool", "train": "all training data"},
)
PLAIN = Labels(
    sigma2="How noisy a single example is",
    sigma2_help="To the left, one example can settle a question and look-alikes add nothing. To the right, it takes "
    "many examples to settle anything, and look-alikes add up.",
    budget="How many examples",
    budget_help="The length of the list.",
    pool="Look among",
    pool_help="Examples with the same label as the answer, or all training examples.",
    pools={"same-class": "this label", "all": "all examples"},
    conditioning="What the model already knows",
    conditioning_help="Whether examples with other labels also count as knowledge about this answer.",
    conditionings={"pool": "this label", "train": "all examples"},
)


_DATA = {
    "fashion-mnist-quarter": "Fashion-MNIST (25%)",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "folder:cifar10": "CIFAR-10 (JPEG)",
    "austen": "Jane Austen’s novels",
}


def titles(methods: Iterable[Method]) -> str:
    """Return methods for a sentence: "A", "A and B", "A, B and C"."""
    *first, last = (method.title for method in methods)
    return f"{', '.join(first)} and {last}" if first else last


def informative() -> str:
    """Return the names of the methods that count nats."""
    return titles(method for method in METHODS.values() if method.information)


def everything(result: Attribution, of: Modality) -> str:
    """Return a name, in the plural, for the examples whose information is the total."""
    conditioned = METHODS[result.request.method].conditions and result.request.conditioning == "train"
    return f"all training {of.many}" if conditioned else f"the {result.pool_size:,} candidates"


def finding(
    result: Attribution, method: Method, target: str, *, of: Modality, plain: bool, predicted: bool = True
) -> str:
    """Return a sentence or two on what was found (Markdown).

    Args:
        result: the answer.
        method: that gave it.
        target: the title of the class that was asked about.
        of: what the examples are.
        plain: whether to use no technical terms.
        predicted: whether the target is the predicted class.
    """
    if plain:
        return _plain_finding(result, method, target, of=of, predicted=predicted)
    count = len(result.items)
    these = f"This {of.one}" if count == 1 else f"These {count} {of.many}"
    if result.nats is None:
        kind = "is ranked" if count == 1 else "are ranked"
        return f"{these} {kind} first by {method.title}, which ranks {of.many} but does not measure information."
    if result.total_nats is not None and result.total_nats < 1e-12:
        return "The candidates tell the model nothing about this answer: there is no information to share out."
    verb, amount = "contributes" if count == 1 else "contribute", nats(result.nats)
    if result.total_nats:
        named = f"“{escape.markdown(target)}”"
        about = f"this {named} prediction" if predicted else f"{named} here"
        whole = f"of what {everything(result, of)} reveal about {about}"
        said = f"{these} {verb} **{percent(result.nats / result.total_nats)}** ({amount}) {whole}."
    else:
        said = f"{these} {verb} **{amount}**."
    if method.information == "loss":
        return (
            f"{said} Without {'it' if count == 1 else 'them'}, the model’s uncertainty would be {wider(result.nats)}."
        )
    alone = "It alone makes" if count == 1 else "They alone make"
    return f"{said} {alone} the model’s uncertainty {narrower(result.nats)}."


def _plain_finding(result: Attribution, method: Method, target: str, *, of: Modality, predicted: bool) -> str:
    count, named = len(result.items), escape.markdown(target)
    these = "this one" if count == 1 else f"these {count}"
    labelled = "" if result.request.pool == "all" else f" labelled {named}"
    among = f"Of {result.pool_size:,} training {of.many}{labelled}"
    answer = "this answer" if predicted else f"the answer “{named}”"
    if result.nats is None:
        return f"{among}, {method.title} puts {these} first. It does not measure how much each one matters."
    if result.total_nats is not None and result.total_nats < 1e-12:
        return f"{among}, none tells the network anything about {answer}."
    portion_of = f": **{percent(result.nats / result.total_nats)}**" if result.total_nats else ""
    share = f"{portion_of} of what the network learnt about it" if portion_of else ""
    said = f"{among}, {these} matter{'s' if count == 1 else ''} most for {answer}{share}."
    if method.information == "loss":
        return f"{said} Without {'it' if count == 1 else 'them'}, the network’s doubt would be {wider(result.nats)}."
    alone = "It alone makes" if count == 1 else "They alone make"
    return f"{said} {alone} the network’s doubt {narrower(result.nats)}."


def verdict(query: QueryExample, classes: Sequence[str]) -> str:
    """Return a plain sentence on what the network says of an example, and whether its label agrees (Markdown)."""
    said = f"The network says **{escape.markdown(classes[query.predicted])}**"
    if query.label is None:
        return f"{said}."
    if query.label == query.predicted:
        return f"{said}, and so does the label."
    return f"{said}, but the label says **{escape.markdown(classes[query.label])}**: a mistake, or a wrong label."


def wider(nats: float) -> str:
    """Return by how much so many nats, once lost, widen an uncertainty: "4% larger", "3 times as large"."""
    factor = math.exp(min(nats, 50))
    return f"{percent(factor - 1)} larger" if factor < 2 else f"{factor:.3g} times as large"


def narrower(nats: float) -> str:
    """Return by how much so many nats, once known, narrow an uncertainty: "4% smaller"."""
    return f"{percent(-math.expm1(-nats))} smaller"


def special(picks: Sequence[float], scores: np.ndarray, method: Method, *, of: Modality, plain: bool = False) -> str:
    """Return a sentence on how the best of the picks (M,) compares with all candidates' scores (n,), one by one."""
    best, middle = max(picks), float(np.median(scores))
    if plain:
        ratio = best / middle if middle > 0 else math.inf
        if not math.isfinite(ratio):
            return f"A typical training {of.one} of them does not matter at all."
        if ratio < 2:
            return f"The strongest of them matters little more than a typical training {of.one}."
        return f"The strongest of them matters {ratio:,.0f} times as much as a typical training {of.one}."
    above = int((scores > best).sum())
    unit = nats if method.information else number
    if method.information == "loss":
        first = f"Removing the best pick alone loses {unit(best)}, removing the median candidate {unit(middle)}"
    else:
        verb = "tells" if method.information else "scores"
        first = f"The best pick {verb} {unit(best)} by itself, the median candidate {unit(middle)}"
    if above:
        others = "another one scores" if above == 1 else f"{above:,} others score"
        return f"{first}; {others} more: this method searches by an approximation."
    if len(scores) < 2:
        return f"{first}."
    return f"{first}, the second best of all {len(scores):,} candidates {unit(float(np.partition(scores, -2)[-2]))}."


def image_name(query: QueryExample) -> str:
    """Return an example's name in the names of files."""
    return "upload" if query.index is None else f"{query.origin}-{query.index}"


def file_name(query: QueryExample, result: Attribution, classes: Sequence[str]) -> str:
    """Return a file's name, without its ending, that says what was asked: example, target, method, sigma2 and M."""
    target = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in classes[result.target])[:30]
    request, method = result.request, METHODS[result.request.method]
    digits = np.format_float_positional(result.sigma2, precision=3, fractional=False, trim="-")
    sigma2 = f"-sigma2-{digits}" if method.uses_sigma2 else ""
    pool = "-all-classes" if request.pool == "all" else ""
    given = "-given-all" if method.conditions and request.conditioning == "train" else ""
    return f"natscope-{image_name(query)}-{target}-{request.method}{sigma2}{pool}{given}-M{len(result.items)}"


def searched(kind: str) -> str:
    """Return a sentence on which index found the examples."""
    if kind in EXACT:
        return f"Searched with {'a flat' if kind == 'flat' else 'an SQ8'} index (exact)."
    where, _, title = TITLES[kind].rpartition(" ")
    return f"Searched with an {title} index{where and f' on {where}'}: fast in large pools, but it may miss an example."


def regime_hint(kind: str, *, plain: bool) -> str:
    """Return a sentence on a sigma2 so large that it no longer matters, or so small that digits are lost."""
    if kind == "imprecise":
        return (
            "This value is so small that the arithmetic loses most of its digits: move it to the right for an order "
            "that means something."
        )
    if plain:
        return "This value is so large that moving it further to the right changes nothing in the order."
    return (
        "σ² is in the high-noise regime here: the order is already that of the squared covariance with the query (the "
        "paper’s Lemma 1), and a larger σ² changes nothing in it."
    )


def data_of(setting: Mapping[str, str]) -> str:
    """Return a result's data in words (Markdown); `setting` has it under the bundle's name."""
    name, comma, rest = setting["data"].partition(",")
    return escape.markdown(f"{_DATA.get(name, name.removeprefix('folder:'))}{comma}{rest}")


def setting_of(setting: Mapping[str, Any]) -> str:
    """Return a result's data, network and kernel in words (Markdown), and the length of its training, where known."""
    kind, _, widths = setting["network"].partition(" ")
    named = {"resnet9": "ResNet-9", "attention": "attention network", "mlp": f"MLP {widths}"}
    network = named.get(kind, setting["network"])
    epochs = f", {setting['recipe']['epochs']} epochs" if setting.get("recipe") else ""
    of_it = ""
    if kernel := setting.get("kernel"):
        scaled = kernel["ntk"] and "measurement" not in setting  # that of the margin is never scaled
        of_it = f"; K = {kernel['sketch']['dim']:,}, {'with' if scaled else 'without'} NTK scaling"
    return f"{data_of(setting)}; {escape.markdown(network)}{epochs}{of_it}"


def article(name: str, *, capital: bool = False) -> str:
    """Return a class's name after "a" or "an"."""
    word = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{word.capitalize() if capital else word} {name}"


def counted(number: int, noun: str) -> str:
    """Return a number of things: "1 picture", "1,500 pictures"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def unlike(of: Modality, tests: int) -> str:
    """Say that an example is out of distribution, of a bundle with so many test examples."""
    most = f"99.5% of test {of.many}" if tests >= _MANY_TESTS else f"nearly all of the {tests:,} test {of.many}"
    return (
        f"This {of.one} is out of distribution: it lies further from every training {of.one} than {most} do. Treat the "
        "prediction and its attribution with caution."
    )


def number_were(number: int) -> str:
    """Return the subject of a sentence on some of those that it has just counted: "none was", "1 was", "47 were"."""
    return f"{f'{number:,}' if number else 'none'} {'was' if number < 2 else 'were'}"


def planted_among(planted: int, count: int) -> str:
    """Return how many of the first of a list were planted: "47 of the first 50 were planted"."""
    return f"{f'{planted:,}' if planted else 'none'} of the first {count:,} {'was' if planted < 2 else 'were'} planted"


def portion(share: float) -> str:
    """Return a share that "of the …" follows, rounded only to what it is: "none", "less than 1%", "62%", "all"."""
    if share in (0, 1):
        return "all" if share else "none"
    if share <= 0.005:  # which would round to 0%
        return "less than 1%"
    return "over 99%" if share >= 0.995 else f"{share:.0%}"


def in_cases(share: float, *, only: bool = False) -> str:
    """Return how often something happens, at the end of a sentence: "in 62% of cases", "in every case"."""
    if share in (0, 1):
        return "in every case" if share else "in no case"
    return f"in {'only ' if only and share > 0.005 else ''}{portion(share)} of cases"


def nats(value: float) -> str:
    """Return an amount of information with its unit, three significant digits, or two of a small one."""
    if value != 0 and abs(value) < 1e-3:
        return f"{_in_powers(f'{value:.1e}')} nats"
    return f"{number(value)} nats"


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits: "0.0415", "9.7 × 10⁻⁶", "−1.23 × 10⁴"."""
    return _in_powers(f"{value:.{digits}g}")


def _in_powers(text: str) -> str:
    """Return a number such as "9.7e-06" as "9.7 × 10⁻⁶", which no line breaks; one without an exponent as it is."""
    digits, _, exponent = text.partition("e")
    return with_minus(f"{digits}{_TIMES}{_power(int(exponent))}" if exponent else digits)


def with_minus(text: str) -> str:
    """Return numbers with minus signs instead of hyphens."""
    return text.replace("-", "−")


def _power(exponent: int) -> str:
    return f"10{str(exponent).translate(_RAISED)}"


def sigma2_text(value: float) -> str:
    """Return σ² as a short number: "0.1", "10³", "5,623", "2.5 × 10⁻⁴"."""
    text = f"{value:.1e}"
    exponent = int(text.partition("e")[2])
    exact = math.isclose(value, 10.0**exponent, rel_tol=1e-6)
    if 1e-3 <= value < (999.5 if exact else 9999.5):
        return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}"
    return _power(exponent) if exact else _in_powers(text)


def ratio_text(sigma2: float, mean_kernel: float, *, margins: bool = False) -> str:
    """Return σ² as a multiple of mean k(x, x); "" where no example moves the network's answer.

    Args:
        sigma2: the noise variance.
        mean_kernel: mean k(x, x).
        margins: whether it is that of the margin's features, not of the logit's.
    """
    of = " of the margin" if margins else ""
    return f"{sigma2_text(sigma2 / mean_kernel)} × mean k(x, x){of}" if mean_kernel else ""


def percent(share: float) -> str:
    """Return a share as text: "62%", and below 10% with two significant digits."""
    if abs(share) < _NOISE:
        return "0%"
    if abs(share) < 0.0995:
        return with_minus(f"{100 * share:#.2g}%".replace("e-0", "e-"))
    return with_minus(f"{100 * min(share, 1):.0f}%")
