"""Bundles of folders on the Attribute page: colour, class names that are no HTML, and objects on a light ground."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from natscope.app.serve import BUNDLES
from natscope.core.sketches import SketchSpec
from natscope.precompute.bundles.build import build
from natscope.precompute.bundles.spec import BuildSpec
from natscope.precompute.data.folders import FolderSpec
from natscope.precompute.training.models import ModelSpec
from natscope.precompute.training.train import TrainingSpec

_MAIN = Path(__file__).parents[2] / "app" / "main.py"
_NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bundles of a grey folder on white with an MLP, and of a colour folder with a network of one's own."""
    folder, rng = tmp_path_factory.mktemp("own_data"), np.random.default_rng(0)
    (folder / "net_of_the_page.py").write_text(_NET)
    for mode in ("grey", "colour"):
        for label, name in enumerate(("<b>*bold*</b", "$x$ & [link](x)")):
            (folder / mode / name.replace("/", "∕")).mkdir(parents=True)
            for i in range(20):
                pixels = np.full((8, 8) if mode == "grey" else (8, 8, 3), 250, np.uint8)
                pixels[2:6, 2:6] = rng.integers(0, 90, pixels[2:6, 2:6].shape) + 90 * label
                Image.fromarray(pixels).save(folder / mode / name.replace("/", "∕") / f"{i}.png")
    usual = {"training": TrainingSpec(epochs=2), "sketch": SketchSpec(dim=16), "folder": FolderSpec(8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        for mode, model in (("grey", "mlp"), ("colour", "net_of_the_page:net")):
            build(BuildSpec(mode, f"folder:{mode}", model=ModelSpec(model, None), **usual), folder / "bundles" / mode)
        yield folder
    sys.modules.pop("net_of_the_page", None)


def _open(monkeypatch, bundle, **link):
    monkeypatch.setenv(BUNDLES, str(bundle))
    page = AppTest.from_file(str(_MAIN), default_timeout=60)
    page.query_params.update({"q": "test:0"} | link)  # else it is the front page
    page.run()
    assert [error.message for error in page.exception] == []
    assert not page.error
    return page


def _upload(page, pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    page.segmented_control(key="source").set_value("image")
    page.run()
    page.file_uploader[0].set_value(("picture.png", file.getvalue(), "image/png")).run()
    assert [error.message for error in page.exception] == []
    return [caption.value for caption in page.caption]


def test_a_dark_upload_is_inverted_for_a_data_set_on_white_and_a_light_one_left(folder, monkeypatch):
    page = _open(monkeypatch, folder / "bundles" / "grey")
    light = np.full((40, 40), 255, np.uint8)
    light[10:30, 10:30] = 30
    assert "what the model sees" in _upload(page, light)
    assert "light ground" in page.radio(key="invert").help
    assert "what the model sees, inverted" in _upload(page, 255 - light)


def test_a_colour_upload_is_seen_as_it_is(folder, monkeypatch):
    page = _open(monkeypatch, folder / "bundles" / "colour")
    assert "what the model sees" in _upload(page, np.full((40, 40, 3), 255, np.uint8))
    assert not [radio for radio in page.radio if radio.key == "invert"]


def test_class_names_are_shown_as_they_are(folder, monkeypatch):
    page = _open(monkeypatch, folder / "bundles" / "colour", q="train:0")
    texts = " ".join(element.proto.body for element in page.get("html"))
    assert "<b>*bold" not in texts
    assert "&lt;b&gt;*bold*&lt;∕b" in texts


@pytest.mark.parametrize("name", ["attribute", "compare", "counterfactual", "curves", "coreset"])
def test_a_bundle_of_code_that_is_not_trusted_is_a_sentence_and_others_are_shown(folder, tmp_path, monkeypatch, name):
    for mode, place in (("grey", "good"), ("colour", "a stranger's")):
        shutil.copytree(folder / "bundles" / mode, tmp_path / place)
    manifest = tmp_path / "a stranger's" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("net_of_the_page:net", "payload:net"))
    (tmp_path / "a stranger's" / "payload.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n{_NET}")
    monkeypatch.chdir(tmp_path / "a stranger's")
    monkeypatch.setenv(BUNDLES, str(tmp_path))

    def draw(name):
        import importlib

        import streamlit as st

        from natscope.app.main import EARLIER
        from natscope.core.errors import BundleError

        try:
            (EARLIER.get(name) or importlib.import_module(f"natscope.app.views.{name}").page)()
        except BundleError as error:
            st.error(str(error))

    said = {}
    for bundle in ("a stranger's", "good"):
        page = AppTest.from_function(draw, default_timeout=60, kwargs={"name": name})
        page.query_params["bundle"] = bundle
        page.run()
        assert [error.message for error in page.exception] == []
        assert page.selectbox(key="bundle").value == bundle
        said[bundle] = [error.value for error in page.error]
    assert said["good"] == []
    assert len(said["a stranger's"]) == 1
    assert "module payload" in said["a stranger's"][0]
    assert not (tmp_path / "it ran").exists()
