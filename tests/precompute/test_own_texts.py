import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

import natscope
from natscope.core.errors import BuildError, DataError, QueryError
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.opening import open_attributor
from tests.conftest import one_sentence
from tests.tiny import build_tiny_texts

_TEXTS = [f"a {word} film, number {n}" for n in range(3) for word in ("fine", "dull")]
_LABELS = ["good", "bad"] * 3
_ASKED = "The film is lovely."


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return natscope.open(build_tiny_texts(tmp_path_factory.mktemp("texts") / "reviews"))


@pytest.fixture(scope="module")
def tokenizer(built):
    return built.bundle.path / "tokenizer.json"


def _network(words=100):
    torch.manual_seed(0)
    return nn.Sequential(nn.EmbeddingBag(words, 8, padding_idx=0), nn.Tanh(), nn.Linear(8, 2))


def _asked(built, x, inputs, **settings):
    found = open_attributor(built.bundle.path).features
    labels = built.attributor.train_labels
    usual = {"budget": 5, "classes": built.classes, "sketch": found.sketch.spec, "ntk": found.ntk}
    return natscope.attribute(found.model, (inputs, labels), x, **usual | settings)


@pytest.mark.parametrize("form", ["path", "tokenizer", "tokens", "padded tokens", "items"])
def test_texts_need_no_bundle_and_the_picks_are_the_same(built, tokenizer, form):
    train = built.bundle.examples("train")
    texts, kept = [train.text(row) for row in range(len(train))], built.explain(_ASKED, budget=5)
    ids = kept.query.example.token_numbers(0)
    if form == "path":
        found = _asked(built, _ASKED, texts, tokenizer=tokenizer, longest=train.longest)
    elif form == "tokenizer":
        made = Tokenizer.from_file(str(tokenizer))
        found = _asked(built, (_ASKED, "good"), np.array(texts), tokenizer=made, longest=train.longest)
        assert found.query.label == built.classes.index("good")
    elif form == "tokens":
        found = _asked(built, ids.tolist(), [train.token_numbers(row).tolist() for row in range(len(train))])
        assert found.query.example.text(0) == " ".join(map(str, ids))
    elif form == "padded tokens":
        found = _asked(built, (torch.as_tensor(ids)[None].long(), 1), train.inputs[:])
        assert found.query.label == 1
    else:
        found = _asked(built, _ASKED, texts, tokenizer=str(tokenizer), longest=train.longest, pool="all")
        kept = built.explain(_ASKED, budget=5, pool="all")
    assert [item.train_index for item in found.items] == [item.train_index for item in kept.items]
    assert found.nats == pytest.approx(kept.nats, rel=1e-2)


def test_items_and_pairs_of_texts_are_taken_and_shown(tokenizer):
    pairs = [((text, "a film"), label) for text, label in zip(_TEXTS, _LABELS, strict=True)]
    answer = natscope.attribute(_network(), pairs, ("a fine film", "a film"), budget=2, tokenizer=tokenizer)
    assert answer.classes == ("bad", "good")
    assert answer.items[0].source.startswith("row ")
    assert "a film" in answer._repr_html_()
    again = natscope.attribute(_network(), pairs, "train:3", budget=2, tokenizer=tokenizer)
    assert again.query.example.parts(0) == ("a dull film, number 1", "a film")


