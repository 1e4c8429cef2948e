"""A slider through pictures that were made beforehand: no kernel, and no script of others."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

MOVE = (
    "const box = this.closest('.ncsn-slider'), images = box.querySelectorAll('img');"
    "const label = images[this.value].dataset.label;"
    "images.forEach((image, i) => image.hidden = i != this.value);"
    "box.querySelector('output').textContent = label;"
    "this.setAttribute('aria-valuetext', label);"
)


def slider_html(
    frames: Sequence[Any],
    labels: Sequence[str],
    *,
    name: str,
    alt: str,
    enlarge: int = 1,
    start: int = -1,
) -> str:
    """Return a slider as HTML that stands alone; without scripts the frame at `start` stays.

    Args:
        frames: uint8 arrays or tensors [H, W] (gray) or [H, W, 3].
        labels: one for each frame, shown beside the slider and read out.
        name: what is moved, such as "noise level".
        alt: what the pictures show; the label of the frame is added.
        enlarge: pixels of the screen for one of a frame, in both directions.
        start: the frame that is shown first.

    Raises:
        ValueError: without frames, or for another number of labels.
    """
    if len(frames) == 0 or len(labels) != len(frames):
        raise ValueError(f"{len(frames)} frames need as many labels, and have {len(labels)}")
    start = range(len(frames))[start]
    arrays = [_array(frame) for frame in frames]
    pictures = "".join(
        f'<img class="pixelated" src="data:image/png;base64,{_png(array)}" '
        f'width="{enlarge * array.shape[1]}" '
        f'data-label="{html.escape(label)}" alt="{html.escape(f"{alt} {label}.")}"'
        f"{'' if i == start else ' hidden'}>"
        for i, (array, label) in enumerate(zip(arrays, labels, strict=True))
    )
    return (
        f'<div class="ncsn-slider"><label>{html.escape(name)}: '
        f"<output>{html.escape(labels[start])}</output> "
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{start}" '
        f'aria-valuetext="{html.escape(labels[start])}" oninput="{html.escape(MOVE)}"></label>'
        f"{pictures}</div>"
    )


def slider(frames: Sequence[Any], labels: Sequence[str], **options: Any) -> None:
    """Display a slider in a notebook; the arguments are those of `slider_html`."""
    from IPython.display import HTML, display

    display(HTML(slider_html(frames, labels, **options)))


def _array(frame: Any) -> np.ndarray:
    array = np.asarray(frame.detach().cpu() if hasattr(frame, "detach") else frame)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"a frame is uint8 [H, W] or [H, W, 3], not {array.dtype} {array.shape}")
    return np.ascontiguousarray(array)


def _png(array: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
