"""Bundles with something changed at random: the same answer or one sentence, and `verify` knows of whatever is refused.

`NATSCOPE_FUZZ=1000 python -m pytest tests/core/test_fuzz.py` tries more of them.
"""

import copy
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from natscope.core.bundle.format import MANIFEST
from natscope.core.bundle.request import Request
from natscope.core.errors import NatscopeError, UntrustedError
from natscope.core.methods import METHODS
from natscope.precompute.bundles.opening import faults, open_attributor
from tests.tiny import recorded_anew

_EXAMPLES = int(os.environ.get("NATSCOPE_FUZZ", 100))
_SLOW = "kronfluence"  # a second a query: asked where its own files are changed
_FUZZ = settings(
    max_examples=_EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_VALUES = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 2, 3, 17, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e300, "", "x", "x" * 5000),
        *("../x", "/dev/zero", "a\0b", "a\nb", "\x1b[2J", "mlp", "resnet9", "os:system", "exact", "dense", "all"),
        *([], {}, [1], [[1]], [None], {"x": 1}, {"schema": 1}, [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]),
    ]
)


def _places(value, place=()):
    """Return the place of every value within a value, and its own."""
    within = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, inner in within for found in _places(inner, (*place, key)))]


def _at(raw, place):
    for key in place:
        raw = raw[key]
    return raw


@st.composite
def _manifests(draw, raw):
    """Draw the text of a manifest with one to three values replaced, removed, moved or added."""
    raw = copy.deepcopy(raw)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(raw)[1:]))
        *parents, key = place
        parent = _at(raw, parents)
        kind = draw(st.sampled_from(["value", "value", "near", "other", "remove", "add", "twice"]))
        if kind == "near" and type(parent[key]) in (int, float):
            parent[key] = draw(st.sampled_from([parent[key] + 1, parent[key] - 1, 2 * parent[key], -parent[key]]))
        elif kind == "other":
            parent[key] = copy.deepcopy(_at(raw, draw(st.sampled_from(_places(raw)[1:]))))
        elif kind == "remove":
            del parent[key]
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["x", "gram_1", "gram_7", "index_-1", "features_all_0", "../x"]))] = (
                copy.deepcopy(parent[key])
            )
        elif kind == "twice" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(draw(_VALUES))
        if not _places(raw)[1:]:
            break
    return json.dumps(raw).encode()


@st.composite
def _damage(draw, data):
    """Draw other bytes in the place of a file's."""
    kind = draw(st.sampled_from(["flip", "flip", "flip", "cut", "more", "zeros"]))
    if kind == "cut":
        return data[: draw(st.integers(0, len(data) - 1))]
    if kind == "more":
        return data + bytes(draw(st.integers(1, 1000)))
    changed = bytearray(data)
    # Headers are short and what is wrong in them does most.
    place = st.integers(0, min(len(data), 400) - 1) | st.integers(0, len(data) - 1)
    if kind == "zeros":
        start = draw(place)
        changed[start : start + 64] = bytes(len(changed[start : start + 64]))
        return bytes(changed)
    for _ in range(draw(st.integers(1, 3))):
        changed[draw(place)] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def _rankings(path, names):
    """Return what each method that the bundle can serve ranks, by method and what was asked."""
    attributor = open_attributor(path)
    query = attributor.query("test", 1)
    served = [name for name in attributor.usable() if name in names]
    asked = [Request(name, target=target, budget=4) for name in served for target in range(1 if _SLOW in names else 3)]
    asked += [Request("info_loss", budget=4, pool="all"), Request("relatif", budget=4, conditioning="train")]
    return {
        request: [(i.train_index, float(f"{i.score:.6g}")) for i in attributor.attribute(query, request).items]
        for request in asked
    }


@pytest.fixture(scope="module")
def whole(tiny_path):
    """Return the bundle as it was built, its files, methods, and what they rank; the slow one apart."""
    names = [name for name in METHODS if name != _SLOW]
    files = sorted(str(p.relative_to(tiny_path)) for p in tiny_path.rglob("*") if p.is_file() and p.name != MANIFEST)
    return tiny_path, files, names, _rankings(tiny_path, names), _rankings(tiny_path, [_SLOW])


