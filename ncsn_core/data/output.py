"""Where drawn images go: a grid, single files, an array, a tensor; checked before the drawing."""

import io
import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core.data.datasets import to_bytes
from ncsn_core.errors import NCSNError, UnwritableError
from ncsn_core.files import write_atomically

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pdf")
ARRAYS = (".npz", ".npy", ".pt")


def check_destination(path: Path | str) -> None:
    """See that `write_images` will be able to write there, before hours are spent on the images.

    Raises:
        NCSNError: for an ending that is not known, or a folder that holds something.
        UnwritableError: where nothing can be written.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise NCSNError(f"{path} is a device and no file: name a file or a folder")
    if path.is_dir() and ending in PICTURES + ARRAYS:
        raise NCSNError(f"{path} is a folder: name a file, or a folder without such an ending")
    if path.is_dir() and any(path.iterdir()):
        raise NCSNError(f"the folder {path} holds something already: choose a new or an empty one")
    if ending not in ("", *PICTURES, *ARRAYS) and not path.is_dir():
        raise NCSNError(
            f"{path} has an ending that is not known: a grid in one picture ends in .png (or "
            f"{', '.join(PICTURES[1:])}), an array in .npz or .npy, a tensor in .pt; a name "
            f"without an ending is a folder of single pictures"
        )
    if not ending and path.is_file():
        raise NCSNError(f"{path} is a file: a name without an ending is a folder. Choose another")
    there = next(p for p in (path, *path.resolve().parents) if p.exists())
    if (not there.is_dir() and there != path) or not os.access(there, os.W_OK):
        raise UnwritableError(f"{path} cannot be written: {there} is no folder to write into")


def write_images(images: Float[Tensor, "count channel height width"], path: Path | str) -> None:
    """Write images with pixels around [0, 1]; what lies outside is clipped, as a screen would.

    The name says how.  Missing folders are made, and a file is replaced.

    - `.png` and other pictures: one grid, as nearly square as can be; gray stays gray.
    - no ending: a folder of single PNGs, `00000.png` and so on.
    - `.npz`, `.npy`: uint8 [count, height, width, channel], as the codes that compute published
      FIDs read them; in the `.npz` under the name `arr_0`.
    - `.pt`: the float32 [count, channel, height, width], not clipped, for `torch.load`.

    Raises:
        NCSNError, UnwritableError: as `check_destination`.
    """
    from torchvision.utils import make_grid

    path = Path(path)
    check_destination(path)
    ending, file = path.suffix.lower(), io.BytesIO()
    shown = to_bytes(images.nan_to_num()).cpu()
    if path.is_dir() or not ending:
        path.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(shown):
            write_atomically(path / f"{i:05d}.png", _picture(image, ".png"))
        return
    if ending == ".npz":
        np.savez_compressed(file, shown.movedim(1, -1).numpy())
    elif ending == ".npy":
        np.save(file, shown.movedim(1, -1).numpy())
    elif ending == ".pt":
        torch.save(images.cpu(), file)
    else:
        grid = make_grid(shown, nrow=round(len(shown) ** 0.5) or 1, padding=2, pad_value=255)
        file.write(_picture(grid[: shown.shape[1]], ending))
    write_atomically(path, file.getvalue())


def _picture(image: Tensor, ending: str) -> bytes:
    """An image [channel, height, width] of bytes in the format of a file's ending."""
    from PIL import Image
    from torchvision.transforms.functional import to_pil_image

    file = io.BytesIO()
    to_pil_image(image).save(file, Image.registered_extensions()[ending])
    return file.getvalue()
