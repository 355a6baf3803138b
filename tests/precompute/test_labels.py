"""Labels of one's own data: each part's numbers mean its own class titles, whatever kind of data set it is."""

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from natscope.core.errors import DataError
from natscope.precompute.data.items import Reading
from natscope.precompute.data.own import own_dataset
from tests.conftest import one_sentence

_KINDS = ["folder", "split", "dataset", "subset", "table"]


def _transform(picture):
    return torch.from_numpy(np.array(picture.resize((4, 4)))).permute(2, 0, 1).float() / 255


class _Torch(Dataset):
    """As torchvision's ImageFolder: numbers, and titles in `classes`."""

    def __init__(self, titles, words):
        self.classes, self.labels = list(titles), [titles.index(word) for word in words]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return torch.zeros(3, 4, 4), self.labels[row]


class _Split:
    """As a split of Hugging Face `datasets`: numbers, and titles in the feature."""

    column_names = ("image", "label")

    def __init__(self, titles, words):
        self.features = {"image": None, "label": type("ClassLabel", (), {"names": titles})()}
        self.labels = [titles.index(word) for word in words]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        return self.labels if key == "label" else {"image": Image.new("RGB", (4, 4)), "label": self.labels[key]}


@pytest.fixture
def part(tmp_path):
    """Return a function that makes a part of a data set: of a kind, with class titles, of words."""

    def make(kind, titles, words, name):
        if kind == "split":
            return _Split(titles, words)
        if kind == "dataset":
            return _Torch(titles, words)
        if kind == "subset":
            whole = _Torch(titles, [titles[0], *words])
            return Subset(Subset(whole, range(len(whole))), range(1, len(whole)))
        rows = []
        for title in titles:
            (tmp_path / name / title).mkdir(parents=True)
        for row, word in enumerate(words):
            file = tmp_path / name / word / f"{row:02}.png"
            Image.new("RGB", (4, 4)).save(file)
            rows.append((str(file), word))
        return tmp_path / name if kind == "folder" else pandas.DataFrame(rows, columns=["path", "label"])

    return make


def _words(data, split):
    return [data.classes[label] for label in getattr(data, f"{split}_labels")]


def _own(train, test, **options):
    return own_dataset(train, test, Reading(transform=_transform, **options))


_TRAIN = ["ant", "ant", "bee", "bee", "cat"]


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(
    ("titles", "words"),
    [
        (["ant", "cat"], ["ant", "cat", "cat"]),
        (["cat", "bee", "ant"], ["ant", "bee", "cat"]),
        (["ant", "bee", "cat", "dog"], ["ant", "cat"]),
    ],
)
def test_a_part_that_numbers_its_classes_in_its_own_way_keeps_their_titles(part, kind, titles, words):
    data = _own(part(kind, ["ant", "bee", "cat"], _TRAIN, "train"), part(kind, titles, words, "test"))
    assert data.classes == ("ant", "bee", "cat")
    assert _words(data, "train") == _TRAIN
    assert sorted(_words(data, "test")) == words


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("other", _KINDS)
def test_parts_may_be_of_two_kinds(part, kind, other):
    data = _own(part(kind, ["ant", "bee", "cat"], _TRAIN, "train"), part(other, ["bee", "cat"], ["bee", "cat"], "test"))
    assert (data.classes, _words(data, "train"), _words(data, "test")) == (
        ("ant", "bee", "cat"),
        _TRAIN,
        ["bee", "cat"],
    )


@pytest.mark.parametrize("kind", _KINDS)
def test_a_class_that_training_does_not_have_is_one_sentence(part, kind):
    train = part(kind, ["ant", "bee"], ["ant", "bee"], "train")
    test = part(kind, ["ant", "bat", "bee"], ["ant", "bat"], "test")
    with pytest.raises(
        DataError, match=r"Item 1 of the test set (has the label|is of the class) bat.*ant, bee"
    ) as caught:
        _own(train, test)
    one_sentence(str(caught.value))


def test_titles_for_all_outputs_of_a_network_may_be_more_than_a_folder_has(part):
    train = part("folder", ["cat", "ant"], ["ant", "cat"], "train")
    test = part("folder", ["bee"], ["bee"], "test")
    data = _own(train, test, classes=["cat", "bee", "ant"])
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([2, 0], [1])


@pytest.mark.parametrize("kind", ["split", "dataset", "subset"])
def test_new_titles_name_the_numbers_and_the_datas_own_may_not_change_places(part, kind):
    train = part(kind, ["ant", "bee"], ["ant", "bee"], "train")
    test = part(kind, ["bee", "ant"], ["ant", "bee"], "test")
    data = _own(train, test, classes=["Ameise", "Biene"])
    assert _words(data, "test") == ["Ameise", "Biene"]
    with pytest.raises(DataError, match=r"given have ant in place 1, and the training set numbers it 0") as caught:
        _own(train, test, classes=["bee", "ant"])
    one_sentence(str(caught.value))


def test_numbers_without_titles_are_those_of_the_titles_given(part):
    arrays = torch.zeros(3, 3, 4, 4), torch.tensor([0, 1, 2])
    test = part("dataset", ["cat", "bee"], ["bee", "cat"], "test")
    data = _own(arrays, test, classes=["ant", "bee", "cat"])
    assert _words(data, "test") == ["bee", "cat"]
    assert _own(arrays, test).test_labels.tolist() == [1, 0]  # nothing says what the numbers of training mean


def test_labels_that_a_users_function_makes_are_taken_as_they_are(part):
    train, test = part("dataset", ["ant", "bee"], ["ant", "bee"], ""), part("dataset", ["bee", "ant"], ["ant"], "")
    test.target_transform = lambda label: 1 - label
    test.labels = [0]
    assert _own(train, test).test_labels.tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([0, -1], "Item 1 of the training set has the label -1, which is not from 0 to 1"),
        ([0, 99], "Item 1 of the training set has the label 99, which is not from 0 to 1"),
        ([0, 2**70], "Item 1 of the training set has the label 1180591620717411303424"),
        ([0, 1.7], "Item 1 of the training set has the label '1.7'; labels are whole numbers or words"),
        ([0, float("nan")], "Item 1 of the training set has the label 'nan'"),
        ([0, True], "Item 1 of the training set has the label 'True'"),
        ([0, None], "Item 1 of the training set has the label 'None'"),
        ([0, [0, 1]], r"Item 1 of the training set has the label '\[0, 1\]'"),
    ],
)
def test_labels_that_are_none_are_one_sentence(part, labels, match):
    train = part("dataset", ["ant", "bee"], ["ant", "bee"], "")
    train.labels = labels
    with pytest.raises(DataError, match=match) as caught:
        _own(train, None)
    one_sentence(str(caught.value))
