"""A modality of somebody else's: one file and its entry points, and builds, commands, Python and pages serve it."""

import json
import re

import pytest

from tests.conftest import with_package

_TABLE = '''
from dataclasses import dataclass, replace
from html import escape

import msgspec
import numpy as np
import torch

from natscope.core.errors import DataError, QueryError
from natscope.core.examples import Modality, register
from natscope.core.ood import in_blocks, nearest


class About(msgspec.Struct, forbid_unknown_fields=True):
    columns: list[str]


@dataclass(frozen=True, eq=False)
class Inputs:
    rows: np.ndarray
    lengths = None

    @property
    def shape(self):
        return self.rows.shape

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return torch.from_numpy(np.array(self.rows[rows.numpy() if isinstance(rows, torch.Tensor) else rows]))


@dataclass(frozen=True, eq=False)
class Table:
    rows: np.ndarray
    columns: tuple

    modality = property(lambda self: TABLE)
    inputs = property(lambda self: Inputs(self.rows))
    form = property(lambda self: self.rows.shape[1:])
    nbytes = property(lambda self: self.rows.nbytes)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return replace(self, rows=self.rows[rows])

    def arrays(self):
        return {"rows": self.rows}

    def files(self):
        return {}

    def about(self):
        return {"columns": list(self.columns)}

    def reading(self, index):
        return None

    def distances(self, train):
        return nearest(np.asarray(self.rows), in_blocks(train.rows))

    def present(self):
        return np.ones(len(self), bool)

    def described(self):
        return f"{len(self.columns)} columns"

    def scaling(self):
        return ""

    def triggers(self, count, size, random):
        raise DataError("Rows of a table carry no trigger.")

    def given(self, found):
        try:
            values = np.array([found], dtype=np.float32)
        except (TypeError, ValueError):
            values = np.zeros((1, 0), np.float32)
        if values.shape[1:] != self.form:
            raise QueryError(f"A row has {len(self.columns)} numbers.")
        return replace(self, rows=values)


def _form(about, shapes):
    if shapes["rows"][1:] != (len(about["columns"]),):
        raise ValueError("has other columns than their titles say")
    return shapes["rows"][1:]


def _of_file(data, filename):
    return [float(part) for part in data.decode().split(",")]


TABLE = register(
    Modality(
        name="table",
        one="row",
        many="rows",
        about=About,
        arrays={"rows": ("float32",)},
        needed=("rows",),
        form=_form,
        fits=lambda name, shape, count, train: shape == (count, *train["rows"][1:]),
        read=lambda array, file, about: Table(array("rows"), tuple(about["columns"])),
        networks={"mlp": lambda form: form},
        from_file=_of_file,
    )
)


def _said(table, row):
    return "; ".join(f"{name} {value:.2f}" for name, value in zip(table.columns, table.rows[row], strict=True))


def __getattr__(name):
    if name == "PAGE":
        from natscope.app.modalities.page import Page

        return Page(
            look=lambda table, row: {"text": [(_said(table, row), 0.0)]},
            draw=lambda table, row, axes: axes.text(0, 1, _said(table, row), fontsize=4, va="top"),
            size=lambda table: "one row",
            pack=lambda table: ",".join(map(str, table.rows[0])),
            unpack=lambda packed, table: [float(part) for part in packed.split(",")],
            choose=lambda attributor, take: None,
            yours="A row of your own",
            sheet=None,
            note=_said,
            by="file",
            hint="a file",
            style="",
            smooth=False,
            poisoned=False,
            worded=False,
            at_once=30,
        )
    if name == "LOOK":
        from natscope.precompute.data.shown import Look

        def html(table, row, alt, style, whole):
            return f'<span class="ns-seen ns-row" style="{style}">{escape(_said(table, row))}</span>'

        return Look(html, 200, "")
    raise AttributeError(name)


def flowers(count=40, classes=("rose", "tulip", "daisy")):
    """Return a data set of rows with a column that tells the class."""
    from natscope.precompute.data.datasets import Dataset

    random = np.random.default_rng(0)

    def split(each):
        labels = np.repeat(np.arange(len(classes)), each)
        rows = random.normal(size=(len(labels), 5)).astype(np.float32)
        rows[np.arange(len(labels)), labels] += 3
        return Table(rows, ("a", "b", "c", "d", "e")), labels

    return Dataset("flowers", classes, *split(count), *split(5))
'''
_BUILD = """
from pathlib import Path

import table
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec

spec = BuildSpec(
    name="Flowers",
    dataset="flowers",
    data=table.flowers(),
    model=ModelSpec("mlp", (5, 8, 3)),
    training=TrainingSpec(epochs=20),
    sketch=SketchSpec(dim=16),
)
print(build(spec, Path("bundle")).manifest.results["test_accuracy"])
"""
_ASK = """
import numpy as np
import natscope
from natscope.precompute.training.retrain import retrain

explainer = natscope.open("bundle")
bundle = explainer.bundle
answer = explainer.explain([0.1, 3.0, 0.2, 0.3, 0.4], budget=5)
assert answer.classes[answer.attribution.target] == "tulip", answer
assert all(item.label == 1 for item in answer.items)
assert "ns-row" in answer._repr_html_()
assert "a 0.10" in answer._repr_html_()
model = retrain(bundle, np.array([], dtype=np.int64))
weights = bundle.weights()
assert all(np.array_equal(weights[name], value.numpy()) for name, value in model.state_dict().items())
for wrong in ([1.0], "tulip"):
    try:
        explainer.explain(wrong)
    except natscope.NatscopeError as error:
        print(error)
"""
_PAGE = """
from streamlit.testing.v1 import AppTest

page = AppTest.from_string("from natscope.app.main import EARLIER; EARLIER['{page}']()", default_timeout=60)
page.query_params.update({{"q": "test:0"}})
page = page.run()
assert not page.exception, page.exception
print(" ".join(str(element.value) for element in [*page.markdown, *page.caption, *page.subheader, *page.get("html")]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python with the modality installed, in a folder of its own; return what is printed."""
    entries = (
        "[natscope.modalities]\ntable = table\n[natscope.pages]\ntable = table:PAGE\n"
        "[natscope.looks]\ntable = table:LOOK\n"
    )
    return with_package(tmp_path_factory, "table", _TABLE, entries, timeout=300)


@pytest.fixture(scope="module")
def built(run):
    """Build a bundle of rows; return the test accuracy."""
    return float(run("-c", _BUILD))


def test_a_network_is_trained_on_it(built):
    assert built > 0.8


def test_python_asks_about_it_and_trains_again(run, built):
    said = run("-c", _ASK)
    assert "A row has 5 numbers." in said


def test_commands_verify_and_rank(run, built):
    assert "is whole" in run("-m", "natscope.app.cli", "verify", "--bundle", "bundle")
    for method in ("info_loss", "info_gain", "repsim", "graddot", "trak"):
        asked = ("attribute", "--bundle", "bundle", "--test-index", "7", "--method", method, "--budget", "4", "--json")
        record = json.loads(run("-m", "natscope.app.cli", *asked))
        assert [item["label"] for item in record["items"]] == [record["target"]] * 4


@pytest.mark.parametrize("page", ["attribute", "compare"])
def test_pages_show_it(run, built, page):
    reported = run("-c", _PAGE.format(page=page))
    assert "ns-row" in reported
    said = re.sub(r"<style>.*?</style>|<[^>]*>", " ", reported, flags=re.DOTALL)
    found = re.search(r"\bimages?\b", said)
    assert found is None, said[max(0, found.start() - 80) :][:160]
