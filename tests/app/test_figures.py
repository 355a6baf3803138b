import base64
import io
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from natscope.app.components import grid
from natscope.app.figures.attribution import curve
from natscope.core.bundle.request import Request

COLOURS = ("#0f6e84", "#6b7280")


@pytest.fixture(scope="module")
def result(attributor):
    return attributor.attribute(attributor.query("test", 3), Request("info_loss", budget=4))


def test_the_curve_has_the_line_of_all_candidates_that_plotly_would_draw(result):
    total = 2 * result.items[-1].nats
    drawn = curve(replace(result, total_nats=total), 1, colours=COLOURS)
    expected = go.Figure(go.Scatter(x=[1], y=[1]))
    expected.add_hline(
        y=total,
        line={"color": COLOURS[1], "dash": "dot"},
        annotation={"text": "all candidates", "font": {"color": COLOURS[1]}},
    )
    assert drawn.layout.shapes == expected.layout.shapes
    assert drawn.layout.annotations == expected.layout.annotations
    assert drawn.data[0].marker.size == (7, 13, 7, 7)


def test_the_curve_is_not_flattened_by_a_total_far_above_it(result):
    far = replace(result, total_nats=1e3 * result.items[-1].nats)
    for without in (far, replace(result, total_nats=None)):
        assert curve(without, None, colours=COLOURS).layout.shapes == ()


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3), (200, 300, 3)])
def test_an_image_is_shown_as_it_is_and_a_small_one_is_encoded_once(shape):
    image = np.random.default_rng(20_261_125).integers(0, 256, shape, np.uint8)
    before = grid._thumbnail.cache_info()
    shown = [grid.data_uri(image), grid.data_uri(image.copy()), grid.data_uri(Image.fromarray(image))]
    assert len(set(shown)) == 1
    picture = Image.open(io.BytesIO(base64.b64decode(shown[0].removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(picture), image)
    after = grid._thumbnail.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == ((1, 1) if image.nbytes < 10_000 else (0, 0))
