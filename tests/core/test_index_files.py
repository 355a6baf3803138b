import faiss
import numpy as np
import pytest

from natscope.core.index.file_checks import index_fault
from natscope.core.index.search import InnerProductIndex, build_index
from natscope.core.index.spec import KINDS, IndexSpec


@pytest.fixture(scope="module")
def members():
    return np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def built(members, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    for kind in KINDS:
        build_index(members, IndexSpec(kind), folder / kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_natscope_writes_is_read(built, members, kind):
    assert index_fault(built / kind, members, IndexSpec(kind)) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_other_rows_or_settings_is_not_read(built, members, kind):
    for others in (members[:-1], members[:, :-1], np.concatenate([members, members[:1]])):
        assert index_fault(built / kind, others, IndexSpec(kind))
    for other in {*KINDS} - {kind}:
        assert index_fault(built / other, members, IndexSpec(kind))
    if kind.startswith("ivf"):
        assert index_fault(built / kind, members, IndexSpec(kind, lists=7))
    if kind == "hnsw":
        assert index_fault(built / kind, members, IndexSpec(kind, links=16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change", [lambda data: b"", lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:40]]
)
def test_a_file_of_another_length_is_not_read(built, members, tmp_path, kind, change):
    (tmp_path / "index").write_bytes(change((built / kind).read_bytes()))
    assert index_fault(tmp_path / "index", members, IndexSpec(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_bit_is_changed_a_file_that_passes_does_no_harm(built, members, tmp_path, kind):
    random, data = np.random.default_rng(0), (built / kind).read_bytes()
    for number in range(150):
        changed = bytearray(data)
        place = int(random.integers(0, 400 if number % 2 else len(data)))
        changed[place] ^= 1 << int(random.integers(0, 8))
        file = tmp_path / str(number)
        file.write_bytes(changed)
        if index_fault(file, members, IndexSpec(kind)) == "":
            row, _ = InnerProductIndex.load(file).largest_square(random.normal(size=16), members, excluded=[1, 2])
            assert 0 <= row < len(members)


def test_lists_that_lie_in_another_file_are_not_opened(built, members, tmp_path):
    # FAISS would open whatever file such an index names: a pipe, for one, would hang.
    index = faiss.read_index(str(built / "ivf"))
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(tmp_path / "elsewhere"))
    lists.merge_from_1(index.invlists)
    index.replace_invlists(lists, False)
    faiss.write_index(index, str(tmp_path / "index"))
    assert index_fault(tmp_path / "index", members, IndexSpec("ivf"))


@pytest.mark.parametrize("row", [300, -2, 2**31 - 1])
def test_a_link_to_a_row_that_there_is_not_is_found(built, members, tmp_path, row):
    data = bytearray((built / "hnsw").read_bytes())
    index = faiss.read_index(str(built / "hnsw"))
    neighbours = faiss.vector_to_array(index.hnsw.neighbors).tobytes()
    start = bytes(data).index(neighbours)
    data[start : start + 4] = np.int32(row).tobytes()
    (tmp_path / "index").write_bytes(data)
    assert index_fault(tmp_path / "index", members, IndexSpec("hnsw"))


def test_a_row_that_is_listed_twice_is_found(built, members, tmp_path):
    data = bytearray((built / "ivf").read_bytes())
    data[-8:] = data[-16:-8]
    (tmp_path / "index").write_bytes(data)
    assert index_fault(tmp_path / "index", members, IndexSpec("ivf"))


def test_a_code_that_stands_for_another_feature_is_found(built, members, tmp_path):
    data = bytearray((built / "sq8").read_bytes())
    data[-5] = (data[-5] + 2) % 256
    (tmp_path / "index").write_bytes(data)
    assert index_fault(tmp_path / "index", members, IndexSpec("sq8"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e30])
def test_steps_that_no_feature_has_are_found(built, members, tmp_path, value):
    index = faiss.read_index(str(built / "sq8"))
    trained, data = faiss.vector_to_array(index.sq.trained).tobytes(), (built / "sq8").read_bytes()
    changed = trained[:64] + np.float32(value).tobytes() + trained[68:]  # the first of 16 steps
    (tmp_path / "index").write_bytes(data.replace(trained, changed))
    assert index_fault(tmp_path / "index", members, IndexSpec("sq8"))


@pytest.mark.parametrize("kind", ["ivf", "ivfsq8", "ivfpq", "ivfrabitq"])
def test_lists_most_of_which_are_empty_are_read(tmp_path, kind):
    members = np.repeat(np.eye(3, 16, dtype=np.float32), 100, axis=0)
    build_index(members, IndexSpec(kind), tmp_path / "index")
    data = (tmp_path / "index").read_bytes()
    assert index_fault(tmp_path / "index", members, IndexSpec(kind)) == ""
    assert len(InnerProductIndex.load(tmp_path / "index")) == 300
    table = data.index(b"sprs")
    for place, value in ((4, 5), (4, 2**60), (12, 1000), (20, 301), (20, 0)):  # its length, a list's number, its size
        changed = bytearray(data)
        changed[table + place : table + place + 8] = np.uint64(value).tobytes()
        (tmp_path / "changed").write_bytes(changed)
        assert index_fault(tmp_path / "changed", members, IndexSpec(kind))
