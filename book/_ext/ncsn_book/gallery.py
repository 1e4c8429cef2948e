"""The pictures of the front page, made from the results that ship with a checkpoint."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ncsn_core.book.animation import animated_png
from ncsn_core.book.style import mosaic
from ncsn_core.files import write_atomically
from ncsn_core.pretrained import Model

BUNDLE = "epsilon_2e-5"


def sample_sheet(images: Tensor, columns: int = 10, enlarge: int = 2) -> Image.Image:
    """The first samples in drawing order, `columns` × `columns` of them, on white."""
    sheet = (mosaic(images[: columns**2], columns) * 255).round().astype(np.uint8)
    return Image.fromarray(sheet.repeat(enlarge, 0).repeat(enlarge, 1))


def emerging(frames: Tensor, *, enlarge: int = 2) -> bytes:
    """An animated PNG of chains: uint8 frames [moments, chains, 1, height, width] as a square."""
    pictures = [(mosaic(frame) * 255).round().astype(np.uint8) for frame in frames]
    return animated_png(
        np.stack(pictures), duration_ms=90, hold_last_ms=2500, levels_of_grey=16, enlarge=enlarge
    )


def write(model: Model, folder: Path) -> list[Path]:
    """Write `NAME_samples.png` and `NAME_emerging.png` for a checkpoint; returns their paths."""
    results = model.bundle(BUNDLE).tensors("results")
    samples = folder / f"{model.name}_samples.png"
    animation = folder / f"{model.name}_emerging.png"
    sample_sheet(results["samples"]).save(samples, optimize=True)
    write_atomically(animation, emerging(results["frames"]))
    return [samples, animation]
