"""How figures look: ink and colors that read on a light and on a dark page, sizes, small PNG."""

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation
from PIL import Image, ImageChops

INK = "#7b7b7b"
"""Text, axes and reference lines: a contrast of 4.2 to a white page, and to the dark one."""

MUTED, SHADE = INK + "73", INK + "2a"
"""Ink thinned for the grid and helping lines, and for areas."""

COLORS = {
    "blue": "#146fd1",
    "orange": "#c97800",
    "green": "#4aa070",
    "vermilion": "#c43c0a",
    "purple": "#db6bb8",
    "sky": "#0095ff",
}
"""After Okabe and Ito: a contrast of 3 to both pages, and color-blind readers tell them apart."""

GROUNDS = "#ffffff", "#14181e"
MOST_TINT = 12  # of 255, that a palette may change the mean of 4 × 4 pixels; more is seen as bands
WIDTHS = 5.2, 7.0  # inches of 100 pixels on the page: one column of panels, and more

RC = {
    "figure.figsize": (WIDTHS[0], 3.2),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=list(COLORS.values())),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "grid.color": MUTED,
    "grid.linewidth": 0.5,
    "font.size": 9,  # points: 12.5 pixels, and 8.6 on a phone
    "legend.fontsize": "medium",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "patch.edgecolor"), INK),
}


def use() -> None:
    """Set matplotlib's defaults, and how a notebook shows figures; call it once, at its top.

    Figures are transparent PNG of twice the pixels that they take on the page.
    """
    plt.style.use(RC)
    shell = get_ipython()
    if shell is not None:
        plt.switch_backend(plt.get_backend())  # loading it later would put its own formatter back
        shell.display_formatter.formatters["image/png"].for_type(Figure, _shown)


def _shown(figure: Figure) -> tuple[bytes, dict[str, int]]:
    width, height = (figure.get_size_inches() * figure.dpi).round().astype(int).tolist()
    return png(figure), {"width": width, "height": height}


