"""The search on a real Milvus server: bundles built for it, answers, and whatever goes wrong."""

import builtins
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from natscope.app import words
from natscope.core.bundle import collection
from natscope.core.bundle.format import MANIFEST, Bundle
from natscope.core.bundle.request import Request
from natscope.core.errors import BundleError, SearchError
from natscope.core.index import milvus
from natscope.core.index.milvus import TOKEN, URI, Server
from natscope.core.index.spec import IndexSpec
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.check import check
from natscope.precompute.bundles.opening import open_attributor
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.datasets import DATASETS
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec
from tests.conftest import one_sentence
from tests.milvus_server import milvus_server, missing
from tests.tiny import edited, image_data

ROOT = Path(__file__).parents[1]
_MEMBERS = (1500, 400, 40)  # with an index of the server's, without one there, and with a file
_SPEC = BuildSpec(
    name="Searched",
    dataset="searched",
    model=ModelSpec(widths=(64, 8, 3)),
    training=TrainingSpec(epochs=1),
    sketch=SketchSpec(dim=64),
    index=IndexSpec("milvus"),
    methods=(),
)
_REQUEST = Request(method="info_gain_approx", budget=12)
_SECRET = "a-secret-token"


def _data():
    random = np.random.default_rng(0)

    def split(counts):
        labels = np.repeat(np.arange(3), counts)
        images = random.integers(0, 150, (len(labels), 8, 8), dtype=np.uint8)
        images[np.arange(len(labels)), labels] += 100
        return images, labels

    return image_data("searched", ("ant", "bee", "cat"), *split(_MEMBERS), *split((3, 3, 3)), (0.4,), (0.3,))


@pytest.fixture(scope="module", autouse=True)
def data():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "searched", lambda root: _data())
        yield


@pytest.fixture(autouse=True)
def nothing_connected():
    milvus._client.cache_clear()


@pytest.fixture(scope="module")
def server():
    if reason := missing():
        pytest.skip(f"needs a Milvus server: {reason}")
    with milvus_server() as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv(URI, started.uri)
        patch.delenv(TOKEN, raising=False)
        yield started


@pytest.fixture(scope="module")
def path(server, tmp_path_factory):
    return build(_SPEC, tmp_path_factory.mktemp("milvus") / "bundle").path


@pytest.fixture(scope="module")
def flat_path(data, tmp_path_factory):
    return build(replace(_SPEC, index=IndexSpec("flat")), tmp_path_factory.mktemp("flat") / "bundle").path


def _asked(path, number=0, split="test", **changes):
    attributor = open_attributor(path)
    return attributor.attribute(attributor.query(split, number), replace(_REQUEST, **changes))


def _refused(path):
    with pytest.raises(SearchError) as caught:
        _asked(path, target=0)
    return one_sentence(str(caught.value))


def test_large_classes_are_partitions_of_a_collection_and_small_ones_are_files(path):
    bundle = Bundle(path)
    files = {name for name in bundle.manifest.files if name.startswith("index_")}
    assert files == {"index_2"}
    assert bundle.index("index_2").kind == "flat"
    assert bundle.manifest.index == IndexSpec("milvus").to_dict()
    client, name = Server()._client, collection.name_of(bundle)
    assert {*client.list_partitions(name)} == {"_default", "class_0", "class_1", "complete"}
    rows = [int(client.get_partition_stats(name, f"class_{label}")["row_count"]) for label in (0, 1)]
    assert rows == [1500, 400]


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("sigma2", [1e-3, 1.0, 1e3])
def test_answers_are_those_of_a_flat_index(path, flat_path, target, sigma2):
    for number in range(0, 9, 4):
        found, exact = (_asked(each, number, target=target, sigma2=sigma2) for each in (path, flat_path))
        assert found.items[-1].nats >= 0.98 * exact.items[-1].nats
        assert found.items[0].train_index == exact.items[0].train_index
        assert found.items[0].score == pytest.approx(exact.items[0].score, rel=1e-9)
        assert {item.label for item in found.items} == {target}


def test_an_answer_says_which_index_found_it(path):
    found = _asked(path, target=0)
    assert found.index == "milvus-ivf_sq8"
    assert words.searched(found.index).startswith("Searched with an IVF-SQ8 index on Milvus: fast")
    assert _asked(path, target=2).index == "flat"


def test_rows_left_out_are_neither_proposed_nor_picked(path):
    bundle = Bundle(path)
    index, features = collection.open_index(bundle, 0), np.asarray(bundle.array("features")[:1500], dtype=np.float64)
    vector = np.random.default_rng(1).normal(size=64)
    best = np.argsort(-((features @ vector) ** 2))
    for taken in (best[:1], best[:300], best[:-300], best[:-1]):
        proposed = index.propose(vector, 256, excluded=taken)
        assert proposed.tolist() == sorted({*proposed.tolist()} - {*taken.tolist()})
        row, product = index.largest_square(vector, features, excluded=taken)
        assert row not in taken
        assert product == pytest.approx(features[row] @ vector)
    with pytest.raises(ValueError, match="Every row"):
        index.largest_square(vector, features, excluded=best)
    assert 7 not in {item.train_index for item in _asked(path, 7, "train").items}


