import base64
import io
from dataclasses import replace
from itertools import combinations

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from natscope.app.figures.attribution import agreement, curve
from natscope.app.figures.chart import Axis, Bars, Heatmap, Lines, Reference, Series, line_of, marked_line
from natscope.app.figures.coreset import overlap
from natscope.app.figures.curves import lengths
from natscope.app.figures.in_files import chart_file
from natscope.app.figures.on_page import figure
from natscope.app.figures.style import FORMATS
from natscope.app.theme import DARK, LIGHT, PALETTES, ramp
from natscope.core.bundle.request import Request
from natscope.core.methods import METHODS, Method
from natscope.precompute.data import decode

# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as a person without one kind of cone sees it.
_SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_NAMES = ["<b>shoe</b>", "$x$ bag", "2020-01-01"]
_CHARTS = {
    "lines": Lines(
        [
            Series(_NAMES[0], [1, 10, 100], [1.0, 2.0, 3.0], [0.1, 0.0, 0.2], hover="{name}: {y:g}{spread}"),
            Series(_NAMES[1], [1, 10, 100], [3, 2, 1], [0.5] * 3, band=True, marker="diamond", large=(1,), dash="dot"),
            Series("alone", [10], [1.5]),
        ],
        Axis("Size", log=True, ticks=(1, 10, 100)),
        Axis("Nats", zero=True),
        references=[Reference(2.5, "all")],
        title=_NAMES[0],
    ),
    "bars": Bars(_NAMES, [3.0, 1.0, 0.0], Axis("Images", whole=True), ["accent"] * 3, [0.5, 0.0, 0.1], text="{x:g}"),
    "heatmap": Heatmap(_NAMES, [[np.nan, 0.2, 0.9], [0.2, np.nan, 0.5], [0.9, 0.5, np.nan]]),
    "histogram": lengths(np.random.default_rng(0).normal(1, 0.1, 200)),
}


@pytest.fixture(scope="module")
def result(attributor):
    return attributor.attribute(attributor.query("test", 3), Request("info_loss", budget=4))