@pytest.fixture(autouse=True)
def same_probes(monkeypatch):
    """Let `verify` and every use try a Gram on the same random vector: damage as small as rounding shows on some."""
    drawn = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed=0: drawn(seed))


def _judge(whole, path, *, changed=None, recorded=False):
    """Hold what `verify` says of a bundle against what using it gives.

    Args:
        whole: the untouched bundle.
        path: the changed one.
        changed: the file whose bytes are others; None where it is the manifest.
        recorded: whether the manifest records the file as it is now, so that other answers may be right.
    """
    _, _, names, expected, expected_slow = whole
    slow = changed is not None and changed.startswith(_SLOW)
    names, expected = ([_SLOW], expected_slow) if slow else (names, expected)
    try:
        reported = faults(path)
    except NatscopeError as error:
        reported = [str(error)]
    answer, refused = None, None
    try:
        answer = _rankings(path, names)
    except NatscopeError as error:
        refused = error
    for sentence in [*reported, *([str(refused)] if refused else [])]:
        assert sentence
        assert sentence.isprintable(), sentence
        assert len(sentence) < 1000
    assert reported or refused is None or isinstance(refused, UntrustedError), f"verify does not find: {refused}"
    if answer is not None and not recorded:
        others = {request for request in answer if answer[request] != expected[request]}
        assert not others, f"other answers, and verify says {reported}"
    same = answer is not None and all(answer[request] == expected[request] for request in answer)
    event(
        f"answer: {'the same' if same else 'another' if answer else 'none'}, "
        f"verify: {'a fault' if reported else 'whole'}"
    )
    return reported, refused


@_FUZZ
@given(st.data())
def test_a_manifest_that_was_changed_is_refused_or_changes_nothing(whole, tmp_path_factory, data):
    raw = json.loads((whole[0] / MANIFEST).read_text())
    text = data.draw(_manifests(raw) | _damage((whole[0] / MANIFEST).read_bytes()))
    path = shutil.copytree(whole[0], tmp_path_factory.mktemp("fuzz") / "bundle")
    (path / MANIFEST).write_bytes(text)
    _judge(whole, path)
    shutil.rmtree(path.parent)


@_FUZZ
@given(st.data())
def test_a_file_that_was_changed_is_refused(whole, tmp_path_factory, data):
    file = data.draw(st.sampled_from(whole[1]))
    content = data.draw(_damage((whole[0] / file).read_bytes()))
    recorded = data.draw(st.booleans())
    path = shutil.copytree(whole[0], tmp_path_factory.mktemp("fuzz") / "bundle")
    same = content == (path / file).read_bytes()
    (path / file).write_bytes(content)
    if recorded:
        recorded_anew(path, file.removesuffix(".npy").removesuffix(".faiss").replace("model.safetensors", "weights"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numbers of 10^38 overflow where they are multiplied
        reported, _ = _judge(whole, path, changed=file, recorded=recorded)
    assert reported or recorded or same
    shutil.rmtree(path.parent)


@_FUZZ
@given(st.data())
def test_a_file_that_is_no_file_any_more_is_refused(whole, tmp_path_factory, data):
    file = data.draw(st.sampled_from([*whole[1], MANIFEST]))
    path = shutil.copytree(whole[0], tmp_path_factory.mktemp("fuzz") / "bundle")
    place = path / file
    place.unlink()
    kind = data.draw(st.sampled_from(["pipe", "folder", "link", "device", "dangling", "gone", "other"]))
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "other":
        shutil.copy(path / data.draw(st.sampled_from([f for f in whole[1] if f != file])), place)
    elif kind != "gone":
        place.symlink_to({"link": whole[0] / file, "device": Path("/dev/zero"), "dangling": "nowhere"}[kind])
    reported, _ = _judge(whole, path, changed=None if file == MANIFEST else file)
    assert reported or kind == "other"  # two files may be the same
    shutil.rmtree(path.parent)
