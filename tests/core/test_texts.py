import dataclasses
import json

import msgspec
import numpy as np
import pytest
import torch

from natscope.core import tokens
from natscope.core.errors import DataError, QueryError
from natscope.core.examples import MODALITIES, batches
from natscope.core.text import beginning
from natscope.core.texts import TEXT, Texts, texts_of
from natscope.core.tokens import SEPARATOR, cleaned
from natscope.precompute.data.tokenizing import trained

_TEXTS = [
    "Emma Woodhouse, handsome, clever, and rich.",
    "Mr. Darcy was clever; Mr. Darcy was tall.",
    "An été in Bath.",
    "Emma was in Bath, and Mr. Darcy was in Bath. Emma Woodhouse was handsome and clever.",
]


def _made(texts=_TEXTS, columns=("",), longest=12, **others):
    return texts_of(texts, trained(texts, vocabulary=50), columns=columns, longest=longest, **others)


@pytest.fixture(scope="module")
def some():
    return _made()


@pytest.fixture(scope="module")
def pairs():
    return _made(
        [SEPARATOR.join(pair) for pair in (("Emma was in Bath.", "Emma was."), ("In Bath", "Emma"))], ("a", "b")
    )


def _stored(some, /, **changed):
    """Read texts back as from a bundle, with something changed."""
    about = some.about() | changed.pop("about", {})
    files = some.files() | changed.pop("files", {})
    arrays = some.arrays() | changed
    msgspec.convert(about, TEXT.about, strict=True)
    return TEXT.read(arrays.__getitem__, files.__getitem__, about)


def test_a_text_comes_back_as_it_was_and_each_token_names_its_place(some):
    assert MODALITIES["text"] is some.modality is TEXT
    assert len(some) == 4
    assert [some.text(row) for row in range(4)] == _TEXTS
    text, spans = some.text(1), some.token_spans(1)
    assert [text[a:b] for a, b in spans] == [
        "Mr",
        ".",
        "Darcy",
        "was",
        "clever",
        ";",
        "Mr",
        ".",
        "Darcy",
        "was",
        "tall",
        ".",
    ]
    assert [some.text(2)[a:b] for a, b in some.token_spans(2)] == ["An", "été", "in", "Bath", "."]
    assert len(some.token_spans(3)) == 12 == some.inputs.lengths.max()  # cut, the text is not
    vocabulary = f"vocabulary of {some.vocabulary} tokens"
    assert some.described() == f"median length 11 tokens (cut to 12 at most), 13% of all unknown, {vocabulary}"
    assert some.scaling() == ""
    assert some.present().tolist() == [True] * 4
    assert some.form == (some.vocabulary, 12) == TEXT.form(some.about(), {})


def test_places_of_two_parts_count_in_both_together(pairs):
    text, spans = pairs.text(0), pairs.token_spans(0)
    assert pairs.parts(0) == ("Emma was in Bath.", "Emma was.")
    assert [text[a:b] for a, b in spans] == ["Emma", "was", "in", "Bath", ".", "", "Emma", "was", "."]
    assert spans[5].tolist() == [0, 0]
    ids = pairs.inputs[:][0]
    assert ids[0] == ids[6]
    assert ids[5] == 2


def test_inputs_are_padded_to_the_longest_of_those_asked_for(some):
    inputs = some.inputs
    assert inputs.shape == (4, 12)
    assert inputs.lengths.tolist() == [len(some.token_spans(row)) for row in range(4)]
    both = inputs[np.array([2, 0])]
    assert both.dtype == torch.int64
    assert both.shape == (2, 10)
    assert both[0, 5:].tolist() == [0] * 5
    assert torch.equal(both[1:], inputs[:1])
    assert torch.equal(inputs[torch.tensor([2, 0])], both)
    assert inputs[:0].shape == (0, 1)
    assert [rows.tolist() for rows in batches(inputs, 2)] == [[1, 3], [0, 2]]