def test_a_search_of_few_lists_is_widened_until_it_finds_enough(path):
    bundle = Bundle(path)
    index = collection.open_index(bundle, 0)
    index._spec = replace(bundle.index_spec, probes=1)
    assert len(index.propose(np.random.default_rng(1).normal(size=64), 600, excluded=[])) >= 600


def test_a_class_is_searched_in_all_lists_that_the_largest_class_gave_it(server, monkeypatch):
    random, name = np.random.default_rng(0), f"natscope_test_{os.getpid()}"
    vectors = random.normal(size=(36_000, 16))
    classes = {0: (np.arange(24_000), vectors[:24_000]), 1: (np.arange(24_000, 36_000), vectors[24_000:])}
    spec, own = IndexSpec("milvus"), classes[1]  # 309 lists, of which Milvus makes 307 there; 2 sqrt(12,000) are 219
    try:
        Server().fill(name, spec, classes, lambda *_: None)
        assert Server().fault(name, spec, classes) == ""
        index, search, found = Server().index(name, 1, *own, spec), milvus._hits, []
        monkeypatch.setattr(milvus, "_hits", lambda *given: found.append(search(*given)) or found[-1])
        index.propose(random.normal(size=16), 11_990, excluded=[])
        assert [len(hits) for hits in found[-1]] == [11_990, 11_990]
    finally:
        Server().drop(name)


def test_an_insert_that_was_killed_is_done_again_by_the_same_command(server, path, tmp_path):
    spec, out = replace(_SPEC, index=IndexSpec("milvus", milvus="hnsw")), tmp_path / "bundle"
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dataclasses import replace\n"
        "from tests import test_milvus as tests\n"
        "tests.DATASETS['searched'] = lambda root: tests._data()\n"
        "def progress(stage, done, total):\n"
        "    if stage.startswith('Features into Milvus') and done == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "index = tests.IndexSpec('milvus', milvus='hnsw')\n"
        "tests.build(replace(tests._SPEC, index=index), Path(sys.argv[1]), progress)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(out)], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert "does not hold the features of this bundle, or not all; run the command" in _refused(out)
    told = []
    build(spec, out, lambda stage, done, total: told.append(stage))
    assert {*told} == {"Features into Milvus, class by class", "Index in Milvus"}
    found, other = _asked(out, target=0), _asked(path, target=0)
    assert (found.index, other.index) == ("milvus-hnsw", "milvus-ivf_sq8")
    assert found.items[-1].nats == pytest.approx(other.items[-1].nats, rel=0.02)
    told.clear()
    build(spec, out, lambda stage, done, total: told.append(stage))
    assert told == []


def test_a_server_that_was_killed_answers_after_a_restart_and_one_sentence_before(server, path):
    before = _asked(path, target=0)
    server.kill()
    began = time.monotonic()
    assert "does not answer" in _refused(path)
    assert time.monotonic() - began < 15
    server.start()
    after = _asked(path, target=0)
    assert [item.train_index for item in after.items] == [item.train_index for item in before.items]


