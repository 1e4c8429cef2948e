"""The pictures of the front page, from what ships and from the chapters themselves."""

import base64
import html
import io
from pathlib import Path

import numpy as np
import torch
from nbformat import NotebookNode
from PIL import Image

import ncsn_core.pretrained as pretrained
from ncsn_core.book import player
from ncsn_core.book.figures import mosaic
from ncsn_core.schedules import geometric_ladder

CHECKPOINT, BUNDLE = "mnist", "epsilon_2e-5"


def write(folder: Path) -> Path:
    """Write `mnist_samples.png`, the first hundred samples in drawing order; return its path."""
    path = folder / f"{CHECKPOINT}_samples.png"
    samples = pretrained.load(CHECKPOINT).bundle(BUNDLE).tensors("results")["samples"]
    sheet = (mosaic(samples[:100], 10) * 255).round().astype(np.uint8)
    Image.fromarray(sheet.repeat(2, 0).repeat(2, 1)).save(path, optimize=True)
    return path


def emerging() -> str:
    """Sixteen chains of Algorithm 1 behind a slider, in eight levels of gray, as HTML."""
    model = pretrained.load(CHECKPOINT)
    bundle, config = model.bundle(BUNDLE), model.config
    frames, steps = bundle.tensors("results")["frames"], bundle.metrics["steps_per_level"]
    sigmas = geometric_ladder(config["sigma_max"], config["sigma_min"], config["levels"])
    moments = torch.linspace(0, len(sigmas) * steps - 1, len(frames)).round().long()
    chosen = [*range(0, len(frames) - 1, 2), len(frames) - 1]
    return player.player_html(
        [np.rint(7 * mosaic(frames[i])) / 7 for i in chosen],
        [f"σ = {sigmas[t // steps]:.2g}, step {t + 1}" for t in moments[chosen].tolist()],
        name="Noise level",
        alt="Sixteen squares of static on their way to handwritten digits, at",
        interval_ms=150,
        hold_ms=2500,
        enlarge=3,
    )


def thumbnail(notebook: NotebookNode, name: str) -> str:
    """A figure of a notebook by its name, small, as an HTML image; empty where there is none."""
    drawn = {
        cell.metadata.get("mystnb", {}).get("figure", {}).get("name"): (cell.metadata, output)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }
    if name not in drawn:
        return ""
    metadata, output = drawn[name]
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as picture:
        small = picture.convert("RGBA")
    small.thumbnail((480, 360))
    file = io.BytesIO()
    small.quantize(64, Image.Quantize.FASTOCTREE).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    alt = html.escape(metadata.mystnb.image.alt)
    return f'<img class="ncsn-thumbnail" alt="{alt}" src="data:image/png;base64,{data}">'