def test_choosing_reads_nothing_and_composes(some):
    class Unread:
        shape = some.tokens.shape

        def __getitem__(self, rows):
            raise AssertionError

    lazy = Texts(
        **{name: getattr(some, name) for name in ("token_offsets", "text_offsets", "tokenizer", "columns")},
        tokens=Unread(),
        spans=Unread(),
        texts=Unread(),
        vocabulary=some.vocabulary,
        longest=some.longest,
    )
    assert len(lazy[1:][np.array([2, 0])]) == 2
    assert lazy[1:].nbytes < lazy.nbytes
    chosen = some[1:][np.array([2, 0])]
    assert [chosen.text(row) for row in range(2)] == [_TEXTS[3], _TEXTS[1]]
    assert chosen[np.array([False, True])].text(0) == _TEXTS[1]
    assert torch.equal(chosen.inputs[:], some.inputs[np.array([3, 1])])
    again = _stored(chosen)
    assert again.rows is None
    assert [again.text(row) for row in range(2)] == [_TEXTS[3], _TEXTS[1]]
    assert np.array_equal(again.token_spans(1), some.token_spans(1))
    assert chosen.nbytes == sum(np.asarray(values).nbytes for values in chosen.arrays().values())
    assert some.nbytes == sum(values.nbytes for values in some.arrays().values())
    assert len(_stored(some[:0])) == 0


def test_shapes_of_what_is_stored_are_known(some):
    for name, values in some.arrays().items():
        assert TEXT.fits(name, values.shape, 4, {})
        assert not TEXT.fits(name, (*values.shape, 3), 4, {})
        assert values.dtype.name in TEXT.arrays[name]
    assert not TEXT.fits("token_offsets", (4,), 4, {})


def _with(values, place, value):
    changed = np.array(values)
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: {"tokens": _with(t.tokens, 3, t.vocabulary)}, "tokens of no vocabulary"),
        (lambda t: {"tokens": _with(t.tokens, 3, 0)}, "tokens of no vocabulary"),
        (lambda t: {"tokens": _with(t.tokens, 3, -1)}, "tokens of no vocabulary"),
        (lambda t: {"tokens": t.tokens[:-1]}, "offsets that do not fit"),
        (lambda t: {"token_offsets": _with(t.token_offsets, 0, 1)}, "offsets that do not fit"),
        (lambda t: {"token_offsets": _with(t.token_offsets, 1, 40)}, "offsets that do not fit"),
        (lambda t: {"text_offsets": _with(t.text_offsets, 2, -1)}, "offsets that do not fit"),
        (lambda t: {"text_offsets": _with(t.text_offsets, 3, t.text_offsets[2] + 4)}, "not UTF-8"),
        (lambda t: {"spans": t.spans[:-1]}, "without a place"),
        (lambda t: {"spans": _with(t.spans, 2, (5, 4))}, "tokens outside their text"),
        (lambda t: {"spans": _with(t.spans, 2, (-1, 4))}, "tokens outside their text"),
        (lambda t: {"spans": _with(t.spans, 2, (0, 44))}, "tokens outside their text"),
        (lambda t: {"texts": _with(t.texts, 0, 0xFF)}, "not UTF-8"),
        (lambda t: {"texts": _with(t.texts, 0, 0x1E)}, "other columns"),
        (lambda t: {"texts": _with(t.texts, 0, 7)}, "cannot be shown"),
        (lambda t: {"about": {"columns": ["a", "b"]}}, "other columns"),
        (lambda t: {"about": {"longest": 11}}, "too many tokens"),
        (lambda t: {"token_offsets": _with(t.token_offsets, 1, 0)}, "texts of no tokens"),
        (lambda t: {"about": {"vocabulary": t.vocabulary + 1}}, "another vocabulary"),
        (lambda t: {"files": {"tokenizer": b"{}"}}, "does not have the form"),
        (lambda t: {"files": {"tokenizer": b"[" * 10_000}}, "does not have the form"),
        (lambda t: {"files": {"tokenizer": t.tokenizer[:-1]}}, "does not have the form"),
        (lambda t: {"files": {"tokenizer": t.tokenizer + b" " * 21_000_000}}, "tokenizer that is larger than 20 MB"),
        (lambda t: {"texts": np.frombuffer(b"a" * 300_000, np.uint8), "text_offsets": np.array([0, 1, 2, 3, 300_000])},
         "too long"),
    ],
)  # fmt: skip
def test_what_a_stranger_stored_is_checked(some, change, fault):
    with pytest.raises(ValueError, match=fault):
        _stored(some, **change(some))


