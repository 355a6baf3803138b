import base64
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natscope.app.links import (
    LARGEST_BUDGET,
    SIGMA2_EXPONENTS,
    AttributeView,
    Limits,
    exponent_of,
    open_query,
    parameters,
    read,
)
from natscope.core.bundle.request import CONDITIONINGS, POOLS
from natscope.core.errors import QueryError
from natscope.core.methods import METHODS
from tests.app.conftest import pack_image
from tests.conftest import one_sentence

_LIMITS = Limits(classes=10)
_LOW, _HIGH = 10 ** SIGMA2_EXPONENTS[0], 10 ** SIGMA2_EXPONENTS[-1]
_images = st.binary(min_size=9, max_size=9).map(lambda data: np.frombuffer(data, np.uint8).reshape(3, 3))
_queries = st.tuples(st.sampled_from(["test", "train"]), st.integers(0, 10**9 - 1)).map(
    lambda pair: f"{pair[0]}:{pair[1]}"
) | _images.map(pack_image)
_views = st.builds(
    AttributeView,
    query=_queries,
    method=st.sampled_from(list(METHODS)),
    sigma2=st.floats(_LOW, _HIGH),
    budget=st.integers(1, LARGEST_BUDGET),
    pool=st.sampled_from(POOLS),
    conditioning=st.sampled_from(CONDITIONINGS),
    target=st.none() | st.integers(0, _LIMITS.classes - 1),
    plain=st.booleans(),
)


def _read(address):
    return read(AttributeView(), address, _LIMITS)


def _packed(data):
    return "image:" + base64.urlsafe_b64encode(data).decode().rstrip("=")


@given(_views)
def test_a_view_survives_its_link(view):
    found, complaints = _read(parameters(view))
    assert complaints == []
    assert found.sigma2 == pytest.approx(view.sigma2, rel=1e-5)
    assert (found.query, found.method, found.budget) == (view.query, view.method, view.budget)
    assert replace(found, sigma2=view.sigma2) == view
    assert _read(parameters(found)) == (found, [])


def test_every_step_of_sigma2_survives_its_link():
    for step in SIGMA2_EXPONENTS:
        found, complaints = _read(parameters(AttributeView(sigma2=10**step)))
        assert complaints == []
        assert exponent_of(found.sigma2) == step


@given(st.floats(_LOW, _HIGH))
def test_a_sigma2_between_two_steps_keeps_its_value(sigma2):
    assert 10 ** exponent_of(sigma2) == pytest.approx(sigma2, rel=1e-4)


def test_an_empty_address_is_the_default():
    assert _read({}) == (AttributeView(), [])


def test_a_link_names_the_query_and_the_numbers_and_else_only_what_differs():
    assert parameters(AttributeView()) == {"q": "test:0", "m": "10"}
    view = AttributeView("train:3", "info_gain", 0.1, 7, "all", "train", 4, plain=True)
    assert parameters(view) == {
        "q": "train:3",
        "method": "info_gain",
        "sigma2": "0.1",
        "m": "7",
        "pool": "all",
        "given": "train",
        "target": "4",
        "words": "plain",
    }


