"""Images that people bring: folders, files of arrays, arrays and tensors, as one uint8 tensor."""

import hashlib
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from ncsn_core._types import Images
from ncsn_core.data.datasets import to_bytes
from ncsn_core.data.pixels import AnyImages, as_images, as_tensor, is_gray, understood
from ncsn_core.errors import CorruptFileError, MissingDataError, NCSNError

if TYPE_CHECKING:
    from PIL import Image

ARRAY_FILES = (".npz", ".npy", ".pt")
ARRAYS = ("images", "train_images", "x_train", "arr_0", "data", "x")
"""Names under which an .npz file of several arrays keeps its images, in the order of preference."""
NAMED = 5  # of the files that are left out
DEEP = "images of 16 bit scaled to 8"
LUMA = (0.299, 0.587, 0.114)  # of ITU-R 601, as in most programs


class _LeftOut(Exception):
    """Why a file is not among the images."""


@dataclass(frozen=True)
class OwnImages:
    """Images that somebody brought.

    Attributes:
        images: uint8 [count, channel, height, width].
        source: the path they came from; "own" when they have none.
        notes: what was done to them and what was left out, a line each.
    """

    images: Images
    source: str
    notes: tuple[str, ...] = ()

    def split(self) -> tuple[Images, UInt8[Tensor, "fewer channel height width"]]:
        """The images to train on, and those held out: a tenth of them and at least one.

        Held out are those with the smallest SHA-256 of their pixels, so that they are the same ones
        whatever the files are called and in whatever order they come.
        """
        return self.images[~self._held_out], self.images[self._held_out]

    @cached_property
    def _held_out(self) -> Tensor:
        """Mask of the images that are held out; several ask, and it takes a hash of every image."""
        digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in self.images]
        order = sorted(range(len(digests)), key=digests.__getitem__)
        out = torch.zeros(len(order), dtype=torch.bool)
        out[order[: max(1, len(order) // 10)]] = True
        return out


def read_images(
    source: str | Path | AnyImages,
    *,
    size: int | None = None,
    channels: int | None = None,
    fewest: int = 2,
) -> OwnImages:
    """Images of any source as one uint8 tensor, with what was done to them.

    A folder is read with those below it, in the order of the names, and photographs are turned as
    their camera says.  Palette, CMYK and 16-bit images become gray or RGB of 8 bit, and transparent
    pixels are laid on white.  Files that are hidden, broken, no images, or of several frames are
    left out, and named in the notes.

    Args:
        source: a folder of image files, one of them, or a list of their paths; an .npz, .npy or .pt
            file; or images by the rule of `ncsn_core.data.as_images`, 16 bit and transparent ones
            too.
        size: crop to the central square and scale that to so many pixels, averaging where it
            shrinks.  None keeps the images, if all have one shape.
        channels: 1 makes them gray, 3 RGB.  None: gray if all of them are, else RGB.
        fewest: how many there have to be.

    Raises:
        MissingDataError: when there is no such file or folder.
        CorruptFileError: when a file of arrays cannot be read.
        NCSNError: for fewer images, for several shapes and no `size`, or for pixels that use a
            small part of their range only, as those of 12 bit do in a file of 16.
        ValueError: for another `size` or `channels`, and as `ncsn_core.data.as_images`.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel; got {size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3; got {channels}")
    did: Counter[str] = Counter()
    name = str(Path(source)) if isinstance(source, (str, Path)) else "own"
    files = _files(source)
    missing: list[str] = []  # files that are no images, for the notes
    flat: list[str] = []  # why an array may hold more images than it seems
    if files is not None:
        parts, missing = _from_files(files, size, did)
    else:
        array = _load(Path(source)) if isinstance(source, (str, Path)) else as_tensor(source)
        parts = _from_arrays(array, size, did)
        if array.ndim == 2:
            flat = [f"shape {list(array.shape)} is one image: x.reshape(-1, 28, 28)"]
    if sum(map(len, parts)) < fewest:
        wanted = "two images" if fewest == 2 else f"{fewest} image{'s' * (fewest != 1)}"
        raise NCSNError(
            ". ".join([f"{name} holds fewer than {wanted} that can be read", *missing, *flat])
        )
    _check_depth(name, parts, did)
    gray = all(map(is_gray, parts)) if channels is None else channels == 1
    images = _joined([_to_gray(p, did) if gray else p.expand(-1, 3, -1, -1) for p in parts])
    notes = [f"{n:,} {what.replace('images', 'image', n == 1)}" for what, n in did.items()]
    return OwnImages(images, name, (*notes, *missing))


def _check_depth(name: str, parts: list[Tensor], did: Counter[str]) -> None:
    """Raise NCSNError where bytes or 16 bits hold numbers that use a small part of their range."""
    brightest = max(int(part.max()) for part in parts)
    if did[DEEP] == sum(map(len, parts)) and brightest <= 64:
        raise NCSNError(
            f"the images of 16 bit in {name} use less than a quarter of the range 0…65535, as 8, "
            f"12 or 14 bit in a wider file do: scale them to the whole of it first"
        )
    if brightest == 1:
        raise NCSNError(f"the pixels of {name} are only 0 and 1, two blacks: multiply them by 255")


def _joined(parts: list[Tensor]) -> Tensor:
    shapes = sorted({(p.shape[2], p.shape[3]) for p in parts})
    if len(shapes) > 1:
        (h, w), (height, width) = shapes[0], shapes[-1]
        raise NCSNError(
            f"the images have {len(shapes)} shapes, from {h} × {w} to {height} × {width} pixels: "
            f"choose one size for all, as in --size 32 or size=32"
        )
    return torch.cat(parts)


def _listed(left_out: list[tuple[str, str]]) -> str:
    named = ", ".join(f"{name} ({why})" for name, why in left_out[:NAMED])
    more = f" and {len(left_out) - NAMED:,} more" if len(left_out) > NAMED else ""
    return f"{len(left_out):,} file{'s' * (len(left_out) > 1)} left out: {named}{more}"


# --- from files ---------------------------------------------------------------------------------


def _files(source: object) -> dict[Path, Path] | None:
    """The image files of a source by the names to call them; None where it is no such thing."""
    if isinstance(source, (list, tuple)) and source and isinstance(source[0], (str, Path)):
        return {Path(one): Path(one) for one in source}
    if not isinstance(source, (str, Path)):
        return None
    path = Path(source)
    if path.is_dir():
        inside = sorted(path.rglob("*"))
        return {one.relative_to(path): one for one in inside if not one.is_dir()}
    known = path.suffix.lower() in ARRAY_FILES or not path.is_file()
    return None if known else {path: path}


def _from_files(
    files: dict[Path, Path], size: int | None, did: Counter[str]
) -> tuple[list[Tensor], list[str]]:
    """Every image, [1, channel, height, width]; a line on the files left out, if there are any."""
    parts, left_out = [], []
    for name, path in files.items():
        try:
            if any(part.startswith((".", "__MACOSX")) for part in name.parts if part != ".."):
                raise _LeftOut("hidden")
            done: Counter[str] = Counter()
            parts.append(_fitted(_read(path, done), size, done))
            did.update(done)
        except _LeftOut as why:
            left_out.append((str(name), str(why)))
    return parts, [_listed(left_out)] if left_out else []


def _read(path: Path, did: Counter[str]) -> Tensor:
    """An image file, uint8 [1, channel, height, width]."""
    image, deep = _decoded(path)
    if image.mode.startswith("I"):
        values = torch.from_numpy(np.array(image, dtype=np.int64))
        return _from_16_bit(values[None, None], did)
    if deep:
        did[DEEP] += 1
    if image.mode == "F":
        try:
            return to_bytes(as_images(np.array(image)))
        except ValueError as error:
            raise _LeftOut(str(error)) from error
    if image.mode.upper() in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return _on_white(_tensor(image.convert("RGBA")), did)
    if image.mode not in ("1", "L", "RGB"):
        did[f"images of mode {image.mode} converted to RGB"] += 1
    return _tensor(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _decoded(path: Path) -> tuple["Image.Image", bool]:
    """An image, turned as its camera says, and whether the file has 16 bits a color."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            # Telephones store a second view behind their photographs (MPO).
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            deep = any(";16" in str(tile) for tile in image.tile)
            turned = ImageOps.exif_transpose(image)
            turned.load()
    except UnidentifiedImageError as error:
        known = path.suffix.lower() in Image.registered_extensions()
        raise _LeftOut("cannot be read" if known else "no image") from error
    except Exception as error:  # whatever a damaged file makes a decoder say
        raise _LeftOut(f"cannot be read: {str(error)[:60] or type(error).__name__}") from error
    if frames > 1:
        raise _LeftOut("several frames")
    return turned, deep


def _tensor(image: "Image.Image") -> Tensor:
    """Bytes [1, channel, height, width]."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.reshape(1, image.height, image.width, -1).movedim(3, 1)


def _load(path: Path) -> Tensor | np.ndarray:
    """The array of a file."""
    if not path.exists():
        raise MissingDataError(
            f"there is no file or folder {path}. Name a folder of images, or a file "
            f"{', '.join(ARRAY_FILES)}"
        )
    if path.suffix.lower() not in ARRAY_FILES:
        raise NCSNError(
            f"{path} is one file, and images are a set: name a folder of image files, or a file of "
            f"arrays ({', '.join(ARRAY_FILES)})"
        )
    try:
        if path.suffix.lower() == ".pt":
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with path.open("rb") as file:
                found = np.load(file, allow_pickle=False)
                if not isinstance(found, np.ndarray):
                    found = {name: found[name] for name in _chosen(path, found.files)}
        if isinstance(found, dict):
            found = found[_chosen(path, list(found))[0]]
    except NCSNError:
        raise
    except Exception as error:
        raise CorruptFileError(
            f"{path} cannot be read as a file of numbers ({type(error).__name__}): it was cut "
            f"short, or holds something else. Save the images again, as one array"
        ) from error
    if not isinstance(found, (Tensor, np.ndarray)):
        raise CorruptFileError(
            f"{path} holds a {type(found).__name__}: save the images as one array"
        )
    return found


def _chosen(path: Path, names: list[str]) -> list[str]:
    """Which of several arrays the images are."""
    known = [name for name in ARRAYS if name in names] or (names if len(names) == 1 else [])
    if not known:
        raise NCSNError(
            f"{path} holds {', '.join(map(str, names)) or 'nothing'}: which are the images? "
            f"Call them {ARRAYS[0]!r}, or save them alone"
        )
    return known[:1]


# --- from numbers -------------------------------------------------------------------------------


def _from_arrays(images: AnyImages, size: int | None, did: Counter[str]) -> list[Tensor]:
    x = as_tensor(images).cpu()
    if x.dtype == torch.uint16 and x.numel() and int(x.long().max()) > 255:
        x = _from_16_bit(x.long(), did, count=len(x))
    x = to_bytes(understood(x))
    if x.shape[1] == 4:
        x = _on_white(x, did)
    return [_fitted(x, size, did)]


def _from_16_bit(x: Tensor, did: Counter[str], *, count: int = 1) -> Tensor:
    """0…65535 → uint8, rounded."""
    if int(x.min()) < 0 or int(x.max()) > 65535:
        raise _LeftOut("pixels of 32 bit")
    did[DEEP] += count
    return ((x + 128) // 257).to(torch.uint8)


def _on_white(x: Tensor, did: Counter[str]) -> Tensor:
    """RGBA [count, 4, height, width] → RGB, with white where it is transparent."""
    color, alpha = x[:, :3].float(), x[:, 3:].float() / 255
    through = int((alpha < 1).flatten(1).any(1).sum())
    if through:
        did["images with transparent pixels laid on white"] += through
    return (color * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def _fitted(x: Tensor, size: int | None, did: Counter[str]) -> Tensor:
    """The central square of images, scaled to size × size pixels."""
    height, width = x.shape[2:]
    if size is None or (height, width) == (size, size):
        return x
    side = min(height, width)
    if height != width:
        did["images cropped to their central square"] += len(x)
    if side < size:
        did[f"images enlarged to {size} × {size} pixels"] += len(x)
    top, left = (height - side) // 2, (width - side) // 2
    square = x[:, :, top : top + side, left : left + side]
    if side == size:
        return square
    chunks = [  # of bounded memory
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for part in square.split(256)
    ]
    return torch.cat(chunks)


def _to_gray(x: Tensor, did: Counter[str]) -> Tensor:
    if is_gray(x):
        return x[:, :1]
    did["colored images made gray"] += len(x)
    weights = torch.tensor(LUMA).reshape(1, 3, 1, 1)
    return (x.float() * weights).sum(1, keepdim=True).round().to(torch.uint8)
