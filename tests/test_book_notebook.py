"""What is stored of an executed notebook: its pictures in fewer bytes."""

import base64
import io

import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from ncsn_core.book.animation import animated_png
from ncsn_core.book.notebook import smaller_png, without_traces


def png(array, **options):
    """A picture as matplotlib stores it: with an alpha channel, if it has three or four."""
    picture = Image.fromarray(np.asarray(array, dtype=np.uint8))
    file = io.BytesIO()
    (picture if picture.mode == "L" else picture.convert("RGBA")).save(file, "PNG", **options)
    return file.getvalue()


def pixels(raw):
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).astype(int)


def of_colors(count, seed=0):
    """A picture of exactly so many colors, spread over the whole cube."""
    random = np.random.default_rng(seed)
    colors = random.permutation(2**24)[:count, None] >> np.array([16, 8, 0]) & 255
    return colors[random.permutation(np.arange(96 * 96) % count)].reshape(96, 96, 3)


def smooth():
    """A photo-like picture: thousands of colors that change slowly, under a little noise."""
    y, x = np.mgrid[0:1:160j, 0:1:160j]
    waves = [0.5 + 0.1 * np.sin(3 * x + 2 * y), 0.3 + 0.4 * x, 0.3 + 0.1 * x * y]
    noise = np.random.default_rng(0).integers(-2, 3, (160, 160, 3))
    return np.stack(waves, axis=-1) * 255 + noise


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 17, 255, 256])
def test_pictures_of_up_to_256_colors_become_smaller_and_stay_the_same(count):
    raw = png(of_colors(count), dpi=(120, 120))
    small = smaller_png(raw)
    assert len(small) < len(raw)
    with Image.open(io.BytesIO(small)) as picture:
        assert picture.mode == "P"
        assert picture.info["dpi"] == pytest.approx((120, 120), abs=0.1)
    assert np.array_equal(pixels(small), pixels(raw))
    assert smaller_png(small) == small


def test_a_smooth_picture_gets_a_palette_that_is_not_seen():
    raw = png(smooth())
    small = smaller_png(raw)
    assert Image.open(io.BytesIO(small)).mode == "P"
    error = np.abs(pixels(small) - pixels(raw))
    assert 0 < error.max() <= 12
    assert error.mean() < 2
    assert len(small) < len(raw) / 2


@pytest.mark.slow
def test_a_picture_that_a_palette_would_change_visibly_keeps_its_colors():
    raw = png(of_colors(96 * 96).repeat(4, axis=0).repeat(4, axis=1))
    small = smaller_png(raw)
    assert Image.open(io.BytesIO(small)).mode == "RGB"
    assert np.array_equal(pixels(small), pixels(raw))
    assert len(small) < len(raw)


@pytest.mark.parametrize(
    "raw",
    [
        png(np.random.default_rng(0).integers(0, 256, (2, 2, 3)), optimize=True),
        png(np.dstack([smooth(), np.full((160, 160), 254)])),
        png(np.arange(256).reshape(16, 16)),
        animated_png(np.stack([of_colors(9), of_colors(7)]).astype(np.uint8)),
    ],
    ids=["not smaller", "transparent", "gray", "moving"],
)
def test_other_pictures_are_left_alone(raw):
    assert smaller_png(raw) == raw


def test_only_the_pictures_of_a_notebook_become_smaller():
    picture, gif = (base64.b64encode(raw).decode() for raw in (png(of_colors(9)), b"GIF89a"))
    data = {"image/png": picture, "image/gif": gif, "text/plain": "<Figure>"}
    shown = new_output("display_data", data, metadata={"image/png": {"width": 96}})
    cell = new_code_cell("plt.show()", outputs=[new_output("stream", text="1\n"), shown])
    executed = new_notebook(cells=[cell])
    printed, figure = without_traces(executed).cells[0].outputs
    assert printed == cell.outputs[0]
    small = base64.b64decode(figure.data.pop("image/png"))
    assert small == smaller_png(base64.b64decode(picture)) != base64.b64decode(picture)
    assert figure.data == {"image/gif": gif, "text/plain": "<Figure>"}
    assert figure.metadata == shown.metadata
    assert cell.outputs[1].data["image/png"] == picture  # what was executed stays as it is
