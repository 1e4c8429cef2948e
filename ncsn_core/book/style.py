"""How figures look: one palette, one size, and grids of images."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes

COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
    "yellow": "#F0E442",
}
"""The palette of Okabe and Ito, which color-blind readers can tell apart."""

RC = {
    "figure.figsize": (6.5, 3.6),
    "figure.dpi": 120,
    "savefig.dpi": "figure",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "axes.facecolor": "white",
    "axes.prop_cycle": cycler(color=list(COLORS.values())),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}


def use() -> None:
    """Set matplotlib's defaults to the book's style; call it once, at the top of a chapter.

    Figures have a white ground of their own, so that they read the same on a dark page.
    """
    plt.style.use(RC)


def mosaic(images: Any, columns: int | None = None, gap: int = 2, headroom: int = 0) -> np.ndarray:
    """Lay a batch of images out in rows, on white: float array [height, width(, 3)] in [0, 1].

    `images` is a tensor or array [N, H, W] or [N, C, H, W] with C of 1 or 3; integers count from
    0 to 255, floats from 0 to 1 and are **clipped** to that range: samples leave it by their last
    noise, and a screen cannot show that. `columns` is ⌈√N⌉ unless given, `gap` the white pixels
    between two images, `headroom` the additional white pixels above each row.

    Raises `ValueError` for another shape, for no images, and for NaN or infinity.
    """
    tiles = _tiles(images)
    return _lay_out(tiles, _columns(len(tiles), columns), gap, headroom)


def _columns(count: int, columns: int | None) -> int:
    if columns is None:
        return math.ceil(math.sqrt(count))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    return min(columns, count)


def _lay_out(tiles: np.ndarray, columns: int, gap: int, headroom: int) -> np.ndarray:
    count, height, width = tiles.shape[:3]
    rows = math.ceil(count / columns)
    pitch_y, pitch_x = height + gap + headroom, width + gap
    canvas = np.ones((rows * pitch_y - gap, columns * pitch_x - gap, *tiles.shape[3:]))
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * pitch_y + headroom, (index % columns) * pitch_x
        canvas[top : top + height, left : left + width] = tile
    return canvas


def _tiles(images: Any) -> np.ndarray:
    """Return images as floats in [0, 1], shaped [N, H, W] if grey and [N, H, W, 3] if colored."""
    array = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if array.ndim == 4 and array.shape[1] in (1, 3):
        array = array[:, 0] if array.shape[1] == 1 else array.transpose(0, 2, 3, 1)
    elif array.ndim != 3:
        raise ValueError(
            "images must have the shape [N, H, W] or [N, C, H, W] with one or three channels, "
            f"not {list(array.shape)}"
        )
    if len(array) == 0:
        raise ValueError("there are no images to show: the batch is empty")
    scale = 255 if np.issubdtype(array.dtype, np.integer) else 1
    values: np.ndarray = array.astype(np.float64) / scale
    if not np.isfinite(values).all():
        raise ValueError("images hold NaN or infinity: look at the sampler before the picture")
    return values.clip(0, 1)


def image_grid(
    images: Any,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    ax: Axes | None = None,
    scale: int = 2,
    gap: int = 2,
) -> Axes:
    """Draw a batch of images as one grid in one axes; returns the axes.

    `images`, `columns` and `gap` as for `mosaic`, the clipping to [0, 1] included. `titles` holds
    one line per image, or one per column, which then stands above the first row only. Without
    `ax` a figure is made in which every pixel of an image covers `scale` pixels of the screen.

    Raises `ValueError` for a number of titles that is neither.
    """
    tiles = _tiles(images)
    count, height, width = tiles.shape[:3]
    columns = _columns(count, columns)
    titles = () if titles is None else titles
    if len(titles) not in (0, columns, count):
        raise ValueError(
            f"titles needs one line per image ({count}) or per column ({columns}), "
            f"not {len(titles)}"
        )
    headroom = math.ceil(16 / scale) if len(titles) == count else 0
    canvas = _lay_out(tiles, columns, gap, headroom)
    ax = _exact_axes(canvas.shape[1], canvas.shape[0], scale) if ax is None else ax
    ax.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    for index, title in enumerate(titles):
        x = (index % columns) * (width + gap) + width / 2
        y = (index // columns) * (height + gap + headroom) + headroom
        ax.text(x, y - 1.5, title, ha="center", va="bottom", fontsize=8)
    return ax


def _exact_axes(width: int, height: int, scale: int) -> Axes:
    """Return axes that fill a new figure, `scale` screen pixels for a pixel of the canvas."""
    inches = scale / mpl.rcParams["figure.dpi"]
    return plt.figure(figsize=(width * inches, height * inches)).add_axes((0, 0, 1, 1))
