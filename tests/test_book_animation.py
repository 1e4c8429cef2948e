"""Pictures of the book: animated PNG, grids of images and the style of figures."""

import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image, ImageSequence

from ncsn_core.book import animation, style

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 6, 8), dtype=np.uint8)


def played(picture):
    """Return the frames of an animated PNG and how long each is shown; without the poster."""
    image = Image.open(io.BytesIO(picture))
    mode = "L" if image.mode == "L" else "RGB"
    frames = [
        (np.array(frame.convert(mode)), frame.info.get("duration"))
        for frame in ImageSequence.Iterator(image)
    ]
    return frames[1:] if image.default_image else frames


# --- animated PNG -------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [FRAMES, np.stack([FRAMES] * 3, axis=-1)])
def test_every_frame_is_played_exactly_and_the_last_is_held(frames):
    result = played(animation.animated_png(frames, duration_ms=50, hold_last_ms=900))
    assert [duration for _, duration in result] == [50, 50, 50, 900]
    for (frame, _), expected in zip(result, frames, strict=True):
        np.testing.assert_array_equal(frame, expected)


def test_few_colors_are_stored_in_a_palette_and_many_as_they_are():
    few = np.stack([FRAMES, 255 - FRAMES, FRAMES], axis=-1)
    assert Image.open(io.BytesIO(animation.animated_png(few))).mode == "P"
    many = np.random.default_rng(2).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    picture = animation.animated_png(many)
    assert Image.open(io.BytesIO(picture)).mode == "RGB"
    np.testing.assert_array_equal(np.stack([frame for frame, _ in played(picture)]), many)


@pytest.mark.parametrize(("poster", "index"), [("last", -1), ("first", 0)])
def test_viewers_without_animation_show_the_poster(poster, index):
    picture = animation.animated_png(FRAMES, poster=poster)
    still = Image.open(io.BytesIO(picture))
    assert still.default_image
    np.testing.assert_array_equal(np.array(still), FRAMES[index])


def test_it_loops_for_ever():
    assert Image.open(io.BytesIO(animation.animated_png(FRAMES))).info["loop"] == 0


def test_fewer_levels_round_to_the_nearest_and_make_a_smaller_file():
    noise = np.random.default_rng(1).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    coarse = animation.animated_png(noise, levels_of_grey=5)
    levels = np.unique([frame for frame, _ in played(coarse)])
    np.testing.assert_array_equal(levels, [0, 64, 128, 191, 255])
    assert np.abs(played(coarse)[0][0].astype(int) - noise[0]).max() <= 32
    assert len(coarse) < 0.6 * len(animation.animated_png(noise))


def test_enlarging_repeats_pixels():
    (frame, _), *_ = played(animation.animated_png(FRAMES, enlarge=3))
    np.testing.assert_array_equal(frame, FRAMES[0].repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (FRAMES / 255, {}, r"must be uint8 .* not float64 \[4, 6, 8\]"),
        (FRAMES[0], {}, r"not uint8 \[6, 8\]"),
        (FRAMES[..., None], {}, r"not uint8 \[4, 6, 8, 1\]"),
        (FRAMES[:0], {}, "no frames"),
        (FRAMES, {"duration_ms": 0}, "at least 1"),
        (FRAMES, {"levels_of_grey": 1}, "between 2 and 256, not 1"),
    ],
)
def test_other_frames_and_settings_are_refused(frames, options, message):
    with pytest.raises(ValueError, match=message):
        animation.animated_png(frames, **options)


def test_showing_gives_the_picture_its_words_and_its_width(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append((data, how)))
    animation.show(animation.animated_png(FRAMES), alt="Noise becomes a digit.", width=224)
    ((data, how),) = shown
    assert data["text/plain"] == "Noise becomes a digit."
    assert data["image/png"].startswith("iVBORw0KGgo")
    assert how == {
        "raw": True,
        "metadata": {"image/png": {"alt": "Noise becomes a digit.", "width": 224}},
    }


