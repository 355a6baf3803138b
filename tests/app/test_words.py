import math
import re
from dataclasses import replace

import numpy as np
import pytest

from natscope.app import words
from natscope.app.escape import markdown
from natscope.app.links import SIGMA2_EXPONENTS
from natscope.app.words import (
    EXPERT,
    PLAIN,
    file_name,
    finding,
    informative,
    nats,
    ratio_text,
    setting_of,
    sigma2_text,
    special,
    titles,
    verdict,
)
from natscope.core.bundle.request import CONDITIONINGS, POOLS, Attribution, Item, QueryExample, Request
from natscope.core.images import IMAGE
from natscope.core.methods import METHODS


def _result(*cumulative, method="info_loss", total=2.0, conditioning="pool"):
    items = tuple(
        Item(rank=place + 1, train_index=place, label=0, score=1.0, nats=value, sign=1, variance=1.0)
        for place, value in enumerate(cumulative)
    )
    request = Request(method=method, budget=len(items), conditioning=conditioning)
    return Attribution(request, 1.0, 0, 1500, items, total, redundancy=0.1, seconds=0.0)


def _said(*cumulative, method="info_loss", plain=False, **settings):
    return finding(_result(*cumulative, method=method, **settings), METHODS[method], "Bag", of=IMAGE, plain=plain)


@pytest.mark.parametrize(
    ("cumulative", "method", "told"),
    [
        ((0.5, 0.75, 1.0), "info_loss", ["These 3", "**50%** (1 nats)", "1,500", "“Bag”", "2.72", "large"]),
        ((math.log(2),), "info_loss", ["This image", "**35%** (0.693 nats)", "1,500", "“Bag”", " 2 ", "large"]),
        ((0.5, 1.0), "info_gain", ["These 2", "**50%** (1 nats)", "alone", "63%", "smaller"]),
        ((math.log(2),), "info_gain", ["This image", "**35%** (0.693 nats)", "alone", "50%", "smaller"]),
    ],
)
def test_images_carry_a_share_of_what_the_candidates_tell(cumulative, method, told):
    said = _said(*cumulative, method=method)
    assert all(part in said for part in told), said


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("total", [None, 0.0, 2.0])
@pytest.mark.parametrize("cumulative", [(0.5,), (0.5, 1.0)])
def test_plain_words_say_no_terms(method, total, cumulative):
    counts = METHODS[method].information
    said = _said(*(cumulative if counts else [None] * len(cumulative)), method=method, total=total, plain=True)
    assert said.startswith("Of 1,500 training images labelled Bag, ")
    assert not re.search(r"nat|candidate|variance|uncertain|information", said.replace(METHODS[method].title, ""))
    assert ("%**" in said) == bool(counts and total)


def test_plain_words_say_whether_the_label_agrees():
    query = QueryExample(np.zeros((2, 2)), np.array([0.9, 0.1]), np.zeros(1), "test", 0, label=1, ood=0.0)
    assert verdict(query, ["Bag", "Coat"]).endswith("but the label says **Coat**: a mistake, or a wrong label.")
    assert verdict(replace(query, label=0), ["Bag", "Coat"]) == "The network says **Bag**, and so does the label."
    assert verdict(replace(query, label=None), ["Bag", "Coat"]) == "The network says **Bag**."


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("usual", "said"),
    [(1.0, "matters 3 times as much as"), (2.0, "matters little more than"), (0.0, "does not matter"), (-1.0, "not")],
)
def test_plain_words_compare_the_strongest_with_a_typical_image(method, usual, said):
    told = special([3.0, 2.0], np.array([3.0, usual, usual, usual, 0.5]), METHODS[method], of=IMAGE, plain=True)
    assert said in told
    assert not re.search(r"median|nats|candidate|runner", told)


def test_methods_are_named_as_in_a_sentence():
    one, two, three = list(METHODS.values())[:3]
    assert titles([one]) == one.title
    assert titles([one, two]) == f"{one.title} and {two.title}"
    assert titles([one, two, three]) == f"{one.title}, {two.title} and {three.title}"


def test_results_are_named_in_words():
    setting = {"data": "fashion-mnist-quarter, 15,000 training images", "network": "mlp 784-512-256-10"}
    assert setting_of(setting) == "Fashion-MNIST (25%), 15,000 training images; MLP 784-512-256-10"
    setting = {"data": "folder:cifar10, 50,000 training images", "network": "resnet9 3-10"}
    assert setting_of(setting) == "CIFAR-10 (JPEG), 50,000 training images; ResNet-9"
    setting["kernel"] = {"ntk": True, "sketch": {"dim": 2048}}
    assert setting_of(setting).endswith("; ResNet-9; K = 2,048, with NTK scaling")
    assert setting_of(setting | {"measurement": "margin"}).endswith("; K = 2,048, without NTK scaling")
    setting = {"data": "folder:pets, 10 training images", "network": "my_model:make"}
    assert setting_of(setting) == f"pets, 10 training images; {markdown('my_model:make')}"
    assert setting_of(setting | {"recipe": {"epochs": 7}}).endswith(f"; {markdown('my_model:make')}, 7 epochs")