def test_a_server_that_hangs_is_one_sentence_within_the_patience(server, path, monkeypatch):
    attributor = open_attributor(path)
    query = attributor.query("test", 0)
    attributor.attribute(query, replace(_REQUEST, target=0))  # the index is open
    monkeypatch.setattr(milvus, "_SEARCH", 0.5)
    os.kill(server.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(SearchError, match="does not answer"):
            attributor.attribute(query, replace(_REQUEST, target=0))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert time.monotonic() - began < 5  # half the usual patience


def test_other_vectors_than_the_bundles_are_noticed(server, path):
    bundle = Bundle(path)
    classes = collection._classes(bundle)
    rows, features = classes[0]
    wrong = classes | {0: (rows, np.roll(np.asarray(features[:]), 1, axis=0))}
    Server().fill(collection.name_of(bundle), bundle.index_spec, wrong, lambda *_: None)
    assert "other vectors than this bundle" in _refused(path)
    build(_SPEC, path)
    assert _asked(path, target=0).index == "milvus-ivf_sq8"


@pytest.mark.parametrize("kind", ["diskann", "ivf_rabitq"])
def test_a_type_that_the_server_lacks_is_refused_before_anything_is_computed(server, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(milvus, "_OPEN", 3)
    before, told = {*Server()._client.list_collections()}, []
    spec = replace(_SPEC, index=IndexSpec("milvus", milvus=kind))
    with pytest.raises(SearchError, match=f"does not build the index {kind}; choose another") as caught:
        build(spec, tmp_path / "bundle", lambda stage, done, total: told.append(stage))
    one_sentence(str(caught.value))
    with pytest.raises(SearchError, match=f"does not build the index {kind}"):
        next(check(spec, None))
    assert next(check(_SPEC, None)) == ("Index", "the server at $NATSCOPE_MILVUS_URI builds IVF-SQ8")
    assert not any("Jacobians" in stage or stage == "Training" for stage in told)
    assert {*Server()._client.list_collections()} == before


def test_neither_address_nor_token_is_in_a_file_a_log_or_an_error(server, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv(TOKEN, _SECRET)
    caplog.set_level(logging.DEBUG)
    out = build(_SPEC, tmp_path / "bundle").path
    _asked(out, target=0)
    address = server.uri.removeprefix("http://")
    for uri in ("http://127.0.0.1:1", "tcp://nobody:" + _SECRET + "@127.0.0.1:1", "nowhere:19530", "bundle.db"):
        monkeypatch.setenv(URI, uri)
        milvus._client.cache_clear()
        with pytest.raises(SearchError) as caught:
            _asked(out, target=0)
        said = "".join(traceback.format_exception(caught.value)) + one_sentence(str(caught.value))
        assert uri.split("//")[-1] not in said
        assert _SECRET not in said
    texts = [caplog.text, *capfd.readouterr()]
    texts += [file.read_bytes().decode(errors="replace") for file in out.rglob("*") if file.is_file()]
    for text in texts:
        assert address not in text
        assert _SECRET not in text
        assert "127.0.0.1:1" not in text


# Without a server


class Unreadable:
    """Features on a disk that fails, or too many for memory."""

    def __init__(self, error):
        self.error, self.shape = error, (4, 2)

    def __getitem__(self, rows):
        if isinstance(rows, slice):
            raise self.error
        return np.zeros((len(rows), 2), np.float32)


def _server(**client):
    found = object.__new__(Server)
    found._client = SimpleNamespace(create_partition=lambda *given, **more: None, **client)
    return found


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), KeyError("rows")])
def test_what_fails_on_this_machine_is_not_called_the_servers_fault(error):
    pytest.importorskip("pymilvus")
    with pytest.raises(type(error)):
        _server()._insert("any", 0, np.arange(4), Unreadable(error))

    def insert(*given, **more):
        raise error

    with pytest.raises(type(error)):
        _server(insert=insert)._insert("any", 0, np.arange(4), np.zeros((4, 2)))


@pytest.mark.parametrize(
    "kind", ["MilvusException", "RpcError", "FutureTimeoutError", "ConnectionResetError", "ValueError"]
)
def test_what_a_client_raises_becomes_one_sentence_without_its_words(kind):
    pymilvus, grpc = pytest.importorskip("pymilvus"), pytest.importorskip("grpc")
    error = next(getattr(each, kind) for each in (pymilvus, grpc, builtins) if hasattr(each, kind))

    def insert(*given, **more):
        raise error(_SECRET) if kind != "MilvusException" else error(message=_SECRET)

    with pytest.raises(SearchError, match="does not answer") as caught:
        _server(insert=insert)._insert("any", 0, np.arange(4), np.zeros((4, 2)))
    assert _SECRET not in "".join(traceback.format_exception(caught.value))
    one_sentence(str(caught.value))


def test_without_an_address_the_sentence_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv(URI, raising=False)
    with pytest.raises(SearchError, match=rf"set {URI} to .*http://localhost:19530") as caught:
        build(_SPEC, tmp_path / "bundle")
    one_sentence(str(caught.value))


def test_without_pymilvus_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv(URI, "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(SearchError, match=r"pip install natscope\[milvus\]"):
        build(_SPEC, tmp_path / "bundle")


def test_pymilvus_is_imported_only_where_a_server_is_asked():
    program = "import sys, natscope.precompute.bundles.build, natscope.app.tasks; assert 'pymilvus' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_type_that_milvus_does_not_have_is_refused_in_settings_and_manifests(flat_path, tmp_path):
    with pytest.raises(ValueError, match=r"'flat'; choose one of ivf_sq8, ivf_flat, hnsw, diskann, ivf_rabitq"):
        IndexSpec("milvus", milvus="flat")
    with pytest.raises(ValueError, match="needs the kind 'milvus'"):
        IndexSpec("ivf", milvus="hnsw")
    assert "milvus" not in IndexSpec("ivf").to_dict()  # as in bundles built before there was a server
    path = tmp_path / "bundle"
    path.mkdir()
    (path / MANIFEST).write_bytes((flat_path / MANIFEST).read_bytes())
    edited(path, lambda raw: raw.update(index=IndexSpec("milvus").to_dict() | {"milvus": "drop"}))
    with pytest.raises(BundleError, match=r"index\.milvus"):
        Bundle(path)