def test_a_picture_without_a_width_is_as_wide_as_its_pixels(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append(how))
    animation.show(animation.animated_png(FRAMES), alt="Noise.")
    assert shown == [{"raw": True, "metadata": {"image/png": {"alt": "Noise."}}}]


# --- grids of images ----------------------------------------------------------------------------


def test_a_mosaic_puts_images_in_rows_on_white():
    images = np.zeros((3, 2, 2))
    canvas = style.mosaic(images, columns=2, gap=1)
    expected = np.ones((5, 5))
    expected[:2, :2] = expected[:2, 3:] = expected[3:, :2] = 0
    np.testing.assert_array_equal(canvas, expected)


def test_grey_and_color_integers_and_floats_are_the_same_picture():
    integers = np.array([[[0, 51], [102, 255]]], dtype=np.uint8)
    grey = style.mosaic(integers)
    np.testing.assert_allclose(grey, [[0, 0.2], [0.4, 1]])
    np.testing.assert_allclose(style.mosaic(integers[:, None] / 255), grey)
    color = style.mosaic(np.repeat(integers[:, None], 3, axis=1))
    assert color.shape == (2, 2, 3)
    np.testing.assert_allclose(color[..., 1], grey)


def test_values_outside_the_unit_interval_are_clipped():
    np.testing.assert_array_equal(style.mosaic(np.array([[[-0.5, 1.5]]])), [[0, 1]])


def test_the_number_of_columns_makes_a_square_by_default():
    assert style.mosaic(np.zeros((9, 4, 4)), gap=0).shape == (12, 12)
    assert style.mosaic(np.zeros((10, 4, 4)), gap=0).shape == (12, 16)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 2)), {}, r"not \[2, 2\]"),
        (np.zeros((1, 2, 4, 4)), {}, r"one or three channels, not \[1, 2, 4, 4\]"),
        (np.zeros((0, 4, 4)), {}, "no images"),
        (np.full((1, 2, 2), np.nan), {}, "NaN or infinity"),
        (np.zeros((1, 2, 2)), {"columns": 0}, "columns must be at least 1"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        style.mosaic(images, **options)


@pytest.fixture
def figures():
    with mpl.rc_context():
        style.use()
        yield
        plt.close("all")


def test_a_grid_shows_every_pixel_of_an_image_at_the_scale_asked_for(figures):
    ax = style.image_grid(np.zeros((4, 28, 28)), columns=2, scale=3)
    figure = ax.get_figure()
    np.testing.assert_allclose(figure.get_size_inches() * figure.dpi, [58 * 3, 58 * 3])


@pytest.mark.parametrize(("titles", "rows"), [(["a", "b"], {0}), (["a", "b", "c", "d"], {0, 1})])
def test_titles_stand_above_the_columns_or_above_every_image(figures, titles, rows):
    ax = style.image_grid(np.zeros((4, 28, 28)), columns=2, titles=titles)
    assert [text.get_text() for text in ax.texts] == titles
    heights = sorted({text.get_position()[1] for text in ax.texts})
    assert len(heights) == len(rows)


def test_a_wrong_number_of_titles_is_refused(figures):
    with pytest.raises(ValueError, match=r"per image \(4\) or per column \(2\), not 3"):
        style.image_grid(np.zeros((4, 28, 28)), columns=2, titles=["a", "b", "c"])


def test_figures_are_opaque_and_small(figures):
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert len(file.getvalue()) < 60_000
    pixels = np.array(Image.open(file).convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert pixels[0, 0].tolist() == [255, 255, 255, 255]


def test_the_first_colors_of_the_palette_differ_in_lightness_without_red_and_green(figures):
    """Under deuteranopia red and green collapse: the colors still differ pairwise."""
    simulate = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    colors = [simulate @ np.array(mpl.colors.to_rgb(c)) for c in list(style.COLORS.values())[:6]]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colors) for b in colors[:i]]
    assert min(distances) > 0.15