def test_the_informative_methods_are_those_that_count_nats():
    assert informative() == "InfoLoss, InfoGain and InfoGain (approx)"


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.information])
def test_a_method_without_nats_claims_none(method):
    title = METHODS[method].title
    for cumulative, start in (((None, None), "These 2 images"), ((None,), "This image")):
        said = _said(*cumulative, method=method, total=None)
        assert said.startswith(start)
        assert title in said
        assert "nats" not in said


@pytest.mark.parametrize("plain", [False, True])
def test_where_nothing_is_told_nothing_is_shared_out(plain):
    said = _said(0.0, 0.0, total=0.0, plain=plain)
    assert said
    assert not any(part in said for part in ("nats", "%", "larger"))


def test_an_unknown_total_leaves_the_share_out():
    said = _said(0.5, 1.0, total=None)
    assert "**1 nats**. " in said
    assert "%" not in said


def test_the_whole_is_all_training_images_only_for_methods_that_condition_on_them():
    assert "all training images" in _said(0.5, conditioning="train")
    assert "the 1,500 candidates" in _said(0.5, method="info_gain", conditioning="train")


@pytest.mark.parametrize(
    ("total", "share"), [(2.0, "50%"), (1.0, "100%"), (0.999999, "100%"), (3000.0, "0.033%"), (100.0, "1.0%")]
)
def test_shares_are_short_and_never_above_all(total, share):
    assert f"**{share}** (1 nats) of" in _said(1.0, total=total)


def test_a_huge_amount_does_not_overflow():
    assert " large" in _said(1e5, total=2e5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 nats"),
        (1.0, "1 nats"),
        (0.123456, "0.123 nats"),
        (12.3456, "12.3 nats"),
        (0.001, "0.001 nats"),
        (0.00012345, "1.2\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁻⁴ nats"),
        (-0.5, "−0.5 nats"),
        (-0.00012345, "−1.2\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁻⁴ nats"),
    ],
)
def test_nats_have_three_digits_and_their_unit(value, text):
    assert nats(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-6, "10⁻⁶"),
        (10**-5.75, "1.8\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁻⁶"),
        (1e-3, "0.001"),
        (10**-0.25, "0.56"),
        (1.0, "1"),
        (10**1.75, "56"),
        (99.9, "100"),
        (1e3, "10³"),
        (10**3.75, "5,623"),
        (1e4, "10⁴"),
        (10**4.25, "1.8\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁴"),
        (1e5, "10⁵"),
    ],
)
def test_sigma2_is_a_short_number(value, text):
    assert sigma2_text(value) == text


def test_no_two_steps_of_sigma2_read_the_same():
    assert len({sigma2_text(10**step) for step in SIGMA2_EXPONENTS}) == len(SIGMA2_EXPONENTS)


@pytest.mark.parametrize("labels", [EXPERT, PLAIN])
def test_every_choice_has_words(labels):
    assert tuple(labels.pools) == POOLS
    assert tuple(labels.conditionings) == CONDITIONINGS
    assert all(vars(labels).values())


def test_plain_words_have_no_symbols():
    reported = " ".join(
        text if isinstance(text, str) else " ".join(text.values()) for name, text in vars(words.PLAIN).items()
    )
    assert not any(term in reported for term in ("σ", "Jacobian", "logit", "surrogate", "correlation"))


def test_the_index_in_use_is_named():
    assert "a flat index (exact)" in words.searched("flat")
    assert "an IVF-PQ index:" in words.searched("ivfpq")
    assert "an HNSW index on Milvus:" in words.searched("milvus-hnsw")


@pytest.mark.parametrize(
    ("method", "picks", "told"),
    [
        ("info_loss", [3.0, 2.0], "Removing the best pick alone loses 3 nats, removing the median candidate 1 nats"),
        ("info_loss", [3.0], "the second best of all 5 candidates 2 nats."),
        ("graddot", [3.0], "scores 3 by itself, the median candidate 1, the second best of all 5 candidates 2."),
        ("info_gain", [2.0], "another one scores more"),
    ],
)
def test_how_the_picks_compare_with_other_candidates_is_said(method, picks, told):
    assert told in special(picks, np.array([3.0, 1.0, 2.0, 1.0, 0.5]), METHODS[method], of=IMAGE)


def test_the_scale_of_sigma2_says_whose_it_is():
    assert ratio_text(10.0, 5.0) == "2 × mean k(x, x)"
    assert ratio_text(10.0, 5.0, margins=True) == "2 × mean k(x, x) of the margin"


def test_a_files_name_says_what_was_asked():
    query = QueryExample(np.zeros((4, 4), np.uint8), np.array([0.9, 0.1]), np.zeros(3), "test", 7, 0, ood=0.5)
    item = Item(rank=1, train_index=3, label=0, score=0.5, nats=None, sign=1, variance=1.0)
    answer = Attribution(Request("info_loss"), 10.0, 1, 9, (item,), None, redundancy=0.0, seconds=0.1)
    named = file_name(query, answer, ("coat", "T-shirt/top ../"))
    assert named == "natscope-test-7-T-shirt-top-----info_loss-sigma2-10-M1"
    assert "sigma2" not in file_name(query, replace(answer, request=Request("repsim")), ("coat", "bag"))