def _permuted(tokenizer):
    """Exchange the numbers of two words that are in the first text."""
    content = json.loads(tokenizer)
    words = content["model"]["vocab"]
    words["emma"], words["clever"] = words["clever"], words["emma"]
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda t: {}, []),
        (lambda t: {"files": {"tokenizer": _permuted(t.tokenizer)}},
         ["holds 3 texts that its tokenizer does not cut into these tokens; the first is number 0"]),
        (lambda t: {"spans": np.zeros_like(t.spans)},
         ["holds 4 texts that its tokenizer does not cut at these places; the first is number 0"]),
        (lambda t: {"tokens": _with(t.tokens, t.token_offsets[2], 3), "spans": _with(t.spans, 0, (0, 3))},
         ["holds a text that its tokenizer does not cut into these tokens; number 2",
          "holds a text that its tokenizer does not cut at these places; number 0"]),
    ],
)  # fmt: skip
def test_stored_tokens_are_those_that_the_tokenizer_makes_of_the_texts(some, change, faults):
    assert list(TEXT.misfits(_stored(some, **change(some)))) == faults


def test_a_stored_text_that_its_tokenizer_cannot_cut_is_named(some):
    stored = [(" ", some.token_numbers(0), some.token_spans(0))]
    assert list(tokens.misfits(stored, some.tokenizer, 12)) == ["holds a text, number 0, which has no words"]


@pytest.mark.parametrize(
    "about",
    [{"columns": []}, {"columns": ["a"] * 3}, {"vocabulary": 1}, {"longest": 0}, {"more": 1}, {"longest": 2**20}],
)
def test_what_a_manifest_says_is_bounded(some, about):
    with pytest.raises(msgspec.ValidationError):
        _stored(some, about=about)


