"""Moving pictures as animated PNG: no plugin, no script, and a still where motion is not shown."""

import base64
import io
from typing import Any, Literal

import numpy as np
from PIL import Image


def animated_png(
    frames: Any,
    duration_ms: int = 80,
    hold_last_ms: int = 1500,
    levels_of_grey: int | None = None,
    enlarge: int = 1,
    poster: Literal["first", "last"] = "last",
) -> bytes:
    """Return frames as the bytes of an animated PNG that plays for ever.

    `frames` is a uint8 tensor or array [T, H, W] (grey) or [T, H, W, 3]. Each is shown for
    `duration_ms`, the last one for `hold_last_ms`. Viewers that do not play show the `poster`
    frame. `levels_of_grey` rounds every value to that many levels, which makes noisy frames
    smaller; `enlarge` repeats every pixel so many times in both directions.

    Raises `ValueError` for another shape or type, or a setting out of range.
    """
    array = np.asarray(frames.detach().cpu() if hasattr(frames, "detach") else frames)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[3:] not in ((), (3,)):
        raise ValueError(
            "frames must be uint8 of the shape [T, H, W] or [T, H, W, 3], "
            f"not {array.dtype} {list(array.shape)}"
        )
    if array.size == 0:
        raise ValueError("there are no frames to animate")
    if duration_ms < 1 or hold_last_ms < 1 or enlarge < 1:
        raise ValueError("duration_ms, hold_last_ms and enlarge must be at least 1")
    if levels_of_grey is not None:
        array = _round_to_levels(array, levels_of_grey)
    array = array.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    height, width = array.shape[1:3]
    strip = Image.fromarray(np.ascontiguousarray(array.reshape(-1, *array.shape[2:])))
    if strip.mode == "RGB" and strip.getcolors(256):
        strip = strip.quantize(256)  # the same colors in a palette: fewer bytes
    pictures = [strip.crop((0, y, width, y + height)) for y in range(0, strip.height, height)]
    still = pictures[0] if poster == "first" else pictures[-1]
    file = io.BytesIO()
    still.save(
        file,
        format="PNG",
        save_all=True,
        default_image=True,
        append_images=pictures,
        duration=[duration_ms] * (len(pictures) - 1) + [hold_last_ms],
        loop=0,
        optimize=True,
    )
    return file.getvalue()


def _round_to_levels(array: np.ndarray, levels: int) -> np.ndarray:
    if not 2 <= levels <= 256:
        raise ValueError(f"levels_of_grey must lie between 2 and 256, not {levels}")
    steps = np.rint(array / 255 * (levels - 1))
    return np.rint(steps / (levels - 1) * 255).astype(np.uint8)


def show(picture: bytes, alt: str, width: int | None = None) -> None:
    """Display an animated PNG in a notebook.

    `alt` says in words what moves; it is shown where pictures are not. `width` is in pixels of
    the screen. On the book's pages the alternative text comes from the metadata of the cell.
    """
    from IPython.display import display

    metadata: dict[str, Any] = {"alt": alt}
    if width is not None:
        metadata["width"] = width
    data = {"image/png": base64.b64encode(picture).decode(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": metadata})