def png(figure: Figure, scale: float = 2, colors: int = 256) -> bytes:
    """The figure as PNG, `scale` pixels for one of the page, with a palette if nobody sees it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=scale * figure.dpi, pil_kwargs={"compress_level": 1})
    with Image.open(file) as picture:
        return small_png(picture.convert("RGBA"), colors)


def small_png(picture: Image.Image, colors: int = 256) -> bytes:
    """An RGBA picture as PNG: with a palette of so many colors if nobody can see that.

    Pictures of at most that many colors stay the same to the pixel.
    """
    few = _with_palette(picture, colors)
    tints = [
        np.asarray(ImageChops.difference(_over(picture, ground), _over(few, ground))).max()
        for ground in GROUNDS
    ]
    file = io.BytesIO()
    (few if max(tints) <= MOST_TINT else picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def _over(picture: Image.Image, ground: str) -> Image.Image:
    page = Image.new("RGBA", picture.size, ground)
    return Image.alpha_composite(page, picture.convert("RGBA")).convert("RGB").reduce(4)


def _with_palette(picture: Image.Image, most: int) -> Image.Image:
    """Reduce the colors by k-means, from some that are frequent and far from each other."""
    pixels = np.ascontiguousarray(picture).view(np.uint32).ravel()
    counted: Any = picture.getcolors(len(pixels))  # far faster than np.unique
    count, palette = np.array([n for n, _ in counted]), np.array([c for _, c in counted], np.uint8)
    order = np.argsort(palette.view(np.uint32).ravel())
    count, palette, nearest = count[order], palette[order], np.arange(len(order))
    place = np.searchsorted(palette.view(np.uint32).ravel(), pixels)
    if len(count) > most:
        colors, alpha = np.split(palette.astype(np.float32), [3], axis=1)
        points, weight = np.hstack([colors * alpha / 255, alpha]), count**0.5
        first, distance = [int(count.argmax())], np.full(len(points), np.inf)
        while len(first) < most:
            distance = np.minimum(distance, ((points - points[first[-1]]) ** 2).sum(1))
            first.append(int((distance * weight).argmax()))
        centers = points[first]
        for _ in range(5):
            nearest = ((centers**2).sum(1) - 2 * points @ centers.T).argmin(1)
            sums = [np.bincount(nearest, weight * part, most) for part in (*points.T, 1)]
            mean = np.stack(sums[:4], axis=1) / np.maximum(sums[4], 1e-9)[:, None]
            centers = np.where(sums[4][:, None] > 0, mean, centers).astype(np.float32)
        colors, alpha = np.split(centers, [3], axis=1)
        palette = np.hstack([colors * 255 / alpha.clip(min=1), alpha]).round().clip(0, 255)
    few = Image.fromarray(nearest[place].astype(np.uint8).reshape(picture.size[::-1]), "P")
    few.putpalette(palette.astype(np.uint8).tobytes(), "RGBA")
    return few


def subplots(
    rows: int = 1, columns: int = 1, height: float | None = None, **options: Any
) -> tuple[Figure, Any]:
    """`plt.subplots` in the book's sizes: 520 pixels wide with one column, else 700.

    `height` is that of the figure in inches of 100 pixels; without it panels are 3.2 inches
    high, in two columns 3.0, and square in more. `options` are those of `plt.subplots`.
    """
    width = WIDTHS[columns > 1]
    panel = {1: 3.2, 2: 3.0}.get(columns, width / columns + 0.45)
    size = (width, panel * rows if height is None else height)
    return plt.subplots(rows, columns, figsize=size, **options)


SIDES = {"left": (0, -1, -5, "right"), "right": (0, 1, 5, "left"), "top": (1, 1, 0, "center")}


class _Label(Annotation):
    """Text at an end of a line; those at the same end of an axes move apart, at every drawing."""

    def __init__(self, line: Line2D, text: str, at: str, **options: Any) -> None:
        self.line, self.at, (_, _, dx, align) = line, at, SIDES[at]
        self.panel: Any = line.axes
        look: dict[str, Any] = {"ha": align, "va": "bottom" if at == "top" else "center"}
        look |= {"color": line.get_color(), "xycoords": "figure pixels", "clip_on": False}
        look |= {"xytext": (dx, 3), "textcoords": "offset points"}
        super().__init__(text, (0, 0), **look | options)

    def end(self) -> np.ndarray:
        """The outermost point of the line within its axes, in pixels."""
        points = self.line.get_transform().transform(self.line.get_xydata())
        points = points[np.isfinite(points).all(1)]
        box = self.panel.bbox.padded(1)
        inside = points[[box.contains(*point) for point in points]]
        points = inside if len(inside) else points
        axis, sign, *_ = SIDES[self.at]
        return np.asarray(points[(sign * points[:, axis]).argmax()])

    def get_tightbbox(self, renderer: Any = None) -> Any:
        """Where the text is; `Text` asks whether its offset, too, is a place of a log scale."""
        return self.get_window_extent(renderer)

    def update_positions(self, renderer: Any) -> None:
        """Move to the end of the line, and up or down from the other labels there."""
        self.xy = tuple(self.end())
        if self.at != "top":
            labels = [t for t in self.panel.texts if isinstance(t, _Label) and t.at == self.at]
            pixel = self.panel.get_figure(root=True).dpi / 72
            lines = np.array([1 + t.get_text().count("\n") for t in labels])
            heights = 1.25 * lines * float(self.get_fontsize())
            places = np.array([label.end()[1] for label in labels]) / pixel
            moved = _apart(places, heights)[labels.index(self)]
            self.xyann = (self.xyann[0], moved - self.xy[1] / pixel)
        super().update_positions(renderer)


def _apart(places: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Move what is centered at `places` no farther than needed to leave each its height."""
    order, moved = np.argsort(places, kind="stable"), places.astype(float)
    for _ in range(200):
        for low, high in itertools.pairwise(order):
            gap = (heights[low] + heights[high]) / 2 - (moved[high] - moved[low])
            moved[low], moved[high] = moved[low] - max(gap, 0) / 2, moved[high] + max(gap, 0) / 2
    return moved


def label(line: Line2D, text: str, at: str = "right", **options: Any) -> Annotation:
    """Write `text` at the right or left end of a line in its color, instead of a legend.

    Labels at the same side of an axes move apart; `at="top"` stands above a vertical line.
    `options` are those of a text.
    """
    made = _Label(line, text, at, **options)
    made.panel.add_artist(made)
    return made


def band(
    ax: Axes,
    x: Any,
    runs: Any,
    low: Any = None,
    high: Any = None,
    *,
    fmt: str = "-",
    **options: Any,
) -> Line2D:
    """Draw a line within a band; returns the line.

    `runs` [points, runs] gives the mean and the range of the runs, [points] the line itself, with
    `low` and `high` [points]. `fmt` and `options` are those of `plot`.
    """
    center = np.asarray(runs)
    if center.ndim == 2:
        center, low, high = center.mean(1), center.min(1), center.max(1)
    (line,) = ax.plot(x, center, fmt, **options)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.22, linewidth=0)
    return line


def plane(ax: Axes, limit: float | tuple[float, float]) -> None:
    """Make an axes a part of the plane: equal scales, a thin frame, few ticks, and no grid."""
    low, high = limit if isinstance(limit, tuple) else (-limit, limit)
    ax.set(aspect="equal", xlim=(low, high), ylim=(low, high), xlabel="$x_1$", ylabel="$x_2$")
    ax.locator_params(nbins=4)
    ax.grid(False)
    ax.spines[:].set(visible=True, color=MUTED)
    if len(ax.get_shared_y_axes().get_siblings(ax)) > 1:
        ax.label_outer()


