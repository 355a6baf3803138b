import numpy as np
import pytest
import torch

from natscope.core.features import FeatureMap
from natscope.core.sketches import SketchSpec
from natscope.core.words import Link, link_of, word_features, words_of
from tests.attention import READERS, reader


def _said(text, spans):
    words = words_of(text, np.array(spans))
    return [text[slice(*span)] for span in words.spans], words.numbers.tolist()


def test_tokens_belong_to_the_word_that_their_last_character_is_in():
    said, numbers = _said(
        "Mrs. Bennet's\x1eson-in-law", [(0, 0), (0, 3), (3, 4), (4, 11), (11, 13), (14, 17), (17, 24)]
    )
    assert said == ["Mrs", ".", "Bennet's", "son-in-law"]
    assert numbers == [4, 0, 1, 2, 2, 3, 3]  # the first was added by the tokenizer: of no word


def test_a_token_of_blanks_belongs_to_no_word():
    assert _said("a  b", [(0, 1), (1, 3), (3, 4)])[1] == [0, 2, 1]
    assert _said("a ", [(0, 1), (1, 2)])[1] == [0, 1]
    assert _said(" ", [(0, 1)]) == ([], [0])


@pytest.mark.parametrize("name", READERS)
def test_the_parts_of_a_link_add_up_to_the_kernel(name):
    features = FeatureMap(reader(name), SketchSpec(dim=64), ntk=False)
    ids, others = torch.tensor([[3, 7, 2, 9]]), torch.tensor([[5, 7, 11]])
    words = words_of("ab cd", np.array([(0, 0), (0, 1), (1, 2), (3, 5)]))
    query_words = words_of("x y z", np.array([(0, 1), (2, 3), (4, 5)]))
    own, query = word_features(features, ids, words, 1), word_features(features, others, query_words, 1)
    link = link_of(own, words, query, query_words)
    assert link.parts.shape == (3, 4)
    kernel = float(features.features(ids, torch.tensor([1]))[0] @ features.features(others, torch.tensor([1]))[0])
    assert link.total == pytest.approx(kernel, rel=1e-4)
    assert link.shares().sum() == pytest.approx(1)
    assert link.query_shares().sum() == pytest.approx(1)
    (one, other, share), *_ = link.strongest(8)
    assert abs(share) == pytest.approx(np.abs(link.parts[:-1, :-1]).max() / abs(link.total))
    assert share == pytest.approx(link.parts[one, other] / link.total)


def test_a_link_of_nothing_has_no_shares_and_no_pairs():
    link = Link(np.zeros((3, 2), np.float32), np.zeros((2, 2), np.int64), np.zeros((1, 2), np.int64))
    assert (link.shares() == 0).all()
    assert link.strongest(8) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a well-known day.", ["It's", "a", "well-known", "day", "."]),
        ("हिन्दी ไทยกรุงเทพ", ["हिन्दी", "ไทยกรุงเทพ"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("我喜欢 ok", ["我", "喜", "欢", "ok"]),
    ],
)
def test_letters_keep_their_marks_and_ideographs_stand_alone(text, words):
    found = words_of(text, np.array([(0, len(text))]))
    assert [text[begin:end] for begin, end in found.spans] == words


def test_what_was_cut_off_has_no_words():
    assert len(words_of("one two three", np.array([(0, 3), (4, 7)])).spans) == 2