def test_a_users_text_is_cut_like_the_stored_ones(some, pairs):
    given = some.given("  Emma\r\nWOODHOUSE,\x1e [PAD] \u202ezebra! ")
    assert given.text(0) == "Emma\nWOODHOUSE, [PAD] zebra!"
    assert [given.text(0)[a:b] for a, b in given.token_spans(0)] == [
        "Emma",
        "WOODHOUSE",
        ",",
        "[",
        "PAD",
        "]",
        "zebra",
        "!",
    ]
    assert given.inputs[:][0, :3].tolist() == some.inputs[:][0, :3].tolist()
    assert (given.inputs[:][0, 3:] == 1).all()  # no word of these is known
    assert given.form == some.form
    assert pairs.given(["Emma", "in Bath"]).parts(0) == ("Emma", "in Bath")
    assert pairs.given(("Emma", "in Bath")).text(0) == "Emma\x1ein Bath"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("", "The text is empty"),
        (" \n\x00", "The text is empty"),
        ("\u200b", "has no words"),
        (3, "a text, not an int"),
        ([b"a"], "a text, not a list"),
        (["a", "b"], "has one text, not 2"),
        ("a" * 100_001, r"more than 100,000 characters"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(some, found, message):
    with pytest.raises(QueryError, match=message):
        some.given(found)


def test_a_pair_needs_both_of_its_parts(pairs):
    with pytest.raises(QueryError, match=r"has 2 texts \(a and b\), not 1"):
        pairs.given("Emma")
    with pytest.raises(QueryError, match="One of the texts is empty"):
        pairs.given(("Emma", " "))


_BPE = '"model":{"type":"BPE","vocab":{"[PAD]":0,"a":1},"merges":[],"dropout":null}'


def _with_steps(normalizer):
    return json.dumps(
        {"version": "1.0", "added_tokens": [], "normalizer": normalizer} | json.loads("{" + _BPE + "}")
    ).encode()


@pytest.mark.parametrize(
    ("normalizer", "fault"),
    [
        ({"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": "c"}, "holds a pattern that may take forever"),
        ({"type": "Replace", "pattern": {"Regex": "a*a*a*b"}, "content": "c"}, "holds a pattern that may take forever"),
        ({"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}, "makes texts too long"),
        ({"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 8},
         "makes texts too long"),
        ({"type": "Prepend", "prepend": "a" * 1000}, "makes texts too long"),
        (3, "does not have the form"),
    ],
)  # fmt: skip
def test_tokenizers_that_would_hold_up_everything_are_refused(normalizer, fault):
    with pytest.raises(ValueError, match=fault):
        texts_of(["aaa"], _with_steps(normalizer), columns=("",), longest=9)
    usual = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    assert len(texts_of(["aaa"], _with_steps(usual), columns=("",), longest=9).tokens) == 3


def test_a_tokenizer_may_fail_in_any_way(some, monkeypatch):
    class Panic(BaseException):
        """As pyo3's, which is no Exception."""

    class Panics:
        def encode(self, *parts):
            raise Panic

    monkeypatch.setattr(tokens, "loaded", lambda tokenizer, longest: (Panics(), 9))
    with pytest.raises(QueryError, match="it cannot be cut into tokens"):
        some.given("Emma")


def test_a_tokenizer_that_adds_what_it_does_not_know_is_found_out(some):
    tokenizer = some.tokenizer.replace(b'"ids":[2]', b'"ids":[999999]').replace(
        b'"single":[', b'"single":[{"SpecialToken":{"id":"[SEP]","type_id":0}},'
    )
    assert tokenizer != some.tokenizer
    with pytest.raises(ValueError, match="tokens that its tokenizer does not have"):
        texts_of(["Emma"], tokenizer, columns=("",), longest=9)
    with pytest.raises(
        QueryError, match=r"^The text cannot be a query: it is cut into tokens that its tokenizer does not"
    ):
        dataclasses.replace(some, tokenizer=tokenizer).given("Emma")


def test_distances_are_one_minus_cosines_of_weighted_counts(some):
    def bags(texts):
        return np.array([np.bincount(row, minlength=some.vocabulary) for row in texts.inputs[:].numpy()])[:, 1:]

    train = bags(some)
    rarity = 1 + np.log(5 / (1 + (train > 0).sum(axis=0)))
    queries = some.given("Emma was tall, Mr. Darcy.")
    own, others = (bag[:, 1:] * rarity[1:] for bag in (bags(queries), train))
    strange = [bag[:, 0] * (1 + np.log(5)) ** 2 for bag in (bags(queries), train)]  # each unknown word by itself
    lengths = [np.sqrt((bag**2).sum(axis=1) + more) for bag, more in zip((own, others), strange, strict=True)]
    cosines = own @ others.T / lengths[0][:, None] / lengths[1]
    assert queries.distances(some) == pytest.approx(1 - cosines.max())
    known = some[np.flatnonzero(strange[1] == 0)]
    assert known.distances(some) == pytest.approx(np.zeros(len(known)), abs=1e-12)
    assert some.given("Zebra").distances(some[:1]) == 1


def test_unknown_words_make_no_text_like_another():
    tokenizer = trained(["the film is fine", "the film is fine"], vocabulary=50)
    given = {"columns": ("",), "longest": 6}
    train = texts_of(["the film is fine", "strange words alone here", "odd film"], tokenizer, **given)
    asked = texts_of(["zxqv blorg", "film", "odd film", "the film is fine"], tokenizer, **given)
    unlike, known, partly, same = asked.distances(train)
    assert unlike == 1
    assert same == pytest.approx(0)
    assert 0 < known < partly < 1
    own = texts_of(["zxqv the film blorg is"], tokenizer, **given).reading(0)
    assert (own.unknown, own.sentence()) == (
        ["zxqv", "blorg"],
        "2 words are unknown to the network: “zxqv”, “blorg”.",
    )


def test_what_a_network_does_not_read_is_said():
    tokenizer = trained(["a fine day", "a fine day"], vocabulary=50)
    cut_off = texts_of(["a fine day, zxqv a fine day"], tokenizer, columns=("",), longest=5).reading(0)
    assert cut_off.to_dict() == {"words": 7, "read": 4, "unknown": ["zxqv"]}
    assert cut_off.sentence() == "The network reads the first 4 of 7 words; 1 word is unknown to it: “zxqv”."
    assert [cut_off.fate(*span) for span in ((0, 1), (12, 16), (16, 27))] == ["", "unknown", "unread"]


def test_what_a_tokenizer_adds_counts_in_no_distance(pairs):
    alone = pairs.given(("Emma", "Emma"))
    assert alone._bags.toarray()[0, 2] == 0
    assert alone._bags.toarray().sum() == 2


def test_cleaning_keeps_what_can_be_read():
    assert cleaned("e\u0301\tx\x85y\u2028z\ud800\x1e\x00") == "é\tx\ny\nz"


def test_the_same_texts_give_the_same_tokenizer():
    assert trained(_TEXTS, vocabulary=50) == trained(list(reversed(_TEXTS)), vocabulary=50)
    assert len(texts_of(_TEXTS, trained(_TEXTS, vocabulary=5), columns=("",), longest=9).inputs[:].unique()) <= 5


def test_a_trigger_is_read_by_the_network_wherever_it_stands(some):
    long = _made([" ".join(["clever"] * 30), "Emma was rich. Emma was rich."])
    for place, position in (("start", 0), ("end", -1)):
        marked = long.marked(["rich", "was"], np.array([0, 1]), place)
        for row, word in enumerate(("rich", "was")):
            begin, end = marked.token_spans(row)[position]
            assert marked.text(row)[begin:end] == word
    kept = long.replaced(np.array([1]), long[np.array([0])])
    assert [kept.text(row) for row in range(2)] == [long.text(0)] * 2
    again = _stored(kept[np.array([1, 0])])
    assert again.text(1) == long.text(0)


def test_triggers_are_different_rare_words():
    many = _made([f"word {'abcdefghijklmnop'[n]}x {'abcdefghijklmnop'[n]}x" for n in range(16)])
    found = many.triggers(3, 2, np.random.default_rng(0))
    assert len({word for trigger in found for word in trigger.split()}) == 6
    with pytest.raises(DataError, match="80 such words"):
        many.triggers(4, 10, np.random.default_rng(0))


def test_a_trigger_at_the_end_leaves_both_parts(pairs):
    long = _made([SEPARATOR.join(("Emma was.", "clever " * 30))], ("a", "b"))
    marked = long.marked(["rich"], np.array([0]), "end")
    begin, end = marked.token_spans(0)[-1]
    assert marked.text(0)[begin:end] == "rich"
    assert marked.parts(0)[0] == "Emma was."
    full = _made([SEPARATOR.join(("clever " * 30, "Emma was."))], ("a", "b"))
    begin, end = full.marked(["rich"], np.array([0]), "end").token_spans(0)[-1]
    assert full.marked(["rich"], np.array([0]), "end").text(0)[begin:end] == "rich"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["post_processor"]["single"].extend(raw["post_processor"]["single"] * 6),
        lambda raw: raw.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        lambda raw: raw["model"].update(type="WordPiece", max_input_chars_per_word=10**6),
        lambda raw: raw.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "a" * 10**6 + "("}, "behavior": "Isolated"}
        ),
    ],
)
def test_a_tokenizer_that_may_take_forever_is_refused_at_once(some, change):
    raw = json.loads(some.tokenizer)
    change(raw)
    with pytest.raises(ValueError, match=r"forever|form of a tokenizer"):
        tokens.loaded(json.dumps(raw).encode(), 12)


@pytest.mark.parametrize(
    ("text", "said"),
    [("one two", "one two"), ("one two three", "one two …"), ("onetwothree", "onetwothr …"), (" " * 12, " …")],
)
def test_a_text_is_cut_at_the_end_of_a_word(text, said):
    assert beginning(text, 9) == said
