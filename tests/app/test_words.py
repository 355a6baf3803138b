import math

import pytest

from natscope.app import words
from natscope.app.escape import markdown
from natscope.app.links import SIGMA2_EXPONENTS
from natscope.app.words import EXPERT, PLAIN, finding, informative, nats, setting_of, sigma2_text, titles
from natscope.core.bundle.request import CONDITIONINGS, POOLS, Attribution, Item, Request
from natscope.core.methods import METHODS


def _result(*cumulative, method="info_loss", total=2.0, conditioning="pool"):
    items = tuple(
        Item(rank=place + 1, train_index=place, label=0, score=1.0, nats=value, sign=1, variance=1.0)
        for place, value in enumerate(cumulative)
    )
    request = Request(method=method, budget=len(items), conditioning=conditioning)
    return Attribution(request, 0, 1500, items, total, redundancy=0.1, seconds=0.0)


def _said(*cumulative, method="info_loss", plain=False, **settings):
    return finding(_result(*cumulative, method=method, **settings), METHODS[method], "Bag", plain=plain)


def test_several_images_carry_a_share_of_what_the_candidates_tell():
    assert _said(0.5, 0.75, 1.0) == (
        "These 3 images carry **1 nats**, 50 % of what the 1,500 candidates tell about “Bag” here. "
        "Without them, the model's uncertainty would be 2.72 times as wide."
    )


def test_one_image_is_spoken_of_in_the_singular():
    assert _said(math.log(2)) == (
        "This image carries **0.693 nats**, 35 % of what the 1,500 candidates tell about “Bag” here. "
        "Without it, the model's uncertainty would be 2 times as wide."
    )
    assert _said(math.log(2), method="info_gain").endswith("It alone makes the model's uncertainty 2 times as narrow.")


def test_gain_is_told_as_what_the_images_do_by_themselves():
    assert _said(0.5, 1.0, method="info_gain").endswith("They alone make the model's uncertainty 2.72 times as narrow.")


def test_plain_words_say_what_is_counted():
    assert "carry **1 nats** of information, 50 % of what" in _said(0.5, 1.0, plain=True)
    assert "of information" not in _said(0.5, 1.0, plain=False)


def test_methods_are_named_as_in_a_sentence():
    one, two, three = list(METHODS.values())[:3]
    assert titles([one]) == one.title
    assert titles([one, two]) == f"{one.title} and {two.title}"
    assert titles([one, two, three]) == f"{one.title}, {two.title} and {three.title}"


def test_results_are_named_in_words():
    setting = {"data": "fashion-mnist-quarter, 15,000 training images", "network": "mlp 784-512-256-10"}
    assert setting_of(setting) == "Fashion-MNIST (25 %), 15,000 training images; MLP 784-512-256-10"
    setting = {"data": "folder:cifar10, 50,000 training images", "network": "resnet9 3-10"}
    assert setting_of(setting) == "CIFAR-10 (JPEG), 50,000 training images; ResNet-9"
    setting = {"data": "folder:pets, 10 training images", "network": "my_model:make"}
    assert setting_of(setting) == f"pets, 10 training images; {markdown('my_model:make')}"
    assert setting_of(setting | {"recipe": {"epochs": 7}}).endswith(f"; {markdown('my_model:make')}, 7 epochs")


def test_the_informative_methods_are_those_that_count_nats():
    assert informative() == "InfoLoss, InfoGain and InfoGain (approx)"


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.information])
@pytest.mark.parametrize("plain", [False, True])
def test_a_method_without_nats_claims_none(method, plain):
    title = METHODS[method].title
    tail = f"ranked first by {title}, which has no unit of information: it orders images and does not weigh them."
    assert _said(None, None, method=method, total=None, plain=plain) == f"These 2 images are {tail}"
    assert _said(None, method=method, total=None, plain=plain) == f"This image is {tail}"


@pytest.mark.parametrize("plain", [False, True])
def test_where_nothing_is_told_nothing_is_shared_out(plain):
    said = _said(0.0, 0.0, total=0.0, plain=plain)
    assert said == "The candidates tell the model nothing about this answer: there is no information to share out."


def test_an_unknown_total_leaves_the_share_out():
    assert _said(0.5, 1.0, total=None) == (
        "These 2 images carry **1 nats**. Without them, the model's uncertainty would be 2.72 times as wide."
    )


def test_the_whole_is_all_training_images_only_for_methods_that_condition_on_them():
    assert "of what all training images tell" in _said(0.5, conditioning="train")
    assert "of what the 1,500 candidates tell" in _said(0.5, method="info_gain", conditioning="train")


@pytest.mark.parametrize(
    ("total", "share"), [(2.0, "50 %"), (1.0, "100 %"), (0.999999, "100 %"), (3000.0, "0.033 %"), (100.0, "1 %")]
)
def test_shares_are_short_and_never_above_all(total, share):
    assert f", {share} of what" in _said(1.0, total=total)


def test_a_huge_amount_does_not_overflow():
    assert "times as wide" in _said(1e5, total=2e5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 nats"),
        (1.0, "1 nats"),
        (0.123456, "0.123 nats"),
        (12.3456, "12.3 nats"),
        (0.001, "0.001 nats"),
        (0.00012345, "1.2e-04 nats"),
        (-0.5, "-0.5 nats"),
        (-0.00012345, "-1.2e-04 nats"),
    ],
)
def test_nats_have_three_digits_and_their_unit(value, text):
    assert nats(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-6, "1e-6"),
        (10**-5.75, "1.8e-6"),
        (1e-3, "0.001"),
        (10**-0.25, "0.56"),
        (1.0, "1"),
        (10**1.75, "56"),
        (99.9, "100"),
        (1e3, "1000"),
        (10**3.75, "5623"),
        (1e4, "1e4"),
        (1e5, "1e5"),
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
    assert words.searched("flat") == "Searched with a flat index (exact)."
    assert words.searched("ivfpq").startswith("Searched with an IVF-PQ index")