def _linear(colour):
    share = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def _contrast(one, other):
    """Return the contrast of two colours by WCAG 2, 1 to 21."""
    low, high = sorted(_XYZ[1] @ _linear(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _lab(colour, seen):
    x, y, z = np.cbrt(_XYZ @ np.clip(seen @ _linear(colour), 0.01, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


_COLOURS = {method.colour for method in METHODS.values()} | {Method("own", "Own", None, "", "", "").colour}


@pytest.mark.parametrize("colour", [*sorted(_COLOURS), *ramp(6)])
def test_every_colour_is_seen_on_every_background(colour):
    for background in ("#ffffff", LIGHT.background, DARK.background):
        assert _contrast(colour, background) >= 3


@pytest.mark.parametrize("palette", PALETTES.values(), ids=PALETTES)
def test_what_is_read_on_a_page_has_the_contrast_of_text(palette):
    for colour in (palette.text, palette.muted, palette.link, palette.accent):
        assert _contrast(colour, palette.background) >= 4.5


@pytest.mark.parametrize("sight", _SEEN)
def test_the_colours_of_methods_are_told_apart(sight):
    assert len(_COLOURS) == len(METHODS) + 1
    for one, other in combinations(sorted(_COLOURS), 2):
        assert np.linalg.norm(_lab(one, np.array(_SEEN[sight])) - _lab(other, np.array(_SEEN[sight]))) > 14


def test_a_method_looks_the_same_in_every_chart(result):
    bars = overlap(["repsim", "info_loss"], [0.1, 0.9])
    assert bars.names == [METHODS[name].title for name in ("info_loss", "repsim")]
    line = line_of("info_loss", [1], [1])
    marked = [marked_line(name, [1], [1]) for name in METHODS]
    assert len({each.marker for each in marked}) == len({each.colour for each in marked}) == len(METHODS)
    assert bars.colours[0] == line.colour == curve(result).series[0].colour == METHODS["info_loss"].colour


def test_the_curve_has_the_line_of_all_candidates_that_plotly_would_draw(result):
    total = 2 * result.items[-1].nats
    drawn = figure(curve(replace(result, total_nats=total)), LIGHT)
    expected = go.Figure(go.Scatter(x=[1], y=[1]))
    expected.add_hline(
        y=total,
        line={"color": LIGHT.muted, "dash": "dot"},
        annotation={"text": "all candidates", "font": {"color": LIGHT.muted}},
    )
    assert drawn.layout.shapes == expected.layout.shapes
    assert drawn.layout.annotations == expected.layout.annotations
    assert drawn.data[0].marker.size == (7, 7, 7, 7)
    assert drawn.data[0].text[1].endswith(f"training example {result.items[1].train_index}")


def test_the_curve_is_not_flattened_by_a_total_far_above_it(result):
    far = replace(result, total_nats=1e3 * result.items[-1].nats)
    for without in (far, replace(result, total_nats=None)):
        assert curve(without).references == ()


def test_a_page_shows_the_numbers_and_names_of_a_chart():
    lines, bars, squares = (figure(_CHARTS[kind], DARK) for kind in ("lines", "bars", "heatmap"))
    first, band, second, alone = lines.data
    assert first.text == tuple(f"&lt;b&gt;shoe&lt;/b&gt;: {reported}" for reported in ("1 ± 0.1", "2", "3 ± 0.2"))
    assert [trace.name for trace in lines.data if trace.showlegend] == [first.name, second.name, alone.name]
    assert band.y == (3.5, 2.5, 1.5, 0.5, 1.5, 2.5)
    assert (alone.mode, second.marker.size, lines.layout.xaxis.type) == ("markers", (7, 13, 7), "log")
    assert bars.layout.yaxis.ticktext == ("&lt;b&gt;shoe&lt;/b&gt;", "$x$ bag", "2020-01-01")
    assert bars.data[0].marker.color == (DARK.accent,) * 3
    assert (bars.data[0].x, bars.data[0].text) == ((3, 1, 0), ("3", "1", "0"))
    assert squares.data[0].text[0] == ["", "0.20", "0.90"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_chart_is_drawn_in_every_format(kind):
    data = chart_file(*_CHARTS.values(), kind=kind, columns=2, title="A & B")
    assert data.startswith({"PNG": b"\x89PNG", "SVG": b"<?xml", "PDF": b"%PDF"}[kind])


def test_a_file_of_many_methods_with_long_names_has_room_for_them():
    lines = [Series(f"{place} " + 60 * "W", [1, 2], [1, 2]) for place in range(12)]
    with Image.open(io.BytesIO(chart_file(Lines(lines, Axis("M"), Axis("Nats")), kind="PNG"))) as picture:
        assert picture.info["dpi"][0] == pytest.approx(300, abs=1)
        assert picture.height > picture.width / 2


def test_a_method_is_not_compared_with_itself():
    values = agreement(np.array([[1.0, 0.25], [0.25, 1.0]]), ["A", "B"]).values
    np.testing.assert_array_equal(values, [[np.nan, 0.25], [0.25, np.nan]])


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3), (200, 300, 3)])
def test_an_image_is_shown_as_it_is_and_a_small_one_is_encoded_once(shape):
    image = np.random.default_rng(20_261_125).integers(0, 256, shape, np.uint8)
    before = decode._thumbnail.cache_info()
    shown = [decode.data_uri(image), decode.data_uri(image.copy()), decode.data_uri(Image.fromarray(image))]
    assert len(set(shown)) == 1
    picture = Image.open(io.BytesIO(base64.b64decode(shown[0].removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(picture), image)
    after = decode._thumbnail.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == ((1, 1) if image.nbytes < 10_000 else (0, 0))