@pytest.mark.parametrize(
    ("given", "kind", "match"),
    [
        ({"tokenizer": "none.json"}, DataError, r"none\.json"),
        ({"tokenizer": 5}, DataError, "tokenizer= takes the path of"),
        ({"tokenizer": None}, DataError, "holds texts, and texts need tokenizer="),
        ({"mean": [0.5], "std": [0.5]}, DataError, "for pictures; leave them out"),
        ({"longest": 3}, DataError, "longest= takes"),
        ({"longest": "9"}, DataError, "longest= takes"),
        ({"x": 5}, QueryError, "no test texts here"),
        ({"x": [3, 4, 5]}, QueryError, "A query here is a text, not a list"),
        ({"x": " "}, QueryError, "text is empty"),
        ({"x": ("a", "b")}, QueryError, "has one text, not 2"),
        ({"train_set": (_TEXTS, _LABELS[1:])}, DataError, "has 5 labels for 6 inputs"),
        ({"train_set": (["", *_TEXTS[1:]], _LABELS)}, DataError, "Item 0 of the training set is an empty text"),
        ({"train_set": ([("a", "b"), *_TEXTS[1:]], _LABELS)}, DataError, "Item 1 .* has 1 texts and the first one 2"),
        ({"train_set": ([("a", "b", "c"), *_TEXTS[1:]], _LABELS)}, DataError, "takes up to 2"),
        ({"train_set": ([None, *_TEXTS[1:]], _LABELS)}, DataError, "Item 0 of the training set is a NoneType, not a"),
        ({"train_set": (["a" * 100_001, *_TEXTS[1:]], _LABELS)}, DataError, "more than 100,000 characters"),
        ({"train_set": ([[3, 4], *_TEXTS[1:]], _LABELS)}, DataError, "leave out tokenizer= for numbers of tokens"),
        ({"train_set": ([], [])}, DataError, "set is empty"),
        ({"train_set": (_TEXTS, ["good"] * 6)}, DataError, "at least two"),
        ({"train_set": (_TEXTS, [0.5] * 6)}, DataError, "labels are whole numbers or words"),
        ({"train_set": 5}, DataError, "give a pair"),
        ({"train_set": "texts.tsv"}, DataError, "give a pair"),
        ({"model": nn.Linear(3, 2)}, BuildError, "Linear"),
    ],
)
def test_texts_that_cannot_be_used_are_refused_in_a_sentence(tokenizer, given, kind, match):
    usual = {"model": _network(), "train_set": (_TEXTS, _LABELS), "x": "a film", "tokenizer": tokenizer, "budget": 2}
    with pytest.raises(kind, match=match) as caught:
        natscope.attribute(**usual | {"sketch": SketchSpec(dim=16)} | given)
    one_sentence(str(caught.value))


_TOKENS = [[2, 3], [4, 3, 5], [2, 5], [4, 5], [2, 3, 3], [4]]


@pytest.mark.parametrize(
    ("given", "kind", "match"),
    [
        ({"x": [2, 0, 3]}, QueryError, "The query has tokens outside 1 to"),
        ({"x": [0, 0]}, QueryError, "The query has no tokens"),
        ({"x": [2.5]}, QueryError, "The query is 1 values, not whole numbers of tokens"),
        ({"x": None}, QueryError, "The query is a NoneType"),
        ({"x": [2, 50]}, QueryError, "The network fails on the query: .*50"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, QueryError, "not whole numbers of tokens"),
        ({"x": [3] * 8193}, QueryError, "more than 8,192 tokens"),
        ({"train_set": ([*_TOKENS[:5], [-1]], _LABELS)}, DataError, "Item 5 of the training set has tokens outside 1"),
        ({"train_set": ([*_TOKENS[:5], "a"], _LABELS)}, DataError, "Item 5 of the training set is a str, not whole"),
        ({"train_set": ([*_TOKENS[:5], []], _LABELS)}, DataError, "Item 5 of the training set is 0 values"),
        ({"train_set": ([*_TOKENS[:5], [20]], _LABELS)}, BuildError, "fails"),
    ],
)
def test_tokens_that_cannot_be_used_are_refused_in_a_sentence(given, kind, match):
    usual = {"model": _network(10), "train_set": (_TOKENS, _LABELS), "x": [2, 3], "budget": 2}
    with pytest.raises(kind, match=match) as caught:
        natscope.attribute(**usual | {"sketch": SketchSpec(dim=16)} | given)
    one_sentence(str(caught.value))


@pytest.mark.parametrize("form", [list, np.array])
@pytest.mark.parametrize("paired", [False, True])
def test_a_build_from_texts_says_how_they_are_built(tmp_path, form, paired):
    texts, labels = ["a fine film", "a bad film"] * 5, ["good", "bad"] * 5
    given = list(zip(texts, labels, strict=True)) if paired else (form(texts), form(labels))
    with pytest.raises(DataError, match=r"training set holds texts, .* --dataset text:PATH"):
        natscope.build(torch.nn.Linear(4, 2), given, given, out=tmp_path / "bundle")
