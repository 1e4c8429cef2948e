"""Figures: ink and colors on both pages, small PNG, sizes, labels and grids of images."""

import base64
import io
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb, to_rgba
from nbclient import NotebookClient
from PIL import Image

from ncsn_core.book import figures

PAGES = [np.array(to_rgb(page)) for page in figures.GROUNDS]
# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.228], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
}
OKLAB = (
    [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]],
    [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]],
)


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        figures.use()
        yield
        plt.close("all")


def linear(color):
    color = np.asarray(color)
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def contrast(color, page):
    """Of WCAG 2, with the color laid over the page."""
    *rgb, alpha = to_rgba(color)
    mixed = alpha * np.array(rgb) + (1 - alpha) * page
    luminance = sorted(0.05 + linear(c) @ [0.2126, 0.7152, 0.0722] for c in (mixed, page))
    return luminance[1] / luminance[0]


@pytest.mark.parametrize("page", PAGES, ids=figures.GROUNDS)
def test_everything_reads_on_both_pages(page):
    assert contrast(figures.INK, page) >= 4.2
    assert contrast(figures.MUTED, page) >= 1.6
    assert min(contrast(color, page) for color in figures.COLORS.values()) >= 3


@pytest.mark.parametrize(("eyes", "least"), [("none", 0.11), *[(e, 0.09) for e in BLINDNESS][1:]])
def test_color_blind_readers_tell_the_colors_apart(eyes, least):
    colors = linear([to_rgb(color) for color in figures.COLORS.values()])
    seen = np.cbrt((colors @ np.transpose(BLINDNESS[eyes])).clip(0) @ np.transpose(OKLAB[0]))
    pairs = itertools.combinations(seen @ np.transpose(OKLAB[1]), 2)
    assert min(np.linalg.norm(a - b) for a, b in pairs) >= least


# --- PNG ----------------------------------------------------------------------------------------


def on_pages(picture):
    pages = [Image.new("RGBA", picture.size, page) for page in figures.GROUNDS]
    return [np.asarray(Image.alpha_composite(p, picture.convert("RGBA"))) for p in pages]


def test_a_figure_is_transparent_with_a_palette_that_nobody_sees():
    figure, (left, right) = figures.subplots(1, 2)
    x = np.linspace(-3, 3, 100)
    left.imshow(np.exp(-(x[:, None] ** 2) - x**2), cmap=figures.fade(figures.COLORS["blue"]))
    for shift in range(4):
        right.fill_between(x, np.sin(x + shift), shift, alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, dpi=200)
    full = Image.open(file)
    small = figures.small_png(full)
    shown = Image.open(io.BytesIO(small))
    assert (shown.mode, shown.size) == ("P", (1400, 600))
    assert len(small) < len(file.getvalue()) / 2
    assert shown.convert("RGBA").getpixel((0, 0))[3] == 0
    for few, many in zip(on_pages(shown), on_pages(full), strict=True):
        tint = few.astype(float) - many
        means = tint.reshape(150, 4, 350, 4, 4).mean((1, 3))
        assert 0 < np.abs(means).max() <= figures.MOST_TINT


def test_a_map_fades_to_nothing_at_its_lower_end_or_in_its_middle():
    one, two = figures.fade("#102030"), figures.fade("#102030", "#405060")
    assert one([0.0, 1.0])[:, 3].tolist() == [0, 1]
    assert two([0.0, 0.5, 1.0])[:, 3] == pytest.approx([1, 0, 1], abs=0.01)
    assert two(0.25)[:3] == to_rgb("#102030")


def test_few_colors_stay_and_too_many_keep_theirs():
    random = np.random.default_rng(0)
    many = random.integers(0, 256, (64, 64, 4), dtype=np.uint8)
    few = many.reshape(-1, 4)[random.integers(0, 256, (64, 64))]
    for pixels, mode in ((few, "P"), (many.repeat(4, 0).repeat(4, 1), "RGBA")):
        picture = Image.open(io.BytesIO(figures.small_png(Image.fromarray(pixels))))
        assert picture.mode == mode
        np.testing.assert_array_equal(picture.convert("RGBA"), pixels)


@pytest.mark.slow
def test_a_notebook_shows_figures_at_half_their_pixels(tmp_path):
    source = (
        "import matplotlib.pyplot as plt\nfrom ncsn_core.book import figures\nfigures.use()\n"
        "figures.subplots(height=2)[1].plot([0, 1])\nplt.show()"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output.metadata["image/png"] == {"width": 520, "height": 200}
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert (picture.size, picture.mode) == ((1040, 400), "P")


# --- Parts of figures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "size"),
    [((1, 1), (5.2, 3.2)), ((2, 1), (5.2, 6.4)), ((1, 2), (7, 3)), ((2, 2), (7, 6))],
)
def test_sizes_come_from_the_panels(grid, size):
    figure, _ = figures.subplots(*grid)
    assert tuple(figure.get_size_inches()) == size


