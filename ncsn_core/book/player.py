"""Frames behind a slider, with a button that plays them: no kernel, and no script of others."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, display
from PIL import Image

from ncsn_core.book import figures

SCALE, COLORS = 1.25, 64  # of a drawn frame, because many make a page heavy
BOX = "const box = this.closest('.ncsn-player'), input = box.querySelector('input');"
MOVE = (
    "const images = box.querySelectorAll('img'), label = images[this.value].dataset.label;"
    "images.forEach((image, i) => image.hidden = i != this.value);"
    "box.querySelector('output').textContent = label;"
    "this.setAttribute('aria-valuetext', label);"
    "if (event && box.timer) box.querySelector('button').click();"  # moved by hand: pause
)
PLAY = (
    "const step = () => { const place = box.getBoundingClientRect();"
    "if (!document.hidden && place.bottom > 0 && place.top < innerHeight)"
    "{ input.value = (+input.value + 1) % (+input.max + 1); input.oninput(); }"
    "box.timer = setTimeout(step, input.value == input.max ? HOLD : INTERVAL); };"
    "box.timer = clearTimeout(box.timer);"
    "if (this.textContent == 'Play') { this.textContent = 'Pause'; step(); }"
    "else this.textContent = 'Play';"
)
START = (
    "if (!matchMedia('(prefers-reduced-motion: reduce)').matches)"
    " this.closest('.ncsn-player').querySelector('button').click()"
)


def player_html(
    frames: Sequence[Any],
    labels: Sequence[str],
    *,
    name: str,
    alt: str,
    interval_ms: int | None = None,
    hold_ms: int = 1500,
    enlarge: int = 1,
    start: int = -1,
) -> str:
    """Return frames behind a slider as HTML that stands alone; without scripts one frame stays.

    Args:
        frames: PNG from `drawn`, or arrays or tensors [H, W] (gray) or [H, W, 3]: uint8, or
            floats from 0 to 1, as those of `figures.mosaic`.
        labels: one for each frame, shown beside the slider and read out.
        name: what is moved, such as "noise level".
        alt: what the pictures show; the label of the frame is added.
        interval_ms: how long each frame is played; None: there is nothing to play.
        hold_ms: how long the last frame is. It plays while it is seen, from the beginning on
            unless the reader prefers less motion, and pauses at a button.
        enlarge: pixels of the page for one of an array, in both directions.
        start: the frame that is shown first.

    Raises:
        ValueError: without frames, for another number of labels, or another array.
    """
    if len(frames) == 0 or len(labels) != len(frames):
        raise ValueError(f"{len(frames)} frames need as many labels, and have {len(labels)}")
    start, pictures, button = range(len(frames))[start], "", ""
    if interval_ms is not None:
        play = PLAY.replace("INTERVAL", str(interval_ms)).replace("HOLD", str(hold_ms))
        button = f'<button type="button" onclick="{html.escape(BOX + play)}">Play</button>'
    for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        begin = f' onload="{html.escape(START)}"' if button and i == start else ""
        pictures += (
            f"<img {_picture(frame, enlarge)} "
            f'data-label="{html.escape(label)}" alt="{html.escape(f"{alt} {label}.")}"'
            f"{begin}{'' if i == start else ' hidden'}>"
        )
    return (
        f'<div class="ncsn-player"><div>{button}<label>{html.escape(name)}: '
        f'<output aria-live="off">{html.escape(labels[start])}</output> '
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{start}" '
        f'aria-valuetext="{html.escape(labels[start])}" '
        f'oninput="{html.escape(BOX + MOVE)}"></label></div>{pictures}</div>'
    )


def show(frames: Sequence[Any], labels: Sequence[str], **options: Any) -> None:
    """Display a player in a notebook; the arguments are those of `player_html`."""
    display(HTML(player_html(frames, labels, **options)))


def drawn(
    draw: Callable[[Any, int], Any],
    count: int,
    rows: int = 1,
    columns: int = 1,
    height: float | None = None,
    **options: Any,
) -> list[bytes]:
    """Return PNG frames for a player: what `draw(axes, i)` draws for each i below `count`.

    The axes are empty for each frame, and from `figures.subplots`, which takes the other arguments.
    They stay where the first frame needs them; give them limits that do not change.
    """
    figure, axes = figures.subplots(rows, columns, height, **options)
    frames = []
    for i in range(count):
        for ax in figure.axes:
            ax.clear()
        draw(axes, i)
        if i == 0:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        frames.append(figures.png(figure, SCALE, COLORS))
    plt.close(figure)
    return frames


def _picture(frame: Any, enlarge: int) -> str:
    """The attributes of an image: its data, and its size on the page."""
    if isinstance(frame, bytes):
        look, size = "", [round(side / SCALE) for side in Image.open(io.BytesIO(frame)).size]
    else:
        array = np.asarray(frame.detach().cpu() if hasattr(frame, "detach") else frame)
        if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
            array = (255 * array).round().astype(np.uint8)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise ValueError(
                "a frame is [H, W] or [H, W, 3], uint8 or floats from 0 to 1, "
                f"not {array.dtype} {list(array.shape)}"
            )
        file = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(array))
        picture.save(file, format="PNG", optimize=True)
        look, frame = 'class="pixelated" ', file.getvalue()
        size = [enlarge * side for side in picture.size]
    data = base64.b64encode(frame).decode()
    return f'{look}src="data:image/png;base64,{data}" width="{size[0]}" height="{size[1]}"'
