"""The one rule for images of any origin: which ranges and shapes are understood, and which not.

Images are bytes 0…255, of any integer type, or floats in [0, 1].  A set has the shape [count,
channel, height, width] with 1 or 3 channels; [count, height, width, channel] with 1, 3 or 4 last
and [count, height, width] are understood, and so is a single image.  Tensors, NumPy arrays and
lists of equal images are.  What is plainly in another range, holds NaN or infinity, or could mean
two things is refused in a sentence that says how to convert it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ncsn_core._checks import check_unit_range

AnyImages = Tensor | np.ndarray | Sequence[Any]
"""Tensors, NumPy arrays, or a list of images of one shape."""

OPAQUE = 255
SHAPES = (
    "images have the shape [count, channel, height, width] with 1 or 3 channels, or "
    "[count, height, width, channel] with 1, 3 or 4 last"
)


def as_images(
    images: AnyImages, *, channels: int | None = None
) -> UInt8[Tensor, "count channel height width"] | Float[Tensor, "count channel height width"]:
    """Images of any origin as one tensor on their device: uint8, or float32 in [0, 1].

    Floats a little outside of [0, 1], as samples are that carry noise, are clipped as a screen
    would.  True and False are white and black.

    Args:
        images: bytes 0…255 of any integer type, or floats in [0, 1]; [count, channel, height,
            width], or another of the shapes of `ncsn_core.data.pixels`.
        channels: 1 or 3, as what they are for needs.  Gray becomes three equal channels, and three
            equal ones become gray.  None leaves them.

    Raises:
        ValueError: for another shape; whole numbers that are no bytes; floats that are plainly in
            another range, such as [−1, 1] or 0…255; NaN or infinity; transparent pixels; colors
            where gray is needed.
    """
    found = understood(images)
    if found.shape[1] == 4:
        opaque = OPAQUE if found.dtype == torch.uint8 else 1
        if not (found[:, 3] == opaque).all():
            raise ValueError(
                "some pixels are transparent (the fourth channel): lay the images on a background "
                "first, as ncsn_core.data.read_images does on white"
            )
        found = found[:, :3]
    return found if channels is None else _with_channels(found, channels)


def understood(images: AnyImages) -> Tensor:
    """As `as_images`, with a fourth channel where there is one."""
    return _in_range(_arranged(as_tensor(images)))


def as_tensor(images: AnyImages) -> Tensor:
    """Numbers of any origin as a tensor, without gradient, not yet looked at.

    Raises:
        ValueError: for what holds no numbers, or images of several shapes.
    """
    if isinstance(images, Tensor):
        return images.detach()
    try:
        if hasattr(images, "__array_interface__"):  # an array, or an image of Pillow's
            images = np.asarray(images)
        else:
            if any(isinstance(image, Tensor) for image in images):
                return torch.stack([torch.as_tensor(image).detach() for image in images])
            images = np.stack([np.asarray(image) for image in images])
        # In this machine's byte order, and a copy: torch does not share read-only memory.
        return torch.from_numpy(images.astype(images.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"these are no images ({str(error)[:120]}): give a tensor or a NumPy array of numbers, "
            f"or a list of images of one shape"
        ) from error


def _arranged(x: Tensor) -> Tensor:
    """[count, channel, height, width] with 1, 3 or 4 channels."""
    shape = list(x.shape)
    if x.ndim == 3 and shape[0] == 3 and shape[2] not in (1, 3, 4):
        raise ValueError(
            f"shape {shape} may be one color image or three gray ones: add the axis that is "
            f"missing, in front ([None]) or after the first ([:, None])"
        )
    if x.ndim == 3 and shape[0] == shape[1] != shape[2] and shape[0] > 4 and shape[2] > 4:
        raise ValueError(
            f"shape {shape} seems to have its count last: move it to the front, as in "
            f"np.moveaxis(x, -1, 0)"
        )
    if x.ndim == 2:
        x = x[None, None]
    elif x.ndim == 3:  # one image, its channels first or last, or gray ones
        one = shape[0] == 1 or shape[2] in (1, 3, 4)
        x = x[None] if one else x[:, None]
    if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3, 4):
        x = x.movedim(3, 1).contiguous()
    if x.ndim != 4 or x.shape[1] not in (1, 3, 4):
        raise ValueError(f"{SHAPES}; got {shape}")
    return x


def _in_range(x: Tensor) -> Tensor:
    """Uint8, or float32 in [0, 1]."""
    if not x.numel():
        return x.to(torch.uint8)
    if x.dtype == torch.bool:
        return x.to(torch.uint8) * 255
    if x.is_complex():
        raise ValueError(f"images are bytes or floats in [0, 1]; got {x.dtype}")
    if x.is_floating_point():
        check_unit_range(x)
        return x.float().clamp(0, 1)
    wide = x if x.dtype == torch.uint8 else x.long()  # torch knows few operations of uint16
    low, high = (int(bound) for bound in wide.aminmax())
    if low < 0 or high > 255:
        depth = "; 16 bit become 8 by // 257" if 255 < high <= 65535 and low >= 0 else ""
        raise ValueError(f"whole numbers are bytes, 0…255; got {low} to {high}{depth}")
    if (low, high) == (0, 1):
        raise ValueError(
            "whole numbers are bytes, 0…255, and these are only 0 and 1, two blacks: multiply them "
            "by 255, or make them floats"
        )
    return wide.to(torch.uint8)


def _with_channels(x: Tensor, channels: int) -> Tensor:
    """The images with 1 or 3 channels, where that changes nothing of what they show."""
    if channels not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels; {channels} were asked for")
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    if not is_gray(x):
        raise ValueError(
            "these images have colors, and gray ones are needed: "
            "ncsn_core.data.read_images(images, channels=1) makes them gray"
        )
    return x[:, :1]


def is_gray(x: Tensor) -> bool:
    """Whether images [count, channel, height, width] have one channel, or three equal ones."""
    return x.shape[1] == 1 or bool((x[:, :1] == x[:, 1:3]).all())