@pytest.mark.parametrize("dpi", [100, 200])
def test_labels_stand_at_the_ends_and_do_not_overlap(dpi):
    figure, ax = figures.subplots()
    lines = [ax.plot([1, 10], [1, end])[0] for end in (5, 5.01, 5.02, 50)]
    labels = [figures.label(line, f"{i}\ntwo") for i, line in enumerate(lines)]
    ax.set(xscale="log", yscale="log")
    figure.set_dpi(dpi)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
    assert all(ax.bbox.x0 + ax.bbox.width * 0.9 < box.x0 for box in boxes)
    assert max(box.x1 for box in boxes) <= figure.bbox.x1  # the layout makes room
    end = ax.transData.transform((10, 50))[1]
    assert (boxes[3].y0 + boxes[3].y1) / 2 == pytest.approx(end, abs=2 * dpi / 100)
    assert labels[1].get_color() == lines[1].get_color()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_label_of_a_vertical_line_stands_above_it(scale):
    figure, ax = figures.subplots()
    ax.set(xscale=scale, xlim=(0.1, 1))
    text = figures.label(ax.axvline(0.5), "half", at="top")
    figure.draw_without_rendering()
    box, x = text.get_window_extent(), ax.transData.transform((0.5, 0))[0]
    assert ax.bbox.y1 < box.y0 < box.y1 <= figure.bbox.y1  # the layout makes room
    assert (box.x0 + box.x1) / 2 == pytest.approx(x, abs=1)


def test_a_band_holds_all_runs_around_their_mean():
    _, ax = figures.subplots()
    runs = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])
    line = figures.band(ax, [0, 1], runs, fmt="o-", color="C1")
    assert line.get_ydata().tolist() == [3, 2]
    corners = ax.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (1, 5)


def test_arrows_have_a_key_in_their_own_scale():
    figure, ax = figures.subplots()
    figures.plane(ax, 2.0)
    points = torch.cartesian_prod(*[torch.linspace(-1, 1, 3)] * 2)
    arrows = figures.quiver(ax, points, 4 * torch.ones(9, 2), key=2.0, scale=5.0)
    figure.draw_without_rendering()
    (key,) = [child for child in ax.get_children() if isinstance(child, mpl.quiver.QuiverKey)]
    assert key.text.get_text() == "2"
    assert arrows.scale == 5
    np.testing.assert_allclose(key.X, 1 - 2 / 5 / 4)  # it ends at the right edge


# --- Grids of images ----------------------------------------------------------------------------


def test_a_mosaic_puts_images_in_rows_in_a_lattice():
    canvas = figures.mosaic(np.zeros((3, 2, 2)), columns=2)
    expected = np.full((7, 7), 123 / 255)
    expected[1:3, 1:3] = expected[1:3, 4:6] = expected[4:6, 1:3] = 0
    np.testing.assert_array_equal(canvas, expected)


def test_gray_and_color_integers_and_clipped_floats_are_the_same_picture():
    integers = np.array([[[0, 51], [102, 255]]], dtype=np.uint8)
    gray = figures.mosaic(integers, gap=0)
    np.testing.assert_allclose(gray, [[0, 0.2], [0.4, 1]])
    floats = np.array([[[[-0.5, 0.2], [0.4, 1.5]]]])
    np.testing.assert_allclose(figures.mosaic(torch.from_numpy(floats), gap=0), gray)
    color = figures.mosaic(np.repeat(integers[:, None], 3, axis=1), gap=0)
    np.testing.assert_allclose(color, np.stack([gray] * 3, axis=-1))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 2)), {}, r"not \[2, 2\]"),
        (np.zeros((1, 2, 4, 4)), {}, r"one or three channels, not \[1, 2, 4, 4\]"),
        (np.zeros((0, 4, 4)), {}, "no images"),
        (np.full((1, 2, 2), np.nan), {}, "NaN or infinity"),
        (np.zeros((1, 2, 2)), {"columns": 0}, "columns must be at least 1"),
        (np.zeros((4, 2, 2)), {"titles": ["a"] * 3}, r"image \(4\) or per column \(2\), not 3"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, options, message):
    with pytest.raises(ValueError, match=message):
        figures.image_grid(images, **options)


def test_images_are_framed_on_nothing_at_their_scale():
    ax = figures.image_grid(np.zeros((4, 28, 28)), columns=2)
    picture = Image.open(io.BytesIO(figures.png(ax.get_figure()))).convert("RGBA")
    assert picture.size == (2 * 2 * 62, 2 * 2 * 62)
    pixels = np.asarray(picture)
    assert pixels[124, 124, 3] == 0  # between the images
    assert pixels[60, 60].tolist() == [0, 0, 0, 255]
    assert pixels[60, 7:10, 0].max() > 50  # the frame


@pytest.mark.parametrize(("titles", "rows"), [(["a", "b"], 1), (["a", "b", "c", "d"], 2)])
def test_titles_stand_above_the_columns_or_above_every_image(titles, rows):
    ax = figures.image_grid(np.zeros((4, 28, 28)), columns=2, titles=titles)
    figure = ax.get_figure()
    figure.draw_without_rendering()
    assert [text.get_text() for text in ax.texts] == titles
    assert len({text.get_position()[1] for text in ax.texts}) == rows
    assert all(text.get_window_extent().y1 <= figure.bbox.y1 for text in ax.texts)