def test_parameters_of_others_are_left_alone():
    assert _read({"bundle": "mine", "embed": "true"}) == (AttributeView(), [])


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("q", ""),
        ("q", "test"),
        ("q", "test:"),
        ("q", "test:-1"),
        ("q", "test:1.5"),
        ("q", "test:1000000000"),
        ("q", "image:"),
        ("q", "validation:3"),
        ("q", "../../etc/passwd:1"),
        ("method", "InfoLoss"),
        ("method", ""),
        ("sigma2", "0"),
        ("sigma2", "-1"),
        ("sigma2", "nan"),
        ("sigma2", "inf"),
        ("sigma2", "one"),
        ("sigma2", "9.99e-31"),
        ("sigma2", "1.01e30"),
        ("m", "0"),
        ("m", "101"),
        ("m", "ten"),
        ("m", "1e1"),
        ("m", "9" * 5000),
        ("m", "²"),
        ("q", "test:²"),
        ("q", "test:٣"),
        ("q", "test:" + "9" * 5000),
        ("target", "9" * 5000),
        ("sigma2", "9" * 5000),
        ("sigma2", "1\0"),
        ("pool", "same class"),
        ("given", "everything"),
        ("target", "-1"),
        ("target", "10"),
        ("target", "Bag"),
        ("words", "fancy"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_named_and_left_at_its_default(key, text):
    view, complaints = _read({"m": "3", "pool": "all", key: text})
    expected, _ = _read({name: value for name, value in (("m", "3"), ("pool", "all")) if name != key})
    assert view == expected
    (complaint,) = complaints
    assert complaint == f"{key} “{text[:40]}”"


def test_every_bad_parameter_is_named():
    keys = ("q", "method", "sigma2", "m", "pool", "given", "target", "words")
    view, complaints = _read(dict.fromkeys(keys, "?"))
    assert view == AttributeView()
    assert [complaint.split()[0] for complaint in complaints] == list(keys)


@given(st.dictionaries(st.sampled_from(["q", "method", "sigma2", "m", "pool", "given", "target", "words"]), st.text()))
def test_no_address_breaks_the_page(address):
    view, complaints = _read(address)
    assert len(complaints) <= len(address)
    assert _read(parameters(view))[1] == []


@pytest.mark.parametrize("origin", ["test", "train"])
def test_a_number_opens_the_image_with_that_number(attributor, origin):
    query = open_query(f"{origin}:5", attributor)
    assert (query.origin, query.index) == (origin, 5)
    np.testing.assert_array_equal(query.example.images[0], attributor.bundle.examples(origin).images[5])


def test_an_image_that_there_is_not_is_named(attributor):
    with pytest.raises(QueryError, match=r"test image 10000; .* 0 to 9999"):
        open_query("test:10000", attributor)


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=784, max_size=784))
def test_an_upload_packed_into_a_link_has_the_same_pixels(attributor, data):
    image = np.frombuffer(data, np.uint8).reshape(28, 28)
    view, complaints = _read(parameters(AttributeView(query=pack_image(image))))
    query = open_query(view.query, attributor)
    assert complaints == []
    assert (query.origin, query.index, query.label) == ("upload", None, None)
    np.testing.assert_array_equal(query.example.images[0], image)


def test_a_packed_image_needs_no_escapes_in_an_address():
    packed = pack_image(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8))
    assert packed.removeprefix("image:").replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "query",
    [
        "image:A",
        "image:é",
        _packed(b"no zlib stream"),
        _packed(b"\0" * 100),
        _packed(zlib.compress(bytes(784))[:-4] + b"\1\2\3\4"),
    ],
    ids=["length", "letters", "text", "zeros", "checksum"],
)
def test_a_damaged_image_in_a_link_is_refused_in_a_sentence(attributor, query):
    with pytest.raises(QueryError, match="link is damaged"):
        open_query(query, attributor)


@pytest.mark.parametrize(
    "query",
    [
        "image:!!!!",
        pack_image(np.zeros((28, 27), np.uint8)),
        pack_image(np.zeros((28, 29), np.uint8)),
        pack_image(np.zeros((28, 28, 3), np.uint8)),
        _packed(zlib.compress(np.random.default_rng(0).bytes(784))[:300]),
    ],
    ids=["nothing", "narrow", "wide", "colour", "cut"],
)
def test_an_image_of_another_size_in_a_link_is_refused_in_a_sentence(attributor, query):
    with pytest.raises(QueryError, match="another size"):
        open_query(query, attributor)


def test_a_bomb_in_a_link_is_not_unpacked(attributor):
    bomb = _packed(zlib.compress(bytes(50_000_000), 9))
    tracemalloc.start()
    try:
        with pytest.raises(QueryError, match="another size"):
            open_query(bomb, attributor)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@settings(max_examples=50, deadline=None)
@given(st.text() | st.binary().map(lambda data: _packed(zlib.compress(data)).removeprefix("image:")))
def test_whatever_the_link_says_is_an_image_or_a_sentence(attributor, text):
    with pytest.raises(QueryError, match=r"damaged|another size") as caught:
        open_query("image:" + text, attributor)
    one_sentence(str(caught.value))