def quiver(
    ax: Axes, points: Any, vectors: Any, key: float, unit: str = "", scale: float | None = None,
    **options: Any,
) -> Quiver:  # fmt: skip
    """Draw vectors [N, 2] at points [N, 2], with a key for the length `key` above, on the right.

    An arrow of one unit of the axes is a vector of length `scale`; without it the longest arrow
    is as long as 1.3 steps of a lattice of these points. Set the limits of the axes before.
    """
    points, vectors = np.asarray(points), np.asarray(vectors)
    if scale is None:
        step = (np.ptp(points, axis=0).prod() / len(points)) ** 0.5
        scale = float(np.hypot(*vectors.T).max() / (1.3 * step))
    look: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "width": 0.006}
    look |= {"color": COLORS["blue"]} | options
    arrows = ax.quiver(*points.T, *vectors.T, scale=scale, **look)
    left, right = ax.get_xlim()
    start = 1 - key / scale / (right - left)
    ax.quiverkey(arrows, start, 1.04, key, f"{key:g}{unit}", labelpos="W", labelcolor=INK)
    ax.set_title(" ", loc="right")  # room for the key
    return arrows


def fade(*colors: str) -> LinearSegmentedColormap:
    """A color map from nothing to a color; with two, from the first over nothing to the second."""
    nothing = [color + "00" for color in colors]
    ends = [(0.0, nothing[0]), (1.0, colors[0])]
    if len(colors) == 2:
        ends = [(0.0, colors[0]), (0.5, nothing[0]), (0.5, nothing[1]), (1.0, colors[1])]
    return LinearSegmentedColormap.from_list("fade", ends)


def mosaic(images: Any, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Lay a batch of images out in rows, in a lattice of ink: floats [height, width(, 3)].

    `images` is a tensor or array [N, H, W] or [N, C, H, W] with C of 1 or 3; integers count from
    0 to 255, floats from 0 to 1 and are **clipped** to that range: samples leave it by their last
    noise, and a screen cannot show that. `columns` is ⌈√N⌉ unless given, `gap` the pixels around
    each image.

    Raises `ValueError` for another shape, for no images, and for NaN or infinity.
    """
    tiles = _tiles(images)
    places, size = _places(tiles, columns, gap, 0)
    canvas = np.full((*size, *tiles.shape[3:]), int(INK[1:3], 16) / 255)
    for tile, (top, left) in zip(tiles, places, strict=True):
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas


def _places(
    tiles: np.ndarray, columns: int | None, gap: int, headroom: int
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return top and left of each tile, and height and width of all."""
    count, height, width = tiles.shape[:3]
    columns = math.ceil(math.sqrt(count)) if columns is None else min(columns, count)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    down, right = height + gap + headroom, width + gap
    places = [
        (gap + headroom + i // columns * down, gap + i % columns * right) for i in range(count)
    ]
    return places, (gap + math.ceil(count / columns) * down, gap + columns * right)


def _tiles(images: Any) -> np.ndarray:
    """Return images as floats in [0, 1], shaped [N, H, W] if gray and [N, H, W, 3] if colored."""
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
    titles: Sequence[str] = (),
    ax: Axes | None = None,
    scale: float | None = None,
    gap: int = 2,
) -> Axes:
    """Draw a batch of images in one axes, each in a thin frame; returns the axes.

    `images`, `columns` and `gap` as for `mosaic`, the clipping to [0, 1] included. `titles` holds
    one line per image, or one per column, which then stands above the first row only. Without
    `ax` a figure is made in which a pixel of an image covers `scale` pixels of the page: a
    multiple of one half, and at most 2, that keeps it within 700 unless given.

    Raises `ValueError` for a number of titles that is neither.
    """
    tiles = _tiles(images)
    count, height, width = tiles.shape[:3]
    places, size = _places(tiles, columns, gap, 0)
    in_row = sum(top == gap for top, _ in places)
    if len(titles) not in (0, in_row, count):
        raise ValueError(
            f"titles needs one line per image ({count}) or per column ({in_row}), not {len(titles)}"
        )
    scale = scale or max(min(200 * WIDTHS[1] // size[1] / 2, 2), 0.5)
    above = math.ceil(16 / scale) if titles else 0
    if len(titles) == count:
        places, size = _places(tiles, columns, gap, above)
        above = 0
    if ax is None:
        inches = (size[1] * scale / 100, (size[0] + above) * scale / 100)
        figure = plt.figure(figsize=inches, layout="none")
        ax = figure.add_axes((0, 0, 1, size[0] / (size[0] + above)))
    canvas = np.zeros((*size, 4))
    for tile, (top, left) in zip(tiles, places, strict=True):
        area = canvas[top : top + height, left : left + width]
        area[..., :3], area[..., 3] = tile if tile.ndim == 3 else tile[..., None], 1
    ax.imshow(canvas, interpolation="nearest")
    frames = [Rectangle((left - 0.5, top - 0.5), width, height) for top, left in places]
    ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=INK, linewidth=0.6))
    ax.set_axis_off()
    for title, (top, left) in zip(titles, places, strict=False):
        ax.text(left + width / 2, top - 1.5, title, ha="center", va="bottom", fontsize="small")
    return ax
